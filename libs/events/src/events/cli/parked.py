"""`sangam parked`: what consumers could not apply, and why."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from events.cli import output
from events.cli.connection import (
    CANNOT_CONNECT,
    FOUND,
    SERVICES,
    EnvOption,
    JsonOption,
    Servers,
    StoreOption,
    find_servers,
    opened,
    run,
    service_name,
    why_unreachable,
)
from events.cli.reading import event_of, read_one

_COLUMNS = "consumer, position, stream, event_id, type, reason, error, parked_at"


def list_parked(
    service: Annotated[str | None, typer.Option("--service", metavar="S", help="Only this service's.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="At most so many of each service, oldest first.")
    ] = 100,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """List parked events. One that failed has an error; those behind it on its stream wait, reason `behind`.

    Example: sangam parked list --service ledger-transfer
    """
    servers = find_servers(store, env)
    services = SERVICES if service is None else (service_name(service),)

    async def work() -> int:
        rows: list[dict[str, Any]] = []
        more: dict[str, int] = {}
        unreachable = False
        for each in services:
            try:
                found, count = await _parked(servers, each, limit)
            except Exception as error:
                reason = why_unreachable(error)
                if reason is None:
                    raise
                output.complain(f"{each}: {reason}")
                unreachable = True
                continue
            rows += found
            if count > len(found):
                more[each] = count - len(found)
        _print_list(rows, as_json)
        for each, count in more.items():
            output.complain(f"{each}: {count:,} more; --limit shows them")
        return CANNOT_CONNECT if unreachable else 0

    run(servers, work)


def show_parked(
    service: Annotated[str, typer.Argument(metavar="SERVICE")],
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="`projections`, or in full.")],
    position: Annotated[int, typer.Argument(metavar="POSITION", min=1)],
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one parked event with the error that parked it. Exit code 1 if it is not parked.

    Example: sangam parked show ledger-transfer reactions 1200
    """
    servers = find_servers(store, env)
    service = service_name(service)
    name = consumer if "." in consumer else f"{service}.{consumer}"

    async def work() -> int:
        async with opened(servers.database(service)) as database:
            row = None
            if await database.fetchval("SELECT to_regclass('parked') IS NOT NULL"):
                row = await database.fetchrow(
                    f"SELECT {_COLUMNS} FROM parked WHERE consumer = $1 AND position = $2", name, position
                )
            if row is None:
                output.complain(f"{name} has not parked position {position}")
                return FOUND
            blocking = await database.fetchval(
                "SELECT min(position) FROM parked WHERE consumer = $1 AND stream = $2", name, row["stream"]
            )
            behind = await database.fetchval(
                "SELECT count(*) FROM parked WHERE consumer = $1 AND stream = $2 AND position > $3",
                name,
                row["stream"],
                position,
            )
        async with opened(servers.store) as session:
            found = await read_one(session, position)
        event = event_of(found) if found is not None else None
        if as_json:
            output.print_json(
                {
                    "service": service,
                    **row,
                    "event_id": str(row["event_id"]),
                    "first_of_stream": blocking,
                    "behind_it": behind,
                    "event": output.cloud_event(event) if event is not None else None,
                }
            )
            return 0
        facts = {
            "consumer": name,
            "position": f"{position:,}",
            "stream": row["stream"],
            "reason": _reason(row["reason"], position, blocking),
            "parked": output.clock(row["parked_at"]),
            "behind it": f"{behind:,} later events of the stream wait",
            "error": row["error"] or "none of its own",
        }
        out = output.stdout()
        for fact, value in facts.items():
            out.print(
                Text(f"{fact:<10}", style="bold").append(output.printable(value), style="not bold"), soft_wrap=True
            )
        out.print()
        if event is None:
            out.print(f"the log has no position {position} any more", style="red")
        else:
            out.print(output.event_line(event), soft_wrap=True)
        return 0

    run(servers, work)


async def _parked(servers: Servers, service: str, limit: int) -> tuple[list[dict[str, Any]], int]:
    """The oldest of the service's parked events, and how many there are."""
    async with opened(servers.database(service)) as database:
        if not await database.fetchval("SELECT to_regclass('parked') IS NOT NULL"):
            return [], 0
        count = await database.fetchval("SELECT count(*) FROM parked")
        rows = await database.fetch(f"SELECT {_COLUMNS} FROM parked ORDER BY consumer, position LIMIT $1", limit)
    return [{"service": service, **row, "event_id": str(row["event_id"])} for row in rows], count


def _print_list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            output.print_json(row)
        return
    out = output.stdout()
    if not rows:
        out.print("nothing is parked", style="green")
        return
    shown = output.table("consumer", "position", "parked at", "type", "stream", "reason", "error", right=("position",))
    for row in rows:
        parked_at: datetime = row["parked_at"]
        shown.add_row(
            output.printable(row["consumer"]),
            str(row["position"]),
            output.clock(parked_at),
            output.type_text(row["type"]),
            output.printable(row["stream"]),
            row["reason"],
            output.printable(row["error"] or ""),
        )
    out.print(shown)


def _reason(reason: str, position: int, blocking: int) -> str:
    explained = {
        "failed": "failed: the consumer could not apply it",
        "unknown_contract": "unknown_contract: of a type or schema version that this consumer does not know",
        "behind": "behind: an earlier event of its stream is parked",
    }
    return explained.get(reason, reason) + (f", position {blocking}" if blocking != position else "")
