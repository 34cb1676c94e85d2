"""Fan-out: every event of the log passes here once per process, on to the sockets of its customer."""

import asyncio
import random
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import structlog
from chassis.cursors import CursorCodec
from events.envelope import RecordedEvent
from events.follower import Follower
from prometheus_client import Counter, Gauge

from sync_gateway import frames
from sync_gateway.clients import Client
from sync_gateway.frames import CloseCode
from sync_gateway.meter import Meter

log = structlog.get_logger(__name__)

_CONNECTIONS = Gauge("websocket_connections", "Open connections on /ws/sync")
_CLOSED = Counter("websocket_closed_total", "Connections that the server closed, by close code", ["code"])

_PURPOSE = "sync"
_OFFERS_PER_TURN = 50
_CLOSES_PER_TURN = 100

RECONNECTS_PER_S = 500
"""How fast clients are told to come back after a restart: no faster than one process accepts them."""
RESTART_MS = 500
"""No client comes back sooner: by then another process listens."""


def reconnect_turn_ms(turn: int) -> int:
    """When the client whose turn this is may come back: `RECONNECTS_PER_S` of them, spread within each second."""
    return int((turn + random.random()) * 1000 / RECONNECTS_PER_S) + RESTART_MS  # noqa: S311 - jitter


class _Place(msgspec.Struct, frozen=True):
    position: int


class Cursors:
    """Places in the log as clients see them: opaque, tamper-proof, good for one user only."""

    def __init__(self, codec: CursorCodec) -> None:
        self._codec = codec

    def encode(self, position: int, user_id: UUID) -> str:
        return self._codec.encode(_Place(position), purpose=_PURPOSE, caller=user_id)

    def decode(self, cursor: str, user_id: UUID) -> int:
        """The position.

        Raises:
            Problem: 400 `invalid_cursor`.
        """
        return self._codec.decode(cursor, _Place, purpose=_PURPOSE, caller=user_id).position


class Hub:
    """The process's clients by user, and how far the log has been offered to them."""

    def __init__(self, cursors: Cursors, meter: Meter | None = None) -> None:
        self.cursors = cursors
        self.draining = False
        self._meter = meter
        self._follower: Follower | None = None
        self._offered = 0
        self._clients: dict[UUID, set[Client]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, follower: Follower) -> None:
        """Waits until `follower`, which calls `on_events`, knows where in the log it begins."""
        await follower.started.wait()
        self._follower = follower

    @property
    def started(self) -> bool:
        """Whether clients may be added."""
        return self._follower is not None

    @property
    def position(self) -> int:
        """Every event up to here has been offered, or happened before the start; none above has."""
        assert self._follower is not None, "positions are known once the hub has started"
        return max(self._offered, self._follower.position)

    @property
    def connections(self) -> int:
        """Clients of this process."""
        return sum(map(len, self._clients.values()))

    def add(self, client: Client) -> None:
        self._clients.setdefault(client.user_id, set()).add(client)
        self._empty.clear()
        _CONNECTIONS.inc()
        if self.draining:
            # The drain began during its handshake.
            client.close(CloseCode.SERVICE_RESTART, "service_restart")

    def remove(self, client: Client) -> None:
        clients = self._clients[client.user_id]
        clients.remove(client)
        if not clients:
            del self._clients[client.user_id]
        if not self._clients:
            self._empty.set()
        _CONNECTIONS.dec()
        if client.closing is not None:
            _CLOSED.labels(str(client.closing.code)).inc()

    async def on_events(self, events: Sequence[RecordedEvent]) -> None:
        """The follower's callback. `position` and what clients were offered always change together."""
        offered = 0
        for event in events:
            clients = self._clients.get(event.subject) if event.subject is not None else None
            if clients:
                self._offer(event, clients)
                offered += 1
            self._offered = event.position
            if clients and offered % _OFFERS_PER_TURN == 0:
                # A burst must not overrun the queues of clients whose writers only need their turn.
                await asyncio.sleep(0)
        if self._meter is not None:
            now = datetime.now(UTC)
            self._meter.latency(
                "latency",
                [
                    (now - event.recorded_at).total_seconds() * 1000
                    for event in events
                    if event.public and event.subject
                ],
            )

    def _offer(self, event: RecordedEvent, clients: set[Client]) -> None:
        if not event.public:
            return
        frames_sent = 0
        frame: str | None = None
        for client in clients:
            if client.wants(event.type):
                if frame is None:
                    frame = frames.event(self.cursors.encode(event.position, client.user_id), frames.cloud_event(event))
                client.offer(event.position, frame)
                frames_sent += 1
        if self._meter is not None and frames_sent:
            self._meter.count("websocket.frames", frames_sent)

    def sessions_ended(self, session_ids: Collection[UUID]) -> None:
        """Closes what these sessions hold open. Comes ahead of the log (`chassis.revocations`)."""
        ended = frozenset(session_ids)
        for clients in self._clients.values():
            for client in clients:
                if client.session_id in ended:
                    client.close(CloseCode.UNAUTHENTICATED, "session_revoked")

    async def drain(self, timeout_s: float = 3.0) -> None:
        """Says goodbye to everyone and waits until they are gone; newcomers are sent away."""
        self.draining = True
        everyone = [client for clients in self._clients.values() for client in clients]
        # Each gets a turn to come back, so that a restart is followed by a queue and not by a storm.
        random.shuffle(everyone)
        for turn, client in enumerate(everyone):
            client.close(CloseCode.SERVICE_RESTART, "service_restart", reconnect_turn_ms(turn))
            if turn % _CLOSES_PER_TURN == _CLOSES_PER_TURN - 1:
                await asyncio.sleep(0)
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            log.warning("websockets_not_drained", users=len(self._clients))
