"""Waiting for an operation that a service does: a progress bar with rate and time left, then the outcome."""

import asyncio
import time
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from events import pg
from events.cli import output
from events.cli.connection import FOUND
from events.operations import ENDED

_POLL_S = 0.2
_UNHEARD_S = 20.0


async def follow(database: pg.Session, operation_id: UUID, *, quiet: bool) -> asyncpg.Record | None:
    """The row once the operation has ended; None if no service has taken it up."""
    err = output.stderr()
    asked_at_s = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=quiet or not err.is_terminal,
    ) as progress:
        bar = progress.add_task("waiting", total=None, rate="")
        while True:
            row = await database.fetchrow("SELECT * FROM operation WHERE id = $1", operation_id)
            assert row is not None, "operations are kept"
            if row["state"] in ENDED:
                return row
            if row["state"] == "requested" and time.monotonic() - asked_at_s > _UNHEARD_S:
                return None
            if row["started_at"] is not None and row["up_to"]:
                taken_s = max((row["heartbeat_at"] - row["started_at"]).total_seconds(), 0.001)
                progress.update(
                    bar,
                    description="paused" if row["wish"] == "pause" else row["kind"],
                    total=row["up_to"],
                    completed=row["position"],
                    rate=f"{row['applied'] / taken_s:,.0f} events/s",
                )
            await asyncio.sleep(_POLL_S)


async def outcome(database: pg.Session, operation_id: UUID, *, wait: bool, as_json: bool) -> dict[str, Any] | None:
    """Waits, tells what went wrong, and gives the result; None if there is none to go on with."""
    if not wait:
        if as_json:
            output.print_json({"operation": str(operation_id), "state": "requested"})
        else:
            output.stdout().print(
                f"operation {operation_id}: the service does it; sangam operations list", soft_wrap=True
            )
        return None
    row = await follow(database, operation_id, quiet=as_json)
    if row is None:
        output.complain(
            f"no service has taken up operation {operation_id} yet; it will when it runs. Does it? (sangam lag)"
        )
        raise typer.Exit(FOUND)
    result: dict[str, Any] = msgspec.json.decode(row["result"]) if row["result"] else {}
    taken_s = (row["finished_at"] - row["started_at"]).total_seconds()
    told = {
        "operation": str(operation_id),
        "state": row["state"],
        "error": row["error"],
        "seconds": taken_s,
        "applied": row["applied"],
        **result,
    }
    if row["state"] != "done":
        if as_json:
            output.print_json(told)
        output.complain(f"{row['kind']} {row['state']}" + (f": {row['error']}" if row["error"] else ""))
        raise typer.Exit(FOUND)
    return told
