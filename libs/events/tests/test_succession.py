"""A version of a service that starts where another one's read models are: alone, beside it, before and after it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from backbone import append_one, eventually, running_consumer, running_relay
from events import metrics
from events.consumer import Consumer
from events.envelope import RecordedEvent, new_id
from events.projections import Projections
from events.shapes import NotAdditive, bring_up, lock_tables, model_of, schema_of
from events.store import EventStore

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

NAME = "ledger_transfer.projections"
TYPES = frozenset({"ledger.transfer.settled"})


class Streams:
    """A row per stream: the version that has always been there, and never changes."""

    name = "streams"
    types = TYPES
    ddl = "CREATE TABLE IF NOT EXISTS stream (stream text PRIMARY KEY, events bigint NOT NULL);"

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.executemany(
            "INSERT INTO stream VALUES ($1, 1) ON CONFLICT (stream) DO UPDATE SET events = stream.events + 1",
            [(event.stream,) for event in events],
        )


class Old:
    """A row per event. The next version wants one more column, with an index."""

    name = "document"
    types = TYPES
    ddl = "CREATE TABLE IF NOT EXISTS document (position bigint PRIMARY KEY);"

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.executemany("INSERT INTO document VALUES ($1)", [(event.position,) for event in events])


class New(Old):
    ddl = """
        CREATE TABLE IF NOT EXISTS document (position bigint PRIMARY KEY, stream text NOT NULL);
        CREATE INDEX IF NOT EXISTS document_by_stream ON document (stream);
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.executemany(
            "INSERT INTO document VALUES ($1, $2)", [(event.position, event.stream) for event in events]
        )


class Replica:
    """A process of one version: its pool looks where a service's pool looks."""

    def __init__(self, cell: "Cell", store: EventStore, *models: Any, reclaim_s: float = 60) -> None:
        self._cell, self._store, self._reclaim_s = cell, store, reclaim_s
        self.handler = Projections([Streams(), *models])
        self.db: asyncpg.Pool

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Replica"]:
        async with asyncpg.create_pool(
            self._cell.database_url("ledger_transfer"),
            min_size=1,
            max_size=6,
            server_settings={"search_path": f'"{schema_of(self.handler.shape)}", public'},
        ) as self.db:
            self.consumer = Consumer(
                name=NAME,
                handler=self.handler,
                database=self.db,
                store=self._store,
                amqp_url=self._cell.amqp_url("ledger_transfer"),
                reclaim_s=self._reclaim_s,
            )
            await self.consumer.prepare()  # as a service does before it serves
            async with running_consumer(self.consumer):
                yield self

    async def positions(self) -> list[int]:
        return [row["position"] for row in await self.db.fetch("SELECT position FROM document ORDER BY 1")]

    async def has(self, count: int) -> None:
        async def there() -> bool:
            with contextlib.suppress(asyncpg.UndefinedTableError):
                return await self.positions() == list(range(1, count + 1))
            return False

        await eventually(there, 15)
        assert await self.db.fetchval("SELECT sum(events) FROM stream") >= count


class Scene:
    def __init__(self, cell: "Cell", store: EventStore) -> None:
        self.cell, self.store = cell, store

    def replica(self, *models: Any, **options: Any) -> Replica:
        return Replica(self.cell, self.store, *models, **options)

    async def append(self, count: int) -> None:
        for _ in range(count):
            await append_one(self.store, f"ledger-{new_id()}")

    async def sql(self, query: str) -> Any:
        db = await asyncpg.connect(self.cell.database_url("ledger_transfer"))
        try:
            return await db.fetchval(query) if query.startswith("SELECT") else await db.execute(query)
        finally:
            await db.close()


@pytest.fixture
async def scene(cell: "Cell") -> AsyncIterator[Scene]:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    async with running_relay(cell):
        yield Scene(cell, store)
    await store.close()


def built() -> float:
    return metrics.read_models_built.labels(NAME)._value.get()  # type: ignore[no-any-return]


class TestAlone:
    async def test_data_of_a_checkout_that_wrote_no_shape_down(self, scene: Scene) -> None:
        async with scene.replica(Old()).running() as old:
            await scene.append(20)
            await old.has(20)
        await scene.sql("ALTER TABLE consumed DROP COLUMN shape, DROP COLUMN models; DROP TABLE table_shape")
        await scene.sql("ALTER TABLE generation DROP COLUMN shape, DROP COLUMN used_at")
        await scene.sql("ALTER TABLE parked DROP COLUMN retry_at, DROP COLUMN traceback, DROP COLUMN attempts")
        # A row that only a rebuild of this read model, unchanged, would take away.
        await scene.sql("INSERT INTO stream VALUES ('kept', 1)")
        before = built()
        async with scene.replica(New()).running() as new:
            await new.has(20)
            assert await scene.sql("SELECT count(DISTINCT stream) FROM public.document") == 20
            assert await scene.sql("SELECT count(*) FROM stream WHERE stream = 'kept'") == 1, "nothing else is rebuilt"
            await scene.append(5)
            await new.has(25)
        assert built() == before + 1
        async with scene.replica(New()).running() as again:
            await again.has(25)
        assert built() == before + 1, "once"

    async def test_the_same_tables_of_an_old_checkout_are_taken_as_they_are(self, scene: Scene) -> None:
        async with scene.replica(New()).running() as old:
            await scene.append(3)
            await old.has(3)
        await scene.sql("ALTER TABLE consumed DROP COLUMN shape, DROP COLUMN models; DROP TABLE table_shape")
        before = built()
        async with scene.replica(New()).running() as new:
            await new.has(3)
        assert built() == before

    async def test_a_new_meaning_and_a_new_event_type_are_other_read_models(self, scene: Scene) -> None:
        class Raised(New):
            version = 2

        class More(New):
            types = TYPES | {"ledger.transfer.reversed"}

        class Commented(New):
            ddl = New.ddl.replace("bigint PRIMARY KEY,", "bigint   PRIMARY KEY, -- dense\n")

        assert model_of(New()) == model_of(Commented())
        assert len({model_of(each).fingerprint for each in (New(), Raised(), More(), Old())}) == 4
        async with scene.replica(New()).running() as one:
            await scene.append(3)
            await one.has(3)
        await scene.sql("DELETE FROM document")
        async with scene.replica(Raised()).running() as two:
            await two.has(3)

    async def test_read_models_that_come_and_go(self, scene: Scene) -> None:
        async with scene.replica().running() as without:
            await scene.append(4)
            await eventually(lambda: without.consumer.wait_for(4, 1))
        async with scene.replica(New()).running() as more:
            await more.has(4)
        async with scene.replica().running() as without:
            await scene.append(1)
            await eventually(lambda: without.consumer.wait_for(5, 1))
            assert not await scene.sql("SELECT to_regclass('public.document') IS NOT NULL")

    async def test_what_is_parked_stays_parked(self, scene: Scene) -> None:
        class Picky(Old):
            async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
                if any(event.position == 2 for event in events):
                    raise ValueError("not this one")
                await super().apply(db, events)

        async with scene.replica(Picky()).running() as old:
            await scene.append(3)
            await eventually(lambda: old.consumer.wait_for(3, 1))
        async with scene.replica(New()).running() as new:
            assert await new.consumer.wait_for(3, 10)
            assert await new.positions() == [1, 3]
            await scene.sql("UPDATE parked SET retry_at = now()")
            await new.has(3)

    async def test_two_replicas_start_and_one_builds(self, scene: Scene) -> None:
        async with scene.replica(Old()).running() as old:
            await scene.append(50)
            await old.has(50)
        before = built()
        async with scene.replica(New()).running() as one, scene.replica(New()).running() as two:
            await asyncio.gather(one.has(50), two.has(50))
        assert built() == before + 1


class TestBesideEachOther:
    async def test_the_old_replica_keeps_its_rows_fresh_and_misses_no_read(self, scene: Scene) -> None:
        async with scene.replica(Old()).running() as old:
            await scene.append(50)
            await old.has(50)
            reads = 0

            async def read() -> None:
                nonlocal reads
                last = 50
                while True:
                    rows = await old.db.fetch("SELECT * FROM document ORDER BY position")
                    assert [tuple(row) for row in rows] == [(n + 1,) for n in range(len(rows))], "its own columns"
                    assert len(rows) >= last, "never back in time"
                    last = len(rows)
                    reads += 1
                    await asyncio.sleep(0)

            reading = asyncio.create_task(read())
            # Two of the old version: what one has applied the other one leaves, or keys would be there twice.
            async with scene.replica(Old()).running() as twin, scene.replica(New()).running() as new:
                await new.has(50)
                await scene.append(20)
                await new.has(70)
                assert await twin.consumer.wait_for(70, 5)
                assert twin.consumer.superseded
                assert await old.consumer.wait_for(70, 5)
                await old.has(70)
                assert old.consumer.superseded
                assert old.consumer.connected
                assert not new.consumer.superseded
                assert await scene.sql("SELECT position FROM consumed") == 70
            assert not reading.done(), reading
            assert reads > 10
            reading.cancel()

    async def test_a_version_that_starts_again_takes_its_tables_back(self, scene: Scene) -> None:
        """Rolled back, or crashed in the middle of a deploy: the last one started is live, without a rebuild."""
        async with scene.replica(Old()).running() as old:
            await scene.append(10)
            await old.has(10)
        async with scene.replica(New()).running() as new:
            await new.has(10)
            await scene.append(5)
            await new.has(15)
            await scene.sql(f'CREATE TABLE "{schema_of(old.handler.shape)}".witness (x int)')
            await scene.sql(f'INSERT INTO "{schema_of(old.handler.shape)}".document VALUES (-1)')
            async with scene.replica(Old()).running() as back:
                await eventually(lambda: back.consumer.wait_for(15, 1))
                assert await back.positions() == [-1, *range(1, 16)], "the same rows, caught up"

                async def superseded() -> bool:
                    return new.consumer.superseded

                await eventually(superseded)
                await scene.append(1)
                await new.has(16)
                assert await scene.sql("SELECT count(*) FROM public.document") == 17

    async def test_a_new_version_that_does_nothing_gives_the_place_back(self, scene: Scene) -> None:
        async with scene.replica(Old(), reclaim_s=0.5).running() as old:
            await scene.append(10)
            await old.has(10)
            async with scene.replica(New()).running() as new:
                await new.has(10)

                async def superseded() -> bool:
                    return old.consumer.superseded

                await eventually(superseded)
            await scene.append(5)
            await old.has(15)
            assert await scene.sql("SELECT count(*) FROM public.document") == 15
            assert not old.consumer.superseded


class TestState:
    """Tables that are not built from the log."""

    OWNER = "notifier.deliveries"
    DDL = "CREATE TABLE IF NOT EXISTS delivery (id int PRIMARY KEY, status text NOT NULL);"

    async def change(self, scene: Scene, ddl: str) -> list[str]:
        db = await asyncpg.connect(scene.cell.database_url("ledger_transfer"))
        try:
            async with db.transaction():
                await lock_tables(db)
                return await bring_up(db, self.OWNER, ddl)
        finally:
            await db.close()

    async def test_gains_columns_and_keeps_its_rows(self, scene: Scene) -> None:
        assert await self.change(scene, self.DDL) == []
        await scene.sql("INSERT INTO delivery VALUES (1, 'sent')")
        wider = (
            "CREATE TABLE IF NOT EXISTS delivery (id int PRIMARY KEY, status text NOT NULL,"
            " tries int NOT NULL DEFAULT 7, at timestamptz);"
            "CREATE INDEX IF NOT EXISTS delivery_by_tries ON delivery (tries);"
        )
        assert await self.change(scene, wider) == ["delivery.tries", "delivery.at"]
        assert await self.change(scene, wider) == []
        assert await scene.sql("SELECT tries FROM delivery WHERE id = 1 AND status = 'sent'") == 7
        # The version before starts again: what it does not know does not disturb it.
        assert await self.change(scene, self.DDL) == []
        await scene.sql("INSERT INTO delivery VALUES (2, 'sent')")

    @pytest.mark.parametrize(
        "changed",
        [
            "(id int PRIMARY KEY, status text NOT NULL, must int NOT NULL)",
            "(id bigint PRIMARY KEY, status text NOT NULL)",
            "(id int PRIMARY KEY, status text NOT NULL CHECK (status <> ''))",
            "(id int PRIMARY KEY, status text)",
            "(id int, status text NOT NULL, PRIMARY KEY (id, status))",
            "(id int PRIMARY KEY)",
        ],
    )
    async def test_refuses_what_it_cannot_do_by_itself(self, scene: Scene, changed: str) -> None:
        await self.change(scene, self.DDL)
        with pytest.raises(NotAdditive, match="delivery: "):
            await self.change(scene, f"CREATE TABLE IF NOT EXISTS delivery {changed};")
        await self.change(scene, self.DDL)

    async def test_a_change_written_by_hand_is_made(self, scene: Scene) -> None:
        await self.change(scene, self.DDL)
        by_hand = self.DDL + "ALTER TABLE delivery ALTER COLUMN id TYPE bigint, ALTER COLUMN status DROP NOT NULL;"
        await self.change(scene, by_hand)
        await scene.sql("INSERT INTO delivery VALUES (5000000000, NULL)")
