"""Snapshots: a cold start folds what is after one; none of them is ever believed against the stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import events
import pytest
from backbone import event, eventually
from events import contracts, snapshots
from events.contracts import Event
from events.decisions import Streams
from events.envelope import new_id
from events.snapshots import EVENTS_WORTH_ONE, Snapshots
from events.store import EventStore, StreamAppend

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

LONG = EVENTS_WORTH_ONE + 100


class Folding:
    """Streams of a number, counting how many events were folded."""

    def __init__(self, store: EventStore) -> None:
        self.folded = 0
        self.snapshots = Snapshots(store, int, events)
        self.streams = Streams(store, "ledger", 0, self._evolve, snapshots=self.snapshots)

    def _evolve(self, count: int, _: Event) -> int:
        self.folded += 1
        return count + 1


@pytest.fixture
async def store(cell: "Cell") -> AsyncIterator[EventStore]:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    yield store
    await store.close()


@pytest.fixture
async def admin(cell: "Cell") -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(cell.admin_url())
    yield connection
    await connection.close()


@pytest.fixture
async def stream_id(store: EventStore, admin: asyncpg.Connection) -> UUID:
    """Of a long stream that somebody has read once."""
    stream_id = new_id()
    await _append(store, stream_id, LONG)
    assert await Folding(store).streams.load(stream_id) == (LONG, LONG)

    async def saved() -> bool:
        return bool(await admin.fetchval("SELECT count(*) = 1 FROM store.snapshots"))

    await eventually(saved)
    return stream_id


async def _append(store: EventStore, stream_id: UUID, count: int) -> None:
    await store.append([StreamAppend(f"ledger-{stream_id}", tuple(event() for _ in range(count)))], event_id=new_id())


async def test_a_cold_start_folds_only_what_is_after_the_snapshot(store: EventStore, stream_id: UUID) -> None:
    await _append(store, stream_id, 7)
    cold = Folding(store)
    assert await cold.streams.load(stream_id) == (LONG + 7, LONG + 7)
    assert cold.folded == 7
    decided = await cold.streams.execute(
        stream_id, lambda count: [event()] if count == LONG + 7 else [], event_id=new_id()
    )
    assert decided.version == LONG + 8


async def test_a_short_stream_leaves_none(store: EventStore, admin: asyncpg.Connection) -> None:
    stream_id = new_id()
    await _append(store, stream_id, 20)
    await Folding(store).streams.load(stream_id)
    await asyncio.sleep(0.1)
    assert await admin.fetchval("SELECT count(*) FROM store.snapshots") == 0


async def test_other_code_reads_none_of_the_old_ones(
    store: EventStore, stream_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "fingerprint", lambda _: b"another release")
    cold = Folding(store)
    assert await cold.streams.load(stream_id) == (LONG, LONG)
    assert cold.folded == LONG


async def test_what_does_not_decode_is_not_used(store: EventStore, stream_id: UUID, admin: asyncpg.Connection) -> None:
    await admin.execute("UPDATE store.snapshots SET state = '\"nonsense\"'")
    assert await Folding(store).streams.load(stream_id) == (LONG, LONG)


async def test_an_older_state_does_not_replace_a_newer_one(store: EventStore, stream_id: UUID) -> None:
    code = snapshots.fingerprint(events)
    await store.save_snapshot(f"ledger-{stream_id}", 3, code, b"3")
    kept = await store.read_snapshot(f"ledger-{stream_id}", code)
    assert kept is not None
    assert kept.version == LONG


async def test_the_snapshots_of_another_service_are_closed(cell: "Cell", store: EventStore, stream_id: UUID) -> None:
    other = await EventStore.connect(cell.store_url("wealth"))
    code, stream = snapshots.fingerprint(events), f"ledger-{stream_id}"
    assert await other.read_snapshot(stream, code) is None
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await other.save_snapshot(stream, 10**6, code, b"1000000")
    await other.close()


def test_the_fingerprint_covers_the_code_and_the_contracts() -> None:
    assert snapshots.fingerprint(events) != snapshots.fingerprint(contracts)
    assert snapshots.fingerprint(events) == snapshots.fingerprint(events)
