"""`sangam rebuild` and `sangam replay` on a running consumer, with readers and a worker that gets killed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from backbone import append_one, event, eventually, running_consumer, running_relay
from command import Outcome, sangam
from events import operations
from events.consumer import Consumer
from events.envelope import RecordedEvent, new_id
from events.projections import Projections
from events.replaying import RecordingStore
from events.retention import Retention, apply, days_of, rules_of
from events.store import EventStore, StreamAppend
from events.worker import Operator

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

NAME = "ledger_transfer.projections"
TYPES = frozenset({"ledger.transfer.settled"})


class Totals:
    """How many events each stream has had: applying one twice counts it twice."""

    name = "totals"
    types = TYPES
    ddl = "CREATE TABLE IF NOT EXISTS total (stream text PRIMARY KEY, events bigint NOT NULL);"
    each = 1

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.executemany(
            "INSERT INTO total VALUES ($1, $2) ON CONFLICT (stream) DO UPDATE SET events = total.events + $2",
            [(e.stream, self.each) for e in events],
        )


class Documents:
    """A row per event, and a mail for it: safe to apply twice."""

    name = "documents"
    types = TYPES
    repeatable = True
    effects = {"mail": "mails"}  # noqa: RUF012
    ddl = """
        CREATE TABLE IF NOT EXISTS document (position bigint PRIMARY KEY, stream text NOT NULL, body text NOT NULL);
        CREATE INDEX IF NOT EXISTS document_by_stream ON document (stream);
        CREATE TABLE IF NOT EXISTS mail (event_id uuid PRIMARY KEY, sent boolean NOT NULL DEFAULT false);
    """
    body = "right"

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.execute(
            "INSERT INTO document SELECT p, s, $3 FROM unnest($1::bigint[], $2::text[]) AS t(p, s)"
            " ON CONFLICT (position) DO UPDATE SET body = excluded.body",
            [e.position for e in events],
            [e.stream for e in events],
            self.body,
        )
        await db.execute(
            "INSERT INTO mail (event_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING", [e.event_id for e in events]
        )


class Service:
    """A service in this process: replicas of one consumer, and the workers of its operations."""

    def __init__(self, cell: "Cell", store: EventStore, database: asyncpg.Pool) -> None:
        self.cell, self.store, self.database = cell, store, database
        self.totals, self.documents = Totals(), Documents()
        self.handler = Projections([self.totals, self.documents])
        self.appended = 0

    def consumer(self) -> Consumer:
        return Consumer(
            name=NAME,
            handler=self.handler,
            database=self.database,
            store=self.store,
            amqp_url=self.cell.amqp_url("ledger_transfer"),
        )

    async def work(self) -> None:
        """What `chassis.operating` does, without a process of its own."""
        while True:
            with contextlib.suppress(asyncpg.UndefinedTableError):
                if (operation_id := await operations.waiting(self.database)) is not None:
                    await self.worker().run(operation_id)
            await asyncio.sleep(0.05)

    def worker(self) -> Operator:
        return Operator(
            database_url=self.cell.database_url("ledger_transfer"), store=self.store, handlers={NAME: self.handler}
        )

    @contextlib.asynccontextmanager
    async def running(self, *, replicas: int = 1, works: bool = True) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(running_relay(self.cell))
            for _ in range(replicas):
                await stack.enter_async_context(running_consumer(self.consumer()))
            task = asyncio.create_task(self.work() if works else asyncio.sleep(0))
            try:
                yield
                assert not (works and task.done()), task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def append(self, count: int, streams: int = 10) -> None:
        names = [f"ledger-{new_id()}" for _ in range(streams)]
        for _ in range(count // streams):
            await asyncio.gather(
                *(self.store.append([StreamAppend(name, (event(),))], event_id=new_id()) for name in names)
            )
        self.appended += count

    async def applied(self, position: int) -> None:
        async def there() -> bool:
            with contextlib.suppress(asyncpg.UndefinedTableError):
                return (await self.value("SELECT position FROM consumed") or 0) >= position
            return False

        await eventually(there, 30)

    async def value(self, query: str, *arguments: object) -> Any:
        return await self.database.fetchval(query, *arguments)

    async def rebuild(self, *arguments: str) -> Outcome:
        return await sangam(self.cell, "rebuild", "ledger-transfer", *arguments, "--json")

    async def replay(self, *arguments: str | int) -> Outcome:
        return await sangam(self.cell, "replay", "ledger-transfer", "projections", *arguments, "--json")


@pytest.fixture
async def service(cell: "Cell") -> AsyncIterator[Service]:
    for name in ("identity", "sync_gateway", "wealth", "notifier", "search"):
        cell.admin_url(name)
    store = await RecordingStore.connect(cell.store_url("ledger_transfer"))
    store.append = EventStore.append.__get__(store)  # type: ignore[method-assign]
    database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=8)
    yield Service(cell, store, database)
    await asyncio.gather(store.close(), database.close())


class TestRebuild:
    async def test_beside_live_traffic_readers_never_see_half_and_never_wait(self, service: Service) -> None:
        stop = asyncio.Event()
        slowest_s, least = 0.0, 0
        async with service.running(replicas=2):
            await service.append(3_000)
            await service.applied(3_000)
            await service.database.execute("UPDATE total SET events = events + 1000; DELETE FROM document")
            await service.database.execute("UPDATE mail SET sent = true")

            async def read() -> None:
                nonlocal slowest_s, least
                least = await service.value("SELECT count(*) FROM total")
                while not stop.is_set():
                    began_s = time.monotonic()
                    count = await service.value("SELECT count(*) FROM total")
                    slowest_s = max(slowest_s, time.monotonic() - began_s)
                    assert count >= least, "a read model that shrinks is half built"
                    least = count
                    await asyncio.sleep(0)

            async def write() -> None:
                while not stop.is_set():
                    await service.append(20)

            busy = [asyncio.create_task(read()), asyncio.create_task(write())]
            outcome = await service.rebuild("all", "--reason", "ticket 1")
            stop.set()
            await asyncio.gather(*busy)
            assert outcome.code == 0, outcome.err
            await service.append(100)

            async def all_there() -> bool:
                return await service.value("SELECT count(*) FROM document") == service.appended  # type: ignore[no-any-return]

            await eventually(all_there)
            assert await service.value("SELECT sum(events) FROM total") == service.appended
            # What makes effects outside is not replaced: nothing goes out twice.
            assert await service.value("SELECT count(*) FROM mail WHERE sent") == 3_000
        assert slowest_s < 2, "no reader may wait for a rebuild; this machine is busy"
        assert await service.value("SELECT count(*) FROM parked") == 0
        assert await service.value("SELECT count(*) FROM generation WHERE state = 'live'") == 1
        act = (await sangam(service.cell, "audit", "--json")).lines[-1]
        assert (act["act"], act["outcome"], act["reason"]) == ("rebuild build", "handed_over", "ticket 1")

    async def test_diff_promote_and_rollback_of_a_wrong_projection(self, service: Service) -> None:
        async with service.running():
            await service.append(40)
            await service.applied(40)
            same = await service.rebuild("totals", "--diff")
            assert (same.code, same.json["diff"]) == (0, {})
            service.totals.each = 2  # somebody deploys this
            wrong = await service.rebuild("totals", "--diff")
            assert wrong.code == 1
            assert wrong.json["diff"]["total"]["changed"] == 10
            row = wrong.json["diff"]["total"]["rows"][0]
            assert '"events": 4' in row["live"]
            assert '"events": 8' in row["new"]
            assert await service.value("SELECT sum(events) FROM total") == 40, "nothing is promoted by looking"
            assert (await service.rebuild("totals", "--promote")).code == 0
            assert await service.value("SELECT sum(events) FROM total") == 80
            service.totals.each = 1  # and takes it back
            await service.append(10)
            await service.applied(50)
            assert (await service.rebuild("totals", "--rollback")).code == 0
            assert await service.value("SELECT sum(events) FROM total") == 50, "caught up, then put back"
            assert (await service.rebuild("totals", "--promote")).code == 1, "nothing is ready"
            assert (await service.rebuild("nonsense")).code == 1

    async def test_it_leaves_out_what_is_parked_or_skipped_and_resumes_after_a_crash(self, service: Service) -> None:
        async with service.running(works=False):
            await service.append(2_000)
            await service.applied(2_000)
        streams = await service.database.fetch("SELECT stream, min(position) AS p FROM document GROUP BY stream")
        parked, skipped = streams[0], streams[1]
        await service.database.execute(
            "INSERT INTO parked (consumer, position, stream, event_id, type, reason)"
            " SELECT $1, position, stream, gen_random_uuid(), 't', 'failed' FROM document WHERE stream = $2",
            NAME,
            parked["stream"],
        )
        await service.database.execute(
            "INSERT INTO skipped VALUES ($1, $2, $3, gen_random_uuid(), 't', 'why', 'me')",
            NAME,
            skipped["p"],
            skipped["stream"],
        )
        # A worker that dies on the way: its successor goes on.
        dying, reached = asyncio.Event(), 0
        apply = service.documents.apply

        async def slow(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
            nonlocal reached
            await apply(db, events)
            reached += len(events)
            if reached > 500:
                dying.set()
                await asyncio.sleep(60)

        service.documents.apply = slow  # type: ignore[method-assign]
        request = operations.RebuildRequest(projections=["documents"], promote=False)
        operation_id = await operations.ask(service.database, NAME, request, "me")
        from events import log_chunks

        log_chunks.CHUNK_EVENTS, usual = 300, log_chunks.CHUNK_EVENTS
        task = asyncio.create_task(service.worker().run(operation_id))
        await dying.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        log_chunks.CHUNK_EVENTS = usual
        assert await service.value("SELECT position FROM generation WHERE state = 'building'") == 300
        service.documents.apply = apply  # type: ignore[method-assign]
        assert await operations.waiting(service.database) == operation_id
        assert await service.worker().run(operation_id)
        generation = await service.database.fetchrow("SELECT * FROM generation")
        assert generation is not None
        assert generation["state"] == "ready"
        built = await service.database.fetch(f'SELECT position FROM "{generation["schema"]}".document')
        assert len(built) == 2_000 - 200 - 1
        assert skipped["p"] not in {row["position"] for row in built}
        # Unparked meanwhile: promoting catches up with that, too.
        await service.database.execute("DELETE FROM parked")
        request = operations.RebuildRequest(projections=["documents"], action="promote")
        assert await service.worker().run(await operations.ask(service.database, NAME, request, "me"))
        assert await service.value("SELECT count(*) FROM document") == 1_999

    async def test_an_event_that_cannot_be_applied_fails_the_rebuild_and_nothing_else(self, service: Service) -> None:
        async with service.running():
            await service.append(20)
            await service.applied(20)

            async def fail(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
                raise ValueError("new code, new mistake")

            service.totals.apply = fail  # type: ignore[method-assign]
            outcome = await service.rebuild("totals")
            assert outcome.code == 1
            assert "new mistake" in outcome.json["error"]
            assert await service.value("SELECT sum(events) FROM total") == 20
            assert await service.value("SELECT count(*) FROM generation") == 0


class TestReplay:
    async def test_a_dry_run_tells_and_changes_nothing_then_the_replay_repairs(self, service: Service) -> None:
        async with service.running():
            await service.append(60)
            await service.applied(60)
            await service.database.execute("UPDATE document SET body = 'wrong' WHERE position BETWEEN 11 AND 20")
            await service.database.execute("DELETE FROM document WHERE position = 21; DELETE FROM mail")
            chosen = ("--projection", "documents", "--since", "11", "--until", "30")
            dry = (await service.replay(*chosen, "--dry-run")).json
            assert (dry["events"], dry["sampled"], dry["by_type"]) == (20, 20, {"ledger.transfer.settled": 20})
            assert dry["tables"]["document"]["changed"] == 11
            assert dry["tables"]["document"]["new"] == 1
            assert dry["outside_effects"] == {"mails": 20}
            assert await service.value("SELECT count(*) FROM document WHERE body = 'wrong'") == 10
            done = (await service.replay(*chosen)).json
            assert done["applied"] == 20
            assert done["suppressed_effects"] == {"mails": 20}
            assert await service.value("SELECT count(*) FROM document WHERE body = 'right'") == 60
            assert await service.value("SELECT count(*) FROM mail") == 0, "effects are suppressed"
            assert await service.value("SELECT position FROM consumed") >= 60, "the live position is not the replay's"
            # Asked for explicitly, and not without saying yes.
            assert (await service.replay(*chosen, "--with-effects")).code == 1
            assert await service.value("SELECT count(*) FROM mail") == 0
            assert (await service.replay(*chosen, "--with-effects", "--yes")).code == 0
            assert await service.value("SELECT count(*) FROM mail") == 20

    async def test_where_twice_is_not_once_it_is_refused(self, service: Service) -> None:
        async with service.running():
            await service.append(20)
            await service.applied(20)
            refused = await service.replay()
            assert refused.code == 1
            assert "rebuild" in refused.json["error"]
            dry = (await service.replay("--projection", "totals", "--dry-run")).json
            assert dry["tables"]["total"]["changed"] == 10
            assert await service.value("SELECT sum(events) FROM total") == 20
            assert (await service.replay("--anyway")).code == 1, "not without saying yes"
            assert (await service.replay("--anyway", "--yes", "--projection", "totals")).code == 0
            assert await service.value("SELECT sum(events) FROM total") == 40

    async def test_filters(self, service: Service) -> None:
        async with service.running():
            await service.append(20)
            await append_one(service.store, "ledger-alone")
            await service.applied(21)
            base = ("--projection", "documents", "--dry-run")
            for arguments, count in (
                (("--stream", "ledger-alone"), 1),
                (("--type", "ledger.#"), 21),
                (("--since", "1h"), 21),
                (("--until", "2026-01-01"), 0),
                (("--correlation", "nobody"), 0),
            ):
                assert (await service.replay(*base, *arguments)).json["events"] == count, arguments
            assert (await service.replay(*base, "--type", "identity.#")).code == 1

    async def test_rate_pause_resume_cancel_and_a_crash(self, service: Service) -> None:
        async with service.running():
            await service.append(1_200)
            await service.applied(1_200)
            await service.database.execute("UPDATE document SET body = 'wrong'")
            begun = await service.replay("--projection", "documents", "--rate", "500", "--no-wait")
            operation = begun.json["operation"]

            async def at(position: int) -> bool:
                return await service.value("SELECT position FROM operation") >= position  # type: ignore[no-any-return]

            await eventually(lambda: at(500))
            assert (await sangam(service.cell, "operations", "pause", operation)).code == 0
            await asyncio.sleep(1.2)
            paused = await service.value("SELECT position FROM operation")
            await asyncio.sleep(1.2)
            assert await service.value("SELECT position FROM operation") == paused < 1_200
        # The worker is gone; live events went on, and another worker takes the rest up where it was.
        right = await service.value("SELECT count(*) FROM document WHERE body = 'right'")
        assert right == paused
        async with service.running():
            assert (await sangam(service.cell, "operations", "resume", operation)).code == 0

            async def done() -> bool:
                return await service.value("SELECT state FROM operation") == "done"  # type: ignore[no-any-return]

            await eventually(done)
            assert await service.value("SELECT applied FROM operation") == 1_200, "nothing twice, nothing left out"
            assert await service.value("SELECT count(*) FROM document WHERE body = 'right'") == 1_200
            begun = await service.replay("--projection", "documents", "--rate", "100", "--no-wait")
            assert (await sangam(service.cell, "operations", "cancel", begun.json["operation"])).code == 0

            async def cancelled() -> bool:
                states = await service.database.fetch("SELECT state FROM operation ORDER BY requested_at")
                return [row["state"] for row in states] == ["done", "cancelled"]

            await eventually(cancelled)
            assert (await sangam(service.cell, "operations", "pause", operation)).code == 1, "it has ended"
            listed = (await sangam(service.cell, "operations", "list", "--json")).lines
            assert [row["state"] for row in listed] == ["done", "cancelled"]

    async def test_it_keeps_to_its_lane(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """Under the consumer's lock, without what is parked or skipped, and its position goes with its effects."""
        async with service.running(works=False):
            await service.append(1_200)
            await service.applied(1_200)
        for table, position in (("parked (consumer, position, stream, event_id, type, reason)", 3), ("skipped", 700)):
            more = ", 'me'" if table == "skipped" else ""
            await service.database.execute(
                f"INSERT INTO {table} VALUES ($1, $2, 'ledger-x', gen_random_uuid(), 't', 'failed'{more})",
                NAME,
                position,
            )
        tell, told = operations.Progress.at, 0

        async def crash(self: operations.Progress, position: int, up_to: int, **when: bool) -> None:
            nonlocal told
            told += 1
            if told == 2:
                raise ConnectionResetError
            await tell(self, position, up_to, **when)

        monkeypatch.setattr(operations.Progress, "at", crash)
        request = operations.ReplayRequest(projections=["totals"], anyway=True)
        operation_id = await operations.ask(service.database, NAME, request, "me")
        async with service.database.acquire() as live:
            async with live.transaction():
                await live.execute("SELECT FROM consumed FOR UPDATE")
                replaying = asyncio.create_task(service.worker().run(operation_id))
                await asyncio.sleep(0.5)
                assert await service.value("SELECT sum(events) FROM total") == 1_200, "the live consumer is at work"
            with pytest.raises(ConnectionResetError):
                await replaying
        # What comes live in between is none of the replay's, whoever goes on with it.
        async with service.running(works=False):
            await service.append(10)
            await service.applied(1_210)
        assert await service.worker().run(operation_id)
        assert await service.value("SELECT applied FROM operation") == 1_198
        assert await service.value("SELECT sum(events) FROM total") == 2_408


async def test_a_dry_runs_store_takes_note_of_appends_and_makes_none(cell: "Cell") -> None:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    dry = await RecordingStore.connect(cell.store_url("ledger_transfer"))
    known = await append_one(store, "ledger-a")
    assert (await dry.append([StreamAppend("ledger-a", (event(),))], event_id=known)).duplicate
    answer = await dry.append([StreamAppend("ledger-a", (event(), event()), 1)], event_id=new_id())
    assert answer.versions == {"ledger-a": 3}
    assert (dry.known, dict(dry.appended)) == (1, {"TransferSettled": 2})
    assert len(await store.read_stream("ledger-a")) == 1
    await asyncio.gather(store.close(), dry.close())


class TestRetention:
    async def test_finished_rows_go_after_their_time_and_no_others(self, service: Service) -> None:
        class Sent(Documents):
            retention = (
                Retention("mail", "sent_at", timedelta(days=30), ("state", ("sent", "failed"))),
                Retention("never_made", "at", timedelta(days=1)),
            )
            ddl = Documents.ddl.replace(
                "sent boolean NOT NULL DEFAULT false", "state text NOT NULL DEFAULT 'open', sent_at timestamptz"
            )

        service.handler = Projections([service.totals, Sent()])
        async with service.running():
            await service.append(10)
            await service.applied(10)
            await service.database.execute(
                "UPDATE mail SET state = 'sent', sent_at = now() - interval '31 days'"
                " WHERE event_id IN (SELECT event_id FROM mail ORDER BY event_id LIMIT 4);"
                "UPDATE mail SET state = 'open', sent_at = now() - interval '31 days' WHERE state = 'open' AND event_id"
                " = (SELECT min(event_id::text)::uuid FROM mail WHERE state = 'open');"
                "UPDATE mail SET state = 'failed', sent_at = now() - interval '29 days' WHERE event_id"
                " = (SELECT max(event_id::text)::uuid FROM mail)"
            )
            dry = await sangam(service.cell, "retention", "ledger-transfer", "--dry-run", "--json")
            assert [(row["table"], row["days"], row["rows"]) for row in dry.lines] == [
                ("operation", 90, 0),
                ("mail", 30, 4),
            ], dry
            assert await service.value("SELECT count(*) FROM mail") == 10
            assert (await sangam(service.cell, "retention", "ledger-transfer")).code == 0
            assert await service.value("SELECT count(*) FROM mail") == 6
            assert await service.value("SELECT count(*) FROM document") == 10
            rules = rules_of([service.handler])
            (_, mails) = await apply(service.database, rules, days_of(" mail = 7 "), dry_run=False)
            assert mails == {"table": "mail", "days": 7, "rows": 1}

    @pytest.mark.parametrize("text", ["mail", "mail=", "mail=0", "mail=-1", "mail=1.5", "mail=x", "a=1;b=2"])
    def test_a_setting_that_cannot_be_meant_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="table=days"):
            days_of(text)
