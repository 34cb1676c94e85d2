"""Causes and consequences: the events that `causation_id` ties together, and those of the same request."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from events import pg
from events.cli.reading import event_of, json_text, read_one
from events.envelope import RecordedEvent

_PAGE = 20_000
_MAX_DEPTH = 100
_BEFORE = 1_000
"""How far before an event the others of its request are looked for."""


@dataclass
class Node:
    """An event and what was appended because of it."""

    event: RecordedEvent
    consequences: "list[Node]" = field(default_factory=list)


@dataclass
class Family:
    """All that is known around one event."""

    root: Node
    """The first cause that could be found."""
    lost_cause: UUID | None
    """What the first event names as its cause, and the store does not have."""
    request: list[RecordedEvent]
    """Events of the same correlation id that no causation ties to the tree."""
    searched: list[tuple[int, int]]
    """The ranges of positions (after, up to) that were looked at for consequences and the rest of the request."""


async def family_of(store: pg.Session, event: RecordedEvent, head: int, horizon: int) -> Family:
    """The tree around an event. Consequences have higher positions: `horizon` says how far to look for them."""
    causes, lost_cause = await _causes(store, event)
    line = [*causes, event]
    nodes: dict[UUID, Node] = {}
    for ancestor in line:
        nodes[ancestor.event_id] = Node(ancestor)
        if len(nodes) > 1:
            nodes[line[len(nodes) - 2].event_id].consequences.append(nodes[ancestor.event_id])
    request: list[RecordedEvent] = []
    searched = _ranges([line[0].position, event.position], head, horizon)
    for after, up_to in searched:
        for first in range(after, up_to, _PAGE):
            for row in await _related(store, event, first, min(first + _PAGE, up_to)):
                _place(event_of(row), event, nodes, request)
    for node in nodes.values():
        node.consequences.sort(key=lambda each: each.event.position or head + 1)
    return Family(nodes[line[0].event_id], lost_cause, request, searched)


async def stream_neighbours(store: pg.Session, event: RecordedEvent) -> tuple[list[RecordedEvent], int]:
    """The events right before and after it on its stream, and the stream's last version."""
    rows = await store.fetch(
        "SELECT coalesce(l.position, 0) AS position, e.* FROM store.events e LEFT JOIN store.log l ON l.id = e.id"
        " WHERE e.stream = $1 AND e.version = ANY ($2::bigint[]) ORDER BY e.version",
        event.stream,
        [event.version - 1, event.version + 1],
    )
    last = await store.fetchval("SELECT version FROM store.streams WHERE stream = $1", event.stream)
    return [event_of(row) for row in rows], last or event.version


async def _causes(store: pg.Session, event: RecordedEvent) -> tuple[list[RecordedEvent], UUID | None]:
    """The chain of causes, first cause first; and the id of one that is not there."""
    causes: list[RecordedEvent] = []
    seen = {event.event_id}
    cause = event.metadata.causation_id
    while cause is not None and cause not in seen and len(causes) < _MAX_DEPTH:
        row = await read_one(store, cause)
        if row is None:
            return causes[::-1], cause
        causes.append(event_of(row))
        seen.add(cause)
        cause = causes[-1].metadata.causation_id
    return causes[::-1], None


def _ranges(starts: Sequence[int], head: int, horizon: int) -> list[tuple[int, int]]:
    """The ranges of `horizon` positions after each start and some before, joined where they meet.

    An unsequenced start has none.
    """
    ranges: list[tuple[int, int]] = []
    for start in sorted({start for start in starts if start}):
        begin, end = max(start - _BEFORE, 0), min(start + horizon, head)
        if ranges and begin <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((begin, end))
    return ranges


async def _related(store: pg.Session, event: RecordedEvent, after: int, up_to: int) -> list[asyncpg.Record]:
    """Events that react to something, or are of the same request."""
    correlation = event.metadata.correlation_id
    parameters: list[Any] = [after, up_to, b'"causation_id"', json_text(correlation) if correlation else None]
    return await store.fetch(
        "SELECT l.position, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject, ''::bytea AS data,"
        " e.metadata, e.recorded_at FROM store.log l JOIN store.events e ON e.id = l.id"
        " WHERE l.position > $1 AND l.position <= $2 AND (position($3::bytea IN e.metadata) > 0"
        " OR ($4::bytea IS NOT NULL AND position($4::bytea IN e.metadata) > 0)) ORDER BY l.position",
        *parameters,
    )


def _place(found: RecordedEvent, event: RecordedEvent, nodes: dict[UUID, Node], request: list[RecordedEvent]) -> None:
    """Hangs the event under its cause, or beside the tree."""
    if found.event_id in nodes:
        return
    metadata = found.metadata
    if metadata.causation_id in nodes:
        node = nodes[found.event_id] = Node(found)
        nodes[metadata.causation_id].consequences.append(node)
    elif metadata.correlation_id is not None and metadata.correlation_id == event.metadata.correlation_id:
        request.append(found)
