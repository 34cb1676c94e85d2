"""A replica with its index, in the loop of the test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from chassis.cursors import CursorCodec
from read_side import World, open_client
from search.api import routes
from search.replica import Replica


@asynccontextmanager
async def open_replica(world: World, directory: Path) -> AsyncIterator[Replica]:
    """A replica that keeps its index; `world.deliver` returns when it has taken everything in."""

    async def epoch() -> object:
        return (await world.store.head()).epoch

    replica = Replica(world.db, directory, epoch=epoch)
    running = asyncio.create_task(replica.run())
    deliver = world.deliver

    async def deliver_and_index(batch: int = 1000) -> None:
        await deliver(batch)
        applied = await world.db.fetchval("SELECT position FROM document_applied")
        assert await replica.contains(applied or 0, 20)

    world.deliver = deliver_and_index  # type: ignore[method-assign]
    try:
        yield replica
    finally:
        world.deliver = deliver  # type: ignore[method-assign]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def serving(world: World, directory: Path) -> AsyncIterator[tuple[Replica, httpx.AsyncClient]]:
    """A replica, and a client of the routes that it answers."""
    async with (
        open_replica(world, directory) as replica,
        open_client(world, routes(world.db, replica, CursorCodec("a secret of the tests"))) as client,
    ):
        yield replica, client
