"""A log of a million events: what reading, proving, rebuilding and replaying it cost; and memory does not grow with it.

`BENCH_EVENTS` takes another length. Each piece of work is a process of its own, whose peak of memory (resident, by the
kernel's account) is told beside that of the same work on a twentieth of the log.
"""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from append import event
from events import operations
from events.consumer import Consumer
from events.contracts import encode
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore
from events.worker import Operator
from pipeline import Rows
from report import Figure, Line

if TYPE_CHECKING:
    from provision import Cell

EVENTS = int(os.environ.get("BENCH_EVENTS", "1000000"))
STREAMS = 10_000
SLICE = 2_000
_NAME = "ledger_transfer.projections"

_FILL = """
    INSERT INTO store.streams SELECT 'ledger-' || s, count(*) FROM (SELECT n % {streams} AS s FROM
      generate_series(0, {events} - 1) n) x GROUP BY s;
    INSERT INTO store.events SELECT nextval('store.event_id'), 'ledger-' || n % {streams}, n / {streams} + 1,
      gen_random_uuid(), 'ledger.transfer.completed', 1, gen_random_uuid(), $body${body}$body$::bytea,
      '{{"actor":"user:bench"}}'::bytea, clock_timestamp() FROM generate_series(0, {events} - 1) n;
    INSERT INTO store.event_ids SELECT event_id, stream, version, '' FROM store.events;
    INSERT INTO store.pending SELECT id FROM store.events;
"""


async def fill(cell: "Cell", events: int) -> float:
    """Puts events into the store, behind the append function's back, and sequences them. Events/s of sequencing."""
    admin = await asyncpg.connect(cell.admin_url())
    await admin.execute("SET synchronous_commit = off")
    await admin.execute(_FILL.format(streams=STREAMS, events=events, body=encode(event()).decode()))
    await admin.execute("ANALYZE")
    await admin.close()
    connection = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(connection)
    assert sequencer is not None
    started_s = time.perf_counter()
    while await sequencer.sequence():
        pass
    taken_s = time.perf_counter() - started_s
    await connection.close()
    return events / taken_s


async def _raw_read(url: str) -> float:
    """Events/s of reading the table of events in order, as rows, and nothing else."""
    connection = await asyncpg.connect(url)
    started_s, after, count = time.perf_counter(), 0, 0
    while rows := await connection.fetch(
        "SELECT * FROM store.events WHERE id > $1 AND id <= $2 ORDER BY id", after, after + SLICE
    ):
        count += len(rows)
        after += SLICE
    taken_s = time.perf_counter() - started_s
    await connection.close()
    return count / taken_s


async def _our_read(url: str) -> float:
    store = await EventStore.connect(url)
    started_s, position = time.perf_counter(), 0
    while events := await store.read_log(position, SLICE):
        position = events[-1].position
    taken_s = time.perf_counter() - started_s
    await store.close()
    return position / taken_s


class _Rows(Rows):
    repeatable = True


async def _operate(kind: str, up_to: int) -> None:
    """Does a rebuild or a replay of everything, as a service's worker does."""
    database_url = os.environ["DATABASE_URL"]
    store = await EventStore.connect(os.environ["EVENT_STORE_URL"])
    database = await asyncpg.create_pool(database_url, min_size=1, max_size=2)
    handler = Projections([_Rows()])
    await Consumer(name=_NAME, handler=handler, database=database, store=store, amqp_url="amqp://unused").prepare()
    epoch = (await store.head()).epoch
    await database.execute("UPDATE consumed SET position = $1, epoch = $2", up_to, epoch)
    request = operations.RebuildRequest() if kind == "rebuild" else operations.ReplayRequest()
    operation_id = await operations.ask(database, _NAME, request, "bench")
    await Operator(database_url=database_url, store=store, handlers={_NAME: handler}).run(operation_id)
    row = await database.fetchrow("SELECT state, error, applied FROM operation WHERE id = $1", operation_id)
    assert row is not None
    assert row["state"] == "done", row["error"]
    assert row["applied"] == up_to
    await asyncio.gather(store.close(), database.close())


def _run(program: str, *arguments: str, **environment: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of a process that has to succeed."""
    started_s, peak_kib = time.perf_counter(), 0
    with subprocess.Popen(
        [program, *arguments], env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            peak_kib = max(peak_kib, _peak_kib(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0, f"{program} {arguments} failed"
    return time.perf_counter() - started_s, peak_kib / 1024


def _peak_kib(pid: int) -> int:
    """The most that the process has had resident so far. Not `ru_maxrss`: that begins with what its parent had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0  # it has just ended


def _verify(url: str, up_to: int) -> tuple[float, float]:
    sangam = str(Path(sys.executable).with_name("sangam"))
    return _run(sangam, "events", "verify", "--json", "--to", str(up_to), EVENT_STORE_URL=url)


async def measure(cell: "Cell") -> list[Line]:
    """The lines of the report."""
    sequenced = await fill(cell, EVENTS)
    url, store_url = cell.admin_url(), cell.store_url("ledger_transfer")
    environment = {"EVENT_STORE_URL": store_url, "DATABASE_URL": cell.database_url("ledger_transfer")}
    raw = Figure([await _raw_read(url) for _ in range(2)])
    ours = Figure([await _our_read(store_url)])
    lines = [
        Line(f"sequence {EVENTS:,} events", Figure([sequenced]), "events/s", "", None, ""),
        Line(f"read the log of {EVENTS:,} events", ours, "events/s", "the rows alone, asyncpg", raw, ""),
    ]

    def work(up_to: int, kind: str) -> tuple[float, float]:
        if kind == "sangam events verify":
            return _verify(url, up_to)
        return _run(sys.executable, __file__, kind, str(up_to), **environment)

    for kind in ("sangam events verify", "rebuild", "replay"):
        _, small_mib = work(EVENTS // 20, kind)
        taken_s, mib = work(EVENTS, kind)
        lines += [
            Line(kind, Figure([EVENTS / taken_s]), "events/s", "the rows alone, asyncpg", raw, ""),
            Line("  its memory at the peak", Figure([mib]), "MiB", "1/20 of the log", Figure([small_mib]), "bounded"),
        ]
    return lines


if __name__ == "__main__":
    asyncio.run(_operate(sys.argv[1], int(sys.argv[2])))
