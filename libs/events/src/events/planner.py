"""What PostgreSQL's planner knows of tables while they are filled."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import asyncpg

FIRST_AT = 20_000
_GROWTH = 4
_REST = 0.2
"""A share of rows that statistics need not know: PostgreSQL's own autovacuum gathers again after a tenth more."""


class Statistics:
    """`ANALYZE` on a session of its own, so that filling goes on meanwhile.

    Args:
        session: gives that session, for as long as it takes.
        tables: their names as SQL writes them.
    """

    def __init__(
        self,
        session: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]],
        tables: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._session = session
        self._tables = tables
        self._known = 0
        """The position whose rows they know."""
        self._gathering: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """What is begun inside ends with it.

        Raises:
            OSError, asyncpg.PostgresError: an outage, also where only `ANALYZE` met it.
        """
        try:
            yield
            if self._gathering is not None:
                await self._gathering
        finally:
            if self._gathering is not None:
                self._gathering.cancel()
                await asyncio.gather(self._gathering, return_exceptions=True)
                self._gathering = None

    async def reached(self, position: int, up_to: int) -> None:
        """Begins where nearly all of what is to come up to `up_to` is there, or much more than at the last time while
        there is much more to come."""
        grown = position >= max(FIRST_AT, _GROWTH * self._known) and up_to >= _GROWTH * position
        nearly = up_to - position <= _REST * position and not self._suffice(up_to)
        if (grown or nearly) and (self._gathering is None or self._gathering.done()):
            if self._gathering is not None:
                self._gathering.result()
            self._gathering = asyncio.create_task(self._gather(await self._tables(), position))

    async def complete(self, position: int) -> None:
        """Returns when they know nearly all rows up to `position`."""
        if not self._suffice(position):
            await self._gather(await self._tables(), position)

    def _suffice(self, position: int) -> bool:
        return position - self._known <= _REST * self._known

    async def _gather(self, tables: list[str], position: int) -> None:
        async with self._session() as db:
            for table in tables:
                await db.execute(f"ANALYZE {table}")
        self._known = position
