"""`/api/notifications`: the inbox."""

from typing import Annotated

import asyncpg
import msgspec
from chassis.consistency import CaughtUp
from chassis.cursors import CursorCodec
from chassis.tokens import Caller
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter

from notifier.projections.inbox import Notification, Place, inbox
from notifier.rules import Category, Priority

LIMIT_DEFAULT = 50
LIMIT_MAX = 200


class Inbox(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Notification]
    unread_count: int
    """Of all the caller's notifications, whatever the filters."""
    next_cursor: str | None


def routes(database: asyncpg.Pool, cursors: CursorCodec) -> list[HTTPRouteHandler]:
    """The routes of this service."""

    @get("/api/notifications/smart", summary="The inbox, newest first")
    async def get_smart(
        caller: Caller,
        caught_up: CaughtUp,
        unread: bool | None = None,
        priority: Priority | None = None,
        category: Category | None = None,
        limit: Annotated[int, Parameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
        cursor: str | None = None,
    ) -> Inbox:
        after = None
        if cursor is not None:
            after = cursors.decode(cursor, Place, purpose="inbox", caller=caller.user_id)
        # One more than asked for tells whether there is a next page.
        items, unread_count = await inbox(
            database,
            caller.user_id,
            unread=unread,
            priority=priority,
            category=category,
            after=after,
            limit=limit + 1,
        )
        next_cursor = None
        if len(items) > limit:
            items = items[:limit]
            place = Place(items[-1].created_at, items[-1].id)
            next_cursor = cursors.encode(place, purpose="inbox", caller=caller.user_id)
        return Inbox(items=items, unread_count=unread_count, next_cursor=next_cursor)

    return [get_smart]
