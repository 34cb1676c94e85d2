"""Each customer's notifications, newest first, and the account names their texts need."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, identity, ledger, trading
from events.envelope import RecordedEvent, derived_id
from events.platform_items import PlatformItems

from notifier.rules import TYPES, Action, Category, Priority, Text, account_name, accounts_of, text_of

_ITEMS_AND_LINKS = frozenset(
    {contract_of(struct).type for struct in (trading.TradeExecuted, trading.RiskAlerted, identity.LinkConfirmed)}
)


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """A notification as the inbox shows it."""

    id: UUID
    category: Category
    priority: Priority
    title: str
    body: str
    emoji: str
    count: int
    """How many events it tells."""
    event_ids: list[UUID]
    actions: list[Action]
    created_at: datetime
    read_at: datetime | None


class Place(NamedTuple):
    """Where a page ends: the key of its last item."""

    created_at: datetime
    id: UUID


class InboxProjection:
    """The read model behind `/api/notifications/smart`: one notification per event."""

    name = "inbox"
    types = TYPES  # links and openings, which the texts of others need, are among them
    _own_ddl = """
        CREATE TABLE IF NOT EXISTS account_name (
            account_id uuid PRIMARY KEY,
            name text NOT NULL
        );
        CREATE TABLE IF NOT EXISTS notification (
            id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            category text NOT NULL,
            priority text NOT NULL,
            emoji text NOT NULL,
            title text NOT NULL,
            body text NOT NULL,
            actions text NOT NULL,
            event_ids uuid[] NOT NULL,
            created_at timestamptz NOT NULL,
            read_at timestamptz
        );
        CREATE INDEX IF NOT EXISTS notification_by_user ON notification (user_id, created_at DESC, id DESC);
        CREATE INDEX IF NOT EXISTS notification_unread ON notification (user_id) WHERE read_at IS NULL;
    """

    def __init__(self) -> None:
        self._platform_items = PlatformItems()
        self.ddl = self._own_ddl + self._platform_items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Raises:
        KeyError: a money event on an account that was never opened.
        """
        names = await _account_names(db, events)
        rows: list[tuple[Any, ...]] = []
        for event in events:
            user_id = _recipient(event)
            if user_id is not None:
                rows.extend(_rows(user_id, event, names))
        items_and_links = [event for event in events if event.type in _ITEMS_AND_LINKS]
        if items_and_links:
            for user_id, item in await self._platform_items.resolve(db, items_and_links):
                rows.extend(_rows(user_id, item, names))
        if rows:
            await _insert(db, rows)


def _recipient(event: RecordedEvent) -> UUID | None:
    """Whose inbox an event of our own goes to; None for a platform's item, which is resolved by its link."""
    if event.type.startswith("ledger.") or event.type.startswith("identity.user."):
        return UUID(event.stream_id)
    if isinstance(event.payload, identity.SessionStarted):
        return event.payload.user_id
    return None


async def _account_names(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> dict[UUID, str]:
    """Records the accounts opened in this batch; gives the names of all accounts it mentions."""
    opened = {
        event.payload.account_id: account_name(event.payload)
        for event in events
        if isinstance(event.payload, ledger.AccountOpened)
    }
    if opened:
        await db.execute(
            "INSERT INTO account_name (account_id, name) SELECT * FROM unnest($1::uuid[], $2::text[])",
            list(opened),
            list(opened.values()),
        )
    mentioned = {account for event in events for account in accounts_of(event.payload)} - opened.keys()
    if mentioned:
        found = await db.fetch("SELECT account_id, name FROM account_name WHERE account_id = ANY($1)", list(mentioned))
        opened.update((row["account_id"], row["name"]) for row in found)
    return opened


def _rows(user_id: UUID, event: RecordedEvent, names: dict[UUID, str]) -> list[tuple[Any, ...]]:
    text = text_of(event.type, event.payload, event.recorded_at, names)
    return [] if text is None else [_row(user_id, event, text)]


def _row(user_id: UUID, event: RecordedEvent, text: Text) -> tuple[Any, ...]:
    return (
        derived_id(event.event_id, "notification"),
        user_id,
        text.category,
        text.priority,
        text.emoji,
        text.title,
        text.body,
        msgspec.json.encode(text.actions).decode(),
        event.event_id,
        event.recorded_at,
    )


async def _insert(db: asyncpg.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    await db.execute(
        "INSERT INTO notification (id, user_id, category, priority, emoji, title, body, actions, event_ids, "
        "created_at) "
        "SELECT id, user_id, category, priority, emoji, title, body, actions, ARRAY[event_id], created_at "
        "FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], "
        "$8::text[], $9::uuid[], $10::timestamptz[]) AS new (id, user_id, category, priority, emoji, title, "
        "body, actions, event_id, created_at)",
        *[list(column) for column in zip(*rows, strict=True)],
    )


async def inbox(
    database: asyncpg.Pool,
    user_id: UUID,
    *,
    unread: bool | None,
    priority: Priority | None,
    category: Category | None,
    after: Place | None,
    limit: int,
) -> tuple[list[Notification], int]:
    """Up to `limit` notifications of `user_id` beyond `after`, newest first, and how many are unread in all.

    A filter that is None lets everything through. The count does not depend on the filters.
    """
    # One statement, so that items and count are of one snapshot.
    rows = await database.fetch(
        "SELECT item.*, unread.n AS unread_count "
        "FROM (SELECT count(*) AS n FROM notification WHERE user_id = $1 AND read_at IS NULL) AS unread "
        "LEFT JOIN (SELECT * FROM notification WHERE user_id = $1 "
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
    )
    items = [
        Notification(
            id=UUID(int=row["id"].int),  # a plain UUID: asyncpg's subclass cannot go into a cursor
            category=row["category"],
            priority=row["priority"],
            title=row["title"],
            body=row["body"],
            emoji=row["emoji"],
            count=len(row["event_ids"]),
            event_ids=row["event_ids"],
            actions=msgspec.json.decode(row["actions"], type=list[Action]),
            created_at=row["created_at"],
            read_at=row["read_at"],
        )
        for row in rows
        if row["id"] is not None
    ]
    return items, rows[0]["unread_count"]
