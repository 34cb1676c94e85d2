"""`sangam lag`: who is behind the log, how far and for how long."""

import asyncio
from typing import Annotated, Any

import typer

from events import pg, wire
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

_PUBLISHERS = (wire.LOG_EXCHANGE, wire.EVENTS_EXCHANGE)


def lag(
    service: Annotated[
        str | None, typer.Option("--service", metavar="S", help="Only this service's consumers.")
    ] = None,
    at_most: Annotated[
        int | None,
        typer.Option("--max", metavar="N", min=0, help="Exit code 1 if anyone is more than N positions behind."),
    ] = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show for every consumer its position, how far it is behind, and how many events it has parked; so for the relay.

    Seconds are the age of the oldest event that is not applied (published) yet.

    Example: sangam lag --max 1000 || echo somebody is stuck
    """
    servers = find_servers(store, env)
    services = SERVICES if service is None else (service_name(service),)

    async def work() -> int:
        figures = await _figures(servers, services)
        if as_json:
            output.print_json(figures)
        else:
            _print(figures)
        for error in figures["errors"]:
            output.complain(f"{error['service']}: {error['error']}")
        if figures["errors"]:
            return CANNOT_CONNECT
        everyone = [*figures["consumers"], *figures["publishers"]]
        behind = at_most is not None and any(each["lag"] > at_most for each in everyone)
        return FOUND if behind else 0

    run(servers, work)


async def _figures(servers: Servers, services: tuple[str, ...]) -> dict[str, Any]:
    errors: list[dict[str, str]] = []
    idle: list[str] = []
    consumers: list[dict[str, Any]] = []

    async def look_into(service: str) -> None:
        try:
            async with opened(servers.database(service)) as database:
                found = await _consumers(database, service)
        except typer.BadParameter:
            raise
        except Exception as error:
            reason = why_unreachable(error)
            if reason is None:
                raise
            errors.append({"service": service, "error": reason})
            return
        consumers.extend(found)
        if not found:
            idle.append(service)

    async with opened(servers.store) as store:
        # Positions first, then the head: the other way round somebody could be ahead of it.
        checkpoints = await store.fetch("SELECT publisher, position FROM store.checkpoints")
        await asyncio.gather(*map(look_into, services))
        saved = {row["publisher"]: row["position"] for row in checkpoints}
        publishers: list[dict[str, Any]] = [
            {"publisher": name, "position": saved.get(name, 0)} for name in sorted({*_PUBLISHERS, *saved})
        ]
        consumers.sort(key=lambda each: (services.index(each["service"]), each["consumer"]))
        log = await _add_lag(store, [*consumers, *publishers])
    for consumer in consumers:
        consumer["other_epoch"] = consumer.pop("epoch") not in (None, log["epoch"])
    return {
        **log,
        "consumers": consumers,
        "publishers": publishers,
        "idle_services": sorted(idle),
        "errors": sorted(errors, key=lambda each: each["service"]),
    }


async def _consumers(database: pg.Session, service: str) -> list[dict[str, Any]]:
    """The consumers that have ever run; none before the service's first start."""
    if not await database.fetchval("SELECT to_regclass('consumed') IS NOT NULL AND to_regclass('parked') IS NOT NULL"):
        return []
    rows = await database.fetch(
        "SELECT c.consumer, c.position, c.epoch::text, count(p.position) AS parked,"
        " count(DISTINCT p.stream) AS parked_streams"
        " FROM consumed c LEFT JOIN parked p ON p.consumer = c.consumer GROUP BY c.consumer"
    )
    return [{"service": service, **row} for row in rows]


async def _add_lag(store: pg.Session, everyone: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds `lag` and `lag_s` to each position; gives the log's own figures."""
    log = await store.fetchrow(
        "SELECT s.epoch::text, (SELECT coalesce(max(position), 0) FROM store.log) AS head,"
        " (SELECT count(*) FROM store.pending) AS pending,"
        " (SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::float8"
        "  FROM (SELECT id FROM store.pending ORDER BY id LIMIT 1) p JOIN store.events e ON e.id = p.id)"
        " AS oldest_pending_s FROM store.store s"
    )
    assert log is not None
    ages = await store.fetch(
        "SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::float8 AS age"
        " FROM unnest($1::bigint[]) WITH ORDINALITY AS p(position, n)"
        " LEFT JOIN store.log l ON l.position = p.position + 1 AND l.position <= $2"
        " LEFT JOIN store.events e ON e.id = l.id ORDER BY p.n",
        [each["position"] for each in everyone],
        log["head"],
    )
    for each, row in zip(everyone, ages, strict=True):
        each["lag"] = log["head"] - each["position"]
        each["lag_s"] = max(row["age"], 0.0) if row["age"] is not None else 0.0
    return dict(log)


def _print(figures: dict[str, Any]) -> None:
    out = output.stdout()
    waiting = f", the oldest for {output.span(figures['oldest_pending_s'])}" if figures["pending"] else ""
    out.print(f"log head {figures['head']:,}   waiting for the relay {figures['pending']:,}{waiting}\n")
    numbers = ("position", "behind", "for", "parked")
    shown = output.table("relay to", "position", "behind", "for", right=numbers)
    for publisher in figures["publishers"]:
        shown.add_row(publisher["publisher"], *_columns(publisher))
    out.print(shown)
    out.print()
    shown = output.table("consumer", *numbers, "", right=numbers)
    for consumer in figures["consumers"]:
        notes = []
        if consumer["other_epoch"]:
            notes.append("stands in another epoch: the store was restored")
        if consumer["parked"]:
            notes.append(f"streams parked: {consumer['parked_streams']} (sangam parked list)")
        shown.add_row(
            output.printable(consumer["consumer"]),
            *_columns(consumer),
            f"{consumer['parked']:,}",
            "; ".join(notes),
            style="yellow" if notes else None,
        )
    out.print(shown)
    for service in figures["idle_services"]:
        out.print(f"{service}: no consumer has ever run", style="dim")


def _columns(each: dict[str, Any]) -> tuple[str, str, str]:
    return f"{each['position']:,}", f"{each['lag']:,}", output.span(each["lag_s"]) if each["lag"] > 0 else "–"
