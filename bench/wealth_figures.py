"""wealth: rebuild of its read models, beside reading the log and COPY of the same rows; a customer of 12 years,
14,400 activities and 250 instruments: cold rebuild, an append, back-dated events; `summary` and readiness of the
service itself over HTTP, open loop, while it rests and while it rebuilds.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import wealth_service
from chassis.access import access_models
from events import operations
from events.consumer import Consumer
from events.envelope import RecordedEvent, new_id
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from events.worker import Operator
from life_log import a_life, life_log, life_user
from read_side import PUBLISHERS
from report import ROUNDS, Figure, Line, quantile
from wealth.projections import PROJECTIONS
from wealth_history import NOW, SAVINGS, USER, History

if TYPE_CHECKING:
    from provision import Cell

LIVES = 60
"""The customers besides that one, each with thirteen months of the scenario."""
BATCH = 4_000
_NAME = "wealth.projections"
_READ = 5_000


async def _fill_log(cell: "Cell", events: Sequence[RecordedEvent], key: wealth_service.Key) -> None:
    """Appends the events as their publishers do, stream by stream, and gives them their positions."""
    stores = {role: await EventStore.connect(cell.store_url(role)) for role in set(PUBLISHERS.values())}
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    await stores["identity"].append([StreamAppend(f"signing_key-{new_id()}", (key.published,))], event_id=new_id())
    streams: dict[str, list[RecordedEvent]] = defaultdict(list)
    for event in events:
        streams[event.stream].append(event)

    async def append(stream: str, its: list[RecordedEvent]) -> None:
        for first in range(0, len(its), 500):
            payloads = tuple(event.payload for event in its[first : first + 500])
            await stores[PUBLISHERS[stream.split("-", 1)[0]]].append(
                [StreamAppend(stream, payloads)], event_id=new_id(), subject=its[0].subject
            )

    waiting = list(streams.items())
    for first in range(0, len(waiting), 50):
        await asyncio.gather(*(append(*each) for each in waiting[first : first + 50]))
    while await sequencer.sequence():
        pass
    await asyncio.gather(connection.close(), *(store.close() for store in stores.values()))


async def _tables(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of the read model."""
    names = ("item", "fact", "daily", "cashflow", "trade", "deposit", "linked_platform", "changed")
    return {name: [tuple(row) for row in await connection.fetch(f"SELECT * FROM {name}")] for name in names}


async def _raw(cell: "Cell", tables: dict[str, list[tuple[Any, ...]]], up_to: int) -> float:
    """Seconds to read every event's columns and to COPY the same rows into empty tables of the same shape."""
    reader = await asyncpg.connect(cell.store_url("wealth"), statement_cache_size=0)
    writer = await asyncpg.connect(cell.database_url("wealth"), server_settings={"synchronous_commit": "off"})
    for table in tables:
        await writer.execute(f"CREATE TEMP TABLE raw_{table} (LIKE {table} INCLUDING ALL)")
    started_s = time.perf_counter()
    for after in range(0, up_to, _READ):
        await reader.fetch("SELECT * FROM store.read_types($1, $2, NULL)", after, after + _READ)
        for table, rows in tables.items():
            first, last = (len(rows) * min(edge, up_to) // up_to for edge in (after, after + _READ))
            await writer.copy_records_to_table(f"raw_{table}", records=rows[first:last])
    taken_s = time.perf_counter() - started_s
    await asyncio.gather(reader.close(), writer.close())
    return taken_s


class Rebuilds:
    """Rebuilds of the read models by the operations' worker, as in the product, but in this process."""

    def __init__(self, cell: "Cell", store: EventStore, database: asyncpg.Pool) -> None:
        self._cell, self._store, self._database = cell, store, database
        self._handler = Projections([*access_models(), *PROJECTIONS])

    async def prepare(self) -> int:
        """Creates the tables of a consumer that is at the end of the log; gives that position."""
        head = await self._store.head()
        consumer = Consumer(
            name=_NAME, handler=self._handler, database=self._database, store=self._store, amqp_url="amqp://unused"
        )
        await consumer.prepare()
        await self._database.execute("UPDATE consumed SET position = $1, epoch = $2", head.position, head.epoch)
        return head.position

    async def once(self) -> float:
        """Seconds, the swap included."""
        url = self._cell.database_url("wealth")
        worker = Operator(database_url=url, store=self._store, handlers={_NAME: self._handler})
        operation_id = await operations.ask(self._database, _NAME, operations.RebuildRequest(), "bench")
        started_s = time.perf_counter()
        await worker.run(operation_id)
        taken_s = time.perf_counter() - started_s
        row = await self._database.fetchrow("SELECT state, error FROM operation WHERE id = $1", operation_id)
        assert row is not None
        assert row["state"] == "done", row["error"]
        return taken_s


async def _apply(connection: asyncpg.Connection, projections: Projections, events: Sequence[RecordedEvent]) -> None:
    for first in range(0, len(events), BATCH):
        async with connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")  # as the consumer does
            await projections.apply(connection, events[first : first + BATCH])


async def _timed_ms(action: Any) -> float:
    started_s = time.perf_counter()
    await action
    return (time.perf_counter() - started_s) * 1000


async def _one_customer(url: str, events: Sequence[RecordedEvent]) -> float:
    """Seconds to apply one customer's whole history to empty tables, of a schema of its own."""
    projections = Projections(PROJECTIONS)
    connection = await asyncpg.connect(url)
    await connection.execute("DROP SCHEMA IF EXISTS one CASCADE; CREATE SCHEMA one; SET search_path = one")
    await connection.execute(projections.ddl)
    for event in events:
        event.__dict__.pop("payload", None)  # a rebuild decodes
    started_s = time.perf_counter()
    await _apply(connection, projections, events)
    taken_s = time.perf_counter() - started_s
    await connection.execute("DROP SCHEMA one CASCADE")
    await connection.close()
    return taken_s


class Appends:
    """Milliseconds (median of a round) of single events of that customer: today's, and back-dated by 400 days."""

    def __init__(self) -> None:
        self.raw: list[float] = []
        self.today: list[float] = []
        self.posting: list[float] = []
        self.stated: list[float] = []

    async def measure(self, url: str, history: History) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TEMP TABLE raw_row (id bigserial PRIMARY KEY, day date, amount bigint)")
        projections = Projections(PROJECTIONS)
        for round_number in range(ROUNDS):
            ago = NOW - timedelta(days=400 + round_number)
            kinds: list[tuple[list[float], Any]] = [
                (self.today, lambda _: history.post(SAVINGS, -1_00, "other", NOW)),
                (self.posting, lambda _, ago=ago: history.post(SAVINGS, -1_00, "other", ago)),
                (self.stated, lambda n, ago=ago: history.mark(n, ago)),
            ]
            raw = [
                await _timed_ms(connection.execute("INSERT INTO raw_row (day, amount) VALUES (now(), 1)"))
                for _ in range(20)
            ]
            self.raw.append(quantile(raw, 0.5))
            for found, event in kinds:
                times = [await _timed_ms(_apply(connection, projections, [event(n)])) for n in range(12)]
                found.append(quantile(times, 0.5))
        await connection.close()


async def measure(cell: "Cell") -> list[Line]:
    """The lines of the report."""
    key = wealth_service.Key()
    history = History()
    his = history.events()
    life = a_life(LIVES)
    lives = list(life_log(life, history.log))
    await _fill_log(cell, [*his, *lives], key)
    url = cell.database_url("wealth")
    store = await EventStore.connect(cell.store_url("wealth"))
    database = await asyncpg.create_pool(url, min_size=1, max_size=4, server_settings={"jit": "off"})
    rebuilds = Rebuilds(cell, store, database)
    events = await rebuilds.prepare()
    await rebuilds.once()  # fills the live tables
    connection = await asyncpg.connect(url)
    tables = await _tables(connection)
    rebuild, raw, one = [], [], []
    for _ in range(ROUNDS):
        raw.append(events / await _raw(cell, tables, events))
        rebuild.append(events / await rebuilds.once())
        one.append(await _one_customer(url, his))
    await connection.execute("ANALYZE")
    instruments = await connection.fetchval("SELECT count(*) FROM item WHERE user_id = $1", USER)
    appends = Appends()
    await appends.measure(url, history)
    await asyncio.gather(connection.close(), database.close(), store.close())
    customers: list[UUID] = [life_user(person.who.bfc_customer_id) for person in life.people]
    served = await wealth_service.measure(cell, key, USER, customers)
    what = f"{len(his):,} activities, {instruments} instruments"
    whole_ms = [seconds * 1000 for seconds in one]
    share = Figure([Figure(whole_ms).median / value for value in appends.posting])
    share_stated = Figure([Figure(whole_ms).median / value for value in appends.stated])
    one_row = Figure(appends.raw)
    return [
        Line(f"wealth: rebuild, {events:,} events of {LIVES + 1} customers, swap included", Figure(rebuild), "events/s",
             "reading the log + COPY of the same rows", Figure(raw), "≥ 0.5×, ≥ 30,000/s"),
        Line(f"wealth: cold rebuild of one customer, {what}", Figure(whole_ms), "ms", "", None, ""),
        Line("wealth: today's event applied", Figure(appends.today), "ms", "one row committed", one_row, ""),
        Line("wealth: posting back-dated by 400 days", Figure(appends.posting), "ms", "one row committed", one_row, ""),
        Line("wealth: statement back-dated by 400 days", Figure(appends.stated), "ms", "one row committed", one_row,
             ""),
        Line("wealth: rebuild of the customer / back-dated posting", share, "times cheaper", "", None, "≥ 50"),
        Line("wealth: rebuild of the customer / back-dated statement", share_stated, "times cheaper", "", None, "≥ 50"),
        *served,
    ]  # fmt: skip
