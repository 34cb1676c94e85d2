"""Append against the `eventsourcing` library's `save`, on the same PostgreSQL: one writer, and many at once."""

import asyncio
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from append import WRITERS, event
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from report import ROUNDS, Figure, Line

if TYPE_CHECKING:
    from provision import Cell

ALONE = 200
EACH_OF_MANY = 20


@cache
def _aggregate() -> Any:
    """The library's class; it registers its name, which it allows once."""
    from eventsourcing.domain import Aggregate
    from eventsourcing.domain import event as fact

    class Transfers(Aggregate):
        @fact("Completed")
        def complete(self, transfer_id: str, from_account: str, to_account: str, amount_minor: int) -> None:
            pass

    return Transfers


def _library(url: str, writers: int, each: int) -> list[float]:
    """Events per second, per round: aggregates saved one event at a time, from threads, with a pool of connections."""
    from eventsourcing.application import Application

    server = urlsplit(url)
    application: Any = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": server.path[1:],
            "POSTGRES_HOST": server.hostname or "",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_USER": server.username or "",
            "POSTGRES_PASSWORD": unquote(server.password or ""),
            "POSTGRES_POOL_SIZE": str(writers),
            "POSTGRES_MAX_OVERFLOW": "4",
        }
    )

    def write() -> None:
        aggregate = _aggregate()()
        for _ in range(each):
            aggregate.complete(str(uuid4()), str(uuid4()), str(uuid4()), 5_000_000)
            application.save(aggregate)

    write()
    rates = []
    for _ in range(ROUNDS):
        threads = [threading.Thread(target=write) for _ in range(writers)]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(writers * each / (time.perf_counter() - started_s))
    application.close()
    return rates


async def _ours(url: str, writers: int, each: int) -> list[float]:
    store = await EventStore.connect(url)

    async def write() -> None:
        stream = f"ledger-{new_id()}"
        for n in range(each):
            await store.append([StreamAppend(stream, (event(),), n)], event_id=new_id())

    await write()
    rates = []
    for _ in range(ROUNDS):
        started_s = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(writers)))
        rates.append(writers * each / (time.perf_counter() - started_s))
    await store.close()
    return rates


async def measure(cell: "Cell") -> list[Line]:
    """The lines of the report."""
    lines = []
    for writers, each in ((1, ALONE), (WRITERS, EACH_OF_MANY)):
        library = await asyncio.to_thread(_library, cell.admin_url(), writers, each)
        ours = await _ours(cell.store_url("ledger_transfer"), writers, each)
        lines.append(
            Line(
                f"append, {writers} writer{'s' if writers > 1 else ''}, against a library",
                Figure(ours),
                "events/s",
                f"eventsourcing: save, {writers} thread{'s' if writers > 1 else ''}",
                Figure(library),
                "≥ 5×",
            )
        )
    return lines
