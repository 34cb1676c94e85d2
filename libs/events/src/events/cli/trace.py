"""`sangam trace`: one request through all services, told from the log."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
import typer
from rich.text import Text
from rich.tree import Tree

from events import pg
from events.cli import output
from events.cli.connection import (
    FOUND,
    SERVICES,
    EnvOption,
    JsonOption,
    Servers,
    StoreOption,
    find_servers,
    opened,
    run,
    run_directory,
)
from events.cli.reading import Filter, event_of, head_position, read_range
from events.cli.tree import Node, family_of
from events.envelope import RecordedEvent

_BAR = 32
_EVENTS_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Request:
    """One line `request` in a service's log."""

    service: str
    method: str
    route: str
    status: int
    began_at: datetime
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Somebody who follows the log: a consumer, or the relay towards an exchange."""

    name: str
    position: int


def trace(
    correlation: Annotated[str, typer.Argument(metavar="CORRELATION_ID", help="An answer's `X-Request-Id`.")],
    horizon: Annotated[
        int, typer.Option("--horizon", min=1, help="How many positions back from the log's end to look.")
    ] = 100_000,
    logs: Annotated[
        Path | None,
        typer.Option(
            "--logs",
            metavar="DIR",
            help="Services' logs, for when HTTP accepted and answered. Default: .run/logs here or above.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw one request: HTTP, what it appended, what services appended because of it, and who has consumed it.

    Times are those of the log (the database's clock) and of the services' logs. When a consumer applied an event is not
    in the log, only whether it has; what it appended then shows when. Exit code 1 if there is nothing of this request.

    Example: sangam trace 0199e1c2-7a4e-7c3e-b0b5-3f1d7f5a2c11
    """
    servers = find_servers(store, env)
    directory = logs or ((run_directory() or Path()) / "logs")

    async def work() -> int:
        async with opened(servers.store) as session:
            head = await head_position(session)
            wanted = Filter(correlation_id=correlation)
            rows = await read_range(session, wanted, max(head - horizon, 0), head, limit=_EVENTS_MAX)
            found = [event for event in map(event_of, rows) if wanted.matches(event)]
            roots = await _roots(session, found, head, horizon)
            publishers = await session.fetch("SELECT publisher, position FROM store.checkpoints ORDER BY publisher")
        requests = sorted(_requests(directory, correlation), key=lambda each: each.began_at)
        if not roots and not requests:
            output.complain(
                f"nothing of {correlation} among the last {min(horizon, head):,} events; --horizon looks further"
            )
            return FOUND
        relays = [Reader(name=row["publisher"], position=row["position"]) for row in publishers]
        consumers = await _consumers(servers)
        if as_json:
            output.print_json(_document(correlation, requests, roots, relays, consumers))
        else:
            _draw(correlation, requests, roots, relays, consumers)
        return 0

    run(servers, work)


async def _roots(store: pg.Session, found: list[RecordedEvent], head: int, horizon: int) -> list[Node]:
    """The request's events as trees of what they caused; one that another one caused hangs under it."""
    roots: list[Node] = []
    known: set[UUID] = set()
    for event in found:
        if event.event_id in known:
            continue
        family = await family_of(store, event, head, horizon)
        node = next(node for node, _ in _walk([family.root]) if node.event.event_id == event.event_id)
        known |= {each.event.event_id for each, _ in _walk([node])}
        roots.append(node)
    return roots


def _walk(nodes: list[Node], depth: int = 0) -> Iterator[tuple[Node, int]]:
    for node in nodes:
        yield node, depth
        yield from _walk(node.consequences, depth + 1)


def _requests(directory: Path, correlation: str) -> Iterator[Request]:
    mark = msgspec.json.encode(correlation)
    for path in sorted(directory.glob("*.log*")):
        with path.open("rb") as lines:
            for line in lines:
                if mark not in line:
                    continue
                try:
                    said = msgspec.json.decode(line)
                    if said.get("event") == "request" and said.get("correlation_id") == correlation:
                        ended_at = datetime.fromisoformat(said["timestamp"])
                        duration_s = said["duration_ms"] / 1000
                        yield Request(
                            service=said["service"],
                            method=said["method"],
                            route=said["route"],
                            status=said["status"],
                            began_at=ended_at - timedelta(seconds=duration_s),
                            duration_s=duration_s,
                        )
                except (msgspec.DecodeError, KeyError, ValueError, AttributeError):
                    continue  # a line of another program that happens to hold the id


async def _consumers(servers: Servers) -> list[Reader]:
    readers: list[Reader] = []
    for service in SERVICES:
        try:
            async with opened(servers.database(service)) as database:
                rows = await database.fetch("SELECT consumer, position FROM consumed ORDER BY consumer")
        except (asyncpg.UndefinedTableError, asyncpg.InvalidCatalogNameError):
            continue  # it has never run
        readers += [Reader(name=row["consumer"], position=row["position"]) for row in rows]
    return readers


def _began(requests: list[Request], roots: list[Node]) -> datetime:
    return min([each.began_at for each in requests] + [node.event.recorded_at for node in roots])


def _last_position(roots: list[Node]) -> int:
    return max((node.event.position for node, _ in _walk(roots)), default=0)


def _document(
    correlation: str, requests: list[Request], roots: list[Node], relays: list[Reader], consumers: list[Reader]
) -> dict[str, Any]:
    began = _began(requests, roots)

    def after_ms(moment: datetime) -> float:
        return round((moment - began).total_seconds() * 1000, 3)

    last = _last_position(roots)
    return {
        "correlation_id": correlation,
        "began_at": began,
        "requests": [
            {
                "service": each.service,
                "method": each.method,
                "route": each.route,
                "status": each.status,
                "after_ms": after_ms(each.began_at),
                "duration_ms": round(each.duration_s * 1000, 3),
            }
            for each in requests
        ],
        "events": [
            {
                "event_id": node.event.event_id,
                "type": node.event.type,
                "stream": node.event.stream,
                "version": node.event.version,
                "position": node.event.position or None,
                "caused_by": node.event.metadata.causation_id,
                "depth": depth,
                "after_ms": after_ms(node.event.recorded_at),
            }
            for node, depth in _walk(roots)
        ],
        "published": {each.name: each.position >= last for each in relays},
        "consumed": {each.name: each.position >= last for each in consumers},
    }


def _draw(
    correlation: str, requests: list[Request], roots: list[Node], relays: list[Reader], consumers: list[Reader]
) -> None:
    out = output.stdout()
    began = _began(requests, roots)
    ends = [each.began_at + timedelta(seconds=each.duration_s) for each in requests]
    ended = max(ends + [node.event.recorded_at for node, _ in _walk(roots)])
    whole_s = max((ended - began).total_seconds(), 0.001)

    def line(moment: datetime, lasted_s: float, what: Text) -> Text:
        start_s = (moment - began).total_seconds()
        first = min(int(start_s / whole_s * _BAR), _BAR - 1)
        width = max(1, min(round(lasted_s / whole_s * _BAR), _BAR - first))
        bar = " " * first + ("━" * width if lasted_s else "●") + " " * (_BAR - first - width)
        text = Text(f"{start_s * 1000:+9.1f} ms ", style="bold").append(bar, style="cyan").append("  ")
        return text.append_text(what)

    def label(node: Node) -> Text:
        event = node.event
        what = output.type_text(event.type).append(f"  {output.printable(event.stream)}@{event.version}", style="dim")
        return line(event.recorded_at, 0.0, what.append(f"  position {event.position:,}", style="dim"))

    def grow(tree: Tree, node: Node) -> None:
        for consequence in node.consequences:
            grow(tree.add(label(consequence)), consequence)

    tree = Tree(Text(f"request {output.printable(correlation)}  {output.clock(began)}", style="bold"))
    for request in requests:
        name = (
            f"{request.service}  {request.method} {request.route} {request.status}  {request.duration_s * 1000:.1f} ms"
        )
        tree.add(line(request.began_at, request.duration_s, Text(output.printable(name))))
    for root in roots:
        grow(tree.add(label(root)), root)
    out.print(tree, soft_wrap=True)
    last = _last_position(roots)
    if not last:
        return
    out.print()
    for title, readers in (("published to", relays), ("consumed by", consumers)):
        behind = [f"{each.name} ({last - each.position:,} to go)" for each in readers if each.position < last]
        done = [each.name for each in readers if each.position >= last]
        out.print(
            Text(f"{title}: ", style="bold").append(", ".join(done) or "nobody", style="not bold"), soft_wrap=True
        )
        if behind:
            out.print(Text(f"  not yet: {', '.join(behind)}", style="yellow"), soft_wrap=True)
