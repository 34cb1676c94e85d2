"""PostgreSQL sessions that come back, and which errors are an outage rather than a fault of the request."""

import asyncio
from typing import Any

import asyncpg

from events.passwords import connect_postgres

WAKE_CHANNEL = "sangam_appended"

_OUTAGE_CLASSES = ("08", "53", "57", "58")
"""SQLSTATE classes: connection exception, insufficient resources, operator intervention, system error."""

_OUTAGE_STATES = (
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
    "25006",  # read_only_sql_transaction: a failover is under way
    "28P01",  # invalid_password: it is being replaced, and a process with the new one will be there soon
)


def is_outage(error: BaseException) -> bool:
    """Whether doing the same again later can succeed: the database is away, full, or was interrupted."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state[:2] in _OUTAGE_CLASSES or state in _OUTAGE_STATES
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return False  # asyncpg's own complaint about an argument
    return isinstance(error, OSError | TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError)


async def keep_session(_: asyncpg.Connection) -> None:
    """Pool reset that does nothing. We change no session state outside of transactions, and asyncpg's own reset is
    a round trip after every single query."""


class Session:
    """One dedicated connection, opened when first used and again after it broke.

    For work that must stay on one session (locks, LISTEN) or in one order (appends).
    """

    def __init__(
        self,
        url: str,
        *,
        application_name: str,
        statement_timeout_ms: int = 0,
        settings: dict[str, str] | None = None,
    ) -> None:
        self._url = url
        self._settings = {
            "application_name": application_name,
            "statement_timeout": str(statement_timeout_ms),
            **(settings or {}),
        }
        self._timeout_s = statement_timeout_ms / 1000 + 5 if statement_timeout_ms else None
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def connection(self) -> asyncpg.Connection:
        """The live connection.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: the server is not to be had.
        """
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect_postgres(
                self._url, timeout=5, command_timeout=self._timeout_s, server_settings=self._settings
            )
        return self._connection

    async def open(self) -> None:
        """Connects now, so that the first statement need not.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: the server is not to be had.
        """
        async with self._turn:
            await self.connection()

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        return await self._run("fetch", query, *arguments)  # type: ignore[no-any-return]

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        return await self._run("fetchrow", query, *arguments)  # type: ignore[no-any-return]

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        return await self._run("fetchval", query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> None:
        await self._run("execute", query, *arguments)

    async def _run(self, method: str, query: str, *arguments: Any) -> Any:
        async with self._turn:
            connection = await self.connection()
            try:
                return await getattr(connection, method)(query, *arguments)
            except BaseException as error:
                self._drop_if_unsure(error)
                raise

    def _drop_if_unsure(self, error: BaseException) -> None:
        """After an outage, a timeout or a cancellation the connection may still be in the old statement."""
        if self._connection is not None and (is_outage(error) or isinstance(error, asyncio.CancelledError)):
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.close(timeout=2)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                self._connection.terminate()
        self._connection = None
