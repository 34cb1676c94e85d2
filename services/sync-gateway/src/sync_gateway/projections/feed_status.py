"""What each platform has told us so far: how many items, and when the last of them was recorded."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
from events.contracts import registered
from events.envelope import RecordedEvent

_PLATFORM_OF_CONTEXT = {"banking": "bfc", "trading": "vyomo"}


def _platform(event_type: str) -> str | None:
    return _PLATFORM_OF_CONTEXT.get(event_type.split(".", 1)[0])


class PlatformStatus(NamedTuple):
    platform: str
    items: int
    last_event_at: datetime
    """When the latest item was recorded here."""


class FeedStatusProjection:
    """One row per platform that has sent anything."""

    name = "feed_status"
    types = frozenset(contract.type for contract in registered() if _platform(contract.type) is not None)
    ddl = """
        CREATE TABLE IF NOT EXISTS feed_status (
            platform text PRIMARY KEY,
            items bigint NOT NULL,
            last_event_at timestamptz NOT NULL
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        items: dict[str, list[RecordedEvent]] = {}
        for event in events:
            platform = _platform(event.type)
            assert platform is not None, event.type
            items.setdefault(platform, []).append(event)
        for platform, reported in items.items():
            await db.execute(
                "INSERT INTO feed_status AS known (platform, items, last_event_at) VALUES ($1, $2, $3)"
                " ON CONFLICT (platform) DO UPDATE SET items = known.items + excluded.items,"
                " last_event_at = greatest(known.last_event_at, excluded.last_event_at)",
                platform,
                len(reported),
                max(event.recorded_at for event in reported),
            )


async def platform_statuses(database: asyncpg.Pool) -> dict[str, PlatformStatus]:
    """The status of every platform that has sent something, by its name."""
    rows = await database.fetch("SELECT platform, items, last_event_at FROM feed_status")
    return {row["platform"]: PlatformStatus(row["platform"], row["items"], row["last_event_at"]) for row in rows}
