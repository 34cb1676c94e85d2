"""A log of a million events: what reading, proving and sequencing cost, and that memory does not grow with the log."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from append import event
from events.contracts import encode
from events.sequencer import Sequencer
from events.store import EventStore
from report import Figure, Line

if TYPE_CHECKING:
    from provision import Cell

EVENTS = int(os.environ.get("BENCH_EVENTS", "1000000"))
STREAMS = 10_000
SLICE = 2_000

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


def _verify(url: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of `sangam events verify`."""
    sangam = str(Path(sys.executable).with_name("sangam"))
    started_s = time.perf_counter()
    pid = os.posix_spawn(
        sangam,
        [sangam, "events", "verify", "--json", *arguments],
        {**os.environ, "EVENT_STORE_URL": url},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, "the log verifies"
    return time.perf_counter() - started_s, usage.ru_maxrss / 1024


async def measure(cell: "Cell") -> list[Line]:
    """The lines of the report."""
    sequenced = await fill(cell, EVENTS)
    url = cell.admin_url()
    raw = Figure([await _raw_read(url) for _ in range(2)])
    ours = Figure([await _our_read(cell.store_url("wealth"))])
    _, small_mib = _verify(url, "--to", str(EVENTS // 20))
    verify_s, mib = _verify(url)
    return [
        Line(f"sequence {EVENTS:,} events", Figure([sequenced]), "events/s", "", None, ""),
        Line(f"read the log of {EVENTS:,} events", ours, "events/s", "the rows alone, asyncpg", raw, ""),
        Line("sangam events verify", Figure([EVENTS / verify_s]), "events/s", "the rows alone, asyncpg", raw, ""),
        Line("  its memory at the peak", Figure([mib]), "MiB", "with 1/20 of the log", Figure([small_mib]), "bounded"),
    ]
