"""Identity as clients meet it: over real PostgreSQL, with platforms that serve their keys over real HTTP."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from aiohttp import web
from chassis.consistency import ReadModel
from chassis.settings import Secret
from chassis.tokens import TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from events.contracts.identity import SigningKeyPublished
from events.store import EventStore
from identity import keys
from identity.main import IdentitySettings, wire
from jwt.algorithms import ECAlgorithm

if TYPE_CHECKING:
    from provision import Cell

ISSUER = "https://sangam.test"
IDENTITY_KEY = base64.b64encode(bytes(range(32))).decode()
PASSWORD = "correct horse battery staple"

Client = httpx.AsyncClient


class Platform:
    """A platform's own server, as far as linking needs it. Faults are set as attributes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = generate_private_key(SECP256R1())
        self.kid = f"{name}-1"
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response(self.jwks())
        self.fetches = 0
        self.jwks_url = ""

    def jwks(self) -> dict[str, Any]:
        jwk = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [{**jwk, "kid": self.kid, "use": "sig", "alg": "ES256"}]}

    def assertion(
        self, customer_id: str, nonce: str, *, key: EllipticCurvePrivateKey | None = None, **changes: Any
    ) -> str:
        """A signed assertion; `changes` replace claims (None leaves one out)."""
        now = int(time.time())
        claims = {
            "iss": self.name,
            "sub": customer_id,
            "aud": "sangam",
            "nonce": nonce,
            "iat": now,
            "exp": now + 300,
        }
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(claims, key or self.key, algorithm="ES256", headers={"kid": self.kid})

    async def serve_jwks(self, _: web.Request) -> web.StreamResponse:
        self.fetches += 1
        return self.answer()


@pytest.fixture
async def bfc() -> AsyncIterator[Platform]:
    async with AsyncExitStack() as stack:
        yield await _served("bfc", stack)


@pytest.fixture
async def vyomo() -> AsyncIterator[Platform]:
    async with AsyncExitStack() as stack:
        yield await _served("vyomo", stack)


async def _served(name: str, stack: AsyncExitStack) -> Platform:
    platform = Platform(name)
    app = web.Application()
    app.router.add_get("/.well-known/jwks.json", platform.serve_jwks)
    runner = web.AppRunner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    platform.jwks_url = f"http://127.0.0.1:{runner.addresses[0][1]}/.well-known/jwks.json"
    return platform


class Replica:
    """What `wire` needs of the runtime: here without consumers, and with the key read from the stream."""

    def __init__(self, settings: IdentitySettings, store: EventStore) -> None:
        self.settings = settings
        self.store = store
        self.verifier = TokenVerifier(settings.token_issuer, VerificationKeyCache(self._published))

    async def _published(self) -> dict[str, dict[str, str]]:
        payloads = [event.payload for event in await self.store.read_stream(f"signing_key-{keys.stream_id(1)}")]
        return {key.kid: key.public_jwk for key in payloads if isinstance(key, SigningKeyPublished)}

    def consumer(self, name: str) -> ReadModel:
        raise KeyError(name)

    async def unready(self) -> list[str]:
        return []


@pytest.fixture
async def store(cell: "Cell") -> AsyncIterator[EventStore]:
    """The event store as identity's role sees it."""
    store = await EventStore.connect(cell.store_url("identity"))
    yield store
    await store.close()


@pytest.fixture
async def start_replica(cell: "Cell", bfc: Platform, vyomo: Platform) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """Starts one more replica of the service, with its own connections and caches."""
    settings = IdentitySettings(
        database_url=Secret(),
        event_store_url=Secret(cell.store_url("identity")),
        amqp_url=Secret(),
        http_port=0,
        token_issuer=ISSUER,
        cursor_secret=Secret(),
        identity_key=Secret(IDENTITY_KEY),
        bfc_jwks_url=bfc.jwks_url,
        vyomo_jwks_url=vyomo.jwks_url,
    )
    async with AsyncExitStack() as stack:

        async def start() -> Client:
            store = await EventStore.connect(settings.event_store_url)
            stack.push_async_callback(store.close)
            app = await wire(Replica(settings, store))  # type: ignore[arg-type]
            for close in app.on_shutdown:
                stack.push_async_callback(close)  # type: ignore[arg-type]
            # In this event loop, where the store's connections live; unlike Litestar's test client.
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
            return await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://localhost"))

        yield start


@pytest.fixture
async def client(start_replica: Callable[[], Awaitable[Client]]) -> Client:
    """One replica."""
    return await start_replica()


@pytest.fixture
async def replicas(start_replica: Callable[[], Awaitable[Client]]) -> list[Client]:
    """Two replicas that start at the same time."""
    return list(await asyncio.gather(start_replica(), start_replica()))


class Person:
    """A registered user who is logged in."""

    def __init__(self, client: Client, email: str, user_id: UUID, login: dict[str, Any]) -> None:
        self.client = client
        self.email = email
        self.user_id = user_id
        self.login = login

    async def get(self, path: str) -> httpx.Response:
        return await self.client.get(path, headers=self._headers())

    async def post(self, path: str, body: dict[str, Any], client: Client | None = None) -> httpx.Response:
        return await (client or self.client).post(path, json=body, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.login['access_token']}"}


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
