"""A service that only reads, over a real event store and database: events in, its projections applied, answers out
over HTTP. Shared by the tests of wealth, notifier and search."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import httpx
import jwt
from chassis.app import create_app
from chassis.tokens import TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from events.contracts.registry import Event
from events.envelope import Metadata, new_id
from events.projections import Projection, Projections, rebuild
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from jwt.algorithms import ECAlgorithm
from litestar.types import ControllerRouterHandler

if TYPE_CHECKING:
    from provision import Cell

ISSUER = "https://sangam.test"
PUBLISHERS = {
    "ledger": "ledger_transfer",
    "user": "identity",
    "session": "identity",
    "bank_customer": "sync_gateway",
    "broker_client": "sync_gateway",
    "inbox": "notifier",
    "wealth": "wealth",
}


class World:
    """The store as its publishers see it, the service's database, and clients with tokens."""

    def __init__(
        self,
        stores: dict[str, EventStore],
        db: asyncpg.Pool,
        consumer: asyncpg.Connection,
        sequencer: Sequencer,
        database_url: str,
        projections: Projections,
    ) -> None:
        self._stores = stores
        self.db = db
        self._consumer = consumer
        self._sequencer = sequencer
        self._database_url = database_url
        self._projections = projections
        self._key = ec.generate_private_key(ec.SECP256R1())
        jwk = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)

        async def keys() -> dict[str, dict[str, str]]:
            return {"k1": jwk}

        self.verifier = TokenVerifier(ISSUER, VerificationKeyCache(keys))
        self.store = stores["identity"]
        self.position = 0

    async def append(self, stream: str, *events: Event, cause: UUID | None = None) -> UUID:
        """Appends as the publisher of that category; gives the id of the first event."""
        category, _, subject = stream.partition("-")
        owned = category in ("ledger", "user", "inbox")
        appended = await self._stores[PUBLISHERS[category]].append(
            [StreamAppend(stream, events)],
            event_id=new_id(),
            subject=UUID(subject) if owned else None,
            metadata=Metadata(causation_id=cause),
        )
        return appended.event_id

    async def sequence(self) -> None:
        """Gives all new events their positions."""
        while await self._sequencer.sequence():
            pass

    async def deliver(self, batch: int = 1000) -> None:
        """What the consumer does with all new events: batch by batch, each in one transaction."""
        await self.sequence()
        while events := await self.store.read_log(self.position, batch):
            async with self._consumer.transaction():
                await self._projections.apply(self._consumer, events)
            self.position = events[-1].position

    async def rows(self, table: str, schema: str = "public") -> list[tuple[Any, ...]]:
        found = await self.db.fetch(f'SELECT * FROM "{schema}"."{table}"')
        return sorted((tuple(row) for row in found), key=repr)

    async def live_equals_rebuild(self) -> None:
        """Every table of the read model, row for row, whatever the batches were."""
        connection = await asyncpg.connect(self._database_url)
        try:
            await rebuild(self._projections, self.store, connection, "rebuilt", up_to=self.position, batch=3)
        finally:
            await connection.close()
        tables = await self.db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'rebuilt'")
        assert len(tables) > 2
        for table in tables:
            name = table["tablename"]
            assert await self.rows(name) == await self.rows(name, "rebuilt"), name

    def consumer(self, name: str) -> "World":
        assert name == "projections"
        return self

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        return self.position >= position

    async def unready(self) -> list[str]:
        return []

    def operator(self, scope: str) -> dict[str, str]:
        """The headers of a request by an operator with that scope."""
        return self.bearer(new_id(), aud="sangam-ops", scope=scope, client_id="ops-tests")

    def bearer(self, user_id: UUID, **changes: Any) -> dict[str, str]:
        """The headers of a request by `user_id`; `changes` are claims."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": str(user_id),
            "aud": "bfc",
            "sid": str(new_id()),
            "acr": 1,
            "jti": str(new_id()),
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            **changes,
        }
        token = jwt.api_jws.encode(
            json.dumps(claims).encode(), self._key, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k1"}
        )
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def open_world(cell: "Cell", service: str, read_models: Sequence[Projection]) -> AsyncIterator[World]:
    """The world of `service`, its tables empty."""
    stores = {role: await EventStore.connect(cell.store_url(role)) for role in set(PUBLISHERS.values())}
    database_url = cell.database_url(service)
    db = await asyncpg.create_pool(database_url, min_size=1, max_size=4, server_settings={"jit": "off"})
    relay = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    projections = Projections(read_models)
    await db.execute(projections.ddl)
    consumer = await asyncpg.connect(database_url)
    yield World(stores, db, consumer, sequencer, database_url, projections)
    await consumer.close()
    for store in stores.values():
        await store.close()
    await db.close()
    await relay.close()


@asynccontextmanager
async def open_client(world: World, routes: Sequence[ControllerRouterHandler]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service's routes."""
    app: Any = create_app(world, routes, title="test")
    # In this event loop, which the pool belongs to; Litestar's own client runs the app in another.
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened
