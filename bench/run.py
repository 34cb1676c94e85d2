"""`make bench [only=NAME]`: figures beside raw ceilings, on private servers with fsync on. The names are below."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy" / "local"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

import append
import gateway
import gateway_conformance
import gateway_faults
import growth
import identity_figures
import latency
import library
import million
import notifications
import pipeline
import reads
import rebuild
import rules
import search_load
import transfers
import wealth_figures
import whole
from chassis.service import look_for_cycles_rarely
from report import Line, print_report
from rich.console import Console
from stack import Stack

Bench = Callable[[Stack], Awaitable[list[Line]]]

ALONE: dict[str, Callable[[], Coroutine[Any, Any, list[Line]]]] = {
    "conformance": gateway_conformance.measure,
    "notifier": notifications.measure_noise,
}
"""Without any servers of ours."""

ON_SERVERS: dict[str, Bench] = {
    "append": lambda stack: append.measure(stack.fresh_cell(), stack.data),
    "transfers": lambda stack: transfers.in_process(stack.fresh_cell()),
    "growth": lambda stack: growth.measure(stack.fresh_cell()),
    "library": lambda stack: library.measure(stack.fresh_cell()),
    "pipeline": lambda stack: pipeline.measure(stack.fresh_cell()),
    "rebuild": lambda stack: rebuild.measure(stack.fresh_cell()),
    "million": lambda stack: million.measure(stack.fresh_cell()),
    "rules": lambda stack: rules.measure(stack.fresh_cell()),
    "search": lambda stack: search_load.measure(stack.fresh_cell()),
    "wealth": lambda stack: wealth_figures.measure(stack.fresh_cell()),
    "gateway": lambda stack: gateway.measure(stack.fresh_cell(), stack.fresh_cell()),
    "notifier": lambda stack: notifications.measure(stack.fresh_cell()),
}
"""On PostgreSQL and RabbitMQ alone, each on a cell of its own."""

ON_PRODUCT: dict[str, Bench] = {
    "transfers_http": transfers.over_http,
    "latency": latency.measure,
    "reads": reads.measure,
    "whole": whole.measure,
    "gateway_faults": gateway_faults.measure,
    "notifier": notifications.measure_product,
    "identity": identity_figures.measure,
    "search": search_load.measure_product,
}
"""On the whole product, behind its origin."""


LONG = frozenset({"gateway_faults"})
"""Half an hour: only when it is named."""


async def _measure(stack: Stack, benches: list[Bench]) -> list[Line]:
    return [line for bench in benches for line in await bench(stack)]


def main() -> None:
    """Runs the benches named on the command line; by default all but the long ones."""
    names = dict.fromkeys([*ALONE, *ON_SERVERS, *ON_PRODUCT])
    only = set(sys.argv[1:]) or set(names) - LONG
    if unknown := only - set(names):
        raise SystemExit(f"unknown bench {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    console = Console()
    lines: list[Line] = []
    look_for_cycles_rarely()  # as every service does
    for name, bench in ALONE.items():
        if name in only:
            lines += asyncio.run(bench())
    with tempfile.TemporaryDirectory(prefix="sangam-bench-") as directory:
        if on_servers := [bench for name, bench in ON_SERVERS.items() if name in only]:
            console.print(f"PostgreSQL and RabbitMQ alone: {', '.join(name for name in ON_SERVERS if name in only)} …")
            with Stack(Path(directory, "servers"), applications=False, disposable=True) as stack:
                lines += uvloop.run(_measure(stack, on_servers))
        if on_product := [bench for name, bench in ON_PRODUCT.items() if name in only]:
            console.print(f"The whole product: {', '.join(name for name in ON_PRODUCT if name in only)} …")
            with Stack(Path(directory, "product"), disposable=True, requests_per_s=20_000) as stack:
                lines += uvloop.run(_measure(stack, on_product))
    console.print(f"{os.cpu_count()} cores; everything, the load included, runs on them.")
    print_report(lines)


if __name__ == "__main__":
    main()
