"""A ledger over a real event store, behind its routes (ledger_client.py)."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest
from chassis.app import create_app
from chassis.cursors import CursorCodec
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore
from ledger_transfer.api import routes
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS

sys.path.insert(0, str(Path(__file__).parent))

from keys_in_memory import texts
from ledger_client import Client, Host, ReadModel

if TYPE_CHECKING:
    from provision import Cell


@pytest.fixture
def client_urls(cell: "Cell") -> dict[str, str]:
    found = {role: cell.store_url(role) for role in ("ledger_transfer", "identity", "sync_gateway", "relay")}
    return found | {"database": cell.database_url("ledger_transfer")}


@pytest.fixture
async def clients(client_urls: dict[str, str]) -> AsyncIterator[tuple[Client, Client]]:
    roles = ("ledger_transfer", "identity", "sync_gateway")
    store, identity, gateway = [await EventStore.connect(client_urls[role]) for role in roles]
    db = await asyncpg.create_pool(client_urls["database"], min_size=1, max_size=4)
    await db.execute(Projections(PROJECTIONS).ddl)
    relay = await asyncpg.connect(client_urls["relay"])
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    read_model = ReadModel(store, db, sequencer, identity, gateway)
    sealed = texts()
    store.opens_with(sealed.open_events)
    ledger = Ledger(store, sealed)
    app: Any = create_app(
        Host(store, read_model),
        routes(ledger, db, CursorCodec("a secret of a test, long enough"), 2_00_000_00),
        title="Test",
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ledger") as http:
        pair = Client(http, ledger, read_model), Client(http, ledger, read_model)
        for client in pair:
            await client.open_accounts()
        yield pair
    for opened in (store, identity, gateway):
        await opened.close()
    await db.close()
    await relay.close()


@pytest.fixture
def client(clients: tuple[Client, Client]) -> Client:
    return clients[0]
