"""How fast a log grows: events of one customer in a year of the scenario, and what an event takes on the disk."""

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import asyncpg
from events.contracts import Event
from events.envelope import RecordedEvent, new_id
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from life_log import a_life, life_log
from provision import WRITERS
from report import Figure, Line

if TYPE_CHECKING:
    from provision import Cell

CUSTOMERS = 30
MONTHS = 12
_PER_APPEND = 500


def _role_of(stream: str) -> str:
    category = stream.partition("-")[0]
    return next(role for role, categories in WRITERS.items() if category in categories)


def _chunks(events: list[RecordedEvent]) -> Iterator[list[RecordedEvent]]:
    for start in range(0, len(events), _PER_APPEND):
        yield events[start : start + _PER_APPEND]


async def _append(store: EventStore, events: list[RecordedEvent]) -> None:
    by_stream: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_stream[event.stream].append(event.payload)
    parts = [StreamAppend(stream, tuple(payloads)) for stream, payloads in by_stream.items()]
    await store.append(parts, event_id=new_id(), subject=events[0].subject, metadata=events[0].metadata)


async def measure(cell: "Cell") -> list[Line]:
    """The growth lines of the report."""
    events = list(life_log(a_life(CUSTOMERS, MONTHS)))
    by_role: dict[str, list[RecordedEvent]] = defaultdict(list)
    for event in events:
        by_role[_role_of(event.stream)].append(event)
    for role, theirs in by_role.items():
        store = await EventStore.connect(cell.store_url(role))
        for chunk in _chunks(theirs):
            await _append(store, chunk)
        await store.close()
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    while await sequencer.sequence():
        pass
    await connection.close()

    admin = await asyncpg.connect(cell.admin_url())
    await admin.execute("VACUUM")
    on_disk: int = await admin.fetchval(
        "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname = 'store' AND relkind = 'r'"
    )
    await admin.close()
    payload = sum(len(event.data) for event in events)
    return [
        Line("log: events of a customer in a year", Figure([len(events) / CUSTOMERS]), "events", "", None, ""),
        Line(
            "log: an event on the disk, all tables and indexes",
            Figure([on_disk / len(events)]),
            "B",
            "its payload",
            Figure([payload / len(events)]),
            "",
        ),
    ]
