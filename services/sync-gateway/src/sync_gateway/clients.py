"""One connected client: its bounded queue, and which of the events that happen go into it.

No I/O here: `sockets.py` moves frames between this and the socket, `hub.py` offers events.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from sync_gateway.frames import CloseCode
from sync_gateway.topics import Topics

FRAMES_MAX = 1000
QUEUE_CHARACTERS_MAX = 4 * 1024 * 1024


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
    """Queued for the socket."""


class Client:
    """A client that cannot keep up is closed, never waited for: its queue holds `frames_max` frames."""

    __slots__ = (
        "_characters",
        "_flow",
        "_frames",
        "_frames_max",
        "_held",
        "_on_close",
        "_room",
        "_wake",
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
        *,
        frames_max: int = FRAMES_MAX,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_close` is called once, when it has been decided that the connection ends."""
        self.user_id = user_id
        self.session_id = session_id
        self.topics: Topics | None = None
        self.closing: Closing | None = None
        self._frames: deque[str] = deque()
        self._characters = 0
        self._frames_max = frames_max
        self._held: list[tuple[int, str]] = []
        self._flow = Flow.SILENT
        self.delivered = 0
        """Everything up to this position has been sent, as far as it was asked for."""
        self._on_close = on_close
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # What happens.

    def wants(self, event_type: str) -> bool:
        """Whether an event of this type, happening now, concerns the client."""
        return self._flow is not Flow.SILENT and self.topics is not None and event_type in self.topics

    def offer(self, position: int, frame: str) -> None:
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

    def replay(self, position: int, frame: str) -> None:
        """An event of the past."""
        self.delivered = position
        self.put(frame)

    # The queue.

    def put(self, frame: str) -> None:
        """Queues a frame; when there is no room for it, closes the client with 4008 instead."""
        if self.closing is not None:
            return
        if len(self._frames) >= self._frames_max or self._characters > QUEUE_CHARACTERS_MAX:
            self.close(CloseCode.TOO_SLOW, "too_slow")
            return
        self._frames.append(frame)
        self._characters += len(frame)
        if self._room.is_set() and not self._half_empty():
            self._room.clear()
        self._wake.set()

    def close(self, code: int, reason: str, reconnect_in_ms: int | None = None) -> None:
        """Ends the connection; the first close counts. Waiting frames are dropped: a cursor brings them back."""
        if self.closing is not None:
            return
        self.closing = Closing(code, reason, reconnect_in_ms)
        self._frames.clear()
        self._held.clear()
        self._characters = 0
        self._flow = Flow.SILENT
        self._wake.set()
        self._room.set()
        self._on_close()

    async def next_frame(self) -> str | None:
        """The next frame to send, once there is one; None when the connection is to be closed."""
        while not self._frames:
            if self.closing is not None:
                return None
            self._wake.clear()
            await self._wake.wait()
        frame = self._frames.popleft()
        self._characters -= len(frame)
        if not self._room.is_set() and self._half_empty():
            self._room.set()
        return frame

    async def room(self) -> None:
        """Waits until the queue is at most half full, or the client is closing."""
        await self._room.wait()

    def _half_empty(self) -> bool:
        return len(self._frames) * 2 <= self._frames_max and self._characters * 2 <= QUEUE_CHARACTERS_MAX
