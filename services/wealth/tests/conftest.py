"""The service over a real event store and database (tests/shared/read_side.py)."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from events.decisions import Streams
from events.store import EventStore
from wealth.api import routes
from wealth.desk import Desk
from wealth.insights import Thresholds
from wealth.noticed import WealthState, evolve
from wealth.projections import PROJECTIONS

sys.path.insert(0, str(Path(__file__).parent))

from read_side import World, open_client, open_world

if TYPE_CHECKING:
    from provision import Cell


@pytest.fixture
async def world(cell: "Cell") -> AsyncIterator[World]:
    async with open_world(cell, "wealth", PROJECTIONS) as opened:
        yield opened


@pytest.fixture
async def streams(cell: "Cell") -> AsyncIterator["Streams[WealthState]"]:
    store = await EventStore.connect(cell.store_url("wealth"))
    yield Streams(store, "wealth", WealthState(), evolve)
    await store.close()


@pytest.fixture
def desk(world: World) -> Desk:
    return Desk(world.db, Thresholds())


@pytest.fixture
async def client(world: World, desk: Desk, streams: "Streams[WealthState]") -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(world, routes(world.db, desk, streams)) as opened:
        yield opened
