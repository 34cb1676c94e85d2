"""`sangam operations`: rebuilds and replays under way and past, and how to pause, resume and cancel them."""

from typing import Annotated, Any
from uuid import UUID

import typer

from events import pg
from events.cli import output
from events.cli.connection import (
    FOUND,
    SERVICES,
    EnvOption,
    JsonOption,
    OperatorOption,
    ReasonOption,
    StoreOption,
    acting,
    find_servers,
    opened,
    run,
    service_name,
)
from events.operations import OPEN

_COLUMNS = (
    "id, kind, consumer, operator, state, wish, position, up_to, applied, error, requested_at, started_at,"
    " heartbeat_at, finished_at"
)

IdArgument = Annotated[UUID, typer.Argument(metavar="OPERATION", help="Its id, from `operations list`.")]


def list_operations(
    service: Annotated[str | None, typer.Option("--service", metavar="S", help="Only this service's.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest N of each service.")] = 10,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """List rebuilds and replays, the newest last.

    Example: sangam operations list --service wealth
    """
    servers = find_servers(store, env)

    async def work() -> int:
        rows: list[dict[str, Any]] = []
        for each in SERVICES if service is None else (service_name(service),):
            async with opened(servers.database(each)) as database:
                if await database.fetchval("SELECT to_regclass('operation') IS NOT NULL"):
                    found = await database.fetch(
                        f"SELECT {_COLUMNS} FROM operation ORDER BY requested_at DESC LIMIT $1", limit
                    )
                    rows += [{**row, "id": str(row["id"])} for row in reversed(found)]
        if as_json:
            for row in rows:
                output.print_json(row)
            return 0
        shown = output.table("operation", "what", "consumer", "state", "done", "requested at", "by", "error")
        for row in rows:
            state = "paused" if row["state"] in OPEN and row["wish"] == "pause" else row["state"]
            done = f"{row['position']:,} of {row['up_to']:,}" if row["up_to"] else "–"
            shown.add_row(
                row["id"], row["kind"], row["consumer"], state, done, output.clock(row["requested_at"]),
                output.printable(row["operator"]), output.printable(row["error"] or ""),
            )  # fmt: skip
        output.stdout().print(shown if rows else "no service was ever asked for anything")
        return 0

    run(servers, work)


def _wish(
    wish: str,
    operation: UUID,
    operator: str | None,
    reason: str | None,
    servers_from: tuple[Any, Any],
    as_json: bool,
) -> None:
    servers = find_servers(*servers_from)

    async def work() -> int:
        for service in SERVICES:
            async with opened(servers.writable(service)) as database:
                row = await _find(database, operation)
                if row is None:
                    continue
                if row["state"] not in OPEN:
                    output.complain(f"operation {operation} has ended: {row['state']}")
                    return FOUND
                async with acting(
                    servers, f"operations {wish}", row["consumer"], operator=operator, reason=reason,
                    arguments={"operation": operation},
                ):  # fmt: skip
                    await database.execute(
                        "UPDATE operation SET wish = $2 WHERE id = $1", operation, "run" if wish == "resume" else wish
                    )
            if as_json:
                output.print_json({"operation": str(operation), "wish": wish})
            else:
                output.stdout().print(f"asked {row['consumer']} to {wish} {operation}", style="green")
            return 0
        output.complain(f"no service knows operation {operation}")
        return FOUND

    run(servers, work)


async def _find(database: pg.Session, operation: UUID) -> Any:
    if not await database.fetchval("SELECT to_regclass('operation') IS NOT NULL"):
        return None
    return await database.fetchrow("SELECT state, consumer FROM operation WHERE id = $1", operation)


def pause(
    operation: IdArgument,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a rebuild or replay stand still where it is. It holds no locks meanwhile.

    Example: sangam operations pause 019c0d7e-…
    """
    _wish("pause", operation, operator, reason, (store, env), as_json)


def resume(
    operation: IdArgument,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let it go on.

    Example: sangam operations resume 019c0d7e-…
    """
    _wish("resume", operation, operator, reason, (store, env), as_json)


def cancel(
    operation: IdArgument,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """End it. What a replay has applied stays; what a rebuild has built is dropped.

    Example: sangam operations cancel 019c0d7e-…
    """
    _wish("cancel", operation, operator, reason, (store, env), as_json)
