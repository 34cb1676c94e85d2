"""What is sequenced and not published yet: from the outbox, from memory or from the log, always the same."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import pytest
from backbone import event
from events import pg, wire
from events.envelope import new_id
from events.publisher import EventsPublisher, LogTail, _Backlog
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from events.wire import LogSlice

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


class Log:
    """A log to append to, and what its relay sees."""

    def __init__(self, cell: "Cell", store: EventStore, admin: asyncpg.Connection, relay: asyncpg.Connection) -> None:
        self.cell = cell
        self.store = store
        self.admin = admin
        self.relay = relay
        self.sequencer: Sequencer | None = None

    async def grow(self, count: int) -> list[LogSlice]:
        await self.store.append(
            [StreamAppend(f"ledger-{new_id()}", tuple(event() for _ in range(count)))], event_id=new_id()
        )
        if self.sequencer is None:
            self.sequencer = await Sequencer.take_over(self.relay)
        assert self.sequencer is not None
        return await self.sequencer.sequence()

    async def unpublished(self, after: int, up_to: int) -> list[LogSlice]:
        return [
            LogSlice(*row)
            for row in await self.relay.fetch("SELECT * FROM store.read_unpublished($1, $2)", after, up_to)
        ]

    async def published(self, publisher: str, position: int) -> None:
        await self.relay.execute("SELECT store.save_checkpoint($1, $2)", publisher, position)

    async def outbox(self) -> list[tuple[int, int]]:
        return _ranges([LogSlice(*row) for row in await self.admin.fetch("SELECT * FROM store.outbox ORDER BY first")])


def _ranges(slices: list[LogSlice]) -> list[tuple[int, int]]:
    return [(each.first, each.last) for each in slices]


@pytest.fixture
async def log(cell: "Cell") -> AsyncIterator[Log]:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    admin, relay = await asyncpg.connect(cell.admin_url()), await asyncpg.connect(cell.store_url("relay"))
    yield Log(cell, store, admin, relay)
    await asyncio.gather(store.close(), admin.close(), relay.close())


async def test_the_outbox_holds_what_somebody_has_not_published(log: Log) -> None:
    slices = await log.grow(600)
    assert _ranges(slices) == [(1, 256), (257, 512), (513, 600)]
    made = [LogSlice(*row) for row in await log.admin.fetch("SELECT * FROM store.read_cloud_events(0, 600, NULL, 256)")]
    assert slices == made == await log.unpublished(0, 600)
    await log.published(wire.EVENTS_EXCHANGE, 256)
    await log.published(wire.LOG_EXCHANGE, 512)
    assert await log.outbox() == [(257, 512), (513, 600)]
    await log.published(wire.EVENTS_EXCHANGE, 600)
    assert await log.outbox() == [(513, 600)]
    await log.published(wire.LOG_EXCHANGE, 600)
    assert await log.outbox() == []
    # Somebody sets a publisher back: what it publishes again is made anew.
    await log.published(wire.LOG_EXCHANGE, 100)
    assert _ranges(await log.unpublished(100, 600)) == [(101, 356), (357, 600)]


async def test_what_a_crash_took_from_the_outbox_comes_from_the_log(log: Log) -> None:
    await log.grow(300)
    await log.admin.execute("TRUNCATE store.outbox")  # as a crash of the server does to an unlogged table
    await log.grow(300)
    assert _ranges(await log.unpublished(0, 600)) == [(1, 256), (257, 300)]
    assert _ranges(await log.unpublished(300, 600)) == [(301, 556), (557, 600)]
    assert _ranges(await log.unpublished(310, 600)) == [(311, 556)]


async def test_a_backlog_is_read_without_gap_or_overlap_wherever_it_is(log: Log) -> None:
    """The first part is in the log alone, the second in the outbox, the third in memory; some of it in small slices."""
    await log.grow(700)
    await log.admin.execute("TRUNCATE store.outbox")
    for count in (1, 2, 300, 5):
        await log.grow(count)
    reader = pg.Session(log.cell.store_url("relay"), application_name="test")
    tail = LogTail(reader, 1008)
    for count in (3, 400, 1):
        tail.extend(await log.grow(count))
    backlog, position = _Backlog(tail), 0
    batches: list[tuple[int, int]] = []
    while position < tail.head:
        slices = await backlog.after(position)
        assert slices[0].first == position + 1
        body, headers = wire.encode_batch(slices, new_id())
        events = wire.decode_batch(body, wire.read_headers(headers))
        assert [e.position for e in events] == list(range(position + 1, slices[-1].last + 1))
        batches.append((position + 1, slices[-1].last))
        position = slices[-1].last
    assert position == 1412
    assert all(last - first < 256 for first, last in batches)
    assert len(batches) < 12, "small slices travel together"
    await backlog.close()
    await reader.close()


async def test_a_damaged_event_holds_up_no_other_publisher_and_no_other_event(log: Log) -> None:
    slices = await log.grow(3)
    await log.admin.execute(
        "SET session_replication_role = replica; UPDATE store.events SET data = '{' WHERE version = 2"
    )
    await log.admin.execute("TRUNCATE store.outbox")
    reader = pg.Session(log.cell.store_url("relay"), application_name="test")
    tail = LogTail(reader, 3)
    publisher = EventsPublisher(tail, reader, "amqp://unused", new_id())
    messages = await publisher._messages(await tail.read(0, 10))
    sound = [event.id for event in slices[0].decoded() if event.version != 2]
    assert [properties.message_id for _, _, properties in messages] == [str(each) for each in sound]
    await reader.close()
