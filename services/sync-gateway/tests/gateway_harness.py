"""A gateway as it runs in production: its own process, beside a relay, on a fresh cell of the test servers."""

import asyncio
import base64
import contextlib
import copy
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import jwt
import msgspec
import websockets.asyncio.client as ws
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from events.contracts import identity, ledger
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from jwt.algorithms import ECAlgorithm
from provision import Cell
from standardwebhooks import Webhook
from websockets.exceptions import ConnectionClosed

ISSUER = "http://sangam.test"
FRAMES_MAX = 300


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: Any


class Wire:
    """A TCP proxy that can be cut: the event store behind it is then out of reach."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: set[asyncio.StreamWriter] = set()
        self.cut = False
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self._server = server
        self.port = server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        self.sever()

    def sever(self) -> None:
        """Breaks every connection, and refuses new ones until `mend`."""
        self.cut = True
        for writer in list(self._open):
            writer.transport.abort()

    def mend(self) -> None:
        self.cut = False

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection(*self._target)
        self._open |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._open -= {writer, back}


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(64 * 1024):
            sink.write(data)
            await sink.drain()
    sink.transport.abort()


class Gateway:
    """A running gateway, and everything that a test needs to speak with it."""

    def __init__(self, cell: Cell, port: int) -> None:
        self.cell = cell
        self.at(port)
        self.secrets, self.announce_secrets = (
            {platform: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() for platform in ("bfc", "vyomo")}
            for _ in range(2)
        )
        self.receiver_port = free_port()
        self.cursor_secret = secrets.token_hex(32)
        self.master_key, self.gateway_key = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
        self.kid = "key-" + secrets.token_hex(4)
        self.key = ec.generate_private_key(ec.SECP256R1())

    def at(self, port: int) -> "Gateway":
        """Speaks with the process on that port from now on."""
        self.http = f"http://127.0.0.1:{port}"
        self.ws = f"ws://127.0.0.1:{port}/ws/sync"
        return self

    def replica(self) -> "Gateway":
        """Another process of the same gateway: same secrets, key, databases; not started."""
        return copy.copy(self).at(free_port())

    def environment(self, **changed: str) -> dict[str, str]:
        service = "sync_gateway"
        return {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.cell.database_url(service),
            "EVENT_STORE_URL": self.cell.store_url(service),
            "AMQP_URL": self.cell.amqp_url(service),
            "HTTP_PORT": self.http.rsplit(":", 1)[1],
            "TOKEN_ISSUER": ISSUER,
            "CURSOR_SECRET": self.cursor_secret,
            "SUBJECT_KEYS_URL": self.cell.keys_url(service),
            "SUBJECT_MASTER_KEY": self.master_key,
            "GATEWAY_KEY": self.gateway_key,
            "FEED_SECRET_BFC": self.secrets["bfc"],
            "FEED_SECRET_VYOMO": self.secrets["vyomo"],
            "WEBSOCKET_FRAMES_MAX": str(FRAMES_MAX),
            "WEBHOOK_ALLOWED_TARGETS": f"127.0.0.1:{self.receiver_port}",
            "WEBHOOK_TIMEOUT_S": "3",
            "WEBHOOK_PROBE_S": "0.3",
            "BFC_URL": f"http://127.0.0.1:{self.receiver_port}/bfc",
            "VYOMO_URL": f"http://127.0.0.1:{self.receiver_port}/vyomo",
            "ANNOUNCE_SECRET_BFC": self.announce_secrets["bfc"],
            "ANNOUNCE_SECRET_VYOMO": self.announce_secrets["vyomo"],
            **changed,
        }

    def token(self, user_id: UUID, session_id: UUID | None = None, **claims: Any) -> str:
        now = int(time.time())
        payload = {
            "iss": ISSUER,
            "sub": str(user_id),
            "aud": "bfc",
            "sid": str(session_id or uuid4()),
            "acr": 1,
            "scope": "",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "jti": str(uuid4()),
            **claims,
        }
        return jwt.encode(payload, self.key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self.kid})

    async def publish_key(self) -> None:
        """As identity does: the key that `token` signs with becomes known to the gateway."""
        jwk = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        event = identity.SigningKeyPublished(kid=self.kid, public_jwk=jwk, sealed_private_key="sealed")
        async with self.store("identity") as store:
            await store.append([StreamAppend(f"signing_key-{self.kid}", (event,))], event_id=new_id())
        deadline = time.monotonic() + 15
        while (await self.get("/api/sync/health", self.token(uuid4()))).status != 200:
            assert time.monotonic() < deadline, "the gateway does not learn the key"
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def store(self, role: str) -> AsyncIterator[EventStore]:
        store = await EventStore.connect(self.cell.store_url(role))
        try:
            yield store
        finally:
            await store.close()

    # HTTP.

    async def get(self, path: str, token: str | None = None) -> Answer:
        return await self.call("GET", path, token)

    async def call(self, method: str, path: str, token: str | None = None, body: Any = None) -> Answer:
        """A request with a JSON body, if any."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = None if body is None else msgspec.json.encode(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.http + path, headers=headers, data=data) as response,
        ):
            text = await response.read()
            return Answer(response.status, response.headers, msgspec.json.decode(text) if text else None)

    def ops_token(self, scope: str = "sync:admin") -> str:
        return self.token(uuid4(), aud="sangam-ops", scope=scope, client_id="ops-test")

    async def webhook(self, token: str, *events: str, path: str = "/hook", **settings: Any) -> dict[str, Any]:
        """Registers a webhook at the receiver's path."""
        body = {"url": f"http://127.0.0.1:{self.receiver_port}{path}", "events": list(events), **settings}
        answer = await self.call("POST", "/api/sync/webhooks", token, body)
        assert answer.status == 201, answer
        # Events count from when the delivery ledger knows the webhook.
        await self.settled()
        assert isinstance(answer.body, dict)
        return answer.body

    async def settled(self) -> None:
        """Waits until every consumer of the gateway has applied what was appended up to now."""
        gateway = await asyncpg.connect(self.cell.admin_url("sync_gateway"))
        store = await asyncpg.connect(self.cell.admin_url())
        try:
            async with asyncio.timeout(20):
                while await store.fetchval("SELECT count(*) FROM store.pending"):
                    await asyncio.sleep(0.01)
                head = await store.fetchval("SELECT position FROM store.head()")
                while await gateway.fetchval("SELECT min(position) FROM consumed") < head:
                    await asyncio.sleep(0.02)
        finally:
            await gateway.close()
            await store.close()

    async def push(
        self, platform: str, items: list[Any], *, key: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """A signed batch; `headers` replace those of the signature."""
        return await self.push_bytes(platform, msgspec.json.encode({"items": items}), key=key, headers=headers)

    async def push_bytes(
        self, platform: str, body: bytes, *, key: str | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        now = datetime.now(UTC)
        message_id = f"msg_{uuid4().hex}"
        signature = Webhook(key or self.secrets[platform]).sign(message_id, now, body.decode())
        signed = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signature,
            **(headers or {}),
        }
        url = f"{self.http}/api/sync/feeds/{platform}"
        async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=signed) as response:
            return Answer(response.status, response.headers, await response.json(content_type=None))

    # WebSocket.

    @contextlib.asynccontextmanager
    async def connect(self, token: str, **options: Any) -> AsyncIterator["Listener"]:
        protocols: Any = ["bearer", token]
        async with ws.connect(self.ws, subprotocols=protocols, compression=None, **options) as socket_:
            yield Listener(socket_)


class Listener:
    """A connected client."""

    def __init__(self, socket_: ws.ClientConnection) -> None:
        self.socket = socket_

    async def send(self, **frame: Any) -> None:
        await self.socket.send(msgspec.json.encode(frame).decode())

    async def receive(self, timeout_s: float = 10.0) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            frame = msgspec.json.decode(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def subscribe(self, *topics: str, resume: str | None = None) -> dict[str, Any]:
        """Sends the frame; returns the next one that is no event."""
        await self.send(type="subscribe", topics=list(topics), **({"resume": resume} if resume else {}))
        return await self.receive()

    async def closed(self, timeout_s: float = 15.0) -> tuple[int, list[dict[str, Any]]]:
        """Reads to the end; the close code, and the frames that came before it."""
        received = []
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    received.append(msgspec.json.decode(await self.socket.recv()))
        assert self.socket.close_code is not None
        return self.socket.close_code, received


class Received(NamedTuple):
    path: str
    headers: Mapping[str, str]
    raw: bytes
    body: Any
    at_s: float

    @property
    def amount(self) -> int:
        number = self.body["data"]["amount_minor"]
        assert isinstance(number, int)
        return number

    def verify(self, secret: str) -> None:
        """Raises unless `secret` signed it."""
        Webhook(secret).verify(
            self.raw, {name.lower(): value for name, value in self.headers.items()}, json_parse=False
        )


Reply = Callable[[Received], Awaitable[web.StreamResponse]]


class Receiver:
    """An HTTP server that webhooks are sent to. `reply` by path answers instead of 200."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.received: list[Received] = []
        self.replies: dict[str, Reply] = {}
        self.pulls: dict[str, Any] = {}
        """Answers of GET by path."""

    async def __aenter__(self) -> "Receiver":
        application = web.Application()
        application.router.add_route("POST", "/{tail:.*}", self._take)
        application.router.add_route("GET", "/{tail:.*}", self._give)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        received = Received(request.path, request.headers.copy(), raw, msgspec.json.decode(raw), time.monotonic())
        self.received.append(received)
        reply = self.replies.get(request.path)
        return web.Response() if reply is None else await reply(received)

    async def _give(self, request: web.Request) -> web.StreamResponse:
        answer = self.pulls.get(request.path)
        if answer is None:
            return web.Response(status=503)
        return web.json_response(answer(request.query) if callable(answer) else answer)

    def at(self, path: str) -> list[Received]:
        return [received for received in self.received if received.path == path]

    async def until(self, count: int, path: str = "/hook", timeout_s: float = 15.0) -> list[Received]:
        """Waits for so many messages at the path."""
        async with asyncio.timeout(timeout_s):
            while len(self.at(path)) < count:
                await asyncio.sleep(0.02)
        return self.at(path)


def status(code: int, **headers: str) -> Reply:
    """A reply with that status."""

    async def reply(_: Received) -> web.StreamResponse:
        return web.Response(status=code, headers=headers)

    return reply


def transfer(number: int, memo: str | None = None) -> ledger.TransferCompleted:
    """A public event of a customer's, told from others by its amount."""
    return ledger.TransferCompleted(
        transfer_id=uuid4(),
        from_account_id=uuid4(),
        to_account_id=uuid4(),
        amount_minor=number,
        currency="INR",
        memo=memo,
        legs=(),
        completed_at=datetime.now(UTC),
    )


async def append(store: EventStore, user_id: UUID, *numbers: int, memo: str | None = None) -> None:
    """Appends transfers of these amounts, as ledger-transfer does."""
    await store.append(
        [StreamAppend(f"ledger-{user_id}", tuple(transfer(number, memo) for number in numbers))],
        event_id=new_id(),
        subject=user_id,
    )


def amount(frame: dict[str, Any]) -> int:
    assert frame["type"] == "event", frame
    number = frame["event"]["data"]["amount_minor"]
    assert isinstance(number, int)
    return number


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(module: str, environment: Mapping[str, str], ready: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module` until it answers on `ready`; told to stop at the end."""
    with output.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", module], env=dict(environment), stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 30
        while not _answers(ready):
            assert child.poll() is None, f"{module} ended:\n{output.read_text()}"
            assert time.monotonic() < deadline, f"{module} is not ready:\n{output.read_text()}"
            time.sleep(0.1)
        yield child
    finally:
        stop(child)


@contextlib.asynccontextmanager
async def running(gateway: Gateway, output: Path, **changed: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A gateway process, started and stopped without holding up this loop."""
    manager = process("sync_gateway", gateway.environment(**changed), f"{gateway.http}/health/ready", output)
    child = await asyncio.to_thread(manager.__enter__)
    try:
        yield child
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


def stop(child: subprocess.Popen[bytes]) -> int:
    """Tells the process to stop, and waits until it has; its exit code."""
    child.terminate()
    try:
        return child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
