"""Events that a consumer could not apply, and those behind them on their streams.

A parked event takes its stream with it: what comes later on that stream is parked behind it, so that order per stream
holds whenever it is tried again. An operator retries it, or skips it for good; a skip is recorded in `skipped`, and
whoever applies the log again leaves the same events out.
"""

import traceback
from collections.abc import Collection, Sequence

import asyncpg

from events import metrics
from events.contracts import UnknownContract
from events.envelope import RecordedEvent

DDL = """
    CREATE TABLE IF NOT EXISTS parked (
        consumer text NOT NULL,
        position bigint NOT NULL,
        stream text NOT NULL,
        event_id uuid NOT NULL,
        type text NOT NULL,
        reason text NOT NULL,
        error text,
        parked_at timestamptz NOT NULL DEFAULT now(),
        attempts int NOT NULL DEFAULT 0,
        retry_at timestamptz,
        traceback text,
        PRIMARY KEY (consumer, position)
    );
    CREATE TABLE IF NOT EXISTS skipped (
        consumer text NOT NULL,
        position bigint NOT NULL,
        stream text NOT NULL,
        event_id uuid NOT NULL,
        type text NOT NULL,
        reason text NOT NULL,
        operator text NOT NULL,
        skipped_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (consumer, position)
    );
    CREATE INDEX IF NOT EXISTS parked_by_stream ON parked (consumer, stream, position);
"""

_TRACEBACK_MAX = 8_000

FAILED, UNKNOWN_CONTRACT, BEHIND = "failed", "unknown_contract", "behind"


class Fault:
    """Why an event is parked."""

    def __init__(self, error: BaseException, attempts: int) -> None:
        self.reason = UNKNOWN_CONTRACT if isinstance(error, UnknownContract) else FAILED
        self.error = repr(error).replace("\x00", "\\x00")
        self.traceback = "".join(traceback.format_exception(error))[-_TRACEBACK_MAX:].replace("\x00", "\\x00")
        self.attempts = attempts


class Parking:
    """The parked streams of one consumer. What is kept here is checked against the database by `version`."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self.streams: frozenset[str] = frozenset()
        self.version = -1
        """`consumed.parkings` when `streams` was read: whoever changes the table adds one to it."""

    async def load(self, db: asyncpg.Connection | asyncpg.Pool, version: int) -> None:
        """Reads what is parked."""
        rows = await db.fetch(
            "SELECT stream, count(*) AS events FROM parked WHERE consumer = $1 GROUP BY stream", self._consumer
        )
        self.streams = frozenset(row["stream"] for row in rows)
        self.version = version
        metrics.parked_streams.labels(self._consumer).set(len(rows))
        metrics.parked_events.labels(self._consumer).set(sum(row["events"] for row in rows))

    async def park(self, db: asyncpg.Connection, events: Sequence[RecordedEvent], fault: Fault | None) -> None:
        """Parks events: for a fault of their own, or (None) behind an earlier one of their stream."""
        await db.executemany(
            "INSERT INTO parked (consumer, position, stream, event_id, type, reason, error, traceback, attempts)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            [
                (
                    self._consumer,
                    event.position,
                    event.stream,
                    event.event_id,
                    event.type,
                    fault.reason if fault else BEHIND,
                    fault.error if fault else None,
                    fault.traceback if fault else None,
                    fault.attempts if fault else 0,
                )
                for event in events
            ],
        )
        metrics.parked.labels(self._consumer).inc(len(events))
        metrics.parked_events.labels(self._consumer).inc(len(events))

    async def due(self, db: asyncpg.Connection | asyncpg.Pool) -> list[str]:
        """The streams whose first parked event somebody asked to retry, in the order of asking."""
        rows = await db.fetch(
            "SELECT stream FROM (SELECT DISTINCT ON (stream) stream, retry_at FROM parked WHERE consumer = $1"
            "  ORDER BY stream, position) head WHERE retry_at <= now() ORDER BY retry_at",
            self._consumer,
        )
        return [row["stream"] for row in rows]

    async def ask_for_unknown(self, db: asyncpg.Connection | asyncpg.Pool) -> None:
        """Events of contracts unknown when they came: this process may know them."""
        await db.execute(
            "UPDATE parked SET retry_at = now() WHERE consumer = $1 AND reason = $2", self._consumer, UNKNOWN_CONTRACT
        )

    async def first(self, db: asyncpg.Connection, stream: str, limit: int) -> list[int]:
        """The positions of the stream's first parked events."""
        rows = await db.fetch(
            "SELECT position FROM parked WHERE consumer = $1 AND stream = $2 ORDER BY position LIMIT $3",
            self._consumer,
            stream,
            limit,
        )
        return [row["position"] for row in rows]

    async def unpark(self, db: asyncpg.Connection, stream: str, positions: Collection[int]) -> None:
        """Takes the stream's first events out: they are applied. The next one is to be tried as they were."""
        await db.execute("DELETE FROM parked WHERE consumer = $1 AND position = ANY ($2)", self._consumer, positions)
        # In the same transaction: a consumer that dies here goes on, and who waits for the outcome goes on waiting.
        await db.execute(
            "UPDATE parked SET retry_at = now() WHERE consumer = $1 AND position ="
            " (SELECT min(position) FROM parked WHERE consumer = $1 AND stream = $2)",
            self._consumer,
            stream,
        )

    async def failed_again(self, db: asyncpg.Connection | asyncpg.Pool, position: int, fault: Fault) -> None:
        """Records what a retry met; the event stays parked until somebody asks again."""
        await db.execute(
            "UPDATE parked SET reason = $3, error = $4, traceback = $5, attempts = attempts + $6, retry_at = NULL"
            " WHERE consumer = $1 AND position = $2",
            self._consumer,
            position,
            fault.reason,
            fault.error,
            fault.traceback,
            fault.attempts,
        )

    async def changed(self, db: asyncpg.Connection) -> int:
        """Tells every replica to read again; call it under the lock of the `consumed` row."""
        version: int = await db.fetchval(
            "UPDATE consumed SET parkings = parkings + 1 WHERE consumer = $1 RETURNING parkings", self._consumer
        )
        return version


async def skipped_positions(db: asyncpg.Connection | asyncpg.Pool, consumer: str) -> set[int]:
    """What an operator has skipped for this consumer: never to be applied, in no rebuild and no replay."""
    if not await db.fetchval("SELECT to_regclass('public.skipped') IS NOT NULL"):
        return set()
    rows = await db.fetch("SELECT position FROM public.skipped WHERE consumer = $1", consumer)
    return {row["position"] for row in rows}
