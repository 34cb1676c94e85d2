"""A connection against real clients that misbehave: those that vanish, never read, or never answer a close."""

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
import uvicorn
from chassis import frames, sockets
from chassis.clients import Client, Clients
from chassis.server import SERVER_OPTIONS
from chassis.sockets import Sockets
from chassis.tokens import Claims
from chassis.topics import Topics
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

USER = uuid4()
_BEARER = [Subprotocol("bearer"), Subprotocol("token")]


class Past:
    """A source with as much past as anyone asks for."""

    started = True

    def __init__(self) -> None:
        self.events = 10_000
        self.resumed = asyncio.Event()
        self.replayed = 0

    async def cursor(self, user_id: UUID) -> str:
        return "0"

    async def resume(self, client: Client, wanted: Topics, cursor: str) -> str | None:
        client.begin_replay(wanted, int(cursor))
        client.hold()
        try:
            for position in range(int(cursor) + 1, self.events + 1):
                if client.closing is not None:
                    break
                await client.room()
                client.replay(position, frames.event(str(position), b'"%s"' % (b"x" * 1000)))
                self.replayed = position
        finally:
            self.resumed.set()
        return None


class Verifier:
    revocations = None

    async def verify(self, token: str) -> Claims:
        now, scope = int(time.time()), "" if token == "token" else f"{token}:read"
        return Claims(
            iss="", sub=USER, aud="bfc", sid=uuid4(), acr=1, jti="1", iat=now, nbf=now, exp=now + 600, scope=scope
        )


@pytest_asyncio.fixture
async def served() -> AsyncIterator[SimpleNamespace]:
    """`Sockets` on the server that every service uses."""
    past, clients, verifier = Past(), Clients(), Verifier()
    served: Any = Sockets("/ws/sync", clients, past, verifier, allowed_origins=(), frames_max=10)  # type: ignore[arg-type]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await served.open(scope, receive, send))()

    config = uvicorn.Config(app, host="127.0.0.1", port=0, **{**SERVER_OPTIONS, "lifespan": "off"})
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(past=past, clients=clients, port=port, url=f"ws://127.0.0.1:{port}/ws/sync")
    server.should_exit = True
    await asyncio.wait_for(serving, 15)


async def gone(clients: Clients, within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while len(clients):
            await asyncio.sleep(0.01)


async def test_a_replay_as_large_as_the_client_reads_it_arrives_whole(served: SimpleNamespace) -> None:
    served.past.events = 2_000  # 2 MB through a queue of ten frames
    async with connect(served.url, subprotocols=_BEARER, compression=None, max_size=None) as socket:
        await socket.recv()
        await socket.send('{"type":"subscribe","topics":["#"],"resume":"0"}')
        assert '"subscribed"' in str(await socket.recv())
        for position in range(1, 2_001):
            assert f'"cursor":"{position}"' in str(await socket.recv())


async def test_a_client_that_vanishes_during_its_replay_is_let_go(served: SimpleNamespace) -> None:
    """The replay waits for room in a queue that nobody empties any more."""
    reader, writer = await _half_open(served.port)
    del reader
    await _until_stuck(served.past)
    writer.transport.abort()
    await asyncio.wait_for(served.past.resumed.wait(), 5)
    assert served.past.replayed < served.past.events
    await gone(served.clients)


async def test_a_client_that_takes_no_goodbye_is_cut_off(
    served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "CLOSE_GRACE_S", 0.3)
    _, writer = await _half_open(served.port)
    await _until_stuck(served.past)
    (client,) = served.clients.of(USER)
    client.close(4401, "session_revoked")
    started_s = time.monotonic()
    await gone(served.clients)
    assert time.monotonic() - started_s < 3
    writer.transport.abort()


async def test_a_slow_client_hears_why_it_is_closed_when_it_reads_again(served: SimpleNamespace) -> None:
    async with connect(served.url, subprotocols=_BEARER, compression=None, max_queue=1) as socket:
        await socket.send('{"type":"subscribe","topics":["#"]}')
        async with asyncio.timeout(5):
            while not (clients := served.clients.of(USER)) or not next(iter(clients)).wants("x"):
                await asyncio.sleep(0.01)
        (client,) = clients
        for position in range(1, 20_000):
            client.offer(position, frames.event(str(position), b'"%s"' % (b"x" * 1000)))
            if client.closing is not None:
                break
        assert client.closing is not None, "its queue is bounded"
        received = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                received.append(await socket.recv())
        assert '"bye","code":4008' in str(received[-1])
        assert socket.close_code == 4008


async def test_a_token_for_something_else_neither_opens_nor_prolongs(served: SimpleNamespace) -> None:
    narrow = [Subprotocol("bearer"), Subprotocol("accounts")]
    async with connect(served.url, subprotocols=narrow, compression=None) as socket:
        assert '"reason":"insufficient_scope"' in str(await socket.recv())
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 4401
    async with connect(served.url, subprotocols=_BEARER, compression=None) as socket:
        await socket.recv()
        await socket.send('{"type":"refresh","token":"accounts"}')
        assert '"code":"insufficient_scope"' in str(await socket.recv())
        await socket.send('{"type":"refresh","token":"sync"}')
        assert '"type":"refreshed"' in str(await socket.recv())


async def test_what_only_the_handshake_needed_is_let_go(served: SimpleNamespace) -> None:
    async with connect(served.url, subprotocols=_BEARER, compression=None) as socket:
        await socket.recv()
        (client,) = served.clients.of(USER)
        wire: Any = client._wire
        assert not wire.request.headers
        assert wire.scope["headers"] == []


async def _half_open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that subscribes with a cursor and then does not read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /ws/sync HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: bearer, token\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    subscribe = b'{"type":"subscribe","topics":["#"],"resume":"0"}'
    writer.write(bytes([0x81, 0x80 | len(subscribe)]) + b"\0\0\0\0" + subscribe)
    return reader, writer


async def _until_stuck(past: Past) -> None:
    async with asyncio.timeout(10):
        while past.replayed == 0:
            await asyncio.sleep(0.05)
        before = -1
        while past.replayed != before:
            before = past.replayed
            await asyncio.sleep(0.2)
    assert past.replayed < past.events
