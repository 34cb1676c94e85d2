"""The service over a real event store and database (tests/shared/read_side.py), answering from its index."""

import asyncio
import base64
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from chassis.cursors import CursorCodec
from events.sealing import SubjectKeys
from search import recent
from search.api import routes
from search.projections import projections
from search.replica import Replica

sys.path.insert(0, str(Path(__file__).parent))

from read_side import World, open_client, open_world
from search_serving import open_replica

if TYPE_CHECKING:
    from provision import Cell


MASTER = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
async def world(cell: "Cell") -> AsyncIterator[World]:
    keys = await SubjectKeys.connect(cell.keys_url("search"), MASTER)
    async with open_world(cell, "search", projections(keys)) as opened:
        await recent.prepare(opened.db)
        yield opened
    await keys.close()


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
