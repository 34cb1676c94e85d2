"""What identity's tests share: platforms that serve their keys over real HTTP, replicas of the service, people."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import jwt
from aiohttp import web
from chassis.consistency import ReadModel
from chassis.control import ControlChannel
from chassis.revocations import Revocations
from chassis.tokens import TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from events.consumer import Handler
from events.contracts.identity import SigningKeyPublished
from events.sealing import SubjectKeys
from events.store import EventStore
from identity import keys
from identity.main import IdentitySettings
from jwt.algorithms import ECAlgorithm

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


async def served(name: str, stack: AsyncExitStack) -> Platform:
    """The platform, its server running until `stack` closes."""
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
    """What `wire` needs of the runtime: here without consumers, and with the keys read from their streams.

    Its control channel reaches nobody but itself; that revocations reach the others is tested over the whole stack.
    """

    def __init__(
        self, settings: IdentitySettings, store: EventStore, database: asyncpg.Pool, subject_keys: SubjectKeys
    ) -> None:
        self.settings = settings
        self.store = store
        self.database = database
        self.subject_keys = subject_keys
        self.revocations = Revocations()
        self.control = ControlChannel("identity", "", self.revocations)
        self.verifier = TokenVerifier(
            settings.token_issuer, VerificationKeyCache(self._published), revocations=self.revocations
        )
        self.handlers: dict[str, Handler] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def _published(self) -> dict[str, dict[str, str]]:
        found = {}
        for number in range(1, 9):
            for event in await self.store.read_stream(f"signing_key-{keys.stream_id(number)}"):
                if isinstance(event.payload, SigningKeyPublished):
                    found[event.payload.kid] = event.payload.public_jwk
        return found

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(coroutine, name=name))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def consume(self, name: str, handler: Handler) -> None:
        """Not consumed: a test that needs it applies the log itself."""
        self.handlers[name] = handler

    def consumer(self, name: str) -> ReadModel:
        raise KeyError(name)

    async def unready(self) -> list[str]:
        return []


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

    async def put(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self.client.put(path, json=body, headers=self._headers())

    async def delete(self, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return await self.client.request("DELETE", path, json=body, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.login['access_token']}"}
