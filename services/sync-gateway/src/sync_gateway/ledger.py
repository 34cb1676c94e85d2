"""The dispatcher's side of the delivery ledger: leases, loading, and results that are written together."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
from events.outage import until_it_works

from sync_gateway.retries import Answer

WINDOW = 1_000
"""Deliveries of one webhook held in memory."""


class Delivery:
    """A row of the ledger that is to be sent."""

    __slots__ = ("attempts", "body", "chain", "due_s", "event_id", "event_type", "kind", "n", "sequence", "tries")

    def __init__(self, row: asyncpg.Record, now: datetime) -> None:
        self.n: int = row["n"]
        self.kind: str = row["kind"]
        self.event_id: UUID = row["event_id"]
        self.event_type: str = row["event_type"]
        self.chain: str = row["chain"]
        self.sequence: int | None = row["sequence"]
        self.body: bytes = row["body"]
        self.tries: int = row["tries"]
        self.attempts: int = row["attempts"]
        due: datetime | None = row["next_attempt_at"]
        self.due_s = 0.0 if due is None else time.monotonic() + (due - now).total_seconds()


class Result(NamedTuple):
    """What an attempt leaves in the ledger."""

    webhook_id: UUID
    delivery: Delivery
    at: datetime
    answer: Answer | None
    """None: there was nothing to send."""
    status: str
    next_attempt_at: datetime | None


class Streak:
    """How an endpoint has been doing lately."""

    __slots__ = ("failures", "next_probe_at", "probes", "since")

    def __init__(self, row: asyncpg.Record) -> None:
        self.failures: int = row["failures"]
        self.since: datetime | None = row["failing_since"]
        self.probes: int = row["probes"]
        self.next_probe_at: datetime | None = row["next_probe_at"]

    def failed(self, now: datetime) -> None:
        self.failures += 1
        self.since = self.since or now

    def succeeded(self) -> bool:
        """Whether there was a streak to end."""
        ended = self.failures > 0 or self.since is not None
        self.failures, self.since, self.probes, self.next_probe_at = 0, None, 0, None
        return ended


class Ledger:
    """The rows of one replica's dispatcher."""

    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", lease_s: float) -> None:
        self.replica = uuid4()
        self.lease_s = lease_s
        self._database = database
        self._results: list[tuple[Result, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def lease(self) -> list[asyncpg.Record]:
        """Takes or keeps every webhook that has something to send, and that no other replica has."""
        return await self._database.fetch(
            "WITH leased AS (INSERT INTO webhook_lease AS mine (webhook_id, leased_by, leased_until)"
            "  SELECT e.webhook_id, $1, now() + $2 FROM webhook_endpoint e"
            "  LEFT JOIN webhook_lease l USING (webhook_id)"
            "  WHERE (l.webhook_id IS NULL OR l.leased_by = $1 OR l.leased_until < now())"
            "   AND (e.state = 'quarantined' OR e.state = 'active' AND EXISTS (SELECT 1 FROM webhook_delivery d"
            "    WHERE d.webhook_id = e.webhook_id AND d.status IN ('pending', 'failed')))"
            # A webhook that is being deleted is waited for, and is gone then: its lease would have nothing to refer to.
            "  ORDER BY e.webhook_id FOR KEY SHARE OF e"
            "  ON CONFLICT (webhook_id) DO UPDATE SET leased_by = $1, leased_until = now() + $2"
            "   WHERE mine.leased_by = $1 OR mine.leased_until < now()"
            "  RETURNING webhook_id, failures, failing_since, probes, next_probe_at)"
            " SELECT * FROM leased JOIN webhook_endpoint USING (webhook_id)",
            self.replica,
            timedelta(seconds=self.lease_s),
        )

    async def release(self, webhook_ids: Sequence[UUID]) -> None:
        await self._database.execute(
            "UPDATE webhook_lease SET leased_until = '-infinity' WHERE webhook_id = ANY ($2) AND leased_by = $1",
            self.replica,
            list(webhook_ids),
        )

    async def load(self, webhook_id: UUID, after: int) -> list[Delivery]:
        """The next of what is to be sent, in order."""
        rows = await self._database.fetch(
            "SELECT * FROM webhook_delivery WHERE webhook_id = $1 AND n > $2 AND status IN ('pending', 'failed')"
            " ORDER BY n LIMIT $3",
            webhook_id,
            after,
            WINDOW,
        )
        now = datetime.now(UTC)
        return [Delivery(row, now) for row in rows]

    async def oldest_unsent(self, webhook_id: UUID, since: datetime | None) -> Delivery | None:
        """What a quarantined webhook is probed with: the oldest that waits, else the oldest that was given up."""
        row = await self._database.fetchrow(
            "SELECT * FROM webhook_delivery WHERE webhook_id = $1 AND (status IN ('pending', 'failed')"
            " OR (status = 'exhausted' AND settled_at >= $2)) ORDER BY status = 'exhausted', n LIMIT 1",
            webhook_id,
            since or datetime.now(UTC),
        )
        return None if row is None else Delivery(row, datetime.now(UTC))

    async def requeue_exhausted(self, webhook_id: UUID, since: datetime) -> None:
        """What was given up while the webhook failed is sent after all."""
        await self._database.execute(
            "UPDATE webhook_delivery SET status = 'pending', tries = 0, next_attempt_at = NULL, settled_at = NULL"
            " WHERE webhook_id = $1 AND status = 'exhausted' AND settled_at >= $2 AND kind = 'event'",
            webhook_id,
            since,
        )

    async def save_health(self, webhook_id: UUID, health: Streak) -> None:
        await self._database.execute(
            "UPDATE webhook_lease SET failures = $2, failing_since = $3, probes = $4, next_probe_at = $5"
            " WHERE webhook_id = $1",
            webhook_id,
            health.failures,
            health.since,
            health.probes,
            health.next_probe_at,
        )

    async def record(self, result: Result) -> None:
        """Returns when the result is durable. Results of the same moment share a transaction."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._results.append((result, written))
        self._arrived.set()
        await written

    async def write_forever(self) -> None:
        """Writes results whenever there are any; an outage is waited out."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            taken, self._results = self._results, []
            if not taken:
                continue
            results = [result for result, _ in taken]
            await until_it_works("webhook results", lambda results=results: self._write(results))  # type: ignore[misc]
            for _, written in taken:
                if not written.done():
                    written.set_result(None)

    async def _write(self, results: Sequence[Result]) -> None:
        """In one transaction: a delivery and its attempt change together.

        Row by row: joined with a list of rows, the planner reads the whole table while it has no statistics of it.
        """
        # A delivery that is gone (its webhook deleted, its customer erased) keeps no attempts.
        await self._database.executemany(
            "WITH known AS (UPDATE webhook_delivery SET status = $3, tries = $4, attempts = $5, next_attempt_at = $6,"
            "   settled_at = CASE WHEN $3 IN ('delivered', 'exhausted') THEN now() END"
            "  WHERE webhook_id = $1 AND n = $2 RETURNING webhook_id, n)"
            " INSERT INTO webhook_attempt (webhook_id, n, attempt, at, response_code, latency_ms, error)"
            " SELECT webhook_id, n, $5, $8, $9, $10, $11 FROM known WHERE $7::bool ON CONFLICT DO NOTHING",
            [_row(result) for result in results],
        )


def _row(result: Result) -> tuple[Any, ...]:
    delivery, answer = result.delivery, result.answer
    return (
        result.webhook_id,
        delivery.n,
        result.status,
        delivery.tries,
        delivery.attempts,
        result.next_attempt_at,
        answer is not None,
        result.at,
        None if answer is None else answer.code,
        0.0 if answer is None else answer.latency_ms,
        None if answer is None else answer.error,
    )
