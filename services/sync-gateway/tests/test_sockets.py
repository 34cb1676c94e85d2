"""How a connection ends when its client is gone or the gateway stops, against sockets that misbehave at will."""

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import msgspec
from chassis.cursors import CursorCodec
from chassis.tokens import Claims
from sync_gateway.clients import Client, Closing
from sync_gateway.hub import Cursors, Hub
from sync_gateway.projections.feed import FeedPage, FeedRow
from sync_gateway.sockets import Connection, SyncSockets

HEAD = 1000


class Past:
    """A log that does not move, as follower, read model and feed: `HEAD` events, all of whoever asks."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.started.set()
        self.position = HEAD

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        return True

    async def page(self, user_id: UUID, *, after: int, upto: int, types: Sequence[str], limit: int) -> FeedPage:
        return FeedPage(0, [FeedRow(position, b"{}") for position in range(after + 1, min(after + limit, upto) + 1)])


class Vanishing:
    """A client that subscribes with a cursor, reads a few frames, and is gone."""

    def __init__(self, cursor: str) -> None:
        subscribe = {"type": "subscribe", "topics": ["#"], "resume": cursor}
        self._said = [{"type": "websocket.receive", "text": msgspec.json.encode(subscribe).decode()}]
        self._reads = 5

    async def receive(self) -> dict[str, Any]:
        return self._said.pop() if self._said else {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: dict[str, Any]) -> None:
        self._reads -= 1
        if self._reads < 0:
            raise ConnectionResetError("gone")


async def test_a_client_that_vanishes_during_its_replay_is_let_go() -> None:
    """The replay waits for room in a queue that nobody empties any more."""
    past: Any = Past()
    cursors = Cursors(CursorCodec("a secret of the tests"))
    hub = Hub(cursors)
    await hub.start(past)
    verifier: Any = SimpleNamespace(revocations=None)
    sockets = SyncSockets(hub, past, past, verifier, allowed_origins=(), frames_max=10)
    user_id, now = uuid4(), int(time.time())
    claims = Claims(
        iss="", sub=user_id, aud="bfc", sid=uuid4(), acr=1, jti="1", iat=now, nbf=now, exp=now + 600, scope=""
    )
    socket: Any = Vanishing(cursors.encode(1, user_id))
    await asyncio.wait_for(Connection(sockets, socket, claims, 10).run(), 5)
    await asyncio.wait_for(hub.drain(), 1)


async def test_a_client_that_arrives_while_the_gateway_stops_is_told_so() -> None:
    """Its handshake was under way when the drain began."""
    hub = Hub(Cursors(CursorCodec("a secret of the tests")))
    await hub.drain()
    late = Client(uuid4(), uuid4())
    hub.add(late)
    assert late.closing == Closing(1012, "service_restart")
