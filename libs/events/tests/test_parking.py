"""Parked events: bounded attempts, order kept on retry, skips, and the audit of both."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import asyncpg
import pytest
from backbone import Seen, append_one, eventually, running_consumer, running_relay
from command import sangam
from events.consumer import Consumer
from events.contracts import UnknownContract
from events.envelope import RecordedEvent, new_id
from events.projections import Projections
from events.store import EventStore

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

NAME = "ledger_transfer.projections"


class Moody(Seen):
    """Fails on chosen versions of one stream until it is cured."""

    def __init__(self, stream: str, versions: set[int], error: type[Exception] = ValueError) -> None:
        self.stream = stream
        self.versions = versions
        self.error = error
        self.tried: list[int] = []

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for e in events:
            if e.stream == self.stream:
                self.tried.append(e.version)
                if e.version in self.versions:
                    raise UnknownContract(e.type, 9) if self.error is UnknownContract else self.error("cannot")
        await super().apply(db, events)


class Bench:
    def __init__(self, cell: "Cell", store: EventStore, database: asyncpg.Pool) -> None:
        self.cell, self.store, self.database = cell, store, database
        self.bad, self.good = f"ledger-{new_id()}", f"ledger-{new_id()}"

    def consumer(self, handler: Moody, attempts: int = 3) -> Consumer:
        return Consumer(
            name=NAME,
            handler=Projections([handler]),
            database=self.database,
            store=self.store,
            amqp_url=self.cell.amqp_url("ledger_transfer"),
            attempts=attempts,
        )

    async def parked(self) -> list[tuple[int, str]]:
        rows = await self.database.fetch(
            "SELECT s.version, p.reason FROM parked p JOIN LATERAL (SELECT row_number() OVER (ORDER BY q.position)"
            " + (SELECT coalesce(max(version), 0) FROM last_version WHERE stream = p.stream)"
            " + (SELECT count(*) FROM skipped k WHERE k.stream = p.stream) AS version, q.position"
            " FROM parked q WHERE q.stream = p.stream) s ON s.position = p.position ORDER BY p.position"
        )
        return [(row["version"], row["reason"]) for row in rows]

    async def head_of_parked(self) -> int:
        return await self.database.fetchval("SELECT min(position) FROM parked")  # type: ignore[no-any-return]

    async def seen(self, stream: str) -> list[int]:
        rows = await self.database.fetch("SELECT version FROM seen WHERE stream = $1 ORDER BY position", stream)
        return [row["version"] for row in rows]

    async def holds(self, parked: int) -> None:
        async def condition() -> bool:
            try:
                return await self.database.fetchval("SELECT count(*) FROM parked") == parked  # type: ignore[no-any-return]
            except asyncpg.UndefinedTableError:
                return False

        await eventually(condition)


@pytest.fixture
async def bench(cell: "Cell") -> AsyncIterator[Bench]:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=8)
    yield Bench(cell, store, database)
    await store.close()
    await database.close()


async def _append(bench: Bench, stream: str, count: int) -> None:
    for _ in range(count):
        await append_one(bench.store, stream)


async def test_attempts_are_bounded_and_a_retry_keeps_the_order(bench: Bench) -> None:
    handler = Moody(bench.bad, {2, 4})
    async with running_relay(bench.cell), running_consumer(bench.consumer(handler)):
        await _append(bench, bench.bad, 1)
        await eventually(lambda: _is(bench.seen(bench.bad), [1]))
        handler.tried.clear()
        await _append(bench, bench.bad, 4)
        await _append(bench, bench.good, 20)
        await bench.holds(4)
        await eventually(lambda: _is(bench.seen(bench.good), list(range(1, 21))))
        row = await bench.database.fetchrow("SELECT * FROM parked ORDER BY position LIMIT 1")
        assert row is not None
        assert row["attempts"] == 3
        assert "ValueError" in row["error"]
        assert "Traceback" in row["traceback"]
        head = row["position"]

        # Nothing tries it again by itself, and one that waits behind another cannot come first.
        tried = len(handler.tried)
        await asyncio.sleep(1.3)
        assert len(handler.tried) == tried
        refused = await sangam(bench.cell, "parked", "retry", "ledger-transfer", "projections", head + 1)
        assert refused.code == 1
        assert "comes first" in refused.err

        # Not cured: it stays, with everything behind it.
        outcome = await sangam(bench.cell, "parked", "retry", "ledger-transfer", "projections", head, "--json")
        assert outcome.code == 1
        assert outcome.json["outcome"] == "parked_again"
        assert outcome.json["attempts"] == 4
        await bench.holds(4)

        # Cured up to the next fault: 2 and 3 are applied, 4 is the stream's first now, 5 waits behind it.
        handler.versions = {4}
        assert (await sangam(bench.cell, "parked", "retry", "ledger-transfer", "projections", "--all")).code == 1
        assert await bench.seen(bench.bad) == [1, 2, 3]
        assert await bench.parked() == [(4, "failed"), (5, "behind")]
        await _append(bench, bench.bad, 1)
        await bench.holds(3)

        handler.versions = set()
        done = await sangam(bench.cell, "parked", "retry", "ledger-transfer", "projections", "--stream", bench.bad)
        assert done.code == 0, done.err
        assert await bench.seen(bench.bad) == [1, 2, 3, 4, 5, 6]
        # The stream is free again.
        await _append(bench, bench.bad, 2)
        await eventually(lambda: _is(bench.seen(bench.bad), list(range(1, 9))))
    acts = (await sangam(bench.cell, "audit", "--json")).lines
    assert [act["act"] for act in acts] == ["parked retry"] * 3
    assert acts[-1]["detail"]["still_parked"] == "0"
    assert acts[-1]["outcome"] == "done"


async def test_a_retry_that_an_outage_interrupts_goes_on_by_itself(bench: Bench) -> None:
    handler = Moody(bench.bad, {1})
    async with running_relay(bench.cell), running_consumer(bench.consumer(handler)):
        await _append(bench, bench.bad, 4)
        await bench.holds(4)
        handler.versions, handler.error = {3}, ConnectionResetError
        asked = await sangam(
            bench.cell, "parked", "retry", "ledger-transfer", "projections", "--all", "--wait", "0", "--json"
        )
        assert asked.json["outcome"] == "waiting"
        await eventually(lambda: _is(bench.seen(bench.bad), [1, 2]))
        handler.versions = set()
        await bench.holds(0)
        assert await bench.seen(bench.bad) == [1, 2, 3, 4]


async def _is(figures, expected) -> bool:  # type: ignore[no-untyped-def]
    try:
        return await figures == expected  # type: ignore[no-any-return]
    except asyncpg.UndefinedTableError:
        return False


class Gapped(Moody):
    """Does not mind a missing version."""

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for e in events:
            if e.stream == self.stream and e.version in self.versions:
                raise ValueError("cannot")
            await db.execute("INSERT INTO seen VALUES ($1, $2, $3, $4)", e.position, e.stream, e.version, e.event_id)


async def test_a_skip_is_recorded_with_its_reason_and_lets_the_rest_go_on(bench: Bench) -> None:
    handler = Gapped(bench.bad, {2})
    arguments = ("parked", "skip", "ledger-transfer", "projections")
    async with running_relay(bench.cell), running_consumer(bench.consumer(handler)):
        await _append(bench, bench.bad, 3)
        await bench.holds(2)
        head = await bench.head_of_parked()
        assert (await sangam(bench.cell, *arguments, head)).code == 2, "a reason is required"
        assert (await sangam(bench.cell, *arguments, head + 1, "--reason", "no")).code == 1
        outcome = await sangam(bench.cell, *arguments, head, "--reason", "ticket 4711", "--as", "asha")
        assert outcome.code == 0, outcome.err
        assert await bench.seen(bench.bad) == [1, 3]
        await _append(bench, bench.bad, 1)
        await eventually(lambda: _is(bench.seen(bench.bad), [1, 3, 4]))
    skipped = (await sangam(bench.cell, "parked", "skipped", "--service", "ledger-transfer", "--json")).lines
    assert [(row["position"], row["reason"], row["operator"]) for row in skipped] == [(head, "ticket 4711", "asha")]
    act = (await sangam(bench.cell, "audit", "--json")).lines[-1]
    assert (act["act"], act["reason"], act["operator"]) == ("parked skip", "ticket 4711", "asha")


async def test_a_contract_that_was_unknown_is_tried_when_a_newer_process_starts(bench: Bench) -> None:
    handler = Moody(bench.bad, {1}, UnknownContract)
    async with running_relay(bench.cell):
        async with running_consumer(bench.consumer(handler)):
            await _append(bench, bench.bad, 2)
            await bench.holds(2)
        reasons = await bench.database.fetch("SELECT reason FROM parked ORDER BY position")
        assert [row["reason"] for row in reasons] == ["unknown_contract", "behind"]
        async with running_consumer(bench.consumer(Moody(bench.bad, set()))):
            await eventually(lambda: _is(bench.seen(bench.bad), [1, 2]))
            await bench.holds(0)


async def test_a_replica_with_stale_knowledge_parks_nothing_behind_what_is_gone(bench: Bench) -> None:
    """One replica retries; the other, which still believes the stream parked, takes over at the same position."""
    handler = Moody(bench.bad, {1})
    first, second = bench.consumer(handler), bench.consumer(handler)
    async with running_relay(bench.cell):
        async with running_consumer(first):
            await _append(bench, bench.bad, 2)
            await bench.holds(2)
            await second.prepare()
            await second._reload()
            assert second._parking.streams == {bench.bad}
            handler.versions = set()
            assert (await sangam(bench.cell, "parked", "retry", "ledger-transfer", "projections", "--all")).code == 0
            await bench.holds(0)
        last = await append_one(bench.store, bench.bad)

        async def sequenced() -> bool:
            return await bench.store.position_of(last) is not None

        await eventually(sequenced)
    # The retry is an event, too: the other replica has heard of the position, and of nothing else.
    second._checkpoint.position = await bench.database.fetchval("SELECT position FROM consumed")
    log = [e for e in await bench.store.read_log(2) if e.stream == bench.bad]
    assert await second._take_effect(log, log[-1].position)
    assert await bench.seen(bench.bad) == [1, 2, 3]
    await bench.holds(0)


async def test_one_fault_among_many_is_found_by_halves(bench: Bench) -> None:
    handler = Moody(bench.bad, {1})
    async with running_relay(bench.cell):
        await asyncio.gather(*(append_one(bench.store, f"ledger-{new_id()}") for _ in range(300)))
        await append_one(bench.store, bench.bad)
        await asyncio.gather(*(append_one(bench.store, f"ledger-{new_id()}") for _ in range(300)))

        async def sequenced() -> bool:
            return (await bench.store.head()).position == 601

        await eventually(sequenced)
        async with running_consumer(bench.consumer(handler)) as consumer:

            async def applied() -> bool:
                return consumer.position == 601

            await eventually(applied)
    assert await bench.database.fetchval("SELECT count(*) FROM seen") == 600
    # log2(601) halvings and two more attempts, not one transaction per event.
    assert len(handler.tried) < 15
