"""`sangam dead`, `consumers`, `subscribers` and `restored` on a real broker."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aio_pika
import asyncpg
import pytest
from backbone import Seen, append_one, event, eventually, running_consumer, running_relay
from command import SERVICES, Outcome, sangam
from events import wire
from events.consumer import Consumer
from events.contracts import identity
from events.envelope import new_id
from events.feed import EpochChanged
from events.projections import Projections
from events.store import EventStore, StreamAppend

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

NAME = "ledger_transfer.projections"


class Bench:
    def __init__(self, cell: "Cell", store: EventStore, database: asyncpg.Pool) -> None:
        self.cell, self.store, self.database = cell, store, database

    def consumer(self, projection: Seen | None = None) -> Consumer:
        return Consumer(
            name=NAME,
            handler=Projections([projection or Seen()]),
            database=self.database,
            store=self.store,
            amqp_url=self.cell.amqp_url("ledger_transfer"),
        )

    async def sangam(self, *arguments: Any) -> Outcome:
        return await sangam(
            self.cell,
            *arguments,
            AMQP_URL=self.cell.amqp_url(),
            RABBITMQ_MANAGEMENT_URL=self.cell.management.url,
        )

    async def seen(self, count: int) -> None:
        async def there() -> bool:
            try:
                return await self.database.fetchval("SELECT count(*) FROM seen") == count  # type: ignore[no-any-return]
            except asyncpg.UndefinedTableError:
                return False

        await eventually(there)


@pytest.fixture
async def bench(cell: "Cell") -> AsyncIterator[Bench]:
    for name in SERVICES:
        cell.admin_url(name)
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=8)
    yield Bench(cell, store, database)
    await asyncio.gather(store.close(), database.close())


async def test_dead_letters_are_listed_requeued_and_discarded(bench: Bench) -> None:
    admin = await aio_pika.connect(bench.cell.amqp_url())
    channel = await admin.channel()
    async with running_relay(bench.cell), running_consumer(bench.consumer()):
        await append_one(bench.store, "ledger-a")
        await bench.seen(1)
        exchange = await channel.get_exchange(wire.LOG_EXCHANGE)
        for body in (b"junk", b"junk", b"other \x1b[2J"):
            await exchange.publish(aio_pika.Message(body), "")

        async def buried(count: int) -> bool:
            return len((await bench.sangam("dead", "list", "--json")).lines) == count

        await eventually(lambda: buried(3))
        letters = (await bench.sangam("dead", "list", "--json")).lines
        assert {letter["came_to"] for letter in letters} == {NAME}
        assert [letter["body"] for letter in letters][:2] == ["junk", "junk"]
        assert letters[1]["id"] == letters[0]["id"] + "-1", "two alike can be told apart"
        assert "\x1b" not in (await bench.sangam("dead", "list")).out
        assert (await bench.sangam("dead", "list", "--json")).lines == letters, "looking changes nothing"

        # Requeued to the consumer, which cannot read it still: it is back, and says how often it was tried.
        assert (await bench.sangam("dead", "requeue", letters[0]["id"], "--as", "asha")).code == 0

        async def came_back() -> bool:
            found = (await bench.sangam("dead", "list", "--json")).lines
            return len(found) == 3 and sorted(each["requeued"] for each in found) == [0, 0, 1]

        await eventually(came_back)
        assert (await bench.sangam("dead", "requeue", "ffff")).code == 1
        assert (await bench.sangam("dead", "requeue")).code == 2, "all or some: say it"
        assert (await bench.sangam("dead", "discard", "--all", "--yes")).code == 2, "a reason is required"
        assert (await bench.sangam("dead", "discard", "--all", "--reason", "junk")).code == 1, "nobody said yes"
        assert (await bench.sangam("dead", "discard", "--all", "--reason", "junk", "--yes")).code == 0
        assert (await bench.sangam("dead", "list", "--json")).lines == []
        await append_one(bench.store, "ledger-a")
        await bench.seen(2)
    acts = (await bench.sangam("audit", "--json")).lines
    assert [(act["act"], act["reason"]) for act in acts] == [("dead requeue", None), ("dead discard", "junk")]
    # Nobody reads the queue it came to: it stays a dead letter instead of vanishing.
    dead = await channel.get_exchange(wire.DEAD_EXCHANGE)
    await dead.publish(aio_pika.Message(b"x", headers={"x-queue": "nobody.reads", "x-reason": "r"}), "")
    assert (await bench.sangam("dead", "requeue", "--all")).code == 1
    assert len((await bench.sangam("dead", "list", "--json")).lines) == 1
    # What had no queue to go to at all goes back to the exchange.
    await channel.queue_delete(NAME)
    await (await channel.get_exchange(wire.LOG_EXCHANGE)).publish(aio_pika.Message(b"lost"), "")
    unrouted = ("--queue", "sangam.unrouted")

    async def unrouted_there() -> bool:
        found = (await bench.sangam("dead", "list", *unrouted, "--json")).lines
        return any(each["body"] == "lost" and each["came_to"] == wire.LOG_EXCHANGE for each in found)

    await eventually(unrouted_there)
    queue = await channel.declare_queue("finder", exclusive=True)
    await queue.bind(wire.LOG_EXCHANGE)
    assert (await bench.sangam("dead", "requeue", "--all", *unrouted)).code == 0
    bodies = set()
    while (message := await queue.get(fail=False, no_ack=True)) is not None:
        bodies.add(message.body)
    assert b"lost" in bodies
    await admin.close()


async def test_the_watchdog_heals_a_queue_without_reader_and_tells_what_is_missing(bench: Bench) -> None:
    consumer = bench.consumer()
    async with running_consumer(consumer):

        async def bound() -> bool:
            return consumer.connected

        await eventually(bound)  # before the relay says anything, which would have no queue to go to
        async with running_relay(bench.cell):
            await append_one(bench.store, "ledger-a")
            await bench.seen(1)
        assert (await bench.sangam("consumers", "--json")).code == 0
        two = await bench.sangam("consumers", "--replicas", "2", "--json")
        assert two.code == 1
        problems = {each["queue"]: each["problem"] for each in two.json}
        assert problems == {NAME: "1 of 2 readers", "sangam.dead": None, "sangam.unrouted": None}
    gone = await bench.sangam("consumers", "--json")
    assert gone.code == 1
    assert gone.json[0]["problem"] == "0 of 1 readers"
    # A reader that only believes to be one: the broker knows of none.
    feed = bench.consumer()._feed
    connection = await aio_pika.connect(bench.cell.amqp_url("ledger_transfer"))
    channel = await (await connection.channel()).get_underlay_channel()
    with pytest.raises(ConnectionError, match="lost the consumer"):
        await feed._look_for_readers(channel)  # type: ignore[arg-type]
    await connection.close()


async def test_a_subscriber_reads_its_topics_and_nothing_else(bench: Bench) -> None:
    added = await bench.sangam("subscribers", "add", "tax-office", "--types", "ledger.transfer.*", "--json")
    assert added.code == 0, added.err
    assert (await bench.sangam("subscribers", "add", "x!", "--types", "ledger.#")).code == 2
    assert (await bench.sangam("subscribers", "add", "spy", "--types", "operations.#")).code == 2, "no public type"
    connection = await aio_pika.connect(added.json["url"])
    channel = await connection.channel()
    queue = await channel.get_queue("subscriber.tax-office", ensure=False)
    private = await EventStore.connect(bench.cell.store_url("identity"))
    async with running_relay(bench.cell):
        user = new_id()
        await private.append(
            [StreamAppend(f"user-{user}", (identity.UserRegistered(user_id=user, sealed_profile="x"),), 0)],
            event_id=new_id(),
        )
        event_id = new_id()
        await bench.store.append([StreamAppend("ledger-a", (event(),))], event_id=event_id)
        message = None
        async with asyncio.timeout(10):
            while message is None:
                message = await queue.get(fail=False)
        assert message.headers["cloudEvents:id"] == str(event_id)
        await message.ack()
    listed = (await bench.sangam("subscribers", "list", "--json")).lines
    assert [(each["subscriber"], each["types"]) for each in listed] == [("tax-office", ["ledger.transfer.*"])]
    assert listed[0]["max_bytes"] == 256 * 2**20

    async def refused(action: Any) -> None:
        own = await aio_pika.connect(added.json["url"])
        try:
            with pytest.raises(aio_pika.exceptions.AMQPError, match="ACCESS_REFUSED"):
                await action(await own.channel())
        finally:
            await own.close()

    async def bind(topic: str, channel: Any) -> None:
        own = await channel.get_queue("subscriber.tax-office", ensure=False)
        await own.bind(await channel.get_exchange(wire.EVENTS_EXCHANGE, ensure=False), topic)

    async def publish(exchange: str, channel: Any) -> None:
        target = await channel.get_exchange(exchange, ensure=False)
        await target.publish(aio_pika.Message(b"forged"), "ledger.transfer.completed")

    await refused(lambda channel: bind("#", channel))
    await refused(lambda channel: bind("identity.#", channel))
    await refused(lambda channel: publish(wire.EVENTS_EXCHANGE, channel))
    await refused(lambda channel: publish(wire.LOG_EXCHANGE, channel))
    await refused(lambda channel: channel.declare_queue("subscriber.other"))
    own = await aio_pika.connect(added.json["url"])
    await bind("ledger.transfer.settled", await own.channel())  # narrower than allowed
    await own.close()
    # Given again: other types, another password.
    again = await bench.sangam("subscribers", "add", "tax-office", "--types", "ledger.account.*", "--json")
    assert again.code == 0, again.err
    listed = (await bench.sangam("subscribers", "list", "--json")).lines
    assert listed[0]["types"] == ["ledger.account.*"]
    assert (await bench.sangam("subscribers", "remove", "tax-office")).code == 0
    assert (await bench.sangam("subscribers", "remove", "tax-office")).code == 1
    assert (await bench.sangam("subscribers", "list", "--json")).lines == []
    with pytest.raises(aio_pika.exceptions.AMQPError):
        await aio_pika.connect(again.json["url"])
    await asyncio.gather(private.close(), connection.close(), return_exceptions=True)


class Mailing(Seen):
    effects = {"mail": "mails"}  # noqa: RUF012
    ddl = Seen.ddl + "CREATE TABLE IF NOT EXISTS mail (event_id uuid PRIMARY KEY);"


async def test_after_a_restore_those_not_beyond_it_go_on_and_the_others_start_again(bench: Bench) -> None:
    def consumer() -> Consumer:
        return bench.consumer(Mailing())

    admin = await asyncpg.connect(bench.cell.admin_url())
    async with running_relay(bench.cell):
        async with running_consumer(consumer()):
            for _ in range(3):
                await append_one(bench.store, "ledger-a")
            await bench.seen(3)
        assert (await bench.sangam("restored", "--json")).code == 0
    await bench.database.execute("INSERT INTO mail VALUES (gen_random_uuid())")
    renewed = await bench.sangam("restored", "--new-epoch", "--yes", "--json")
    assert renewed.code == 1
    assert renewed.json["services"]["ledger_transfer"] == "before"
    with pytest.raises(EpochChanged, match="sangam restored"):
        await asyncio.wait_for(consumer().run(), 10)
    assert (await bench.sangam("restored", "--accept", "--json")).json["services"]["ledger_transfer"] == "accepted"
    async with running_relay(bench.cell), running_consumer(consumer()):
        await append_one(bench.store, "ledger-a")
        await bench.seen(4)
    # A restore to before what it has applied.
    await admin.execute("UPDATE store.store SET epoch = gen_random_uuid(), restored_end = 2")
    looked = await bench.sangam("restored", "--json")
    assert (looked.code, looked.json["services"]["ledger_transfer"]) == (1, "beyond")
    await bench.database.execute("UPDATE seen SET event_id = gen_random_uuid()")
    assert (await bench.sangam("restored", "--accept")).code == 1, "nobody said yes"
    assert (await bench.sangam("restored", "--accept", "--yes")).code == 0
    async with running_relay(bench.cell), running_consumer(consumer()):
        await bench.seen(4)
    assert await bench.database.fetchval("SELECT count(*) FROM mail") == 1, "what was sent is not forgotten"
    await admin.close()


async def test_ages_grow_while_nothing_moves(bench: Bench) -> None:
    from events import metrics

    def age(gauge: Any, label: str) -> float:
        return gauge.labels(label)._value.get()  # type: ignore[no-any-return]

    from events.relay import Relay

    relay = Relay(bench.cell.store_url("relay"), "amqp://nobody:nothing@127.0.0.1:1/")
    task = asyncio.create_task(relay.run())
    await append_one(bench.store, "ledger-a")

    async def older() -> bool:
        return age(metrics.unpublished_age, wire.LOG_EXCHANGE) > 1.5

    await eventually(older)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    consumer = bench.consumer()
    async with running_relay(bench.cell):
        async with running_consumer(consumer):
            await bench.seen(1)
            await eventually(lambda: _true(consumer.lag == 0 and consumer._up_to_date_at is not None))
            await eventually(lambda: _true(consumer.lag_seconds == 0))
        # Stopped, as one whose database is away: it hears of a new head and applies nothing.
        consumer._feed.head += 5
        first = consumer.lag_seconds
        await asyncio.sleep(0.2)
        assert consumer.lag_seconds > first + 0.1  # a sleep may end a little early


async def _true(value: bool) -> bool:
    return value
