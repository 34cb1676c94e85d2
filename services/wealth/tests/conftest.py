"""The service over a real event store and database (tests/shared/read_side.py)."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from wealth.api import routes
from wealth.projections import PROJECTIONS

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "shared"))

from read_side import World, open_client, open_world

if TYPE_CHECKING:
    from provision import Cell


@pytest.fixture
async def world(cell: "Cell") -> AsyncIterator[World]:
    async with open_world(cell, "wealth", PROJECTIONS) as opened:
        yield opened


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with open_client(world, routes(world.db)) as opened:
        yield opened
