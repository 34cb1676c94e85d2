"""From the log to a committed read model over RabbitMQ, whatever the broker loses, repeats or is fed."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import aio_pika
import asyncpg
import pytest
from backbone import Seen, append_one, batch, event, eventually, running_consumer, running_relay
from events import wire
from events.consumer import Consumer
from events.envelope import RecordedEvent, new_id
from events.feed import EpochChanged
from events.follower import Follower
from events.projections import Projections, rebuild
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from msgspec import structs

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


class Bench:
    """A store, a database and a consumer of the ledger's, on one cell."""

    def __init__(self, cell: "Cell", store: EventStore, database: asyncpg.Pool) -> None:
        self.cell = cell
        self.store = store
        self.database = database
        self.stream = f"ledger-{new_id()}"

    def consumer(self, handler=None, name: str = "ledger_transfer.projections") -> Consumer:  # type: ignore[no-untyped-def]
        return Consumer(
            name=name,
            handler=handler or Projections([Seen()]),
            database=self.database,
            store=self.store,
            amqp_url=self.cell.amqp_url("ledger_transfer"),
        )

    async def append(self, count: int) -> None:
        await asyncio.gather(*(append_one(self.store, self.stream) for _ in range(count)))

    async def seen(self) -> int:
        try:
            return await self.database.fetchval("SELECT count(*) FROM seen")  # type: ignore[no-any-return]
        except asyncpg.UndefinedTableError:
            return 0  # the consumer has not started yet

    async def sees(self, count: int) -> None:
        async def all_there() -> bool:
            return await self.seen() == count

        await eventually(all_there)

    async def equals_rebuild(self) -> None:
        head = (await self.store.head()).position
        db = await asyncpg.connect(self.cell.database_url("ledger_transfer"))
        await rebuild(Projections([Seen()]), self.store, db, "again", up_to=head)
        for table in ("seen", "last_version"):
            live, again = [
                await db.fetch(f"SELECT * FROM {schema}.{table} ORDER BY 1") for schema in ("public", "again")
            ]
            assert live == again
        await db.close()


@pytest.fixture
async def bench(cell: "Cell"):  # type: ignore[no-untyped-def]
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=8)
    yield Bench(cell, store, database)
    await store.close()
    await database.close()


async def test_an_append_reaches_the_read_model(bench: Bench) -> None:
    async with running_relay(bench.cell), running_consumer(bench.consumer()) as consumer:
        event_id = await append_one(bench.store, bench.stream)
        await bench.sees(1)
        position = await bench.store.position_of(event_id)
        assert position is not None
        assert await consumer.wait_for(position, 1)
        assert not await consumer.wait_for(position + 1, 0.1)
        await bench.append(500)
        await bench.sees(501)
        await bench.equals_rebuild()


async def test_events_share_a_transaction_unless_somebody_waits(bench: Bench) -> None:
    consumer = bench.consumer()
    consumer._pace_s = 0.5
    transactions = "SELECT count(DISTINCT xmin::text) FROM seen"
    async with running_relay(bench.cell), running_consumer(consumer):
        await bench.append(1)
        await bench.sees(1)
        for _ in range(30):
            await append_one(bench.store, bench.stream)
            await asyncio.sleep(0.01)
        await bench.sees(31)
        assert await bench.database.fetchval(transactions) <= 1 + 4
        for _ in range(5):
            event_id = await append_one(bench.store, bench.stream)
            while (position := await bench.store.position_of(event_id)) is None:
                await asyncio.sleep(0.002)
            assert await consumer.wait_for(position, 0.4), "not for as long as it takes until the next transaction"


async def test_effects_and_position_are_one_transaction(bench: Bench) -> None:
    """Told from the rows themselves: a crash between two transactions is too short a moment to be met by chance."""
    async with running_relay(bench.cell), running_consumer(bench.consumer()):
        await append_one(bench.store, bench.stream)
        await bench.sees(1)
        same = "SELECT seen.xmin::text = consumed.xmin::text FROM seen, consumed"
        assert await bench.database.fetchval(same) is True


async def test_a_consumer_added_later_catches_up(bench: Bench) -> None:
    async with running_relay(bench.cell):
        await bench.append(300)
        async with running_consumer(bench.consumer()):
            await bench.append(50)
            await bench.sees(350)


async def test_a_deleted_queue_and_lost_messages_heal(bench: Bench) -> None:
    admin = await aio_pika.connect(bench.cell.amqp_url())
    channel = await admin.channel()
    async with running_relay(bench.cell), running_consumer(bench.consumer()) as consumer:

        async def listens() -> bool:
            return not consumer._feed._silent()

        async def unbound() -> bool:
            """Not before it has been declared again."""
            try:
                async with admin.channel() as own:
                    queue = await own.declare_queue("ledger_transfer.projections", passive=True)
                    await queue.unbind(wire.LOG_EXCHANGE)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                return False
            return True

        await bench.append(10)
        await bench.sees(10)
        await eventually(listens)  # else there is no queue yet
        await channel.queue_delete("ledger_transfer.projections")
        await bench.append(10)
        await bench.sees(20)
        # Unbound under a healthy connection: silence, and then the log.
        await eventually(unbound)
        await bench.append(10)
        await bench.sees(30)
        await eventually(listens)  # it is bound again
        await bench.equals_rebuild()
    # Messages that vanish while nobody consumes.
    async with running_relay(bench.cell):
        await bench.append(10)
        await asyncio.sleep(0.5)
        await (await channel.declare_queue("ledger_transfer.projections", passive=True)).purge()
        async with running_consumer(bench.consumer()):
            await bench.sees(40)
    await bench.equals_rebuild()
    await admin.close()


async def test_repeated_reordered_and_foreign_messages(bench: Bench) -> None:
    admin = await aio_pika.connect(bench.cell.amqp_url())
    channel = await admin.channel()
    async with running_relay(bench.cell), running_consumer(bench.consumer()):
        await bench.append(30)
        await bench.sees(30)
        exchange = await channel.get_exchange(wire.LOG_EXCHANGE)
        epoch = (await bench.store.head()).epoch
        log = await bench.store.read_log(0, 100)
        for events in (log[20:], log[:5], log[10:12]):
            body, headers = batch(events, epoch)
            await exchange.publish(aio_pika.Message(body, headers=headers), "")
        body, headers = batch(log[3:5], epoch)
        for damaged in (
            aio_pika.Message(b"junk"),
            aio_pika.Message(b"junk", headers={"first": 31, "last": 31, "epoch": str(epoch)}),
            aio_pika.Message(body, headers={**headers, "first": 31, "last": 32}),
            aio_pika.Message(body, headers={**headers, "first": "31"}),
            aio_pika.Message(body, headers={**headers, "epoch": "yesterday"}),
            aio_pika.Message(b"[]", headers={"first": 10**15 + 1, "last": 10**15, "epoch": str(epoch)}),
        ):
            await exchange.publish(damaged, "")
        await bench.append(5)
        await bench.sees(35)
        await bench.equals_rebuild()
        dead = await channel.declare_queue("sangam.dead", passive=True)

        async def buried() -> bool:
            return (await dead.declare()).message_count == 6

        await eventually(buried)
    await admin.close()


async def test_only_the_relay_may_publish_to_the_log(bench: Bench) -> None:
    for user in ("ledger_transfer", "identity"):
        connection = await aio_pika.connect(bench.cell.amqp_url(user))
        channel = await connection.channel()
        exchange = await channel.get_exchange(wire.LOG_EXCHANGE, ensure=False)
        with pytest.raises(aio_pika.exceptions.AMQPError, match="ACCESS_REFUSED"):
            await exchange.publish(aio_pika.Message(b"[]"), "")
        await connection.close()


async def test_two_replicas_apply_each_event_once(bench: Bench) -> None:
    async with (
        running_relay(bench.cell),
        running_consumer(bench.consumer()) as a,
        running_consumer(bench.consumer()) as b,
    ):
        await bench.append(400)
        await bench.sees(400)
        assert await a.wait_for(400, 2)
        assert await b.wait_for(400, 2)
        await bench.equals_rebuild()


async def test_two_replicas_without_a_broker_race_for_the_same_events(bench: Bench) -> None:
    """Both read the log themselves, from the same position, at the same time: only one of them may apply it."""
    consumers = [bench.consumer() for _ in range(2)]
    for consumer in consumers:
        consumer._feed._amqp_url = "amqp://nobody:nothing@127.0.0.1:1/"
    async with running_relay(bench.cell):
        await bench.append(400)

        async def sequenced() -> bool:
            return (await bench.store.head()).position == 400

        await eventually(sequenced)
        async with running_consumer(consumers[0]), running_consumer(consumers[1]):
            await bench.sees(400)
            for consumer in consumers:
                assert await consumer.wait_for(400, 5)
    assert await bench.database.fetchval("SELECT count(*) FROM parked") == 0
    await bench.equals_rebuild()


async def test_a_gap_before_a_live_batch_is_read_from_the_log(bench: Bench) -> None:
    admin = await aio_pika.connect(bench.cell.amqp_url())
    channel = await admin.channel()
    relay = await asyncpg.connect(bench.cell.store_url("relay"))
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    async with running_consumer(bench.consumer()) as consumer:

        async def listens() -> bool:
            return consumer.connected and not consumer._feed._must_look

        await eventually(listens)
        await bench.append(10)
        await sequencer.sequence()
        log = await bench.store.read_log(0, 10)
        body, headers = batch(log[5:], (await bench.store.head()).epoch)
        exchange = await channel.get_exchange(wire.LOG_EXCHANGE)
        await exchange.publish(aio_pika.Message(body, headers=headers), "")
        await bench.sees(10)
        # Nothing is published any more: after a silence it looks by itself.
        await bench.append(5)
        await sequencer.sequence()
        await bench.sees(15)
    dead = await channel.declare_queue("sangam.dead", passive=True)
    assert (await dead.declare()).message_count == 0
    await bench.equals_rebuild()
    await relay.close()
    await admin.close()


class Poison(Seen):
    """Fails for ever on one stream."""

    def __init__(self, stream: str) -> None:
        self._stream = stream

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for e in events:
            if e.stream == self._stream and e.version >= 2:
                raise ValueError("poison")
        await super().apply(db, events)


async def test_a_poison_event_parks_its_stream_and_no_other(bench: Bench) -> None:
    poisoned = f"ledger-{new_id()}"
    async with running_relay(bench.cell), running_consumer(bench.consumer(Projections([Poison(poisoned)]))):
        for _ in range(4):
            await asyncio.gather(append_one(bench.store, poisoned), append_one(bench.store, bench.stream))
        await bench.sees(5)
        await bench.append(20)
        await bench.sees(25)
    parked = await bench.database.fetch("SELECT stream, reason FROM parked ORDER BY position")
    assert [(row["stream"], row["reason"]) for row in parked] == [
        (poisoned, "failed"),
        (poisoned, "behind"),
        (poisoned, "behind"),
    ]
    # And still after a restart.
    async with running_relay(bench.cell), running_consumer(bench.consumer(Projections([Poison(poisoned)]))):
        await append_one(bench.store, poisoned)
        await bench.append(1)
        await bench.sees(26)
    assert await bench.database.fetchval("SELECT count(*) FROM parked") == 4


class Interrupted(Seen):
    """Behaves as if the database went away under it, some times."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await super().apply(db, events)
        if self.left:
            self.left -= 1
            raise asyncpg.AdminShutdownError("terminating connection")


async def test_an_outage_parks_nothing(bench: Bench) -> None:
    handler = Interrupted(8)
    async with running_relay(bench.cell), running_consumer(bench.consumer(Projections([handler]))):
        await bench.append(10)
        await bench.sees(10)
    assert handler.left == 0
    assert await bench.database.fetchval("SELECT count(*) FROM parked") == 0


async def test_a_restored_store_stops_the_consumer(bench: Bench) -> None:
    async with running_relay(bench.cell), running_consumer(bench.consumer()):
        await bench.append(3)
        await bench.sees(3)
    admin = await asyncpg.connect(bench.cell.admin_url())
    await admin.execute("UPDATE store.store SET epoch = gen_random_uuid()")
    await admin.close()
    with pytest.raises(EpochChanged, match="was restored"):
        await asyncio.wait_for(bench.consumer().run(), 10)
    assert await bench.seen() == 3


async def test_batches_queued_before_a_restore_do_not_stop_the_consumer(bench: Bench) -> None:
    """They are of another epoch than the store and the consumer, and come up once the consumer starts anew."""
    admin = await aio_pika.connect(bench.cell.amqp_url())
    channel = await admin.channel()
    async with running_relay(bench.cell), running_consumer(bench.consumer()):
        await bench.append(3)
        await bench.sees(3)
        exchange = await channel.get_exchange(wire.LOG_EXCHANGE)
        log = await bench.store.read_log(0, 3)
        foreign = [structs.replace(e, position=e.position + 3, event_id=new_id(), stream="ledger-other") for e in log]
        foreign = [structs.replace(e, version=n) for n, e in enumerate(foreign, 1)]
        body, headers = batch(foreign, new_id())
        await exchange.publish(aio_pika.Message(body, headers=headers), "")
        await bench.append(3)
        await bench.sees(6)
    await bench.equals_rebuild()
    await admin.close()


async def test_a_follower_sees_everything_from_its_start_on(bench: Bench) -> None:
    got: list[int] = []

    async def on_events(events: Sequence[RecordedEvent]) -> None:
        got.extend(e.position for e in events)

    follower = Follower(
        service="ledger_transfer",
        on_events=on_events,
        store=bench.store,
        amqp_url=bench.cell.amqp_url("ledger_transfer"),
    )
    async with running_relay(bench.cell):
        await bench.append(5)

        async def sequenced() -> bool:
            return (await bench.store.head()).position == 5

        await eventually(sequenced)
        task = asyncio.create_task(follower.run())
        await follower.started.wait()
        for _ in range(10):
            await bench.append(10)

        async def all_there() -> bool:
            return len(got) == 100

        await eventually(all_there)
        assert got == list(range(6, 106))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_outside_subscribers_get_public_events_one_by_one(bench: Bench) -> None:
    from events.contracts import identity

    admin = await aio_pika.connect(bench.cell.amqp_url())
    channel = await admin.channel()
    private_store = await EventStore.connect(bench.cell.store_url("identity"))
    async with running_relay(bench.cell) as relay:

        async def leads() -> bool:
            return relay.leads

        await eventually(leads)
        exchange = await channel.declare_exchange(wire.EVENTS_EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue("subscriber.test")
        await queue.bind(exchange, "#")
        user = new_id()
        secret = identity.UserRegistered(user_id=user, sealed_profile="x")
        await private_store.append([StreamAppend(f"user-{user}", (secret,), 0)], event_id=new_id())
        event_id = new_id()
        await bench.store.append([StreamAppend(bench.stream, (event(),))], event_id=event_id, subject=user)
        message = None
        async with asyncio.timeout(10):
            while message is None:
                message = await queue.get(fail=False, no_ack=True)
        assert message.routing_key == "ledger.transfer.settled"
        assert message.headers["cloudEvents:id"] == str(event_id)
        assert message.headers["cloudEvents:subject"] == str(user)
        assert message.headers["cloudEvents:specversion"] == "1.0"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert await queue.get(fail=False) is None
    await private_store.close()
    await admin.close()
