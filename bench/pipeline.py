"""Relay and consume: from the log to a confirm of RabbitMQ, and from RabbitMQ to a committed read model."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import aio_pika
import aiormq
import asyncpg
from append import event
from events import pg, wire
from events.checkpoint import DDL
from events.consumer import Consumer
from events.envelope import RecordedEvent, new_id
from events.feed import WORK_QUEUE_ARGUMENTS
from events.projections import Projections
from events.publisher import MAX_BATCH, LogPublisher, LogTail
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from report import ROUNDS, Figure, Line

if TYPE_CHECKING:
    from provision import Cell

EVENTS = 30_000
STREAMS = 300
QUEUE = "ledger_transfer.bench"


class Rows:
    """A read model of one row per event."""

    name = "rows"
    ddl = "CREATE TABLE IF NOT EXISTS bench_row (position bigint PRIMARY KEY, event_id uuid, type text, amount bigint)"
    types = frozenset({"ledger.transfer.completed"})
    upsert = (
        "INSERT INTO bench_row SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::bigint[])"
        " ON CONFLICT (position) DO UPDATE SET amount = excluded.amount"
    )

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.execute(
            self.upsert,
            [e.position for e in events],
            [e.event_id for e in events],
            [e.type for e in events],
            [e.payload.amount_minor for e in events],  # type: ignore[attr-defined]
        )


async def _fill_log(cell: "Cell") -> tuple[int, int]:
    """Appends and sequences EVENTS more events; returns the positions before and after."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    while await sequencer.sequence():
        pass
    before = (await store.head()).position
    for _ in range(EVENTS // STREAMS):
        await asyncio.gather(
            *(store.append([StreamAppend(f"ledger-{new_id()}", (event(),))], event_id=new_id()) for _ in range(STREAMS))
        )
    while await sequencer.sequence():
        pass
    after = (await store.head()).position
    await connection.close()
    await store.close()
    return before, after


async def _raw_publish(cell: "Cell", batches: list[tuple[bytes, dict[str, object]]]) -> float:
    """Seconds to publish the same batches with pipelined confirms to the same exchange and queue."""
    connection = await aio_pika.connect(cell.amqp_url())
    channel = await (await connection.channel(publisher_confirms=True)).get_underlay_channel()
    started_s = time.perf_counter()
    window = asyncio.Semaphore(32)

    async def publish(body: bytes, headers: dict[str, object]) -> None:
        async with window:
            await channel.basic_publish(  # type: ignore[call-arg]
                body,
                exchange=wire.LOG_EXCHANGE,
                properties=aiormq.spec.Basic.Properties(delivery_mode=2, headers=dict(headers)),  # type: ignore[arg-type]
                wait=False,
            )

    await asyncio.gather(*(publish(body, headers) for body, headers in batches))
    taken_s = time.perf_counter() - started_s
    await connection.close()
    return taken_s


async def _our_relay(cell: "Cell", before: int, after: int) -> float:
    """Seconds from the log in the database to everything confirmed, by a relay that is connected and waits."""
    reader = pg.Session(cell.store_url("relay"), application_name="bench")
    checkpoints = pg.Session(cell.store_url("relay"), application_name="bench")
    await checkpoints.execute("SELECT store.save_checkpoint($1, $2)", wire.LOG_EXCHANGE, before)
    epoch = await reader.fetchval("SELECT epoch FROM store.head()")
    tail = LogTail(reader, before)
    publisher = LogPublisher(tail, checkpoints, cell.amqp_url("relay"), epoch)
    task = asyncio.create_task(publisher.run())
    await asyncio.sleep(0.5)
    started_s = time.perf_counter()
    tail.head = after
    tail.grown.set_result(None)
    tail.grown = asyncio.get_running_loop().create_future()
    while publisher.position < after:
        await asyncio.sleep(0.002)
    taken_s = time.perf_counter() - started_s
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.gather(reader.close(), checkpoints.close())
    return taken_s


async def _our_consumer(cell: "Cell", database: asyncpg.Pool, before: int, after: int) -> float:
    """Seconds per event, from when the first chunk is committed (so, connected) until the last is."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    consumer = Consumer(
        name=QUEUE,
        handler=Projections([Rows()]),
        database=database,
        store=store,
        amqp_url=cell.amqp_url("ledger_transfer"),
    )
    task = asyncio.create_task(consumer.run())
    await consumer.wait_for(before + 1, 120)
    started_s, first = time.perf_counter(), consumer.position
    await consumer.wait_for(after, 120)
    taken_s = time.perf_counter() - started_s
    consumer.stop()
    await task
    await store.close()
    return taken_s / (after - first)


async def _rows(cell: "Cell", before: int, after: int) -> list[tuple[object, ...]]:
    """The read model's rows, decoded. The events are gone then: a heap full of them would cost us collections."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    rows: list[tuple[object, ...]] = []
    while len(rows) < after - before:
        events = await store.read_log(before + len(rows), 5_000)
        rows += [(e.position, e.event_id, e.type, e.payload.amount_minor) for e in events]  # type: ignore[attr-defined]
    await store.close()
    return rows


async def _raw_upsert(database: asyncpg.Pool, rows: list[tuple[object, ...]]) -> float:
    """Seconds to upsert the same rows, already decoded, in chunks of the consumer's size."""
    await database.execute("TRUNCATE bench_row")
    started_s = time.perf_counter()
    for start in range(0, len(rows), 2_000):
        await database.execute(Rows.upsert, *map(list, zip(*rows[start : start + 2_000], strict=True)))
    return time.perf_counter() - started_s


async def measure(cell: "Cell") -> list[Line]:
    """The relay and consume lines of the report."""
    admin = await aio_pika.connect(cell.amqp_url())
    channel = await admin.channel()
    log_exchange = await channel.declare_exchange(
        wire.LOG_EXCHANGE, "fanout", durable=True, arguments={"alternate-exchange": wire.UNROUTED_EXCHANGE}
    )
    database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=2, max_size=4)
    relay: dict[str, list[float]] = {"ours": [], "anew": [], "raw": []}
    consume: dict[str, list[float]] = {"ours": [], "raw": []}
    store = await asyncpg.connect(cell.admin_url())
    for _ in range(ROUNDS):
        before, after = await _fill_log(cell)
        reader = pg.Session(cell.store_url("relay"), application_name="bench")
        slices = await LogTail(reader, after).read(before, after - before)
        epoch = await reader.fetchval("SELECT epoch FROM store.head()")
        await reader.close()
        queue = await channel.declare_queue(QUEUE, durable=True, arguments=WORK_QUEUE_ARGUMENTS)
        await queue.bind(log_exchange)
        batches = [wire.encode_batch([each], epoch) for each in slices]
        relay["raw"].append(EVENTS / await _raw_publish(cell, batches))
        del slices, batches
        await queue.purge()
        relay["ours"].append(EVENTS / await _our_relay(cell, before, after))
        await queue.purge()
        await store.execute("TRUNCATE store.outbox")
        relay["anew"].append(EVENTS / await _our_relay(cell, before, after))
        # What the relay has put into the queue is now consumed; nothing comes from the log.
        await database.execute(DDL)
        await database.execute(
            "INSERT INTO consumed (consumer, position) VALUES ($1, $2) ON CONFLICT (consumer)"
            " DO UPDATE SET position = excluded.position",
            QUEUE,
            before,
        )
        consume["ours"].append(1 / await _our_consumer(cell, database, before, after))
        consume["raw"].append(EVENTS / await _raw_upsert(database, await _rows(cell, before, after)))
        await queue.delete(if_unused=False, if_empty=False)
    await asyncio.gather(database.close(), admin.close(), store.close())
    return [
        Line(
            f"relay: log → confirmed, batches of {MAX_BATCH}",
            Figure(relay["ours"]),
            "events/s",
            "aio-pika, same batches, pipelined confirms",
            Figure(relay["raw"]),
            "≥ 0.7×, ≥ 10,000/s",
        ),
        Line(
            "  after a crash of PostgreSQL has emptied the outbox",
            Figure(relay["anew"]),
            "events/s",
            "the same",
            Figure(relay["raw"]),
            "",
        ),
        Line(
            "consume → read model committed",
            Figure(consume["ours"]),
            "events/s",
            "unnest upsert of the same rows",
            Figure(consume["raw"]),
            "≥ 0.5×, ≥ 5,000/s",
        ),
    ]
