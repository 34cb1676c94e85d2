"""Each customer's inbox, from the notifications that were raised, revised, read and snoozed. What they say stays
sealed here, as it is in the log, and is opened to be shown."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import structlog
from chassis.money import format_amount
from events.contracts import contract_of, identity, notification
from events.contracts.notification import Action, Category, Priority
from events.envelope import RecordedEvent
from events.notification_texts import open_text
from events.retention import Retention
from events.sealing import SealBroken, SubjectKeys

log = structlog.get_logger(__name__)

_CONTENT_FIELDS = notification.Notification.__struct_fields__
_content_decoder = msgspec.json.Decoder(notification.Notification)
_USER_ERASED = contract_of(identity.UserErased).type


class Notification(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A notification as the inbox shows it."""

    id: UUID
    category: Category
    priority: Priority
    title: str
    body: str
    emoji: str
    count: int
    """How many facts it tells."""
    total: str | None = None
    """Their sum in `currency`; of trades the realised P&L with its sign."""
    currency: str | None = None
    event_ids: list[UUID]
    """The events it tells, at most the first 1,000."""
    actions: list[Action]
    created_at: datetime
    read_at: datetime | None


class Place(NamedTuple):
    """Where a page ends: the key of its last item."""

    created_at: datetime
    id: UUID


class InboxProjection:
    """The read model behind `/api/notifications/smart`."""

    name = "inbox"
    types = frozenset(
        contract_of(struct).type
        for struct in (
            notification.NotificationRaised,
            notification.NotificationRevised,
            notification.NotificationRead,
            notification.NotificationSnoozed,
            identity.UserErased,
        )
    )
    # A year and a day on: a rebuild brings them back until the next hour.
    retention = (Retention("notification", "created_at", timedelta(days=366)),)
    ddl = """
        CREATE TABLE IF NOT EXISTS notification (
            id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            category text NOT NULL,
            priority text NOT NULL,
            in_app boolean NOT NULL,
            content bytea NOT NULL,
            version bigint NOT NULL,
            created_at timestamptz NOT NULL,
            read_at timestamptz,
            snoozed_until timestamptz
        );
        CREATE INDEX IF NOT EXISTS notification_by_user ON notification (user_id, created_at DESC, id DESC);
        CREATE INDEX IF NOT EXISTS notification_unread ON notification (user_id) WHERE read_at IS NULL;
        CREATE INDEX IF NOT EXISTS notification_snoozed ON notification (snoozed_until)
            WHERE snoozed_until IS NOT NULL;
        CREATE TABLE IF NOT EXISTS inbox_gone (
            user_id uuid PRIMARY KEY
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        raised: list[RecordedEvent] = []
        for event in events:
            if isinstance(event.payload, notification.NotificationRaised):
                raised.append(event)
                continue
            # Anything else changes what was raised before it.
            await self._insert(db, raised)
            raised = []
            await self._change(db, event)
        await self._insert(db, raised)

    async def _insert(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        if not events:
            return
        rows = []
        for event in events:
            payload = event.payload
            assert isinstance(payload, notification.NotificationRaised)
            rows.append(
                (
                    payload.notification_id,
                    UUID(event.stream_id),
                    payload.category,
                    payload.priority,
                    "in_app" in payload.channels,
                    _content(payload),
                    event.version,
                    event.recorded_at,
                )
            )
        await db.execute(
            "INSERT INTO notification (id, user_id, category, priority, in_app, content, version, created_at)"
            " SELECT new.* FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::boolean[], $6::bytea[],"
            "  $7::bigint[], $8::timestamptz[]) AS new (id, user_id, category, priority, in_app, content, version,"
            "  created_at)"
            " WHERE NOT EXISTS (SELECT FROM inbox_gone WHERE inbox_gone.user_id = new.user_id)",
            *[list(column) for column in zip(*rows, strict=True)],
        )

    async def _change(self, db: asyncpg.Connection, event: RecordedEvent) -> None:
        match event.payload:
            case notification.NotificationRevised() as revised:
                back = revised.reason == "snooze_over"
                await db.execute(
                    "UPDATE notification SET content = $2, priority = $3,"
                    " read_at = CASE WHEN $4 THEN NULL ELSE read_at END,"
                    " snoozed_until = CASE WHEN $4 THEN NULL ELSE snoozed_until END WHERE id = $1",
                    revised.notification_id,
                    _content(revised),
                    revised.priority,
                    back,
                )
            case notification.NotificationRead(notification_id=UUID() as notification_id, read_at=at):
                await db.execute(
                    "UPDATE notification SET read_at = $2 WHERE id = $1 AND read_at IS NULL", notification_id, at
                )
            case notification.NotificationRead(through_version=through, read_at=at):
                await db.execute(
                    "UPDATE notification SET read_at = $3"
                    " WHERE user_id = $1 AND version <= $2 AND read_at IS NULL AND snoozed_until IS NULL",
                    UUID(event.stream_id),
                    through,
                    at,
                )
            case notification.NotificationSnoozed(notification_id=notification_id, until=until):
                await db.execute("UPDATE notification SET snoozed_until = $2 WHERE id = $1", notification_id, until)
            case identity.UserErased(user_id=user_id):
                await db.execute("DELETE FROM notification WHERE user_id = $1", user_id)
                # What was on its way when the customer was erased is not shown either.
                await db.execute("INSERT INTO inbox_gone VALUES ($1) ON CONFLICT DO NOTHING", user_id)


def _content(payload: notification.Notification) -> bytes:
    """The common fields alone: a revision replaces them."""
    return encode_content({name: getattr(payload, name) for name in _CONTENT_FIELDS})


encode_content = msgspec.json.Encoder().encode


def read_content(data: bytes) -> notification.Notification:
    """A notification's content as the read model keeps it."""
    return _content_decoder.decode(data)


def shown(content: notification.Notification, created_at: datetime, read_at: datetime | None) -> Notification:
    """The notification as the inbox, a message or a socket shows it."""
    total = None
    if content.total_minor is not None and content.currency is not None:
        total = format_amount(content.total_minor, content.currency)
    return Notification(
        id=content.notification_id,
        category=content.category,
        priority=content.priority,
        title=content.title,
        body=content.body,
        emoji=content.emoji,
        count=content.count,
        total=total,
        currency=content.currency if total is not None else None,
        event_ids=list(content.event_ids),
        actions=list(content.actions),
        created_at=created_at,
        read_at=read_at,
    )


async def opened(keys: SubjectKeys, user_id: UUID, data: bytes) -> notification.Notification | None:
    """A notification's content with its words; None where they are gone with their key, or do not open."""
    try:
        return await open_text(keys, user_id, read_content(data))
    except SealBroken:
        log.error("notification_does_not_open")
        return None


async def inbox(
    database: asyncpg.Pool,
    keys: SubjectKeys,
    user_id: UUID,
    *,
    unread: bool | None,
    priority: Priority | None,
    category: Category | None,
    after: Place | None,
    limit: int,
    now: datetime,
) -> tuple[list[Notification], int]:
    """Up to `limit` notifications of `user_id` beyond `after`, newest first, and how many are unread in all.

    A filter that is None lets everything through. The count does not depend on the filters. What is snoozed at `now`
    is neither listed nor counted.
    """
    # One statement, so that items and count are of one snapshot.
    rows = await database.fetch(
        "SELECT item.*, unread.n AS unread_count "
        "FROM (SELECT count(*) AS n FROM notification WHERE user_id = $1 AND read_at IS NULL AND in_app"
        "  AND (snoozed_until IS NULL OR snoozed_until <= $8)) AS unread "
        "LEFT JOIN (SELECT id, content, created_at, read_at FROM notification WHERE user_id = $1 AND in_app"
        " AND (snoozed_until IS NULL OR snoozed_until <= $8)"
        " AND ($2::boolean IS NULL OR (read_at IS NULL) = $2) "
        " AND ($3::text IS NULL OR priority = $3) AND ($4::text IS NULL OR category = $4) "
        " AND ($5::timestamptz IS NULL OR (created_at, id) < ($5, $6::uuid)) "
        " ORDER BY created_at DESC, id DESC LIMIT $7) AS item ON true "
        "ORDER BY item.created_at DESC, item.id DESC",
        user_id,
        unread,
        priority,
        category,
        after.created_at if after else None,
        after.id if after else None,
        limit,
        now,
    )
    items = []
    for row in rows:
        if row["id"] is not None:
            # One that does not open is there without words: a page has the rows that its cursor counts.
            content = await opened(keys, user_id, row["content"]) or read_content(row["content"])
            items.append(shown(content, row["created_at"], row["read_at"]))
    return items, rows[0]["unread_count"]


class Found(NamedTuple):
    """What a command needs to know of a notification."""

    read_at: datetime | None
    snoozed_until: datetime | None


async def find(database: asyncpg.Pool, user_id: UUID, notification_id: UUID) -> Found | None:
    """The customer's notification of that id, if the inbox shows it."""
    row = await database.fetchrow(
        "SELECT read_at, snoozed_until FROM notification WHERE id = $1 AND user_id = $2 AND in_app",
        notification_id,
        user_id,
    )
    return None if row is None else Found(row["read_at"], row["snoozed_until"])


async def newest_unread(database: asyncpg.Pool, user_id: UUID) -> int | None:
    """The version at which the newest unread notification was raised; None where there is none."""
    version: int | None = await database.fetchval(
        "SELECT max(version) FROM notification WHERE user_id = $1 AND read_at IS NULL", user_id
    )
    return version
