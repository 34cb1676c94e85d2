"""What a customer has searched for lately: the last ten distinct queries. Not in the log, so no read model."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import structlog
from events.outage import is_outage
from events.shapes import create_tables

log = structlog.get_logger(__name__)

RECENT_MAX = 10

_WRITE_AFTER_S = 0.2
_PENDING_MAX = 10_000

DDL = """
    CREATE TABLE IF NOT EXISTS recent_search (
        user_id uuid NOT NULL,
        folded text NOT NULL,
        query text NOT NULL,
        searched_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, folded)
    );
"""


async def prepare(database: asyncpg.Pool) -> None:
    """Creates the table."""
    await create_tables(database, "search.recent", DDL)


class RecentSearches:
    """Remembers queries in memory and writes them together a moment later: no answer waits for it.

    A crash loses the last moment of them; nothing that matters.
    """

    def __init__(self, database: asyncpg.Pool) -> None:
        self._database = database
        self._pending: dict[tuple[UUID, str], tuple[str, datetime]] = {}
        self._writing = asyncio.Lock()
        self._later: asyncio.Task[None] | None = None

    def remember(self, user_id: UUID, query: str) -> None:
        """Puts the query first among the customer's own."""
        query = query.replace("\x00", "")  # which PostgreSQL cannot hold
        if not query or len(self._pending) >= _PENDING_MAX:
            return  # or the database has been away for long
        self._pending[user_id, query.lower()] = query, datetime.now(UTC)
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._write_later(), name="recent searches")

    async def of(self, user_id: UUID) -> list[asyncpg.Record]:
        """The queries with their time, the last one first."""
        await self.write()
        return await self._database.fetch(
            "SELECT query, searched_at FROM recent_search WHERE user_id = $1 ORDER BY searched_at DESC", user_id
        )

    async def forget(self, user_id: UUID) -> None:
        """Clears them."""
        await self.write()
        await self._database.execute("DELETE FROM recent_search WHERE user_id = $1", user_id)

    async def write(self) -> None:
        """Writes what is pending, and forgets each customer's beyond the last ten."""
        async with self._writing:
            if not self._pending:
                return
            pending, self._pending = self._pending, {}
            rows = [(user_id, folded, *rest) for (user_id, folded), rest in pending.items()]
            try:
                await self._write(rows)
            except Exception as error:
                if is_outage(error):
                    self._pending = pending | self._pending
                raise

    async def _write(self, rows: list[tuple[UUID, str, str, datetime]]) -> None:
        async with self._database.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")
            await connection.execute(
                "INSERT INTO recent_search (user_id, folded, query, searched_at)"
                " SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[])"
                " AS new (user_id, folded, query, searched_at)"
                # Whoever is erased meanwhile leaves nothing behind.
                " WHERE NOT EXISTS (SELECT FROM search_erased WHERE search_erased.user_id = new.user_id)"
                # In one order everywhere: two replicas never wait for each other in a circle.
                " ORDER BY user_id, folded"
                " ON CONFLICT (user_id, folded) DO UPDATE"
                " SET query = excluded.query, searched_at = excluded.searched_at",
                *[list(column) for column in zip(*rows, strict=True)],
            )
            await connection.execute(
                "DELETE FROM recent_search USING ("
                "  SELECT user_id, folded, row_number() OVER (PARTITION BY user_id ORDER BY searched_at DESC) AS place"
                "  FROM recent_search WHERE user_id = ANY($1)) AS placed"
                " WHERE recent_search.user_id = placed.user_id AND recent_search.folded = placed.folded"
                f" AND placed.place > {RECENT_MAX}",
                list({row[0] for row in rows}),
            )

    async def _write_later(self) -> None:
        while self._pending:
            await asyncio.sleep(_WRITE_AFTER_S)
            try:
                await self.write()
            except Exception as error:
                if not is_outage(error):
                    log.exception("search.recent_not_written")
                    return
