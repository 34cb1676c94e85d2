"""Two notifier processes as they run in production, beside a relay: sockets, latency of what is critical, SIGKILL."""

import asyncio
import base64
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import aiohttp
import jwt
import msgspec
import pytest
import websockets.asyncio.client as ws
from cryptography.hazmat.primitives.asymmetric import ec
from events.contracts import identity
from events.contracts.notification import NotificationRaised
from events.contracts.registry import Event
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from jwt.algorithms import ECAlgorithm
from websockets.exceptions import ConnectionClosed

sys.path.insert(0, str(Path(__file__).parent))

from samples import opened, posting
from tellers import AT

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

ISSUER = "http://sangam.test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """One notifier process."""

    def __init__(self, cell: "Cell", output: Path, shared: dict[str, str]) -> None:
        self.port = free_port()
        self.output = output
        self._environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": cell.database_url("notifier"),
            "EVENT_STORE_URL": cell.store_url("notifier"),
            "AMQP_URL": cell.amqp_url("notifier"),
            "SUBJECT_KEYS_URL": cell.keys_url("notifier"),
            "HTTP_PORT": str(self.port),
            "TOKEN_ISSUER": ISSUER,
            **shared,
        }

    def start(self) -> None:
        self._sink = self.output.open("ab")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "notifier"], env=self._environment, stdout=self._sink, stderr=subprocess.STDOUT
        )

    def ready(self) -> None:
        deadline = time.monotonic() + 40
        while not answers(f"http://127.0.0.1:{self.port}/health/ready"):
            assert self.child.poll() is None, self.output.read_text()[-3000:]
            assert time.monotonic() < deadline, self.output.read_text()[-3000:]
            time.sleep(0.1)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()

    def stop(self) -> int:
        self.child.terminate()
        try:
            return self.child.wait(20)
        finally:
            self.child.kill()
            self._sink.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Product:
    def __init__(self, services: list[Service], stores: dict[str, EventStore], key: Any, kid: str) -> None:
        self.services = services
        self.stores = stores
        self._key = key
        self._kid = kid

    async def append(self, role: str, stream: str, *events: Event, subject: UUID | None = None) -> UUID:
        appended = await self.stores[role].append([StreamAppend(stream, events)], event_id=new_id(), subject=subject)
        return appended.event_id

    async def sign_in(self, user: UUID) -> UUID:
        """Something critical; the session's id."""
        session = identity.SessionStarted(session_id=new_id(), user_id=user, platform="bfc", acr=1, expires_at=AT)
        await self.append("identity", f"session-{session.session_id}", session, subject=user)
        return session.session_id

    def token(self, user: UUID, session: UUID | None = None) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": str(user),
            "aud": "bfc",
            "sid": str(session or uuid4()),
            "acr": 1,
            "scope": "",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "jti": str(uuid4()),
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self._kid})

    async def inbox(self, user: UUID, replica: int = 0) -> Any:
        headers = {"Authorization": f"Bearer {self.token(user)}"}
        url = f"http://127.0.0.1:{self.services[replica].port}/api/notifications/smart?limit=200"
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def raised(self, user: UUID) -> list[NotificationRaised]:
        found = [event.payload for event in await self.stores["notifier"].read_stream(f"inbox-{user}")]
        return [event for event in found if isinstance(event, NotificationRaised)]

    @contextlib.asynccontextmanager
    async def listen(self, user: UUID, session: UUID | None = None, replica: int = 0) -> AsyncIterator["Listener"]:
        protocols: Any = ["bearer", self.token(user, session)]
        url = f"ws://127.0.0.1:{self.services[replica].port}/ws/notifications"
        async with ws.connect(url, subprotocols=protocols, compression=None) as connection:
            yield Listener(connection)


class Listener:
    def __init__(self, connection: ws.ClientConnection) -> None:
        self.connection = connection

    async def send(self, **frame: Any) -> None:
        await self.connection.send(msgspec.json.encode(frame).decode())

    async def receive(self, timeout_s: float = 12) -> Any:
        async with asyncio.timeout(timeout_s):
            return msgspec.json.decode(await self.connection.recv())

    async def subscribe(self, resume: str | None = None) -> None:
        await self.send(type="subscribe", topics=["notification.#"], **({"resume": resume} if resume else {}))
        assert (await self.receive())["type"] == "subscribed"


@pytest.fixture
async def product(cell: "Cell", tmp_path: Path) -> AsyncIterator[Product]:
    cell.database_url("notifier")
    shared = {
        "CURSOR_SECRET": secrets.token_hex(32),
        "SUBJECT_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
    services = [Service(cell, tmp_path / f"notifier-{n}.log", shared) for n in range(2)]
    relay_port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "EVENT_STORE_URL": cell.store_url("relay"),
        "AMQP_URL": cell.amqp_url("relay"),
        "HTTP_PORT": str(relay_port),
    }
    with (tmp_path / "relay.log").open("wb") as sink:
        relay = subprocess.Popen(  # noqa: ASYNC220 - at the start of a test
            [sys.executable, "-m", "events.relay"], env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
        stores = {
            role: await EventStore.connect(cell.store_url(role)) for role in ("identity", "ledger_transfer", "notifier")
        }
        try:
            for service in services:
                service.start()
            key, kid = ec.generate_private_key(ec.SECP256R1()), "key-1"
            jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
            published = identity.SigningKeyPublished(kid=kid, public_jwk=jwk, sealed_private_key="sealed")
            await stores["identity"].append([StreamAppend(f"signing_key-{kid}", (published,))], event_id=new_id())
            for service in services:
                await asyncio.to_thread(service.ready)
            made = Product(services, stores, key, kid)
            async with asyncio.timeout(15):
                while True:
                    try:
                        await made.inbox(new_id())
                        break
                    except AssertionError:
                        await asyncio.sleep(0.1)
            yield made
        finally:
            for service in services:
                service.stop()
            relay.terminate()
            relay.wait(20)
            for store in stores.values():
                await store.close()


async def test_sockets_tell_resume_and_end(product: Product) -> None:
    user, other = new_id(), new_id()
    async with product.listen(other) as stranger, product.listen(user, replica=1) as listener:
        hello = await listener.receive()
        assert (hello["type"], hello["heartbeat_s"]) == ("hello", 20)
        await stranger.receive()
        await stranger.subscribe()
        await listener.subscribe()
        await product.sign_in(user)
        frame = await listener.receive()
        assert frame["event"]["type"] == "notification.notification.raised"
        assert frame["event"]["data"]["title"] == "New sign-in on BFC"
        cursor = frame["cursor"]
        with pytest.raises(TimeoutError):
            await stranger.receive(0.3)
    missed = [await product.sign_in(user) for _ in range(3)]
    async with asyncio.timeout(10):
        while len(await product.raised(user)) < 4:
            await asyncio.sleep(0.05)
    async with product.listen(user, session=missed[0]) as listener:  # another replica, with the cursor of the first
        await listener.receive()
        await listener.subscribe(cursor)
        again = [await listener.receive() for _ in range(3)]
        assert len({frame["event"]["id"] for frame in again}) == 3
        await product.sign_in(user)
        fresh = await listener.receive()
        assert fresh["event"]["version"] == again[-1]["event"]["version"] + 1
        await listener.send(type="subscribe", topics=["notification.#"], resume="forged")
        frames = [await listener.receive() for _ in range(2)]
        assert [frame["type"] for frame in frames] == ["subscribed", "resync"]
        revoked = identity.SessionRevoked(session_id=missed[0], user_id=user, reason="logout")
        await product.append("identity", f"session-{missed[0]}", revoked, subject=user)
        with contextlib.suppress(ConnectionClosed):
            while True:
                await listener.receive()
        assert listener.connection.close_code == 4401


async def test_replicas_that_are_killed_tell_everything_once(product: Product) -> None:
    """Facts keep coming while one process after the other is killed: each is in one notification, once."""
    user, account = new_id(), new_id()
    await product.append("ledger_transfer", f"ledger-{user}", opened(account), subject=user)
    appended: list[UUID] = []
    criticals = 0

    async def live() -> None:
        nonlocal criticals
        for n in range(30):
            event = posting(-100 - n, account_id=account, item_id=str(n))
            event = msgspec.structs.replace(
                event, legs=(msgspec.structs.replace(event.legs[0], account_id=str(account)), event.legs[1])
            )
            appended.append(await product.append("ledger_transfer", f"ledger-{user}", event, subject=user))
            if n % 8 == 0:
                await product.sign_in(user)
                criticals += 1
            await asyncio.sleep(0.2)

    living = asyncio.create_task(live())
    for victim in (0, 1):
        await asyncio.sleep(2)
        product.services[victim].kill()
        product.services[victim].start()
        await asyncio.to_thread(product.services[victim].ready)
    await living
    async with asyncio.timeout(30):
        while True:
            raised = await product.raised(user)
            final = {item["id"]: item for item in (await product.inbox(user, 1))["items"]}
            told = [event_id for item in final.values() for event_id in item["event_ids"]]
            if len(told) >= len(appended) + criticals + 1:
                break
            await asyncio.sleep(0.2)
    assert len(told) == len(set(told)) == len(appended) + criticals + 1
    postings = [item for item in final.values() if item["category"] == "transaction"]
    assert sum(round(float(item["total"]) * 100) for item in postings) == sum(100 + n for n in range(30))
    assert len([event for event in raised if event.priority == "critical"]) == criticals
    assert len({event.notification_id for event in raised}) == len(raised)
