"""What a customer has searched for lately: the last ten distinct queries. Not in the log, so no read model."""

from uuid import UUID

import asyncpg

RECENT_MAX = 10

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
    """Creates the table. Replicas start together, so under the lock that all tables are created under."""
    async with database.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('consumer.ddl'))")
        await connection.execute(DDL)


async def remember(database: asyncpg.Pool, user_id: UUID, query: str) -> None:
    """Puts the query first, and forgets all beyond the last ten."""
    async with database.acquire() as connection, connection.transaction():
        # Nothing is lost that matters if the server crashes: no wait for the disk.
        await connection.execute("SET LOCAL synchronous_commit = off")
        await connection.execute(
            "INSERT INTO recent_search (user_id, folded, query, searched_at)"
            " VALUES ($1, lower($2), $2, clock_timestamp())"
            " ON CONFLICT (user_id, folded) DO UPDATE"
            " SET query = excluded.query, searched_at = excluded.searched_at",
            user_id,
            query,
        )
        await connection.execute(
            "DELETE FROM recent_search WHERE user_id = $1 AND folded IN (SELECT folded FROM recent_search"
            f" WHERE user_id = $1 ORDER BY searched_at DESC OFFSET {RECENT_MAX})",
            user_id,
        )


async def recent(database: asyncpg.Pool, user_id: UUID) -> list[asyncpg.Record]:
    """The queries with their time, the last one first."""
    return await database.fetch(
        "SELECT query, searched_at FROM recent_search WHERE user_id = $1 ORDER BY searched_at DESC", user_id
    )


async def forget(database: asyncpg.Pool, user_id: UUID) -> None:
    """Clears them."""
    await database.execute("DELETE FROM recent_search WHERE user_id = $1", user_id)
