"""`sangam events stats`: how much of what."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from events import pg
from events.cli import arguments, output
from events.cli.connection import EnvOption, JsonOption, StoreOption, find_servers, opened, run
from events.cli.reading import position_before

_ALL = "all"


def stats(
    window: Annotated[
        str,
        typer.Option("--window", metavar="LENGTH", help="Count what was recorded in the last 15m, 1h, 7d … or all."),
    ] = "1h",
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count events and their rate by type and by publisher, with the log's head and what still waits for the relay.

    Example: sangam events stats --window 15m
    """
    servers = find_servers(store, env)
    length = None if window == _ALL else arguments.duration(window)

    async def work() -> int:
        async with opened(servers.store) as session:
            start = (
                None if length is None else await session.fetchval("SELECT clock_timestamp() - $1::interval", length)
            )
            figures = await _figures(session, start)
        if as_json:
            output.print_json(figures)
        else:
            _print(figures, window)
        return 0

    run(servers, work)


async def _figures(store: pg.Session, start: datetime | None) -> dict[str, Any]:
    after = 0 if start is None else await position_before(store, start)
    rows = await store.fetch(
        "SELECT e.type, count(*) AS events, min(e.recorded_at) AS first"
        " FROM store.log l JOIN store.events e ON e.id = l.id"
        " WHERE l.position > $1 AND ($2::timestamptz IS NULL OR e.recorded_at >= $2) GROUP BY e.type"
        " ORDER BY events DESC, e.type",
        after,
        start,
    )
    log = await store.fetchrow(
        "SELECT s.epoch, coalesce(l.position, 0) AS head, coalesce(l.chain_hash, store.genesis()) AS chain_hash,"
        " (SELECT count(*) FROM store.pending) AS pending, clock_timestamp() AS now,"
        " (SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::float8"
        "  FROM (SELECT id FROM store.pending ORDER BY id LIMIT 1) p JOIN store.events e ON e.id = p.id) AS oldest_s"
        " FROM store.store s LEFT JOIN (SELECT * FROM store.log ORDER BY position DESC LIMIT 1) l ON true"
    )
    assert log is not None
    begin = start if start is not None else min((row["first"] for row in rows), default=log["now"])
    seconds = max((log["now"] - begin).total_seconds(), 0.001)
    contexts: dict[str, int] = defaultdict(int)
    for row in rows:
        contexts[row["type"].split(".", 1)[0]] += row["events"]
    total = sum(contexts.values())

    def rates(counts: dict[str, int]) -> dict[str, dict[str, float]]:
        return {name: {"events": count, "per_s": round(count / seconds, 4)} for name, count in counts.items()}

    return {
        "head": log["head"],
        "epoch": str(log["epoch"]),
        "chain_hash": log["chain_hash"].hex(),
        "pending": log["pending"],
        "oldest_pending_s": log["oldest_s"],
        "window": {"from": begin.astimezone(UTC), "seconds": round(seconds, 3), "events": total}
        | {"per_s": round(total / seconds, 4)},
        "types": rates({row["type"]: row["events"] for row in rows}),
        "contexts": rates(dict(sorted(contexts.items(), key=lambda item: -item[1]))),
    }


def _print(figures: dict[str, Any], window: str) -> None:
    out = output.stdout()
    waiting = f", the oldest for {output.span(figures['oldest_pending_s'])}" if figures["pending"] else ""
    out.print(
        f"head {figures['head']:,}   epoch {figures['epoch']}   waiting for the relay {figures['pending']:,}{waiting}"
    )
    out.print(f"chain {figures['chain_hash']}", soft_wrap=True, style="dim")
    period = "since the first event" if window == _ALL else f"in the last {window}"
    out.print(f"{figures['window']['events']:,} events {period}, {figures['window']['per_s']:,.2f}/s\n")
    for heading, key in (("publisher", "contexts"), ("type", "types")):
        shown = output.table(heading, "events", "per s", right=("events", "per s"))
        for name, figure in figures[key].items():
            shown.add_row(output.type_text(name), f"{figure['events']:,}", f"{figure['per_s']:,.2f}")
        if figures[key]:
            out.print(shown)
            out.print()
