"""The delivery ledger: what is to be sent to whom over which channel, and what became of it.

A row's id is derived from what it tells and its target, so no replay makes a second one. An attempt is on record
before it is made. If the process dies during it, nobody knows whether the message went out: a webhook or a push is sent
again, because its receiver knows it again by its id, and an e-mail is not (`unknown`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, identity
from events.contracts.notification import Channel, NotificationRaised
from events.envelope import RecordedEvent, derived_id
from events.retention import Retention

from notifier.preferences import mailed, pushed

Status = Literal["pending", "sending", "delivered", "failed", "exhausted", "expired", "unknown"]
OutsideChannel = Literal["email", "web_push", "webhook", "apprise"]

RETRIES_S = (2, 10, 60, 300, 1800, 3600)
"""Pauses before each attempt after the first."""
EXPIRES = {
    "email": timedelta(hours=24),
    "web_push": timedelta(hours=4),
    "webhook": timedelta(hours=24),
    "apprise": timedelta(hours=1),
}
CLAIM_S = 60
"""An attempt that has taken longer than this has died with its process."""
DIGEST_GATHERS = timedelta(seconds=2)
"""What quiet hours held back is raised notification by notification, and sent as one."""
_REPEATABLE = ("web_push", "webhook")


class Delivery(NamedTuple):
    """A row that this process has claimed, to be sent now."""

    id: UUID
    user_id: UUID
    channel: OutsideChannel
    target_id: UUID | None
    notification_ids: list[UUID]
    code: bytes | None
    attempt: int
    expires_at: datetime


class Outcome(NamedTuple):
    """What came of an attempt."""

    status: Literal["delivered", "failed", "retry"]
    reason: str | None = None
    response_code: int | None = None
    retry_after_s: float | None = None


class DeliveryItem(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one message to one target."""

    id: UUID
    channel: OutsideChannel
    target_id: UUID | None
    status: Status
    attempts: int
    reason: str | None
    response_code: int | None
    next_attempt_at: datetime | None
    updated_at: datetime


class DeliveryLedger:
    """Handler of the consumer `deliveries`: turns what is raised into rows, and codes too."""

    types = frozenset(
        contract_of(struct).type for struct in (NotificationRaised, identity.CodeIssued, identity.UserErased)
    )
    repeatable = True
    effects: ClassVar = {"delivery": "messages to customers"}
    kept = ("push_subscription", "webhook_target")
    retention = (
        Retention(
            "delivery",
            "updated_at",
            timedelta(days=30),
            ("status", ("delivered", "failed", "exhausted", "expired", "unknown")),
        ),
    )
    ddl = """
        CREATE TABLE IF NOT EXISTS delivery (
            id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            channel text NOT NULL,
            target_id uuid,
            notification_ids uuid[] NOT NULL,
            code bytea,
            status text NOT NULL DEFAULT 'pending',
            attempts int NOT NULL DEFAULT 0,
            reason text,
            response_code int,
            next_attempt_at timestamptz,
            expires_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL
        );
        CREATE INDEX IF NOT EXISTS delivery_due ON delivery (channel, next_attempt_at)
            WHERE status IN ('pending', 'sending');
        CREATE INDEX IF NOT EXISTS delivery_by_user ON delivery (user_id);
        CREATE TABLE IF NOT EXISTS push_subscription (
            id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            endpoint text NOT NULL UNIQUE,
            p256dh text NOT NULL,
            auth text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        CREATE INDEX IF NOT EXISTS push_subscription_by_user ON push_subscription (user_id);
        CREATE TABLE IF NOT EXISTS webhook_target (
            user_id uuid PRIMARY KEY,
            id uuid NOT NULL,
            url text NOT NULL,
            secret text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        );
    """

    def __init__(self, *, apprise: bool = False) -> None:
        self._apprise = apprise
        self.filled: Callable[[], None] = _nobody
        """Called when rows may have been added; they are visible once the consumer has committed."""

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        users = {UUID(e.stream_id) for e in events if isinstance(e.payload, NotificationRaised)}
        targets = await _targets(db, users)
        due: list[tuple[Any, ...]] = []
        for event in events:
            match event.payload:
                case NotificationRaised() as raised:
                    due += await self._of(db, event, raised, targets)
                case identity.CodeIssued() as code:
                    due.append(_code(event, code))
                case identity.UserErased(user_id=user_id):
                    await _insert(db, due)
                    due = []
                    for table in ("delivery", "push_subscription", "webhook_target"):
                        await db.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
        await _insert(db, due)
        self.filled()

    async def _of(
        self,
        db: asyncpg.Connection,
        event: RecordedEvent,
        raised: NotificationRaised,
        targets: dict[tuple[UUID, Channel], list[UUID]],
    ) -> list[tuple[Any, ...]]:
        """The rows of a notification's deliveries; what belongs into a digest is put there, and is none of them."""
        user = UUID(event.stream_id)
        wanted: list[tuple[OutsideChannel, UUID | None]] = []
        if "email" in raised.channels and mailed(raised.priority):
            wanted.append(("email", None))
        if "web_push" in raised.channels and pushed(raised.priority):
            wanted += [("web_push", target) for target in targets.get((user, "web_push"), ())]
        if "webhook" in raised.channels:
            wanted += [("webhook", target) for target in targets.get((user, "webhook"), ())]
        if self._apprise and raised.priority == "critical":
            wanted.append(("apprise", None))
        rows: list[tuple[Any, ...]] = []
        for channel, target in wanted:
            row = (user, channel, target, [raised.notification_id], None)
            expires_at = event.recorded_at + EXPIRES[channel]
            # A webhook is read by a program: it gets each notification by itself.
            if raised.digest_id is not None and channel != "webhook":
                digest = derived_id(raised.digest_id, channel, target)
                due = event.recorded_at + DIGEST_GATHERS
                if await _gather(db, digest, raised.notification_id, *row, due, expires_at):
                    continue
            delivery_id = derived_id(raised.notification_id, channel, target)
            rows.append((delivery_id, *row, event.recorded_at, expires_at))
        return rows


def _nobody() -> None:
    pass


def _code(event: RecordedEvent, code: identity.CodeIssued) -> tuple[Any, ...]:
    delivery_id = derived_id(code.code_id, "email")
    return delivery_id, code.user_id, "email", None, [], event.data, event.recorded_at, code.expires_at


_INSERT = (
    "INSERT INTO delivery (id, user_id, channel, target_id, notification_ids, code, next_attempt_at, expires_at,"
    " updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $7) ON CONFLICT (id) DO "
)


async def _insert(db: asyncpg.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        await db.executemany(f"{_INSERT} NOTHING", rows)


async def _gather(db: asyncpg.Connection, digest_id: UUID, notification_id: UUID, *row: Any) -> bool:
    """Puts a notification into a digest's row, which takes what is held back together until it is sent. False: it has
    been, without this one."""
    await db.execute(
        f"{_INSERT} UPDATE SET notification_ids = delivery.notification_ids || excluded.notification_ids"
        " WHERE delivery.status = 'pending' AND NOT delivery.notification_ids && excluded.notification_ids"
        "  AND delivery.attempts = 0",
        digest_id,
        *row,
    )
    is_in: bool = await db.fetchval(
        "SELECT $2 = ANY (notification_ids) FROM delivery WHERE id = $1", digest_id, notification_id
    )
    return is_in


async def _targets(db: asyncpg.Connection, users: set[UUID]) -> dict[tuple[UUID, Channel], list[UUID]]:
    rows = await db.fetch(
        "SELECT user_id, 'web_push' AS channel, id FROM push_subscription WHERE user_id = ANY($1)"
        " UNION ALL SELECT user_id, 'webhook', id FROM webhook_target WHERE user_id = ANY($1)",
        list(users),
    )
    found: dict[tuple[UUID, Channel], list[UUID]] = {}
    for row in rows:
        found.setdefault((UUID(int=row["user_id"].int), row["channel"]), []).append(UUID(int=row["id"].int))
    return found


async def claim(database: asyncpg.Pool, channel: OutsideChannel, now: datetime, limit: int) -> list[Delivery]:
    """Takes due rows for this process, each as one more attempt that is durably on record before it is made."""
    rows = await database.fetch(
        "UPDATE delivery SET status = 'sending', attempts = attempts + 1, updated_at = $2,"
        "  next_attempt_at = $2 + make_interval(secs => $4)"
        " WHERE id IN (SELECT id FROM delivery WHERE channel = $1 AND status = 'pending' AND next_attempt_at <= $2"
        "  AND expires_at > $2 ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        " RETURNING id, user_id, channel, target_id, notification_ids, code, attempts, expires_at",
        channel,
        now,
        limit,
        float(CLAIM_S),
    )
    return [
        Delivery(
            UUID(int=row["id"].int),
            UUID(int=row["user_id"].int),
            row["channel"],
            UUID(int=row["target_id"].int) if row["target_id"] else None,
            [UUID(int=one.int) for one in row["notification_ids"]],
            row["code"],
            row["attempts"],
            row["expires_at"],
        )
        for row in rows
    ]


async def settle(database: asyncpg.Pool, delivery: Delivery, outcome: Outcome, now: datetime, jitter: float) -> None:
    """Notes what came of an attempt. `jitter` (0 to 1) spreads the retries."""
    status: Status = "pending"
    next_attempt: datetime | None = None
    if outcome.status == "retry" and delivery.attempt <= len(RETRIES_S):
        pause_s = max(RETRIES_S[delivery.attempt - 1] * (0.5 + jitter / 2), outcome.retry_after_s or 0.0)
        next_attempt = now + timedelta(seconds=pause_s)
        if next_attempt >= delivery.expires_at:
            status, next_attempt = "expired", None
    elif outcome.status == "retry":
        status = "exhausted"
    else:
        status = outcome.status
    await database.execute(
        "UPDATE delivery SET status = $2, reason = $3, response_code = $4, next_attempt_at = $5, updated_at = $6,"
        "  code = CASE WHEN $2 = 'pending' THEN code END"
        " WHERE id = $1 AND status = 'sending' AND attempts = $7",
        delivery.id,
        status,
        outcome.reason,
        outcome.response_code,
        next_attempt,
        now,
        delivery.attempt,
    )


async def tidy(database: asyncpg.Pool, now: datetime) -> None:
    """Settles attempts that died with their process, and what nobody wants to get any more."""
    await database.execute(
        "UPDATE delivery SET status = CASE WHEN channel = ANY($2) THEN 'pending' ELSE 'unknown' END,"
        "  reason = 'interrupted', updated_at = $1, code = CASE WHEN channel = ANY($2) THEN code END"
        " WHERE status = 'sending' AND next_attempt_at < $1",
        now,
        list(_REPEATABLE),
    )
    await database.execute(
        "UPDATE delivery SET status = 'expired', updated_at = $1, code = NULL, next_attempt_at = NULL"
        " WHERE status = 'pending' AND expires_at <= $1",
        now,
    )


async def next_due(database: asyncpg.Pool, channel: OutsideChannel) -> datetime | None:
    due: datetime | None = await database.fetchval(
        "SELECT min(next_attempt_at) FROM delivery WHERE channel = $1 AND status = 'pending'", channel
    )
    return due


async def deliveries_of(database: asyncpg.Pool, user_id: UUID, notification_id: UUID) -> list[DeliveryItem]:
    """What became of a notification outside of the inbox, target by target."""
    rows = await database.fetch(
        "SELECT id, channel, target_id, status, attempts, reason, response_code, next_attempt_at, updated_at"
        " FROM delivery WHERE user_id = $1 AND $2 = ANY(notification_ids) ORDER BY channel, id",
        user_id,
        notification_id,
    )
    return [DeliveryItem(**dict(row)) for row in rows]
