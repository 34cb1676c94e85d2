"""The delivery ledger: which webhook is to be told of which event, in which order, and how it went.

Filled by a consumer of its own, whose position is saved with the rows: an event becomes one delivery per webhook,
whatever is replayed, rebuilt or restarted. Each webhook numbers its deliveries in the order of the log (`sequence`, in
the signed body); `n` also counts what was asked for besides (tests, resends), and is what sending follows.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.pool import PoolConnectionProxy
from chassis.topics import topics
from events.contracts import contract_of, registered, sync
from events.envelope import RecordedEvent, derived_id
from events.retention import Retention

from sync_gateway.announcements import Announcements
from sync_gateway.delivery import NewDelivery, signed_body

Connection = asyncpg.Connection | PoolConnectionProxy

CHANNEL = "webhook_deliveries"
"""Notified, with the commit, when there is something to send."""

ERASED = "identity.user.erased"

REPLAY_MAX = 100_000
"""Deliveries of one replay, the oldest: whoever has more goes on from where it ended."""

_LIFECYCLE = frozenset(
    contract_of(contract).type
    for contract in (
        sync.WebhookRegistered,
        sync.WebhookChanged,
        sync.WebhookSecretRotated,
        sync.WebhookQuarantined,
        sync.WebhookRestored,
        sync.WebhookDisabled,
        sync.WebhookDeleted,
    )
)

DDL = """
    CREATE TABLE IF NOT EXISTS webhook_endpoint (
        webhook_id uuid PRIMARY KEY,
        owner_id uuid,
        platform text,
        url text NOT NULL,
        patterns text[] NOT NULL,
        state text NOT NULL,
        retry_delays_s int[] NOT NULL,
        concurrency_max int NOT NULL,
        rate_per_s int NOT NULL,
        sealed_secret text NOT NULL,
        previous_sealed_secret text,
        previous_until timestamptz,
        next_n bigint NOT NULL DEFAULT 1,
        next_sequence bigint NOT NULL DEFAULT 1,
        revision bigint NOT NULL DEFAULT 1
    );
    CREATE INDEX IF NOT EXISTS webhook_endpoint_by_owner ON webhook_endpoint (owner_id);
    CREATE TABLE IF NOT EXISTS webhook_lease (
        webhook_id uuid PRIMARY KEY REFERENCES webhook_endpoint ON DELETE CASCADE,
        leased_by uuid NOT NULL,
        leased_until timestamptz NOT NULL,
        failures int NOT NULL DEFAULT 0,
        failing_since timestamptz,
        probes int NOT NULL DEFAULT 0,
        next_probe_at timestamptz
    );
    CREATE TABLE IF NOT EXISTS webhook_delivery (
        webhook_id uuid NOT NULL REFERENCES webhook_endpoint ON DELETE CASCADE,
        n bigint NOT NULL,
        delivery_id uuid NOT NULL,
        kind text NOT NULL,
        event_id uuid NOT NULL,
        event_type text NOT NULL,
        user_id uuid,
        chain text NOT NULL,
        sequence bigint,
        body bytea NOT NULL,
        status text NOT NULL DEFAULT 'pending',
        tries int NOT NULL DEFAULT 0,
        attempts int NOT NULL DEFAULT 0,
        next_attempt_at timestamptz,
        recorded_at timestamptz NOT NULL,
        settled_at timestamptz,
        PRIMARY KEY (webhook_id, n)
    );
    CREATE UNIQUE INDEX IF NOT EXISTS webhook_delivery_once
        ON webhook_delivery (webhook_id, event_id) WHERE kind = 'event';
    CREATE INDEX IF NOT EXISTS webhook_delivery_open
        ON webhook_delivery (webhook_id, n) WHERE status IN ('pending', 'failed');
    CREATE INDEX IF NOT EXISTS webhook_delivery_by_id ON webhook_delivery (delivery_id);
    CREATE INDEX IF NOT EXISTS webhook_delivery_by_user ON webhook_delivery (user_id) WHERE user_id IS NOT NULL;
    CREATE INDEX IF NOT EXISTS webhook_delivery_settled ON webhook_delivery (settled_at) WHERE settled_at IS NOT NULL;
    CREATE TABLE IF NOT EXISTS webhook_attempt (
        webhook_id uuid NOT NULL,
        n bigint NOT NULL,
        attempt int NOT NULL,
        at timestamptz NOT NULL,
        response_code int,
        latency_ms real NOT NULL,
        error text,
        PRIMARY KEY (webhook_id, n, attempt),
        FOREIGN KEY (webhook_id, n) REFERENCES webhook_delivery ON DELETE CASCADE
    );
"""


class DeliveryLedger:
    """The consumer's handler: every public event, for each webhook that wants it."""

    effects: ClassVar = {"webhook_delivery": "webhooks"}
    retention = (Retention("webhook_delivery", "settled_at", timedelta(days=30)),)
    kept = ("webhook_endpoint", "webhook_lease", "webhook_attempt")

    def __init__(self, announcements: Announcements) -> None:
        self._announcements = announcements
        self.ddl = DDL + announcements.ddl
        self.types = (
            frozenset(contract.type for contract in registered() if contract.public)
            | _LIFECYCLE
            | announcements.types
            | {ERASED}
        )

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Enqueues and follows the webhooks' own events, in the order of the log."""
        due: list[NewDelivery] = []
        segment: list[RecordedEvent] = []
        for event in events:
            if event.type in _LIFECYCLE or event.type == ERASED:
                # A webhook gets what happened after it was registered, and before it was paused.
                due += await self._wanted(db, segment)
                segment = []
                await enqueue(db, due)
                due = []
                if event.type == ERASED:
                    await self._erase(db, event.subject)
                else:
                    await _follow(db, event)
            segment.append(event)
        due += await self._wanted(db, segment)
        await enqueue(db, due)

    async def _wanted(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> list[NewDelivery]:
        public = [event for event in events if event.public]
        announced = await self._announcements.of(db, events)
        if not public:
            return announced
        subjects = {event.subject for event in public if event.subject is not None}
        rows = await db.fetch(
            "SELECT webhook_id, owner_id, patterns FROM webhook_endpoint WHERE platform IS NULL"
            " AND state IN ('active', 'quarantined') AND (owner_id = ANY ($1) OR owner_id IS NULL)",
            list(subjects),
        )
        endpoints = [
            (UUID(int=row["webhook_id"].int), row["owner_id"], topics(row["patterns"]) if row["patterns"] else ())
            for row in rows
        ]
        return announced + [
            NewDelivery(
                webhook_id=webhook_id,
                kind="event",
                event_id=event.event_id,
                event_type=event.type,
                user_id=event.subject,
                chain=event.stream,
                body=signed_body(event, webhook_id),
                recorded_at=event.recorded_at,
            )
            for event in public
            for webhook_id, owner_id, patterns in endpoints
            if (owner_id is None or owner_id == event.subject) and event.type in patterns
        ]

    async def _erase(self, db: asyncpg.Connection, user_id: UUID | None) -> None:
        await db.execute("DELETE FROM webhook_delivery WHERE user_id = $1", user_id)
        await db.execute("DELETE FROM webhook_endpoint WHERE owner_id = $1", user_id)
        await self._announcements.erase(db, user_id)


async def _follow(db: asyncpg.Connection, event: RecordedEvent) -> None:
    """A webhook's own event."""
    match event.payload:
        case sync.WebhookRegistered() as webhook:
            await db.execute(
                "INSERT INTO webhook_endpoint (webhook_id, owner_id, url, patterns, state, retry_delays_s,"
                " concurrency_max, rate_per_s, sealed_secret) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
                " ON CONFLICT DO NOTHING",
                webhook.webhook_id,
                webhook.owner_id,
                webhook.url,
                webhook.events,
                "active" if webhook.active else "inactive",
                webhook.retry_delays_s,
                webhook.concurrency_max,
                webhook.rate_per_s,
                webhook.sealed_secret,
            )
        case sync.WebhookChanged() as webhook:
            await db.execute(
                "UPDATE webhook_endpoint SET url = $2, patterns = $3, retry_delays_s = $5, concurrency_max = $6,"
                " rate_per_s = $7, revision = revision + 1, state = CASE WHEN NOT $4 THEN 'inactive'"
                "  WHEN state = 'quarantined' THEN state ELSE 'active' END WHERE webhook_id = $1",
                webhook.webhook_id,
                webhook.url,
                webhook.events,
                webhook.active,
                webhook.retry_delays_s,
                webhook.concurrency_max,
                webhook.rate_per_s,
            )
        case sync.WebhookSecretRotated() as webhook:
            await db.execute(
                "UPDATE webhook_endpoint SET previous_sealed_secret = sealed_secret, previous_until = $3,"
                " sealed_secret = $2, revision = revision + 1 WHERE webhook_id = $1",
                webhook.webhook_id,
                webhook.sealed_secret,
                webhook.previous_until,
            )
        case sync.WebhookQuarantined() as webhook:
            await db.execute(
                "UPDATE webhook_endpoint SET state = 'quarantined', revision = revision + 1"
                " WHERE webhook_id = $1 AND state = 'active'",
                webhook.webhook_id,
            )
        case sync.WebhookRestored() as webhook:
            await db.execute(
                "UPDATE webhook_endpoint SET state = 'active', revision = revision + 1"
                " WHERE webhook_id = $1 AND state = 'quarantined'",
                webhook.webhook_id,
            )
        case sync.WebhookDisabled() as webhook:
            await db.execute(
                "UPDATE webhook_endpoint SET state = 'disabled', revision = revision + 1 WHERE webhook_id = $1",
                webhook.webhook_id,
            )
        case sync.WebhookDeleted() as webhook:
            await db.execute("DELETE FROM webhook_endpoint WHERE webhook_id = $1", webhook.webhook_id)
    await notify(db)


async def enqueue(db: Connection, deliveries: Sequence[NewDelivery]) -> list[UUID]:
    """Adds the deliveries, numbered in their order, to webhooks that (still) exist; their ids, in that order.

    The caller's transaction holds each webhook's row until it ends: numbers become visible in their order.
    """
    if not deliveries:
        return []
    counts: dict[UUID, list[int]] = {}
    for delivery in deliveries:
        count = counts.setdefault(delivery.webhook_id, [0, 0])
        count[0] += 1
        count[1] += delivery.kind == "event"
    ids = sorted(counts)
    await db.execute(
        "SELECT 1 FROM webhook_endpoint WHERE webhook_id = ANY ($1) ORDER BY webhook_id FOR NO KEY UPDATE", ids
    )
    rows = await db.fetch(
        "UPDATE webhook_endpoint e SET next_n = next_n + added.n, next_sequence = next_sequence + added.sequence"
        " FROM (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS a(webhook_id, n, sequence)) added"
        " WHERE e.webhook_id = added.webhook_id"
        " RETURNING e.webhook_id, next_n - added.n AS n, next_sequence - added.sequence AS sequence",
        ids,
        [counts[webhook_id][0] for webhook_id in ids],
        [counts[webhook_id][1] for webhook_id in ids],
    )
    numbers = {UUID(int=row["webhook_id"].int): [row["n"], row["sequence"]] for row in rows}
    values: list[tuple[Any, ...]] = []
    for delivery in deliveries:
        number = numbers.get(delivery.webhook_id)
        if number is None:
            continue
        sequence = number[1] if delivery.kind == "event" else None
        # What is sent on request has an id of its own; an event's is the same whatever is replayed.
        own = (delivery.kind,) if delivery.kind == "event" else (delivery.kind, number[0])
        delivery_id = derived_id(delivery.event_id, delivery.webhook_id, *own)
        values.append((*delivery, number[0], sequence, delivery_id))
        number[0] += 1
        number[1] += delivery.kind == "event"
    columns = list(zip(*values, strict=True)) or [()] * 11
    await db.execute(
        "INSERT INTO webhook_delivery (webhook_id, kind, event_id, event_type, user_id, chain, body, recorded_at, n,"
        "  sequence, delivery_id)"
        " SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::uuid[], $6::text[], $7::bytea[],"
        "  $8::timestamptz[], $9::bigint[], $10::bigint[], $11::uuid[])",
        *columns,
    )
    await notify(db)
    return [value[10] for value in values]


async def notify(db: Connection) -> None:
    """Wakes the dispatchers when the caller's transaction has committed."""
    await db.execute(f"NOTIFY {CHANNEL}")


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    at: datetime
    response_code: int | None
    latency_ms: float
    error: str | None


class DeliveryRow(NamedTuple):
    n: int
    delivery_id: UUID
    event_id: UUID
    event_type: str
    kind: str
    sequence: int | None
    status: str
    next_attempt_at: datetime | None
    recorded_at: datetime
    attempts: list[Attempt]


class Deliveries:
    """What the API asks of the ledger."""

    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._database = database

    async def page(self, webhook_id: UUID, *, before: int | None, status: str | None, limit: int) -> list[DeliveryRow]:
        """The webhook's deliveries, newest first, those numbered below `before`."""
        rows = await self._database.fetch(
            "SELECT * FROM webhook_delivery WHERE webhook_id = $1 AND n < $2 AND ($3::text IS NULL OR status = $3)"
            " ORDER BY n DESC LIMIT $4",
            webhook_id,
            2**62 if before is None else before,
            status,
            limit,
        )
        return await self._with_attempts(webhook_id, rows)

    async def one(self, webhook_id: UUID, delivery_id: UUID) -> DeliveryRow | None:
        rows = await self._database.fetch(
            "SELECT * FROM webhook_delivery WHERE delivery_id = $2 AND webhook_id = $1", webhook_id, delivery_id
        )
        found = await self._with_attempts(webhook_id, rows)
        return found[0] if found else None

    async def resend(self, webhook_id: UUID, delivery_id: UUID) -> UUID | None:
        """Queues the delivery once more, under the same message id and sequence; None if there is none."""
        async with self._database.acquire() as db, db.transaction():
            row = await db.fetchrow(
                "SELECT n FROM webhook_delivery WHERE delivery_id = $2 AND webhook_id = $1", webhook_id, delivery_id
            )
            if row is None:
                return None
            await _probe_now(db, webhook_id)
            queued = await _again(db, webhook_id, [row["n"]], "resend")
        return queued[0] if queued else None

    async def replay(self, webhook_id: UUID, since: datetime) -> int | None:
        """Queues everything recorded since then once more, in order; how many that are, or None while the replay
        before has not come to its end: each may be as long as the webhook's past."""
        async with self._database.acquire() as db, db.transaction():
            await db.execute("SELECT 1 FROM webhook_endpoint WHERE webhook_id = $1 FOR NO KEY UPDATE", webhook_id)
            if await db.fetchval(
                "SELECT EXISTS (SELECT 1 FROM webhook_delivery WHERE webhook_id = $1 AND kind = 'replay'"
                " AND status IN ('pending', 'failed'))",
                webhook_id,
            ):
                return None
            rows = await db.fetch(
                "SELECT n FROM webhook_delivery WHERE webhook_id = $1 AND kind = 'event' AND recorded_at >= $2"
                " ORDER BY n LIMIT $3",
                webhook_id,
                since,
                REPLAY_MAX,
            )
            return len(await _again(db, webhook_id, [row["n"] for row in rows], "replay"))

    async def test(self, webhook_id: UUID, event_id: UUID, body: bytes) -> UUID | None:
        """Queues a test message."""
        async with self._database.acquire() as db, db.transaction():
            await _probe_now(db, webhook_id)
            queued = await enqueue(
                db,
                [
                    NewDelivery(
                        webhook_id=webhook_id,
                        kind="test",
                        event_id=event_id,
                        event_type="webhook.test",
                        user_id=None,
                        chain=f"test:{event_id}",
                        body=body,
                        recorded_at=datetime.now(UTC),
                    )
                ],
            )
        return queued[0] if queued else None

    async def pending(self, owner_id: UUID, limit: int) -> "list[asyncpg.Record]":
        """What waits to be delivered to the customer's webhooks, or announced about them, oldest first."""
        return await self._database.fetch(
            "SELECT d.event_id, d.event_type, d.recorded_at, d.attempts, d.next_attempt_at, e.platform, e.webhook_id"
            " FROM webhook_delivery d JOIN webhook_endpoint e USING (webhook_id)"
            " WHERE d.status IN ('pending', 'failed')"
            "  AND (e.owner_id = $1 OR (e.platform IS NOT NULL AND d.user_id = $1))"
            " ORDER BY d.recorded_at, d.n LIMIT $2",
            owner_id,
            limit,
        )

    async def _with_attempts(self, webhook_id: UUID, rows: "Sequence[asyncpg.Record]") -> list[DeliveryRow]:
        attempts: dict[int, list[Attempt]] = {}
        for row in await self._database.fetch(
            "SELECT n, at, response_code, latency_ms, error FROM webhook_attempt"
            " WHERE webhook_id = $1 AND n = ANY ($2) ORDER BY n, attempt",
            webhook_id,
            [row["n"] for row in rows],
        ):
            attempts.setdefault(row["n"], []).append(
                Attempt(
                    at=row["at"],
                    response_code=row["response_code"],
                    latency_ms=round(row["latency_ms"], 2),
                    error=row["error"],
                )
            )
        return [
            DeliveryRow(
                n=row["n"],
                delivery_id=row["delivery_id"],
                event_id=row["event_id"],
                event_type=row["event_type"],
                kind=row["kind"],
                sequence=row["sequence"],
                status=row["status"],
                next_attempt_at=row["next_attempt_at"],
                recorded_at=row["recorded_at"],
                attempts=attempts.get(row["n"], []),
            )
            for row in rows
        ]


async def _again(db: Connection, webhook_id: UUID, numbers: Sequence[int], kind: str) -> list[UUID]:
    """Copies the deliveries of these numbers to the end of the queue, in order."""
    first = await db.fetchval(
        "UPDATE webhook_endpoint SET next_n = next_n + $2 WHERE webhook_id = $1 RETURNING next_n - $2",
        webhook_id,
        len(numbers),
    )
    if first is None or not numbers:
        return []
    rows = await db.fetch(
        "INSERT INTO webhook_delivery (webhook_id, n, delivery_id, kind, event_id, event_type, user_id, chain,"
        "  sequence, body, recorded_at)"
        " SELECT d.webhook_id, $3 + again.place - 1, gen_random_uuid(), $4, d.event_id, d.event_type, d.user_id,"
        # Beside what is live: a replay neither waits for it nor holds it up.
        "  $4 || ':' || CASE WHEN $4 = 'replay' THEN d.chain ELSE d.delivery_id::text END, d.sequence, d.body,"
        "  d.recorded_at"
        " FROM unnest($2::bigint[]) WITH ORDINALITY AS again(n, place)"
        " JOIN webhook_delivery d ON d.webhook_id = $1 AND d.n = again.n"
        " ORDER BY again.place RETURNING delivery_id",
        webhook_id,
        list(numbers),
        first,
        kind,
    )
    await notify(db)
    return [row["delivery_id"] for row in rows]


async def _probe_now(db: Connection, webhook_id: UUID) -> None:
    """Its owner is trying it: one in quarantine need not wait for its turn."""
    await db.execute(
        "UPDATE webhook_lease SET next_probe_at = now() WHERE webhook_id = $1 AND next_probe_at > now()", webhook_id
    )
