"""append → sequence → relay → consume against a model, with crashes, duplicates and reconnects at every step.

Hypothesis draws the steps and shrinks a failing run to the shortest one that fails. Everything under test is real, on
real PostgreSQL and RabbitMQ. Two relays and two replicas of the consumer are processes of their own, which die by
SIGKILL; two writers, a follower and an outside subscriber are in this one. `SANGAM_MODEL_RUNS=200 pytest -o
faulthandler_timeout=0 libs/events/tests/test_backbone_model.py` searches longer, each time along other walks.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote
from uuid import UUID

import aio_pika
import asyncpg
import model_processes
import pytest
from backbone import Seen, batch, event, eventually
from events import pg, wire
from events.checkpoint import DDL
from events.coalescer import Coalescer
from events.envelope import RecordedEvent, derived_id, new_id
from events.follower import Follower
from events.store import EventIdReused, EventStore, StreamAppend, VersionConflict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

RUNS = int(os.environ.get("SANGAM_MODEL_RUNS", "8"))
STEPS = 30
WRITERS = RELAYS = REPLICAS = 2
STREAMS = 4
SETTLED_S = 20.0

T = TypeVar("T")

UNWRITTEN = "before the append reaches the store"
UNANSWERED = "after the append, before the answer"

# Forked from a process that has imported everything: a new relay is there in some hundredths of a second.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "aio_pika", "events.relay", "events.consumer"])


@pytest.fixture
def armed(tmp_path: Path) -> Iterator[Path]:
    """Where steps are armed. A writer's process is this one: for it a crash is a connection that breaks."""
    write = Coalescer._write

    async def breaking(self: Coalescer, batch: Any) -> Any:
        if model_processes.taken(tmp_path, UNWRITTEN):
            raise ConnectionResetError
        verdicts = await write(self, batch)
        if model_processes.taken(tmp_path, UNANSWERED):
            raise ConnectionResetError
        return verdicts

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Coalescer, "_write", breaking)
        yield tmp_path


class World:
    """The running backbone, and what the model says should be in it."""

    def __init__(self, cell: "Cell", armed: Path) -> None:
        self.cell = cell
        self.armed = armed
        run = new_id().hex[-8:]
        self.queue = f"ledger_transfer.model{run}"
        self.subscription = f"model{run}"
        self.streams = [f"ledger-{new_id()}" for _ in range(STREAMS)]
        self.expected: dict[str, list[UUID]] = {stream: [] for stream in self.streams}
        self.requests: list[tuple[UUID, str, tuple[Any, ...]]] = []
        self.processes: dict[str, ForkServerProcess] = {}
        self.followed: list[RecordedEvent] = []
        self.published: dict[int, None] = {}
        """Positions that came by `sangam.events`, in the order of their first coming."""
        self.slow: tuple[asyncpg.Connection, Any, str, UUID] | None = None

    async def start(self) -> None:
        self.admin = await asyncpg.connect(self.cell.admin_url())
        self.stores = [await EventStore.connect(self.cell.store_url("ledger_transfer")) for _ in range(WRITERS)]
        self.database = await asyncpg.connect(self.cell.database_url("ledger_transfer"))
        self.broker = await aio_pika.connect(self.cell.amqp_url())
        head = await self.stores[0].head()
        self.beginning = head.position
        # Earlier runs have filled the log: this run's consumer begins where the log ends now.
        await self.database.execute(DDL + Seen.ddl)
        await self.database.execute("INSERT INTO consumed VALUES ($1, $2, $3)", self.queue, head.position, head.epoch)
        subscriber = await self.broker.channel()
        subscription = await subscriber.declare_queue(self.subscription, exclusive=True)
        await subscription.bind(wire.EVENTS_EXCHANGE, "#")
        await subscription.consume(self._subscribed, no_ack=True)
        follower = Follower(
            service="ledger_transfer",
            on_events=self._follow,
            store=self.stores[0],
            amqp_url=self.cell.amqp_url("ledger_transfer"),
        )
        self.following = asyncio.create_task(follower.run())
        await follower.started.wait()
        self.revive()

    async def _follow(self, events: Sequence[RecordedEvent]) -> None:
        self.followed += events

    async def _subscribed(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        position = message.headers["cloudEvents:position"]
        assert isinstance(position, int)
        if position > self.beginning:
            self.published[position] = None

    def revive(self) -> None:
        """Starts again what has died, as a supervisor does."""
        assert not self.following.done(), f"the follower died by itself: {self.following.exception()!r}"
        for name in [name for name, process in self.processes.items() if process.exitcode is not None]:
            code = self.processes.pop(name).exitcode
            assert code == -signal.SIGKILL, f"{name} died by itself, code {code}"
        for number in range(RELAYS):
            self._run(
                f"relay {number}", model_processes.relay, self.cell.store_url("relay"), self.cell.amqp_url("relay")
            )
        for number in range(REPLICAS):
            self._run(
                f"replica {number}",
                model_processes.replica,
                self.queue,
                self.cell.store_url("ledger_transfer"),
                self.cell.database_url("ledger_transfer"),
                self.cell.amqp_url("ledger_transfer"),
            )

    def _run(self, name: str, program: Callable[..., None], *arguments: str) -> None:
        if name not in self.processes:
            process = processes.Process(target=program, args=(self.armed, *arguments), daemon=True)
            process.start()
            self.processes[name] = process

    def kill(self, kind: str) -> None:
        """Ends all processes of a kind where they stand: nothing of them is finished."""
        for name in [name for name in self.processes if name.startswith(kind)]:
            process = self.processes.pop(name)
            process.kill()
            process.join()

    async def append(
        self,
        writer: int,
        event_id: UUID,
        stream: str,
        events: tuple[Any, ...],
        expected: int | None,
        hash_: bytes = b"",
    ) -> bool:
        """Appends, again and again while the outcome is unknown. False: the version was not the expected one."""
        while True:
            try:
                await self.stores[writer].append(
                    [StreamAppend(stream, events, expected)], event_id=event_id, request_hash=hash_
                )
                return True
            except VersionConflict:
                return False
            except EventIdReused:
                raise
            except Exception as error:
                assert pg.is_outage(error), error

    def note(self, event_id: UUID, stream: str, events: tuple[Any, ...]) -> None:
        self.requests.append((event_id, stream, events))
        self.expected[stream] += [derived_id(event_id, n) if n else event_id for n in range(len(events))]

    async def settle(self) -> None:
        """Everything that was appended has been applied, once, in order, and nothing else; and it went outside."""
        count = sum(map(len, self.expected.values()))

        async def all_there() -> bool:
            self.revive()
            assert not await self._parked(), "the read model refused what it was given"
            return await self._count() >= count <= min(len(self.followed), len(self.published))

        try:
            await eventually(all_there, SETTLED_S)
        except TimeoutError:
            raise AssertionError(
                f"{count} events were appended, {await self._count()} applied, {len(self.followed)} followed,"
                f" {len(self.published)} published"
            ) from None
        rows = await self.database.fetch(
            "SELECT stream, version, event_id FROM seen WHERE stream = ANY ($1) ORDER BY position", self.streams
        )
        applied: dict[str, list[UUID]] = {stream: [] for stream in self.streams}
        for row in rows:
            applied[row["stream"]].append(UUID(int=row["event_id"].int))
            assert row["version"] == len(applied[row["stream"]])
        assert applied == self.expected
        positions = list(range(self.beginning + 1, self.beginning + 1 + count))
        assert [e.position for e in self.followed] == positions
        assert list(self.published) == positions, "outside, too, whatever comes first comes in order"

    async def _count(self) -> int:
        return await self.database.fetchval(  # type: ignore[no-any-return]
            "SELECT count(*) FROM seen WHERE stream = ANY ($1)", self.streams
        )

    async def _parked(self) -> bool:
        return await self.database.fetchval(  # type: ignore[no-any-return]
            "SELECT EXISTS (SELECT FROM parked WHERE consumer = $1)", self.queue
        )

    async def stop(self) -> None:
        if self.slow is not None:
            await self.slow[0].close()
        self.kill("re")
        self.following.cancel()
        await asyncio.wait([self.following], timeout=5)
        channel = await self.broker.channel()
        await channel.queue_delete(self.queue)
        await self.broker.close()
        for store in self.stores:
            await store.close()
        await self.database.close()
        await self.admin.close()


class Backbone(RuleBasedStateMachine):
    """The steps that Hypothesis may take."""

    cell: "Cell"
    armed: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self._disarm()
        self.world = World(self.cell, self.armed)
        self._do(self.world.start())

    def _disarm(self) -> None:
        for step in self.armed.iterdir():
            step.unlink(missing_ok=True)

    def _do(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(SETTLED_S * 2):
                return await work

        return self.loop.run_until_complete(bounded())

    @rule(writer=st.integers(0, WRITERS - 1), stream=st.integers(0, STREAMS - 1), count=st.integers(1, 5))
    def append(self, writer: int, stream: int, count: int) -> None:
        """At the right version, or at any."""
        world, name = self.world, self.world.streams[stream]
        event_id, events = new_id(), tuple(event() for _ in range(count))
        expected = len(world.expected[name]) if count % 2 else None
        assert self._do(world.append(writer, event_id, name, events, expected))
        world.note(event_id, name, events)

    @rule(writer=st.integers(0, WRITERS - 1), stream=st.integers(0, STREAMS - 1), off=st.sampled_from((-1, 1, 100)))
    def append_on_a_stale_version(self, writer: int, stream: int, off: int) -> None:
        world, name = self.world, self.world.streams[stream]
        version = len(world.expected[name]) + off
        if version >= 0:
            assert not self._do(world.append(writer, new_id(), name, (event(),), version))

    @rule(stream=st.integers(0, STREAMS - 1), rivals=st.integers(2, 6))
    def append_in_competition(self, stream: int, rivals: int) -> None:
        """Several decide on the same version at the same time: one wins."""
        world, name = self.world, self.world.streams[stream]
        version = len(world.expected[name])
        requests = [(new_id(), (event(),)) for _ in range(rivals)]

        async def compete() -> list[bool]:
            return await asyncio.gather(
                *(
                    world.append(n % WRITERS, event_id, name, events, version)
                    for n, (event_id, events) in enumerate(requests)
                )
            )

        won = [request for request, winner in zip(requests, self._do(compete()), strict=True) if winner]
        assert len(won) == 1
        world.note(won[0][0], name, won[0][1])

    @rule(writer=st.integers(0, WRITERS - 1), which=st.integers(0, 1_000))
    def append_again(self, writer: int, which: int) -> None:
        """The same request once more changes nothing; its id under another request is refused."""
        if not self.world.requests:
            return
        event_id, stream, events = self.world.requests[which % len(self.world.requests)]
        assert self._do(self.world.append(writer, event_id, stream, events, 0))
        with pytest.raises(EventIdReused):
            self._do(self.world.append(writer, event_id, stream, events, None, b"another"))

    @rule(stream=st.integers(0, STREAMS - 1))
    def begin_a_slow_append(self, stream: int) -> None:
        """A transaction that has drawn its ids and does not commit: those after it must not wait, nor skip it."""
        if self.world.slow is None:
            self.world.slow = self._do(self._slow_append(f"ledger-{new_id()}"))

    async def _slow_append(self, stream: str) -> "tuple[asyncpg.Connection, Any, str, UUID]":
        connection = await asyncpg.connect(self.cell.store_url("ledger_transfer"))
        transaction = connection.transaction()
        await transaction.start()
        event_id = new_id()
        await connection.fetchrow(
            "SELECT * FROM store.append(ARRAY[$1], ARRAY[1::bigint], ARRAY[$2::uuid], ARRAY[''::bytea], ARRAY[1],"
            " ARRAY[1], ARRAY[0::bigint], ARRAY[0::bigint], ARRAY[1], ARRAY[1], ARRAY[1::bigint], ARRAY[$2::uuid],"
            " ARRAY['ledger.transfer.settled'], ARRAY[1], ARRAY[NULL::uuid], ARRAY[$3::bytea], ARRAY['{}'::bytea])",
            stream,
            event_id,
            b'{"transfer_id":"%b","platform":"bfc","item_id":"1","occurred_at":"2026-02-12T09:00:00Z"}'
            % str(event_id).encode(),
        )
        return connection, transaction, stream, event_id

    @rule(commit=st.booleans())
    def end_the_slow_append(self, commit: bool) -> None:
        if self.world.slow is None:
            return
        connection, transaction, stream, event_id = self.world.slow
        self.world.slow = None
        if commit:
            self._do(transaction.commit())
            self.world.streams.append(stream)
            self.world.expected[stream] = [event_id]
        else:
            self._do(transaction.rollback())
        self._do(connection.close())

    @rule(step=st.sampled_from((UNWRITTEN, UNANSWERED, *model_processes.STEPS)))
    def crash_at(self, step: str) -> None:
        (self.armed / step).touch()

    @rule(kind=st.sampled_from(("relay", "replica", "relay 0", "relay 1", "replica 0", "replica 1")))
    def kill(self, kind: str) -> None:
        self.world.kill(kind)
        self.world.revive()

    @rule(what=st.sampled_from(("sequencer", "relay-reader", "relay-checkpoints", "append", "wake", "read", "replica")))
    def break_sessions(self, what: str) -> None:
        """PostgreSQL ends sessions, as a failover does."""
        self._do(
            self.world.admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1"
                " AND datname = ANY ($2)",
                what,
                [self.cell.database_name(database) for database in ("event_store", "ledger_transfer")],
            )
        )

    @rule(who=st.sampled_from(("relay", "ledger_transfer")))
    def break_connections(self, who: str) -> None:
        """RabbitMQ ends connections, as a node does that goes down."""
        management = self.cell.management
        for connection in management.call("GET", f"/vhosts/{quote(self.cell.vhost, safe='')}/connections"):
            if connection.get("user", "").endswith(who):
                with contextlib.suppress(HTTPError):  # gone by itself
                    management.call("DELETE", f"/connections/{quote(connection['name'], safe='')}")

    @rule(how=st.sampled_from(("delete", "purge", "unbind")))
    def lose_messages(self, how: str) -> None:
        self._do(self._with_queue(how))

    async def _with_queue(self, how: str) -> None:
        channel = await self.world.broker.channel()
        with contextlib.suppress(aio_pika.exceptions.ChannelClosed):  # not declared yet
            queue = await channel.declare_queue(self.world.queue, passive=True)
            if how == "delete":
                await queue.delete(if_unused=False, if_empty=False)
            elif how == "purge":
                await queue.purge()
            elif how == "unbind":
                await queue.unbind(wire.LOG_EXCHANGE)
            else:
                await queue.bind(wire.LOG_EXCHANGE)
        if not channel.is_closed:
            await channel.close()

    @rule(stream=st.integers(0, STREAMS - 1), count=st.integers(1, 5))
    def lose_a_few_in_between(self, stream: int, count: int) -> None:
        """What is published now never reaches the queue, what comes after it does."""
        self.settle()  # so that the consumer is there, and does not look into the log by itself
        self._do(self._with_queue("unbind"))
        self.append(0, stream, count)
        self._do(asyncio.sleep(0.2))
        self._do(self._with_queue("bind"))
        self.append(1, stream, count)

    @rule(start=st.integers(0, 50), count=st.integers(1, 20))
    def repeat_messages(self, start: int, count: int) -> None:
        """A part of the log is published once more, as a relay does whose checkpoint was lost."""

        async def repeat() -> None:
            store = self.world.stores[0]
            if events := await store.read_log(self.world.beginning + start, count):
                body, headers = batch(events, (await store.head()).epoch)
                channel = await self.world.broker.channel()
                exchange = await channel.get_exchange(wire.LOG_EXCHANGE)
                await exchange.publish(aio_pika.Message(body, headers=headers), "")
                await channel.close()

        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._do(repeat())

    @rule(seconds=st.sampled_from((0.0, 0.05, 0.3)))
    def let_time_pass(self, seconds: float) -> None:
        self._do(asyncio.sleep(seconds))

    @rule()
    def settle(self) -> None:
        self._do(self.world.settle())

    def teardown(self) -> None:
        """Every run ends in order: all applied, and the whole log dense."""
        try:
            self._disarm()
            self.end_the_slow_append(commit=True)
            self._do(self.world.settle())
            dense = self._do(
                self.world.admin.fetchval("SELECT count(*) = max(position) AND min(position) = 1 FROM store.log")
            )
            assert dense is not False
        finally:
            self._do(self.world.stop())
            self.loop.close()


@pytest.mark.timeout(50 * RUNS)
def test_whatever_crashes_everything_is_applied_once_and_in_order(cell: "Cell", armed: Path) -> None:
    Backbone.cell, Backbone.armed = cell, armed
    run_state_machine_as_test(
        Backbone,
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            # CI takes the same walk every time; a longer search takes others.
            derandomize="SANGAM_MODEL_RUNS" not in os.environ,
            suppress_health_check=list(HealthCheck),
        ),
    )
