"""The log under concurrency: complete, dense, in order per stream, and never delayed by an open transaction."""

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, cast
from uuid import UUID

import asyncpg
import pytest
from backbone import append_one, event
from events.envelope import Metadata, new_id
from events.outage import is_outage
from events.sequencer import Sequencer
from events.store import EventIdReused, EventStore, StreamAppend, VersionConflict, recorded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

WRITERS = 16


async def _write(store: EventStore, streams: list[str], plan: list[tuple[int, int, bool]], wrote: set[UUID]) -> None:
    """One writer's life: appends on the planned streams, some of them doomed by a wrong expected version."""
    for stream_number, events, doomed in plan:
        stream, event_id = streams[stream_number], new_id()
        expected = 10_000_000 if doomed else None
        try:
            await store.append(
                [StreamAppend(stream, tuple(event() for _ in range(events)), expected)], event_id=event_id
            )
        except VersionConflict:
            assert doomed
        else:
            assert not doomed
            wrote.add(event_id)


async def _roll_back(url: str, category: str, times: int) -> None:
    """Draws ids and never commits them: what a crash in the middle of an append leaves."""
    connection = await asyncpg.connect(url)
    for n in range(times):
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "SELECT store.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
            *_single_append(f"{category}-rolled{n % 3}"),
        )
        await asyncio.sleep(0.002)
        await transaction.rollback()
    await connection.close()


def _single_append(stream: str) -> tuple[object, ...]:
    event_id = new_id()
    return (
        [stream], [1], [event_id], [b""], [1], [1], [None], [0], [1], [1], [1],
        [event_id], ["ledger.transfer.settled"], [1], [None], [b"{}"], [b"{}"],
    )  # fmt: skip


async def _sequence_until(relay_url: str, done: asyncio.Event, sequenced: list[int], scans_per_leader: int) -> None:
    """Leaders, each replaced by the next after some scans, as after a crash."""
    while True:
        connection = await asyncpg.connect(relay_url)
        sequencer = await Sequencer.take_over(connection)
        assert sequencer is not None
        for _ in range(scans_per_leader):
            was_done = done.is_set()
            slices = await sequencer.sequence()
            sequenced += [position for each in slices for position in range(each.first, each.last + 1)]
            if was_done and not slices:
                await connection.close()
                return
            await asyncio.sleep(0.002)
        await connection.close()


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plans=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4), st.booleans()), min_size=5, max_size=25),
        min_size=WRITERS,
        max_size=24,
    ),
    processes=st.integers(2, 4),
)
@pytest.mark.parametrize("scans_per_leader", [40, 1_000_000], ids=["leaders change", "one leader"])
async def test_the_log_is_complete_dense_and_in_order(
    cell: "Cell", plans: list[list[tuple[int, int, bool]]], processes: int, scans_per_leader: int
) -> None:
    url = cell.store_url("ledger_transfer")
    # Several stores, as several processes have: their appends meet in the database, not in one coalescer.
    stores = [await EventStore.connect(url) for _ in range(processes)]
    before = (await stores[0].head()).position
    open_for_long = await asyncpg.connect(url)
    streams = [f"ledger-{new_id()}" for _ in range(6)]
    wrote: set[UUID] = set()
    sequenced: list[int] = []
    done = asyncio.Event()
    leader = asyncio.create_task(_sequence_until(cell.store_url("relay"), done, sequenced, scans_per_leader))
    # An open transaction that has drawn an id before everybody else and commits after everybody else.
    late = open_for_long.transaction()
    await late.start()
    await open_for_long.execute(
        "SELECT store.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        *_single_append(f"ledger-{new_id()}"),
    )
    await asyncio.gather(
        *(_write(stores[n % processes], streams, plan, wrote) for n, plan in enumerate(plans)),
        _roll_back(url, "ledger", 20),
    )
    # Everything committed is sequenced although the transaction is still open.
    committed = sum(events for plan in plans for _, events, doomed in plan if not doomed)
    async with asyncio.timeout(5):
        while len(sequenced) < committed:
            await asyncio.sleep(0.005)
    await late.commit()
    async with asyncio.timeout(5):
        while len(sequenced) < committed + 1:
            await asyncio.sleep(0.005)
    done.set()
    await leader

    log = []
    position = before
    while page := await stores[0].read_log(position, 777):
        log += page
        position = page[-1].position
    assert [e.position for e in log] == list(range(before + 1, before + committed + 2)), "dense"
    assert sorted(sequenced) == [e.position for e in log], "handed to the relay once each"
    versions: dict[str, int] = defaultdict(int)
    for e in log:
        versions[e.stream] += 1
        assert e.version == versions[e.stream], "in order within the stream"
    assert wrote <= {e.event_id for e in log}, "complete"
    for store in stores:
        await store.close()
    await open_for_long.close()


async def test_a_dump_and_dead_rows_do_not_slow_the_sequencer(cell: "Cell") -> None:
    """A snapshot held for long keeps the deleted rows of `pending` alive; the scan must not walk over them."""
    admin = await asyncpg.connect(cell.admin_url())
    snapshot = admin.transaction(isolation="repeatable_read", readonly=True)
    await snapshot.start()
    await admin.fetchval("SELECT count(*) FROM store.events")
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    stream = f"ledger-{new_id()}"
    for _ in range(30):
        await store.append([StreamAppend(stream, tuple(event() for _ in range(1_000)))], event_id=new_id())
        while slices := await sequencer.sequence():
            await connection.execute("SELECT store.save_checkpoint('sangam.log', $1)", slices[-1].last)
    # Plans are made anew with what PostgreSQL knows of the tables now.
    await (maintenance := await asyncpg.connect(cell.admin_url())).execute(
        "ANALYZE store.pending, store.outbox, store.checkpoints"
    )
    await maintenance.close()
    explaining = _Explaining(connection)
    sequencer._connection = cast(asyncpg.Connection, explaining)
    touched = []
    for position in range(30_001, 30_004):
        await append_one(store, stream)
        explaining.buffers = 0
        await sequencer.sequence()
        await explaining.fetch("SELECT * FROM store.read_unpublished($1, $2)", position - 1, position)
        await explaining.fetch("SELECT store.save_checkpoint('sangam.log', $1)", position)
        touched.append(explaining.buffers)
    # What statistics gathered in the meantime make PostgreSQL plan anew reads the catalogue once, not each time.
    assert 0 < min(touched) < 100, f"the scans touched {touched} pages"
    assert (await store.head()).position == 30_003
    await snapshot.rollback()
    await asyncio.gather(admin.close(), connection.close(), store.close())


class _Explaining:
    """A connection that tells how many pages each statement touches, instead of what it gives."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.buffers = 0

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        plan = await self._connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", *arguments)
        self.buffers += int(json.loads(plan)[0]["Plan"]["Shared Hit Blocks"])
        return []


async def test_partitions_are_made_ahead_and_wait_for_nobody(cell: "Cell", monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump that reads the log, and an append that does not commit, hold locks on the table."""
    admin, dump, slow = [await asyncpg.connect(cell.admin_url()) for _ in range(3)]
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    relay = await asyncpg.connect(cell.store_url("relay"), server_settings={"lock_timeout": "2s"})
    monkeypatch.setattr("events.sequencer._IDS_PER_PARTITION_CHECK", 2)
    await admin.execute("SELECT setval('store.event_id', 9999998)")
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    stream = f"ledger-{new_id()}"
    await append_one(store, stream)

    async with dump.transaction(isolation="repeatable_read", readonly=True), slow.transaction():
        await dump.fetchval("SELECT count(*) FROM store.events")
        await slow.execute(
            "INSERT INTO store.events SELECT 1, 'ledger-x', 1, gen_random_uuid(), 'x.y.z', 1, NULL, '', '', now()"
        )
        assert [(each.first, each.last) for each in await sequencer.sequence()] == [(1, 1)]
        for _ in range(3):  # over the edge of the first partition, of ten million ids
            await append_one(store, stream)
        assert [(each.first, each.last) for each in await sequencer.sequence()] == [(2, 4)]
    partitions = await admin.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'store.events'::regclass"
    )
    assert {row[0] for row in partitions} == {"store.events_0", "store.events_1", "store.events_2"}
    assert [e.version for e in await store.read_log(0)] == [1, 2, 3, 4]
    assert [e.version for e in await store.read_stream(stream)] == [1, 2, 3, 4]
    await asyncio.gather(*(each.close() for each in (admin, dump, slow, relay, store)))


async def test_the_chain_covers_every_byte(cell: "Cell") -> None:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    for n in range(3):
        await append_one(store, f"ledger-{n}")
        await sequencer.sequence()
    admin = await asyncpg.connect(cell.admin_url())
    expected = hashlib.sha256(b"sangam event log").digest()
    rows = await admin.fetch(
        "SELECT l.position, l.chain_hash, e.* FROM store.log l JOIN store.events e USING (id) ORDER BY 1"
    )
    for row in rows:
        stream, kind = row["stream"].encode(), row["type"].encode()
        micros = int((row["recorded_at"].timestamp() - 946684800) * 1_000_000 + 0.5)
        micros += row["recorded_at"].microsecond - micros % 1_000_000
        content = b"".join(
            [
                row["position"].to_bytes(8, "big"),
                row["id"].to_bytes(8, "big"),
                len(stream).to_bytes(4, "big") + stream,
                row["version"].to_bytes(8, "big"),
                row["event_id"].bytes,
                len(kind).to_bytes(4, "big") + kind,
                row["schema_version"].to_bytes(4, "big"),
                (16).to_bytes(4, "big") + row["subject"].bytes if row["subject"] else bytes(4),
                len(row["data"]).to_bytes(4, "big") + row["data"],
                len(row["metadata"]).to_bytes(4, "big") + row["metadata"],
                micros.to_bytes(8, "big"),
            ]
        )
        expected = hashlib.sha256(expected + content).digest()
        assert row["chain_hash"] == expected
    await asyncio.gather(admin.close(), connection.close(), store.close())


async def test_the_very_first_event_may_commit_late(cell: "Cell") -> None:
    """On a fresh sequence `last_value` is 1 before anything was drawn: the first id must not count as seen."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    late, relay = (
        await asyncpg.connect(cell.store_url("ledger_transfer")),
        await asyncpg.connect(cell.store_url("relay")),
    )
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    async with asyncio.timeout(5):
        while sequencer._takeover_xid is not None:
            await sequencer.sequence()
    transaction = late.transaction()
    await transaction.start()
    await late.execute(
        "SELECT store.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
        *_single_append(f"ledger-{new_id()}"),
    )
    await append_one(store, f"ledger-{new_id()}")
    assert len(await sequencer.sequence()) == 1
    await transaction.commit()
    assert len(await sequencer.sequence()) == 1
    await asyncio.gather(late.close(), relay.close(), store.close())


async def test_only_one_sequencer_leads(cell: "Cell") -> None:
    first, second = [await asyncpg.connect(cell.store_url("relay")) for _ in range(2)]
    assert await Sequencer.take_over(first) is not None
    assert await Sequencer.take_over(second) is None
    await first.close()
    async with asyncio.timeout(5):
        while await Sequencer.take_over(second) is None:
            await asyncio.sleep(0.02)
    await second.close()


class TestAppend:
    async def test_verdicts(self, cell: "Cell") -> None:
        store = await EventStore.connect(cell.store_url("ledger_transfer"))
        stream, event_id = f"ledger-{new_id()}", new_id()
        first = await store.append([StreamAppend(stream, (event(), event()), 0)], event_id=event_id, request_hash=b"a")
        assert (first.duplicate, first.versions) == (False, {stream: 2})
        again = await store.append([StreamAppend(stream, (event(), event()), 0)], event_id=event_id, request_hash=b"a")
        assert again.duplicate
        with pytest.raises(EventIdReused):
            await store.append([StreamAppend(stream, (event(),), 2)], event_id=event_id, request_hash=b"b")
        with pytest.raises(VersionConflict) as conflict:
            await store.append([StreamAppend(stream, (event(),), 1)], event_id=new_id())
        assert (conflict.value.expected, conflict.value.actual) == (1, 2)
        assert len(await store.read_stream(stream)) == 2
        await store.close()

    async def test_several_streams_or_none(self, cell: "Cell") -> None:
        store = await EventStore.connect(cell.store_url("ledger_transfer"))
        a, b = f"ledger-{new_id()}", f"ledger-{new_id()}"
        await append_one(store, b)
        with pytest.raises(VersionConflict):
            await store.append([StreamAppend(a, (event(),), 0), StreamAppend(b, (event(),), 0)], event_id=new_id())
        assert await store.read_stream(a) == []
        await store.append([StreamAppend(a, (event(),), 0), StreamAppend(b, (event(),), 1)], event_id=new_id())
        assert (len(await store.read_stream(a)), len(await store.read_stream(b))) == (1, 2)
        await store.close()

    async def test_what_cannot_be_an_append_is_refused(self, cell: "Cell") -> None:
        store = await EventStore.connect(cell.store_url("ledger_transfer"))
        stream = f"ledger-{new_id()}"
        for parts in ([], [StreamAppend(stream, ())], [StreamAppend(stream, (event(),))] * 2):
            with pytest.raises(ValueError, match="an append"):
                await store.append(parts, event_id=new_id())
        assert await store.read_stream(stream) == []
        await store.close()

    async def test_neighbours_in_a_batch_are_settled_each_by_itself(self, cell: "Cell") -> None:
        store = await EventStore.connect(cell.store_url("ledger_transfer"))
        stream, known = f"ledger-{new_id()}", await append_one(store, f"ledger-{new_id()}")
        outcomes = await asyncio.gather(
            append_one(store, stream, 0),
            append_one(store, stream, 0),  # conflicts with the one before it
            append_one(store, stream, 1),  # chains onto the first
            append_one(store, stream, 5, event_id=known),  # a duplicate, whatever the version
            append_one(store, "identity_stuff-x"),  # not ours
            append_one(store, stream, 2),
            return_exceptions=True,
        )
        kinds = [type(outcome).__name__ for outcome in outcomes]
        assert kinds == ["UUID", "VersionConflict", "UUID", "UUID", "InsufficientPrivilegeError", "UUID"]
        assert len(await store.read_stream(stream)) == 3
        await store.close()

    async def test_a_role_has_only_its_own_door(self, cell: "Cell") -> None:
        store = await EventStore.connect(cell.store_url("wealth"))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await append_one(store, f"ledger-{new_id()}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.read_stream(f"ledger-{new_id()}")
        await store.close()
        connection = await asyncpg.connect(cell.store_url("wealth"))
        for statement in (
            "SELECT * FROM store.events",
            "INSERT INTO store.log VALUES (1, 1, '')",
            "UPDATE store.streams SET version = 0",
            "SELECT * FROM store.writers",
            "SELECT store.sequence(0, '{}', 1)",
            "SELECT store.insert_events('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')",
            "CREATE TABLE public.mine (x int)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        await connection.close()

    async def test_the_database_going_away_is_an_error_and_coming_back_is_not(self, cell: "Cell") -> None:
        store = await EventStore.connect(cell.store_url("ledger_transfer"))
        stream = f"ledger-{new_id()}"
        await append_one(store, stream)
        admin = await asyncpg.connect(cell.admin_url())
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'append'"
            " AND datname = current_database()"
        )
        started_s = time.monotonic()
        for _ in range(2):
            try:
                await append_one(store, stream)
                break
            except Exception as error:
                assert is_outage(error)
        assert time.monotonic() - started_s < 5
        assert len(await store.read_stream(stream)) == 2
        await asyncio.gather(admin.close(), store.close())


async def test_what_goes_over_the_wire_is_what_is_stored(cell: "Cell") -> None:
    """The store makes the CloudEvents; whatever text is in them, they read back as the columns do."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    relay, admin = await asyncpg.connect(cell.store_url("relay")), await asyncpg.connect(cell.admin_url())
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    awkward = 'न "correlation_id": \\ } {\n'
    cases = (
        Metadata(),
        Metadata(
            correlation_id=awkward, causation_id=new_id(), actor='user:"x"', platform="bfc", traceparent="00-1-2-3"
        ),
        Metadata(actor="}"),
    )
    for metadata in cases:
        for subject in (None, new_id()):
            await store.append(
                [StreamAppend(f"ledger-{awkward}", (event(),))], event_id=new_id(), subject=subject, metadata=metadata
            )
    slices = await sequencer.sequence()
    stored = [recorded(row) for row in await admin.fetch("SELECT * FROM store.read_types(0, 100, NULL)")]
    assert len(stored) == 6
    assert [(each.first, each.last) for each in slices] == [(1, 6)]
    assert [event.recorded() for event in slices[0].decoded()] == stored
    assert await store.read_log(0) == stored
    assert await store.read_types(2, 4, [stored[0].type]) == stored[2:4]
    assert [e.metadata for e in stored[::2]] == list(cases)

    # A payload that somebody has damaged fails whoever needs it, and not the page that it is on.
    await admin.execute("SET session_replication_role = replica; UPDATE store.events SET data = '{' WHERE id = 3")
    damaged = await store.read_log(0)
    assert [e.data for e in damaged] == [b"{" if n == 2 else e.data for n, e in enumerate(stored)]
    await asyncio.gather(store.close(), relay.close(), admin.close())
