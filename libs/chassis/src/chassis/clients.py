"""The clients of this process: each with its bounded queue, and which of the events that happen go to it.

No I/O here: `sockets.py` has the connections, and services offer events to `Clients.of` a user.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Collection
from enum import Enum
from typing import NamedTuple, Protocol
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from chassis.frames import CloseCode
from chassis.topics import Topics

log = structlog.get_logger(__name__)

_CONNECTIONS = Gauge("websocket_connections", "Open WebSocket connections")
_CLOSED = Counter("websocket_closed_total", "Connections that the server closed, by close code", ["code"])

FRAMES_MAX = 1000
QUEUE_BYTES_MAX = 4 * 1024 * 1024

_CLOSES_PER_TURN = 100
RECONNECTS_PER_S = 500
"""How fast clients are told to come back after a restart: no faster than one process accepts them."""
RESTART_MS = 500
"""No client comes back sooner: by then another process listens."""
TRY_AGAIN_MS = (2_000, 10_000)
"""When a client may come back that could not be served: thousands at once would keep us from what they wait for."""


class Wire(Protocol):
    """Where frames go (`chassis.wire.WebSocketProtocol`)."""

    def write(self, frame: bytes) -> bool:
        """Takes a frame; False if the client does not read at the moment."""
        ...


class Closing(NamedTuple):
    """How the connection ends: the code of the close frame, and the reason that `bye` gives."""

    code: int
    reason: str
    reconnect_in_ms: int | None = None


class Flow(Enum):
    """What becomes of an event that happens now."""

    SILENT = "silent"
    """Nothing: not subscribed yet, or a replay will bring it."""
    HELD = "held"
    """Kept until the replay that is under way has sent what came before."""
    LIVE = "live"
    """Sent."""


class Client:
    """A client that cannot keep up is closed, never waited for: its queue holds `frames_max` frames."""

    __slots__ = (
        "_bytes",
        "_flow",
        "_frames",
        "_frames_max",
        "_held",
        "_on_close",
        "_room",
        "_wire",
        "closing",
        "delivered",
        "session_id",
        "topics",
        "user_id",
    )

    def __init__(
        self,
        user_id: UUID,
        session_id: UUID,
        wire: Wire,
        *,
        frames_max: int = FRAMES_MAX,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_close` is called once, when it has been decided that the connection ends."""
        self.user_id = user_id
        self.session_id = session_id
        self.topics: Topics | None = None
        self.closing: Closing | None = None
        self._wire = wire
        # Only a client that does not keep up has a queue: most of thousands are idle, and an empty one takes 600 bytes.
        self._frames: deque[bytes] | None = None
        self._bytes = 0
        self._frames_max = frames_max
        self._held: list[tuple[int, bytes]] = []
        self._flow = Flow.SILENT
        self.delivered = 0
        """Everything up to this position has been sent, as far as it was asked for."""
        self._on_close = on_close
        self._room: asyncio.Event | None = None

    # What happens.

    def wants(self, event_type: str) -> bool:
        """Whether an event of this type, happening now, concerns the client."""
        return self._flow is not Flow.SILENT and self.topics is not None and event_type in self.topics

    def offer(self, position: int, frame: bytes) -> None:
        """An event that the client `wants` has happened. Positions only grow."""
        if position <= self.delivered:
            # It resumed with a cursor of another gateway replica that is ahead of this one.
            return
        if self._flow is Flow.LIVE:
            self.delivered = position
            self.put(frame)
        elif len(self._held) < self._frames_max:
            self._held.append((position, frame))
        else:
            self.close(CloseCode.TOO_SLOW, "too_slow")

    # Subscribing and resuming.

    def go_live(self, topics: Topics) -> None:
        """From now on events of these topics are sent as they happen, after those that were held."""
        self.topics = topics
        self._flow = Flow.LIVE
        held, self._held = self._held, []
        for position, frame in held:
            self.offer(position, frame)

    def begin_replay(self, topics: Topics, after: int) -> None:
        """Stops live events: a replay is going to send everything above the position `after`."""
        self.topics = topics
        self._flow = Flow.SILENT
        self._held.clear()
        self.delivered = after

    def hold(self) -> None:
        """From now on events are held, until `go_live`."""
        self._flow = Flow.HELD

    def replay(self, position: int, frame: bytes) -> None:
        """An event of the past."""
        self.delivered = position
        self.put(frame)

    # The queue.

    def put(self, frame: bytes) -> None:
        """Sends a frame, or queues it behind others; when there is no room for it, closes the client with 4008."""
        if self.closing is not None or (self._frames is None and self._wire.write(frame)):
            return
        if self._frames is None:
            self._frames = deque()
        if len(self._frames) >= self._frames_max or self._bytes > QUEUE_BYTES_MAX:
            self.close(CloseCode.TOO_SLOW, "too_slow")
            return
        self._frames.append(frame)
        self._bytes += len(frame)

    def flush(self) -> None:
        """The client reads again: sends what has been waiting, as far as it goes."""
        frames = self._frames
        while frames and self._wire.write(frames[0]):
            self._bytes -= len(frames.popleft())
        if not frames:
            self._frames = None
        if self._room is not None and self._half_empty():
            self._room.set()

    def close(self, code: int, reason: str, reconnect_in_ms: int | None = None) -> None:
        """Ends the connection; the first close counts. Waiting frames are dropped: a cursor brings them back."""
        if self.closing is not None:
            return
        self.closing = Closing(code, reason, reconnect_in_ms)
        self._frames = None
        self._held.clear()
        self._bytes = 0
        self._flow = Flow.SILENT
        if self._room is not None:
            self._room.set()
        self._on_close()

    async def room(self) -> None:
        """Waits until the queue is at most half full, or the client is closing."""
        if self._half_empty():
            return
        self._room = asyncio.Event()
        await self._room.wait()
        self._room = None

    def _half_empty(self) -> bool:
        waiting = 0 if self._frames is None else len(self._frames)
        return waiting * 2 <= self._frames_max and self._bytes * 2 <= QUEUE_BYTES_MAX


class Clients:
    """The process's clients by user."""

    def __init__(self) -> None:
        self.draining = False
        self._by_user: dict[UUID, set[Client]] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def of(self, user_id: UUID | None) -> Collection[Client]:
        """The user's clients. None has none."""
        return self._by_user.get(user_id, ()) if user_id is not None else ()

    def add(self, client: Client) -> None:
        self._by_user.setdefault(client.user_id, set()).add(client)
        self._empty.clear()
        _CONNECTIONS.inc()
        if self.draining:
            # The drain began during its handshake.
            client.close(CloseCode.SERVICE_RESTART, "service_restart")

    def remove(self, client: Client) -> None:
        mates = self._by_user[client.user_id]
        mates.remove(client)
        if not mates:
            del self._by_user[client.user_id]
        if not self._by_user:
            self._empty.set()
        _CONNECTIONS.dec()
        if client.closing is not None and client.closing.code != CloseCode.ABNORMAL:
            _CLOSED.labels(str(client.closing.code)).inc()

    def sessions_ended(self, session_ids: Collection[UUID]) -> None:
        """Closes what these sessions hold open. Comes ahead of the log (`chassis.revocations`)."""
        ended = frozenset(session_ids)
        for client in self._everyone():
            if client.session_id in ended:
                client.close(CloseCode.UNAUTHENTICATED, "session_revoked")

    async def drain(self, timeout_s: float = 3.0) -> None:
        """Says goodbye to everyone and waits until they are gone; newcomers are sent away."""
        self.draining = True
        everyone = self._everyone()
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
            log.warning("websockets_not_drained", connections=len(self))

    def _everyone(self) -> list[Client]:
        return [client for mates in self._by_user.values() for client in mates]


def try_again_ms() -> int:
    """When a client may try again that could not be served now."""
    return random.randint(*TRY_AGAIN_MS)  # noqa: S311 - jitter


def reconnect_turn_ms(turn: int) -> int:
    """When the client whose turn this is may come back: `RECONNECTS_PER_S` of them, spread within each second."""
    return int((turn + random.random()) * 1000 / RECONNECTS_PER_S) + RESTART_MS  # noqa: S311 - jitter
