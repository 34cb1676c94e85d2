"""Fan-out: every event of the log passes here once per process, on to the sockets of its customer."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import msgspec
from chassis import frames
from chassis.clients import Client, Clients, try_again_ms
from chassis.cursors import CursorCodec
from chassis.frames import CloseCode
from chassis.topics import Topics
from events.envelope import RecordedEvent
from events.follower import Follower

from sync_gateway.meter import Meter
from sync_gateway.projections.feed import PUBLIC_TYPES, Feed

_PURPOSE = "sync"
_OFFERS_PER_TURN = 50
REPLAY_PAGE = 200
CATCH_UP_S_MAX = 5.0


class ReadModel(Protocol):
    """The consumer that fills the feed."""

    async def wait_for(self, position: int, timeout_s: float) -> bool: ...


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
    """How far the log has been offered to this process's clients, and what of it is sent to one that comes back."""

    def __init__(
        self, clients: Clients, cursors: Cursors, feed: Feed, read_model: ReadModel, meter: Meter | None = None
    ) -> None:
        self._clients = clients
        self._cursors = cursors
        self._feed = feed
        self._read_model = read_model
        self._meter = meter
        self._follower: Follower | None = None
        self._offered = 0

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

    # What happens.

    async def on_events(self, events: Sequence[RecordedEvent]) -> None:
        """The follower's callback. `position` and what clients were offered always change together."""
        offered = 0
        for event in events:
            clients = self._clients.of(event.subject)
            if clients:
                self._offer(event, clients)
                offered += 1
            self._offered = event.position
            if clients and offered % _OFFERS_PER_TURN == 0:
                # A burst must not overrun the queues of clients whose sockets only need their turn.
                await asyncio.sleep(0)
        if self._meter is not None:
            if offered:
                self._meter.count("websocket.events", offered)
            now = datetime.now(UTC)
            self._meter.latency(
                "latency",
                [
                    (now - event.recorded_at).total_seconds() * 1000
                    for event in events
                    if event.public and event.subject
                ],
            )

    def _offer(self, event: RecordedEvent, clients: Collection[Client]) -> None:
        if not event.public:
            return
        frames_sent = 0
        frame: bytes | None = None
        for client in clients:
            if client.wants(event.type):
                if frame is None:
                    cursor = self._cursors.encode(event.position, client.user_id)
                    frame = frames.event(cursor, frames.cloud_event(event))
                client.offer(event.position, frame)
                frames_sent += 1
        if self._meter is not None and frames_sent:
            self._meter.count("websocket.frames", frames_sent)

    # What has happened (`chassis.sockets.Source`).

    async def cursor(self, user_id: UUID) -> str:
        """Where a client that begins now may come back to."""
        return self._cursors.encode(self.position, user_id)

    async def resume(self, client: Client, wanted: Topics, cursor: str) -> str | None:
        """Sends what was missed since the cursor, then holds what happens now. A reason if that cannot be had.

        In two passes: the first may be long, and events that happen meanwhile are in the table for the
        second, which is short; only during that one events are held in memory.

        Raises:
            Problem: 400 `invalid_cursor`.
        """
        client.begin_replay(wanted, self._cursors.decode(cursor, client.user_id))
        resync = await self._replay(client, wanted, self.position)
        client.hold()
        return resync or await self._replay(client, wanted, self.position)

    async def _replay(self, client: Client, wanted: Topics, upto: int) -> str | None:
        """Sends the events between what the client was sent and `upto` (included), as fast as it reads."""
        after = client.delivered
        if upto <= after:
            return None
        if not await self._read_model.wait_for(upto, CATCH_UP_S_MAX):
            client.close(CloseCode.TRY_AGAIN_LATER, "not_caught_up", try_again_ms())
            return None
        types = [event_type for event_type in PUBLIC_TYPES if event_type in wanted]
        while client.closing is None:
            page = await self._feed.page(client.user_id, after=after, upto=upto, types=types, limit=REPLAY_PAGE)
            if after < page.floor:
                return "cursor_expired"
            for position, event_json in page.rows:
                await client.room()
                client.replay(position, frames.event(self._cursors.encode(position, client.user_id), event_json))
                after = position
            if len(page.rows) < REPLAY_PAGE:
                client.delivered = upto
                return None
        return None
