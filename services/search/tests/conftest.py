"""The service over a real event store and database (tests/shared/read_side.py), answering from its index."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from chassis.cursors import CursorCodec
from search import recent
from search.api import routes
from search.projections import PROJECTIONS
from search.replica import Replica

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "shared"))

from read_side import World, open_client, open_world

if TYPE_CHECKING:
    from provision import Cell


@pytest.fixture
async def world(cell: "Cell") -> AsyncIterator[World]:
    async with open_world(cell, "search", PROJECTIONS) as opened:
        await recent.prepare(opened.db)
        yield opened


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


@pytest.fixture(params=["index", "postgresql"])
async def client(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes, answered by the index and, in a second run, by the fallback: there is no difference."""
    cursors = CursorCodec("a secret of the tests")
    if request.param == "index":
        async with (
            open_replica(world, tmp_path) as replica,
            open_client(world, routes(world.db, replica, cursors)) as opened,
        ):
            yield opened
    else:
        replica = Replica(world.db, tmp_path, epoch=lambda: asyncio.sleep(0, ""))
        async with open_client(world, routes(world.db, replica, cursors)) as opened:
            yield opened
