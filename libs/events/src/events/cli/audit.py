"""`sangam audit`: what operators did, from the log itself."""

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from events import pg
from events.cli import arguments, output
from events.cli.connection import EnvOption, JsonOption, StoreOption, find_servers, opened, run
from events.cli.reading import event_of
from events.contracts.operations import ActBegun, ActFinished
from events.schema import OPERATIONS

_QUERY = (
    "SELECT 0::bigint AS position, e.* FROM store.events e"
    # A range that the index on (stream, version) serves: '.' is the character after '-'.
    " WHERE e.stream >= $1 || '-' AND e.stream < $1 || '.' AND e.recorded_at >= $2"
    " ORDER BY e.id DESC LIMIT $3"
)


def audit(
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From then on: 7d, 2026-02-12T09:00:00Z.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest N acts.")] = 50,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what operators did with `sangam`: who, when, to what, why, and how it ended.

    Acts are events of the log (streams `operation-…`), so the hash chain covers them: nobody can take one back.

    Example: sangam audit --since 7d
    """
    servers = find_servers(store, env)
    start = arguments.since(since, datetime.now(UTC)) if since is not None else datetime.min.replace(tzinfo=UTC)
    if isinstance(start, int):
        raise typer.BadParameter("--since: a time or an age, such as 7d")

    async def work() -> int:
        async with opened(servers.store) as session:
            acts = await _acts(session, start, limit)
        if as_json:
            for act in acts:
                output.print_json(act)
            return 0
        shown = output.table("at", "who", "act", "to", "outcome", "why / details")
        for act in acts:
            said = {**act["arguments"], **act["detail"]}
            details = ", ".join(f"{name}={value}" for name, value in said.items())
            why = f"{act['reason']}; {details}" if act["reason"] and details else act["reason"] or details
            shown.add_row(
                output.clock(act["at"]),
                *(output.printable(str(act[column])) for column in ("operator", "act", "target", "outcome")),
                output.printable(why),
                style="red" if act["outcome"] == "failed" else None,
            )
        output.stdout().print(shown if acts else "no operator has done anything")
        return 0

    run(servers, work)


async def _acts(session: pg.Session, start: datetime, limit: int) -> list[dict[str, Any]]:
    """The newest acts, oldest of them first; one that never ended has the outcome `unknown`."""
    rows = await session.fetch(_QUERY, OPERATIONS, start, limit * 2)
    acts: dict[str, dict[str, Any]] = {}
    for row in reversed(rows):
        event = event_of(row)
        payload = event.payload
        if isinstance(payload, ActBegun):
            acts[event.stream] = {
                "id": event.event_id,
                "at": event.recorded_at,
                **msgspec.structs.asdict(payload),
                "outcome": "unknown",
                "detail": {},
                "finished_at": None,
            }
        elif isinstance(payload, ActFinished) and event.stream in acts:
            acts[event.stream] |= {
                "outcome": payload.outcome,
                "detail": payload.detail,
                "finished_at": event.recorded_at,
            }
    return list(acts.values())[-limit:]
