"""What each customer may still be sent: their public events of the last 24 hours, ready to be put in a frame.

Old rows are pruned beside the projection, which itself must give the same rows whenever it runs. How far
pruning went is kept with the rows, so that a reader who comes too late is told instead of missing something.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg
import structlog
from chassis import frames
from events.contracts import contract_of, identity, registered
from events.envelope import RecordedEvent
from events.pg import is_outage

log = structlog.get_logger(__name__)

KEPT = timedelta(hours=24)
PRUNE_EVERY_S = 300.0
_PRUNE_ROWS = 5_000

PUBLIC_TYPES = frozenset(contract.type for contract in registered() if contract.public)


_ERASED = contract_of(identity.UserErased).type


class FeedRow(NamedTuple):
    position: int
    event: bytes
    """CloudEvents JSON."""


class FeedPage(NamedTuple):
    """A customer's events in log order."""

    floor: int
    """Rows at or below this position may have been pruned: a page that starts below it may have holes."""
    rows: list[FeedRow]


class FeedProjection:
    """Every public event that is about a customer."""

    name = "feed"
    repeatable = True
    types = PUBLIC_TYPES
    ddl = """
        CREATE TABLE IF NOT EXISTS feed (
            user_id uuid NOT NULL,
            position bigint NOT NULL,
            event_id uuid NOT NULL,
            type text NOT NULL,
            event bytea NOT NULL,
            recorded_at timestamptz NOT NULL,
            PRIMARY KEY (user_id, position)
        );
        CREATE INDEX IF NOT EXISTS feed_by_recorded_at ON feed (recorded_at);
        CREATE TABLE IF NOT EXISTS feed_floor (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            position bigint NOT NULL
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        mine = [event for event in events if event.subject is not None and event.public]
        await db.execute(
            "INSERT INTO feed (user_id, position, event_id, type, event, recorded_at)"
            " SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::bytea[],"
            "  $6::timestamptz[])"
            " ON CONFLICT DO NOTHING",
            [event.subject for event in mine],
            [event.position for event in mine],
            [event.event_id for event in mine],
            [event.type for event in mine],
            [frames.cloud_event(event) for event in mine],
            [event.recorded_at for event in mine],
        )
        for event in events:
            if event.type == _ERASED:
                # Nothing of a person who is to be forgotten, up to the event that says so.
                await db.execute(
                    "DELETE FROM feed WHERE user_id = $1 AND position <= $2", event.subject, event.position
                )


class Feed:
    """Reads and prunes the feed."""

    def __init__(self, database: asyncpg.Pool) -> None:
        self._database = database

    async def page(self, user_id: UUID, *, after: int, upto: int | None, types: Sequence[str], limit: int) -> FeedPage:
        """The customer's events of `types` at positions in (after, upto], the oldest `limit` of them."""
        # One statement, one snapshot: a prune cannot come between reading the floor and the rows.
        records = await self._database.fetch(
            "SELECT pruned.floor, mine.position, mine.event"
            " FROM (SELECT coalesce(max(position), 0) AS floor FROM feed_floor) pruned"
            " LEFT JOIN LATERAL (SELECT position, event FROM feed WHERE user_id = $1 AND position > $2"
            "  AND position <= $3 AND type = ANY($4) ORDER BY position LIMIT $5) mine ON true"
            " ORDER BY mine.position",
            user_id,
            after,
            2**63 - 1 if upto is None else upto,
            types,
            limit,
        )
        rows = [FeedRow(record["position"], record["event"]) for record in records if record["event"] is not None]
        return FeedPage(records[0]["floor"], rows)

    async def prune(self, before: datetime) -> int:
        """Deletes what was recorded before `before`, in short transactions; returns how many rows went."""
        total = 0
        while True:
            deleted: int = await self._database.fetchval(
                "WITH old AS (SELECT user_id, position FROM feed WHERE recorded_at < $1"
                "  ORDER BY recorded_at LIMIT $2),"
                " gone AS (DELETE FROM feed USING old WHERE feed.user_id = old.user_id"
                "  AND feed.position = old.position RETURNING feed.position),"
                " floor AS (INSERT INTO feed_floor (position)"
                "  SELECT max(position) FROM gone HAVING count(*) > 0"
                "  ON CONFLICT (only_row) DO UPDATE"
                "  SET position = greatest(feed_floor.position, excluded.position))"
                " SELECT count(*) FROM gone",
                before,
                _PRUNE_ROWS,
            )
            total += deleted
            if deleted < _PRUNE_ROWS:
                return total

    async def prune_forever(self) -> None:
        """Keeps the feed to its 24 hours. An outage is waited out."""
        while True:
            # First, because the table is made by the consumer, which starts beside this.
            await asyncio.sleep(PRUNE_EVERY_S)
            try:
                if deleted := await self.prune(datetime.now(UTC) - KEPT):
                    log.info("feed_pruned", rows=deleted)
            except Exception as error:
                if not is_outage(error):
                    raise
                log.warning("feed_not_pruned", error=repr(error))
