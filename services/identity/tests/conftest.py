"""Identity as clients meet it: over real PostgreSQL, with platforms that serve their keys over real HTTP."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest
from chassis.settings import Secret
from events.consumer import Handler
from events.sealing import SubjectKeys
from events.store import EventStore
from identity.keyring import identity_key
from identity.main import IdentitySettings, wire
from identity.sealing import IdentityKey

sys.path.insert(0, str(Path(__file__).parent))

from identity_harness import Client, Person, Platform, Replica, served

if TYPE_CHECKING:
    from provision import Cell

ISSUER = "https://sangam.test"
IDENTITY_KEY = base64.b64encode(bytes(range(32))).decode()
APPS = [
    {
        "client_id": f"{platform}-app",
        "name": platform,
        "platform": platform,
        "redirect_uris": [f"https://{platform}.test/callback"],
        "post_logout_redirect_uris": [f"https://{platform}.test/"],
    }
    for platform in ("bfc", "vyomo")
]
OPS = ("ops-test", "a secret of the operators")
PASSWORD = "correct horse battery staple"


@pytest.fixture
async def bfc() -> AsyncIterator[Platform]:
    async with AsyncExitStack() as stack:
        yield await served("bfc", stack)


@pytest.fixture
async def vyomo() -> AsyncIterator[Platform]:
    async with AsyncExitStack() as stack:
        yield await served("vyomo", stack)


@pytest.fixture
async def store(cell: "Cell") -> AsyncIterator[EventStore]:
    """The event store as identity's role sees it."""
    store = await EventStore.connect(cell.store_url("identity"))
    yield store
    await store.close()


@pytest.fixture
async def own_key(cell: "Cell", store: EventStore) -> IdentityKey:
    """What the service seals and hashes with on this cell."""
    subject_keys = await SubjectKeys.connect(cell.keys_url("identity"), IDENTITY_KEY)
    key = await identity_key(IDENTITY_KEY, store, subject_keys)
    await subject_keys.close()
    return key


@pytest.fixture
def handlers() -> dict[str, Handler]:
    """What the replica started last does with the log. Nothing is consumed: a test applies it."""
    return {}


@pytest.fixture
async def start_replica(
    cell: "Cell", bfc: Platform, vyomo: Platform, handlers: dict[str, Handler]
) -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """Starts one more replica of the service, with its own connections and caches; maybe with another key."""
    defaults = IdentitySettings(
        database_url=Secret(cell.database_url("identity")),
        event_store_url=Secret(cell.store_url("identity")),
        amqp_url=Secret(cell.amqp_url("identity")),
        http_port=0,
        token_issuer=ISSUER,
        cursor_secret=Secret(),
        identity_key=Secret(IDENTITY_KEY),
        bfc_jwks_url=bfc.jwks_url,
        vyomo_jwks_url=vyomo.jwks_url,
        apps=json.dumps(APPS),
        ops_client_id=OPS[0],
        ops_client_secret=Secret(OPS[1]),
        subject_keys_url=Secret(cell.keys_url("identity")),
        subject_master_key=Secret(IDENTITY_KEY),
    )
    async with AsyncExitStack() as stack:

        async def start(identity_key: str = IDENTITY_KEY) -> Client:
            settings = msgspec.structs.replace(defaults, identity_key=Secret(identity_key))
            store = await EventStore.connect(settings.event_store_url)
            stack.push_async_callback(store.close)
            database = await asyncpg.create_pool(settings.database_url, min_size=0, max_size=4)
            stack.push_async_callback(database.close)
            subject_keys = await SubjectKeys.connect(settings.subject_keys_url, settings.subject_master_key)
            stack.push_async_callback(subject_keys.close)
            replica = Replica(settings, store, database, subject_keys)
            app = await wire(replica)  # type: ignore[arg-type]
            handlers.update(replica.handlers)
            stack.push_async_callback(replica.close)
            for close in app.on_shutdown:
                stack.push_async_callback(close)  # type: ignore[arg-type]
            # In this event loop, where the store's connections live; unlike Litestar's test client.
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
            return await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=ISSUER))

        yield start


@pytest.fixture
async def client(start_replica: Callable[..., Awaitable[Client]]) -> Client:
    """One replica."""
    return await start_replica()


@pytest.fixture
async def replicas(start_replica: Callable[..., Awaitable[Client]]) -> list[Client]:
    """Two replicas that start at the same time."""
    return list(await asyncio.gather(start_replica(), start_replica()))


@pytest.fixture
def registration() -> Callable[..., dict[str, Any]]:
    """The body of a good registration of somebody new, with changes."""
    return lambda **changes: (
        {
            "email": f"asha.{uuid4().hex}@example.in",
            "password": PASSWORD,
            "full_name": "Asha Rao",
            "phone": "+919812345678",
        }
        | changes
    )


@pytest.fixture
def sign_up(registration: Callable[..., dict[str, Any]]) -> Callable[[Client], Awaitable[Person]]:
    """Registers a new person and logs them in at BFC."""

    async def sign_up(client: Client) -> Person:
        body = registration()
        registered = await client.post("/api/auth/register", json=body)
        assert registered.status_code == 201, registered.text
        credentials = {"email": body["email"], "password": body["password"], "platform": "bfc"}
        login = await client.post("/api/auth/login", json=credentials)
        assert login.status_code == 200, login.text
        return Person(client, body["email"], UUID(registered.json()["user_id"]), login.json())

    return sign_up
