"""`make bench [only=append|pipeline|latency|wealth]`: figures beside raw ceilings, on private servers with fsync on."""

import os
import sys
import tempfile
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy" / "local"))

import append
import latency
import pipeline
import wealth_figures
from report import Line, print_report
from rich.console import Console
from stack import Stack

BENCHES = ("append", "pipeline", "latency", "wealth")


async def _infrastructure_lines(stack: Stack, only: set[str]) -> list[Line]:
    lines: list[Line] = []
    if "append" in only:
        lines += await append.measure(stack.fresh_cell(), stack.data)
    if "pipeline" in only:
        lines += await pipeline.measure(stack.fresh_cell())
    if "wealth" in only:
        lines += await wealth_figures.measure(stack.fresh_cell())
    return lines


def main() -> None:
    """Runs the benches named on the command line, all by default."""
    only = set(sys.argv[1:]) or set(BENCHES)
    if unknown := only - set(BENCHES):
        raise SystemExit(f"unknown bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    console = Console()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="sangam-bench-") as directory:
        if only & {"append", "pipeline", "wealth"}:
            console.print("PostgreSQL and RabbitMQ alone: append, relay, consume, figures …")
            with Stack(Path(directory, "servers"), applications=False, disposable=True) as stack:
                lines += uvloop.run(_infrastructure_lines(stack, only))
        if "latency" in only:
            console.print("The whole product: HTTP to WebSocket …")
            with Stack(Path(directory, "product"), disposable=True, requests_per_s=20_000) as stack:
                lines += uvloop.run(latency.measure(stack))
    console.print(f"{os.cpu_count()} cores; everything, the load included, runs on them.")
    print_report(lines)


if __name__ == "__main__":
    main()
