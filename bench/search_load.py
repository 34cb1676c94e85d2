"""Search over many documents: open-loop queries, index rate, memory, and how soon a write can be found.

    .venv/bin/python bench/search_load.py             100,000 documents of 1,000 customers, one with 10,000; a minute
    .venv/bin/python bench/search_load.py --million   1,000,000 of 10,000, one with 100,000; some seven minutes

A process of its own serves the routes, over HTTP, from the index that its replica has built from PostgreSQL: first
while nothing is written, then while documents come in, then while a second index is built beside. The open loop counts
from when a query was to be sent. pg_trgm answers the same queries for the same customers over the same rows, in the
same run. How soon an event is found through the whole product is `measure_product` (`make bench only=search`).
"""

import asyncio
import json
import multiprocessing
import random
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import UUID, uuid4

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy" / "local"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

import aiohttp
import asyncpg
import msgspec
import psutil
import uvicorn
import uvloop
from chassis import telemetry
from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.server import SERVER_OPTIONS
from chassis.service import look_for_cycles_rarely
from customers import Customer, make_customer
from provision import Cell
from read_side import PUBLISHERS, open_world
from report import Figure, Line, print_report, quantile
from search import recent
from search.api import routes
from search.documents import Document, money
from search.engine import SearchIndex
from search.grammar import parse
from search.projections import PROJECTIONS
from search.projections.document import words_of
from search.replica import Replica
from search.scoring import AMOUNT, Field, Query
from stack import Stack

QUERIES_PER_S = 200
SECONDS = 10
BATCHES_PER_S, BATCH = 10, 10
"""Documents that come in meanwhile: as the consumer commits them, several in a transaction."""
MOVERS, MOVES = 4, 75
"""Customers of the whole product, and the transfers of each."""

BIG = UUID(int=1)
BIG_SHARE = 0.05
_WORDS = """
    Lakshmi Chaudhary Sharma Agarwal Reliance Krishna Ganesh Deepak Geeta Srinivas Vijay Jyoti Saraswati Zomato Swiggy
    Airtel Tata Infosys Bharat Mahindra Apollo Fortis Haldiram Netflix Myntra Flipkart Amazon Indane Metro Green
    """, """
    Stores Medicals Traders Sweets Electricals Digital Fresh Power Broadband Pharmacy Hospital Motors Travels
    """  # fmt: skip
_NAMES, _KINDS = (text.split() for text in _WORDS)
_MEMOS = ("monthly bill", "weekly order", "rent for march", "salary credit", "school fees", "emi instalment", "dinner")
_QUERIES = (
    *("lakshmi", "laxmi stores", "relianse", "swig", "50000", "₹5k", "sharma medicals", "rent for march", "jomato"),
    *("type:transaction apollo", "salry", "fresh", "broadband amount>1000", "infosys", "qwertyuiop"),
)


class Size(NamedTuple):
    documents: int
    customers: int
    big: int
    """How many of the documents one customer has."""


SMALL, MILLION = Size(100_000, 1_000, 10_000), Size(1_000_000, 10_000, 100_000)


def _documents(size: Size) -> Iterator[tuple[UUID, Document]]:
    dice = random.Random(1)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    for number in range(size.documents):
        user = BIG if number < size.big else UUID(int=2 + number % (size.customers - 1))
        yield user, _document(dice, number, start + timedelta(seconds=dice.randrange(70_000_000)))


def _document(dice: random.Random, number: int, at: datetime) -> Document:
    title, memo = f"{dice.choice(_NAMES)} {dice.choice(_KINDS)}", dice.choice(_MEMOS)
    minor = dice.randrange(1_000, 10_000_000)
    return Document(
        type=dice.choice(("transaction", "transaction", "trade", "notification")),
        id=f"D{number}",
        platform=dice.choice(("bfc", "vyomo")),
        title=title,
        subtitle="From BFC savings account SB-1001",
        amount_minor=minor,
        currency="INR",
        category=dice.choice(("groceries", "rent", "salary", "travel", "shopping")),
        state="",
        date=at,
        target="/api/accounts/x",
        fields=[
            Field("title", title, True),
            Field("memo", memo, True),
            Field("reference", f"UPI{number * 7919 % 10**9:09d}", True),
            Field("subtitle", "From BFC savings account SB-1001", False),
            Field("platform", "BFC", False),
            Field(AMOUNT, money(minor, "INR"), False),
        ],
    )


def _row(user: UUID, document: Document, position: int) -> tuple[Any, ...]:
    body = msgspec.json.encode(document).decode()
    words = list(words_of(document))
    text = " ".join(field.value for field in document.fields)
    return (user, document.type, document.id, document.platform, document.paise, document.category, "", document.date,
            0, position, body, words, text)  # fmt: skip


_COLUMNS = (
    *("user_id", "type", "id", "platform", "paise", "category", "state"),
    *("date", "version", "position", "document", "words"),
)


async def _load(cell: Cell, size: Size) -> float:
    """Fills the read model, and the same rows for pg_trgm; gives the seconds of pg_trgm's index."""
    async with open_world(cell, "search", PROJECTIONS) as world:
        await recent.prepare(world.db)
    db = await asyncpg.connect(cell.admin_url("search"))
    await db.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm; CREATE TABLE trigrams (user_id uuid, text text)")
    chunk: list[tuple[Any, ...]] = []
    position = 0
    for user, document in _documents(size):
        position += 1
        chunk.append(_row(user, document, position))
        if len(chunk) == 20_000 or position == size.documents:
            await db.copy_records_to_table("search_document", records=[row[:-1] for row in chunk], columns=_COLUMNS)
            await db.copy_records_to_table("trigrams", records=[(row[0], row[-1]) for row in chunk])
            chunk.clear()
    await db.execute("INSERT INTO document_applied (position) VALUES ($1)", position)
    started_s = time.perf_counter()
    await db.execute("CREATE INDEX ON trigrams (user_id)")
    await db.execute("CREATE INDEX ON trigrams USING gin (text gin_trgm_ops)")
    took_s = time.perf_counter() - started_s
    await db.execute("ANALYZE trigrams")
    await db.execute("ANALYZE search_document")
    await db.close()
    return took_s


class Urls(NamedTuple):
    """What a process needs of the cell."""

    stores: dict[str, str]
    database: str

    def store_url(self, role: str) -> str:
        return self.stores[role]

    def database_url(self, database: str) -> str:
        return self.database


# --- The process that serves --------------------------------------------------------------------------


def _serve(urls: Urls, directory: str, port: int, pipe: Connection, size: Size) -> None:
    uvloop.run(_serving(urls, Path(directory), port, pipe, size))


async def _serving(urls: Urls, directory: Path, port: int, pipe: Connection, size: Size) -> None:
    look_for_cycles_rarely()  # as every service does
    telemetry.configure_logging("search", "warning")
    async with open_world(cast(Cell, urls), "search", PROJECTIONS) as world:

        async def epoch() -> object:
            return (await world.store.head()).epoch

        replica = Replica(world.db, directory, epoch=epoch)
        started_s = time.perf_counter()
        keeping = asyncio.create_task(replica.run())
        while replica.index is None:
            await asyncio.sleep(0.05)
        built_s = time.perf_counter() - started_s
        index = replica.index
        direct = {who: _direct(index, user) for who, user in (("ordinary", UUID(int=77)), ("big", BIG))}
        app: Any = create_app(world, routes(world.db, replica, CursorCodec("of the bench only")), title="bench")
        server = uvicorn.Server(uvicorn.Config(app, port=port, **{**SERVER_OPTIONS, "lifespan": "off"}))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        tokens = {str(user): world.bearer(user)["Authorization"] for user in _callers(size)}
        pipe.send({"built_s": built_s, "direct": direct, "tokens": tokens})
        tasks = [keeping, asyncio.create_task(_wake(world.db, replica))]
        while (asked := await asyncio.to_thread(pipe.recv)) != "end":
            if asked == "build":
                second = Replica(world.db, directory / "second", epoch=epoch)
                tasks.append(asyncio.create_task(second.run()))
            pipe.send(
                {"rss": psutil.Process().memory_info().rss, "disk": _bytes(directory), "cpu_s": time.process_time()}
            )
        server.should_exit = True
        await serving
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wake(db: asyncpg.Pool, replica: Replica) -> None:
    """Stands for the follower of the log: tells the replica that the read model has moved."""
    while True:
        await asyncio.sleep(0.02)
        replica.wake(await db.fetchval("SELECT position FROM document_applied"))


def _callers(size: Size) -> list[UUID]:
    return [BIG, *(UUID(int=2 + number) for number in range(0, size.customers - 1, max(1, size.customers // 500)))]


def _direct(index: SearchIndex, user: UUID) -> list[float]:
    """Milliseconds of each query, one after the other, without HTTP."""
    times = []
    for text in (*_QUERIES, *_QUERIES):
        parsed = parse(text, datetime.now(UTC))
        started_s = time.perf_counter()
        index.search(user, Query(parsed.text), parsed.filters, None, 20)
        times.append((time.perf_counter() - started_s) * 1000)
    return times[len(_QUERIES) :]


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


# --- The load -----------------------------------------------------------------------------------------


async def _trigrams(cell: Cell, user: UUID) -> list[float]:
    db = await asyncpg.connect(cell.admin_url("search"))
    times = []
    for text in (*_QUERIES, *_QUERIES):
        started_s = time.perf_counter()
        await db.fetch(
            "SELECT text FROM trigrams WHERE user_id = $1 AND $2 <% text"
            " ORDER BY word_similarity($2, text) DESC LIMIT 20",
            user,
            text,
        )
        times.append((time.perf_counter() - started_s) * 1000)
    await db.close()
    return times[len(_QUERIES) :]


class _Load:
    """Queries at their times, whatever the answers take, and writes meanwhile."""

    def __init__(self, port: int, tokens: dict[str, str], cell: Cell, size: Size) -> None:
        self.latencies_ms: list[float] = []
        self.visible_ms: list[float] = []
        self._position = size.documents
        self._written: list[tuple[int, float]] = []
        self._port, self._tokens, self._cell, self._size = port, tokens, cell, size

    async def run(self, *, writing: bool) -> list[float]:
        """Milliseconds from when each query was to be sent to its answer."""
        dice = random.Random(3)
        others = [user for user in self._tokens if user != str(BIG)]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await asyncio.gather(*(self._ask(http, user, "warm", time.perf_counter()) for user in others[:20]))
            self.latencies_ms = []
            beside = [asyncio.create_task(self._write())] if writing else []
            start_s = time.perf_counter() + 0.05
            asking = []
            for number in range(QUERIES_PER_S * SECONDS):
                at_s = start_s + number / QUERIES_PER_S
                await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
                user = str(BIG) if dice.random() < BIG_SHARE else dice.choice(others)
                asking.append(asyncio.create_task(self._ask(http, user, dice.choice(_QUERIES), at_s)))
            await asyncio.gather(*asking)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        return self.latencies_ms

    async def _ask(self, http: aiohttp.ClientSession, user: str, text: str, at_s: float) -> None:
        headers = {"Authorization": self._tokens[user]}
        url = f"http://127.0.0.1:{self._port}/api/search"
        async with http.get(url, params={"q": text}, headers=headers) as response:
            body = json.loads(await response.read())
        now_s = time.perf_counter()
        assert response.status == 200, body
        self.latencies_ms.append((now_s - at_s) * 1000)
        # The first answer of an index that contains a write tells that it can be found.
        while self._written and body["position"] >= self._written[0][0]:
            self.visible_ms.append((now_s - self._written.pop(0)[1]) * 1000)

    async def _write(self) -> None:
        db = await asyncpg.connect(self._cell.database_url("search"))
        dice = random.Random(4)
        marks = ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))
        next_s = time.perf_counter()
        while True:
            rows = []
            for _ in range(BATCH):
                self._position += 1
                user = UUID(int=dice.randrange(2, self._size.customers))
                rows.append(_row(user, _document(dice, self._position, datetime.now(UTC)), self._position)[:-1])
            async with db.transaction():
                await db.executemany(f"INSERT INTO search_document ({', '.join(_COLUMNS)}) VALUES ({marks})", rows)
                await db.execute("UPDATE document_applied SET position = $1", self._position)
            self._written.append((self._position, time.perf_counter()))
            next_s += 1 / BATCHES_PER_S
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))


async def measure(cell: Cell, size: Size = SMALL, progress: Callable[[str], None] = lambda text: None) -> list[Line]:
    """Loads the rows, lets a process of its own index and serve them, and asks it."""
    progress(f"{size.documents:,} documents into PostgreSQL …")
    trigram_index_s = await _load(cell, size)
    port = _free_port()
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory(prefix="sangam-bench-") as directory:
        progress("indexing …")
        urls = Urls(
            {role: cell.store_url(role) for role in {*PUBLISHERS.values(), "relay"}}, cell.database_url("search")
        )
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(urls, directory, port, theirs, size), daemon=True
        )
        process.start()
        built = await asyncio.to_thread(ours.recv)
        load = _Load(port, built["tokens"], cell, size)

        async def told(command: str) -> dict[str, float]:
            ours.send(command)
            answer: dict[str, float] = await asyncio.to_thread(ours.recv)
            return answer

        progress("asking …")
        before = await told("report")
        still = await load.run(writing=False)
        between = await told("report")
        written, visible = await load.run(writing=True), list(load.visible_ms)
        after = await told("report")
        progress("asking while a second index is built …")
        await told("build")
        beside = await load.run(writing=True)
        ours.send("end")
        await asyncio.to_thread(process.join, 20)
    trigrams = {who: await _trigrams(cell, user) for who, user in (("ordinary", UUID(int=77)), ("big", BIG))}
    n, per_s = f"{size.documents:,}", f"{QUERIES_PER_S}/s"
    shapes = (
        ("", still),
        (f", {BATCHES_PER_S * BATCH} documents/s coming in", written),
        (", and a second index being built", beside),
    )
    lines = [
        Line(f"search {n}: HTTP {name} at {per_s}{shape}", Figure([quantile(values, q)]), "ms", "", None, bar)
        for shape, values in shapes
        for name, q, bar in (("p50", 0.5, ""), ("p99", 0.99, "" if values is beside else "≤ 25"))
    ]

    def line(what: str, values: list[float], unit: str, reference: str = "", raw: list[float] | None = None) -> Line:
        return Line(what, Figure(values), unit, reference, Figure(raw) if raw else None, "≤ 0.1×" if raw else "")

    def cpu_ms(start: dict[str, float], end: dict[str, float], queries: list[float]) -> list[float]:
        return [(end["cpu_s"] - start["cpu_s"]) * 1000 / len(queries)]

    indexed, trigram_indexed = Figure([size.documents / built["built_s"]]), Figure([size.documents / trigram_index_s])
    return [
        *lines,
        line("engine, ordinary customer", built["direct"]["ordinary"], "ms", "pg_trgm", trigrams["ordinary"]),
        line(f"engine, customer of {size.big:,}", built["direct"]["big"], "ms", "pg_trgm", trigrams["big"]),
        line("committed in PostgreSQL → found, p99", [quantile(visible, 0.99)], "ms"),
        Line("index rate, PostgreSQL to index", indexed, "documents/s", "pg_trgm's index", trigram_indexed, ""),
        line("CPU of the process per query", cpu_ms(before, between, still), "ms"),
        line("… with documents coming in", cpu_ms(between, after, written), "ms"),
        line("memory of the process", [after["rss"] / 2**20], "MiB"),
        line("index on disk", [after["disk"] / 2**20], "MiB"),
    ]


async def measure_product(stack: Stack) -> list[Line]:
    """Through the whole product: a transfer is accepted, and search finds it."""
    found_ms: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        customers = [await make_customer(stack, http) for _ in range(MOVERS)]

        async def move(customer: Customer) -> None:
            memo = f"memo{uuid4().hex}"
            transfer = {
                "from_account_id": customer.savings,
                "to_account_id": customer.wallet,
                "amount": "1.00",
                "currency": "INR",
                "memo": memo,
            }
            headers = {**customer.headers, "Idempotency-Key": memo}
            async with http.post(f"{stack.origin}/api/transfers", json=transfer, headers=headers) as response:
                assert response.status == 201, await response.text()
            accepted_s = time.perf_counter()
            while True:
                url = f"{stack.origin}/api/search"
                async with http.get(url, params={"q": memo}, headers=customer.headers) as response:
                    answer = await response.json()
                if answer["total"]:
                    break
                await asyncio.sleep(0.005)
            found_ms.append((time.perf_counter() - accepted_s) * 1000)

        async def moves(customer: Customer) -> None:
            for _ in range(MOVES):
                await move(customer)
                await asyncio.sleep(0.1)

        await asyncio.gather(*(moves(customer) for customer in customers))
    return [
        Line(f"transfer accepted → search finds it, {name}", Figure([quantile(found_ms, q)]), "ms", "", None, "")
        for name, q in (("p50", 0.5), ("p99", 0.99))
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Measures alone; `bench/run.py` does it beside the others."""
    size = MILLION if "--million" in sys.argv else SMALL
    with (
        tempfile.TemporaryDirectory(prefix="sangam-bench-") as directory,
        Stack(Path(directory, "servers"), applications=False, disposable=True) as stack,
    ):
        print_report(asyncio.run(measure(stack.fresh_cell(), size, print)))


if __name__ == "__main__":
    main()
