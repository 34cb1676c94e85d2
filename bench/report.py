"""How figures are taken and printed: several rounds, median and range, beside the raw ceiling of the same run."""

import statistics
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROUNDS = 3


class Figure(NamedTuple):
    """A rate (per second) or a latency (ms), measured `len(rounds)` times."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        return f"{self.median:,.2f} ({min(self.rounds):,.2f}–{max(self.rounds):,.2f})"


class Line(NamedTuple):
    """One row of the report."""

    what: str
    ours: Figure
    unit: str
    reference: str
    raw: Figure | None
    bar: str

    @property
    def ratio(self) -> str:
        return f"{self.ours.median / self.raw.median:.2f}×" if self.raw else ""


async def rate(count: int, action: Callable[[], Awaitable[None]], rounds: int = ROUNDS) -> Figure:
    """`count` things per call of `action`, per second."""
    taken = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        await action()
        taken.append(count / (time.perf_counter() - started_s))
    return Figure(taken)


async def latency_ms(calls: int, action: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> Figure:
    """The median latency of `action`, called one after the other, per round."""
    medians = []
    for _ in range(rounds):
        times = []
        for _ in range(calls):
            started_s = time.perf_counter()
            await action()
            times.append((time.perf_counter() - started_s) * 1000)
        medians.append(statistics.median(times))
    return Figure(medians)


def quantile(values: list[float], q: float) -> float:
    """The value below which the share `q` of `values` lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def print_report(lines: list[Line]) -> None:
    """Prints the table; medians with the range over the rounds."""
    table = Table(title="Sangam bench: median (min–max) beside the raw ceiling of the same run")
    for column in ("what", "ours", "unit", "raw ceiling", "raw", "ratio", "bar"):
        table.add_column(column, justify="left" if column in ("what", "raw ceiling", "unit", "bar") else "right")
    for line in lines:
        table.add_row(
            line.what, str(line.ours), line.unit, line.reference, str(line.raw or "—"), line.ratio or "—", line.bar
        )
    console = Console()
    Console(width=max(console.width, 190)).print(table)
