"""Rebuild: from the log to the rows of a new generation, beside reading the log raw and COPY of the same rows."""

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg
from append import event
from events import operations
from events.consumer import Consumer
from events.envelope import new_id
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from events.worker import Operator
from pipeline import Rows
from report import ROUNDS, Figure, Line

if TYPE_CHECKING:
    from provision import Cell

EVENTS = 60_000
STREAMS = 1_000
_NAME = "ledger_transfer.projections"


async def _fill_log(cell: "Cell", store: EventStore) -> None:
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    each = EVENTS // STREAMS
    for start in range(0, STREAMS, 100):
        await asyncio.gather(
            *(
                store.append(
                    [StreamAppend(f"ledger-{start + n:06}", tuple(event() for _ in range(each)))], event_id=new_id()
                )
                for n in range(100)
            )
        )
    while await sequencer.sequence():
        pass
    await connection.close()


async def _raw(cell: "Cell", database_url: str, up_to: int) -> float:
    """Seconds to read every event's columns and to COPY the read model's rows into a table with its primary key."""
    reader = await asyncpg.connect(cell.store_url("ledger_transfer"), statement_cache_size=0)
    writer = await asyncpg.connect(database_url)
    await writer.execute(
        "DROP TABLE IF EXISTS raw_row; CREATE TABLE raw_row"
        " (position bigint PRIMARY KEY, event_id uuid, type text, amount bigint)"
    )
    started_s = time.perf_counter()
    for after in range(0, up_to, 5_000):
        rows = await reader.fetch("SELECT * FROM store.read_types($1, $2, NULL)", after, after + 5_000)
        await writer.copy_records_to_table(
            "raw_row", records=[(row["position"], row["event_id"], row["type"], 1) for row in rows]
        )
    taken_s = time.perf_counter() - started_s
    await asyncio.gather(reader.close(), writer.close())
    return taken_s


async def measure(cell: "Cell") -> list[Line]:
    """The rebuild line of the report."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    database_url = cell.database_url("ledger_transfer")
    database = await asyncpg.create_pool(database_url, min_size=1, max_size=4)
    await _fill_log(cell, store)
    head = await store.head()
    handler = Projections([Rows()])
    consumer = Consumer(name=_NAME, handler=handler, database=database, store=store, amqp_url="amqp://unused")
    await consumer.prepare()
    await database.execute("UPDATE consumed SET position = $1, epoch = $2", head.position, head.epoch)
    worker = Operator(database_url=database_url, store=store, handlers={_NAME: handler})
    ours, raw = [], []
    for _ in range(ROUNDS):
        raw.append(head.position / await _raw(cell, database_url, head.position))
        operation_id = await operations.ask(database, _NAME, operations.RebuildRequest(), "bench")
        started_s = time.perf_counter()
        await worker.run(operation_id)
        ours.append(head.position / (time.perf_counter() - started_s))
        row = await database.fetchrow("SELECT state, error FROM operation WHERE id = $1", operation_id)
        assert row is not None
        assert row["state"] == "done", row["error"]
        assert await database.fetchval("SELECT count(*) FROM bench_row") == head.position
    await asyncio.gather(store.close(), database.close())
    return [
        Line(
            f"rebuild of a read model, {EVENTS:,} events, swap included",
            Figure(ours),
            "events/s",
            "reading the log + COPY of the same rows",
            Figure(raw),
            "≥ 0.5×, ≥ 30,000/s",
        )
    ]
