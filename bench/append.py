"""Append: one event at a time from many writers, and batches, against raw inserts into one table."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
from events.contracts import Event, encode, ledger
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from report import ROUNDS, Figure, Line, latency_ms, rate

if TYPE_CHECKING:
    from provision import Cell

WRITERS = 64
PER_WRITER = 100
BATCH = 1_000
BATCHES = 20


def event() -> Event:
    """A transfer, the event that matters most."""
    return ledger.TransferCompleted(
        transfer_id=new_id(),
        from_account_id=new_id(),
        to_account_id=new_id(),
        amount_minor=5_000_000,
        currency="INR",
        memo="bench",
        legs=(),
        completed_at=datetime.now(UTC),
    )


def fsync_ms(directory: Path) -> Figure:
    """What one fdatasync of 8 KiB costs on the database's disk."""
    path = directory / f"fsync-{uuid4().hex}"
    medians = []
    with path.open("wb", buffering=0) as file:
        for _ in range(ROUNDS):
            started_s = time.perf_counter()
            for _ in range(200):
                file.write(b"x" * 8192)
                os.fdatasync(file.fileno())
            medians.append((time.perf_counter() - started_s) / 200 * 1000)
    path.unlink()
    return Figure(medians)


async def measure(cell: "Cell", data: Path) -> list[Line]:
    """The append lines of the report."""
    admin = await asyncpg.connect(cell.admin_url())
    await admin.execute(
        "CREATE TABLE IF NOT EXISTS raw"
        " (id bigserial PRIMARY KEY, stream text, version bigint, event_id uuid, data bytea)"
    )
    insert = "INSERT INTO raw (stream, version, event_id, data) VALUES ($1, $2, $3, $4)"
    pool = await asyncpg.create_pool(cell.admin_url(), min_size=WRITERS, max_size=WRITERS)
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    body = encode(event())

    async def raw_writers() -> None:
        async def writer() -> None:
            async with pool.acquire() as connection:
                for n in range(PER_WRITER):
                    await connection.execute(insert, "ledger-x", n, new_id(), body)

        await asyncio.gather(*(writer() for _ in range(WRITERS)))

    async def our_writers() -> None:
        async def writer() -> None:
            stream = f"ledger-{new_id()}"
            for n in range(PER_WRITER):
                await store.append([StreamAppend(stream, (event(),), n)], event_id=new_id())

        await asyncio.gather(*(writer() for _ in range(WRITERS)))

    async def raw_one() -> None:
        await admin.execute(insert, "ledger-x", 1, new_id(), body)

    async def our_one() -> None:
        await store.append([StreamAppend(f"ledger-{new_id()}", (event(),), 0)], event_id=new_id())

    async def raw_batches() -> None:
        for _ in range(BATCHES):
            await admin.execute(
                "INSERT INTO raw (stream, version, event_id, data) SELECT * FROM unnest($1::text[], $2::bigint[],"
                " $3::uuid[], $4::bytea[])",
                [f"ledger-{n}" for n in range(BATCH)],
                list(range(BATCH)),
                [new_id() for _ in range(BATCH)],
                [encode(event()) for _ in range(BATCH)],
            )

    async def our_batches_over_streams() -> None:
        for _ in range(BATCHES):
            await asyncio.gather(
                *(
                    store.append([StreamAppend(f"ledger-{new_id()}", (event(),), 0)], event_id=new_id())
                    for _ in range(BATCH)
                )
            )

    async def our_batches_on_one() -> None:
        stream = f"ledger-{new_id()}"
        for _ in range(BATCHES):
            events = tuple(event() for _ in range(BATCH))
            await store.append([StreamAppend(stream, events)], event_id=new_id())

    for warm_up in (raw_writers, our_writers):
        await warm_up()
    raw_single = await rate(WRITERS * PER_WRITER, raw_writers)
    raw_unnest = await rate(BATCH * BATCHES, raw_batches)
    reference = f"asyncpg insert, {WRITERS} connections"
    lines = [
        Line("fdatasync of 8 KiB", fsync_ms(data), "ms", "", None, ""),
        Line(
            f"append, {WRITERS} writers, one event each",
            await rate(WRITERS * PER_WRITER, our_writers),
            "events/s",
            reference,
            raw_single,
            "≥ 1.0× (fsync < 0.1 ms), ≥ 2.5× (≥ 1 ms)",
        ),
        Line(
            "append, one writer, p50",
            await latency_ms(500, our_one),
            "ms",
            "asyncpg insert",
            await latency_ms(500, raw_one),
            "≤ 1.5×",
        ),
        Line(
            f"append, {BATCH} at once over {BATCH * BATCHES} streams",
            await rate(BATCH * BATCHES, our_batches_over_streams),
            "events/s",
            "unnest insert",
            raw_unnest,
            "≥ 0.25×",
        ),
        Line(
            f"append, {BATCH} at once on one stream",
            await rate(BATCH * BATCHES, our_batches_on_one),
            "events/s",
            "unnest insert",
            raw_unnest,
            "≥ 0.45×",
        ),
    ]
    await store.close()
    await pool.close()
    await admin.close()
    return lines
