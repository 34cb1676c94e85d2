"""What the backbone's integration tests share: a relay in process, appends, and a read model that checks order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import msgspec
from events import wire
from events.consumer import Consumer
from events.contracts import ledger
from events.envelope import Metadata, RecordedEvent, new_id
from events.relay import Relay
from events.store import EventStore, StreamAppend

if TYPE_CHECKING:
    from provision import Cell


def event(amount_minor: int = 1) -> ledger.TransferSettled:
    """Some event of the ledger's."""
    return ledger.TransferSettled(
        transfer_id=new_id(), platform="bfc", item_id=str(amount_minor), occurred_at=datetime.now(UTC)
    )


async def append_one(store: EventStore, stream: str, expected: int | None = None, event_id: UUID | None = None) -> UUID:
    """Appends one event and returns its id."""
    event_id = event_id or new_id()
    await store.append([StreamAppend(stream, (event(),), expected)], event_id=event_id)
    return event_id


def recorded(position: int) -> RecordedEvent:
    """Some event, as the log has it at that position."""
    return RecordedEvent(
        position=position,
        stream=f"ledger-{new_id()}",
        version=1,
        event_id=new_id(),
        type="ledger.account.opened",
        schema_version=1,
        subject=None,
        data=b"{}",
        metadata=Metadata(),
        recorded_at=datetime.now(UTC),
    )


def batch(events: Sequence[RecordedEvent], epoch: UUID) -> tuple[bytes, dict[str, Any]]:
    """Body and headers of the message that a relay makes of these events."""
    slices = [wire.LogSlice(e.position, e.position, msgspec.json.encode(e.cloud_event())) for e in events]
    return wire.encode_batch(slices, epoch)


@contextlib.asynccontextmanager
async def running_relay(cell: "Cell") -> AsyncIterator[Relay]:
    """A relay in this process."""
    relay = Relay(cell.store_url("relay"), cell.amqp_url("relay"))
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Seen:
    """A read model of what was applied; its primary keys fail on anything applied twice, its check on disorder."""

    name = "seen"
    ddl = """
        CREATE TABLE IF NOT EXISTS seen (
            position bigint PRIMARY KEY, stream text NOT NULL, version bigint NOT NULL, event_id uuid NOT NULL UNIQUE
        );
        CREATE TABLE IF NOT EXISTS last_version (stream text PRIMARY KEY, version bigint NOT NULL);
    """
    types = frozenset({"ledger.transfer.settled"})

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.executemany(
            "INSERT INTO seen VALUES ($1, $2, $3, $4)", [(e.position, e.stream, e.version, e.event_id) for e in events]
        )
        for e in events:
            previous = await db.fetchval("SELECT version FROM last_version WHERE stream = $1", e.stream) or 0
            assert e.version == previous + 1, f"{e.stream} went from {previous} to {e.version}"
            await db.execute(
                "INSERT INTO last_version VALUES ($1, $2) ON CONFLICT (stream) DO UPDATE SET version = $2",
                e.stream,
                e.version,
            )


@contextlib.asynccontextmanager
async def running_consumer(consumer: Consumer) -> AsyncIterator[Consumer]:
    """The consumer, running; an error of its own ends the test."""
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
        if task.done():
            task.result()
    finally:
        consumer.stop()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)


async def eventually(condition, timeout_s: float = 20) -> None:  # type: ignore[no-untyped-def]
    """Waits until an async condition holds."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.02)
