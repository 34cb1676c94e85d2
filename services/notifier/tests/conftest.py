"""The service over a real event store and database: its consumers, its clock and its outbox, driven step by step."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import asyncpg
import httpx
import pytest
from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.egress import Egress
from events.contracts.notification import Notification
from events.contracts.registry import Event
from events.notification_texts import open_text
from events.sealing import SubjectKeys
from events.store import EventStore
from notifier.api import Parts, routes
from notifier.channels import WebPush
from notifier.deliveries import DeliveryLedger
from notifier.projections import PROJECTIONS
from notifier.reactions import Grouping
from notifier.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))

from deployed import MASTER, settings_of
from outside import endpoint, mailbox, post  # noqa: F401 - fixtures
from read_side import World, open_world

if TYPE_CHECKING:
    from provision import Cell


class Desk:
    """The notifier: `world` has the store and the read models, this the rest."""

    def __init__(
        self, world: World, store: EventStore, keys: SubjectKeys, grouping: Grouping, ledger: DeliveryLedger
    ) -> None:
        self.world = world
        self.store = store
        self.keys = keys
        self.grouping = grouping
        self.ledger = ledger
        self.position = 0

    async def append(self, stream: str, *events: Event) -> UUID:
        return await self.world.append(stream, *events)

    async def run(self, batch: int = 1000) -> None:
        """All consumers and the outbox, until nothing is left to do. The clock does not tick."""
        while True:
            await self.world.sequence()
            events = await self.store.read_log(self.position, batch)
            if events:
                async with self.world.db.acquire() as proxy, proxy.transaction():
                    db = cast(asyncpg.Connection, proxy)
                    for handler in (self.grouping, self.ledger):
                        if mine := [event for event in events if event.type in handler.types]:
                            await handler.apply(db, mine)
                self.position = events[-1].position
            if not await self.grouping.outbox.send() and not events:
                break
        await self.world.deliver()

    async def tick(self, at: datetime) -> None:
        """The clock shows `at`: what is due is told."""
        while await self.grouping.close_due(at, at):
            pass
        await self.run()

    async def told(self, user: UUID) -> list[Any]:
        """The notification events of a customer, in order, with their words."""
        events = [event.payload for event in await self.store.read_stream(f"inbox-{user}")]
        return [
            await open_text(self.keys, user, event) if isinstance(event, Notification) else event for event in events
        ]


@asynccontextmanager
async def open_desk(cell: "Cell", **options: Any) -> AsyncIterator[Desk]:
    async with open_world(cell, "notifier", PROJECTIONS) as world:
        store = await EventStore.connect(cell.store_url("notifier"))
        keys = await SubjectKeys.connect(cell.keys_url("notifier"), MASTER)
        grouping, ledger = Grouping(world.db, store, keys), DeliveryLedger(**options)
        await world.db.execute(grouping.ddl + ledger.ddl)
        yield Desk(world, store, keys, grouping, ledger)
        await keys.close()
        await store.close()


@pytest.fixture
async def desk(cell: "Cell") -> AsyncIterator[Desk]:
    async with open_desk(cell) as opened:
        yield opened


@pytest.fixture
async def desk_with_apprise(cell: "Cell") -> AsyncIterator[Desk]:
    async with open_desk(cell, apprise=True) as opened:
        yield opened


@asynccontextmanager
async def open_api(desk: Desk, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service's routes."""
    world: Any = desk.world
    cursors = CursorCodec(settings.cursor_secret)
    egress = Egress(frozenset(filter(None, settings.allowed_targets.split(","))), timeout_s=settings.send_timeout_s)
    parts = Parts(world.db, desk.store, desk.keys, cursors, world, egress, WebPush(settings, egress))
    app: Any = create_app(world, routes(parts), title="test")
    # In this event loop, which the pool belongs to; Litestar's own client runs the app in another.
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[httpx.AsyncClient]:
    async with open_api(desk, settings_of()) as opened:
        yield opened
