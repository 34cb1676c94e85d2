"""`/ws/sync`: one connection from its handshake to its close. `hub.py` and `clients.py` say what is sent."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from chassis.authentication import BEARER_SUBPROTOCOL, check_origin, socket_token
from chassis.problems import Problem, unavailable
from chassis.scopes import check_scope
from chassis.tokens import Claims, InvalidToken, TokenVerifier
from events.pg import is_outage
from litestar import WebSocket

from sync_gateway import frames
from sync_gateway.clients import Client
from sync_gateway.frames import FRAME_BYTES_MAX, CloseCode
from sync_gateway.hub import Hub
from sync_gateway.projections.feed import PUBLIC_TYPES, Feed
from sync_gateway.topics import InvalidTopic, Topics, topics

log = structlog.get_logger(__name__)

REPLAY_PAGE = 200
CATCH_UP_S_MAX = 5.0
CLOSE_GRACE_S = 10.0
"""How long a client that does not read may take to receive its `bye`."""

INBOUND_BURST = 50
INBOUND_PER_S = 10.0

Socket = WebSocket[Any, Any, Any]


class ReadModel(Protocol):
    """The consumer that fills the feed."""

    async def wait_for(self, position: int, timeout_s: float) -> bool: ...


class Allowance:
    """A token bucket: `burst` at once, `per_s` in the long run."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: int, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed at `now` (seconds, monotonic)."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SyncSockets:
    """Serves the WebSocket of every client of this process."""

    def __init__(
        self,
        hub: Hub,
        feed: Feed,
        read_model: ReadModel,
        verifier: TokenVerifier,
        *,
        allowed_origins: Collection[str],
        frames_max: int,
    ) -> None:
        self.hub = hub
        self.feed = feed
        self.read_model = read_model
        self.verifier = verifier
        self._allowed_origins = allowed_origins
        self._frames_max = frames_max

    async def serve(self, socket: Socket) -> None:
        """One connection, until it is closed by either side.

        Raises:
            Problem: 403 for a page of another origin, 503 while starting; the handshake is answered with it.
        """
        check_origin(socket, self._allowed_origins)
        try:
            claims = await self.verifier.verify(socket_token(socket))
            check_scope(frozenset(claims.scope.split()), "GET", "/ws/sync")
        except (Problem, InvalidToken) as error:
            # A browser cannot see the status of a refused handshake, but it can see a close code.
            await _refuse(socket, CloseCode.UNAUTHENTICATED, _refusal(error))
            return
        if not self.hub.started:
            raise unavailable("The gateway is starting")
        if self.hub.draining:
            await _refuse(socket, CloseCode.SERVICE_RESTART, "service_restart")
            return
        await socket.accept(subprotocols=BEARER_SUBPROTOCOL)
        await Connection(self, socket, claims, self._frames_max).run()


class Connection:
    """An accepted connection: this task reads, a second one writes."""

    def __init__(self, sockets: SyncSockets, socket: Socket, claims: Claims, frames_max: int) -> None:
        self._sockets = sockets
        self._hub = sockets.hub
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._abandoned = False
        self._client = Client(claims.sub, claims.sid, frames_max=frames_max, on_close=self._closing)
        self._allowance = Allowance(INBOUND_BURST, INBOUND_PER_S, self._loop.time())
        self._expiry = self._expire_at(claims)
        self._grace: asyncio.TimerHandle | None = None
        self._task = asyncio.current_task()

    async def run(self) -> None:
        client = self._client
        # No await between reading the position and being offered events: the cursor has no hole behind it.
        self._hub.add(client)
        revocations = self._sockets.verifier.revocations
        if revocations is not None and client.session_id in revocations:
            client.close(CloseCode.UNAUTHENTICATED, "session_revoked")  # it ended during the handshake
        client.put(frames.hello(client.session_id, self._hub.cursors.encode(self._hub.position, client.user_id)))
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write())
                await self._read()
                writer.cancel()
        except asyncio.CancelledError:
            if not self._abandoned or self._task is None or self._task.uncancel() > 0:
                raise
        finally:
            self._expiry.cancel()
            if self._grace is not None:
                self._grace.cancel()
            self._hub.remove(client)

    # Ending.

    def _expire_at(self, claims: Claims) -> asyncio.TimerHandle:
        return self._loop.call_later(
            max(0.0, claims.exp - time.time()), self._client.close, CloseCode.UNAUTHENTICATED, "token_expired"
        )

    def _closing(self) -> None:
        self._grace = self._loop.call_later(CLOSE_GRACE_S, self._abandon)

    def _abandon(self) -> None:
        """The client takes nothing, not even the close frame."""
        self._abandoned = True
        assert self._task is not None
        self._task.cancel()

    # Writing.

    async def _write(self) -> None:
        client, send = self._client, self._socket.send
        try:
            while (frame := await client.next_frame()) is not None:
                await send({"type": "websocket.send", "text": frame, "bytes": None})
            await _say_goodbye(send, *client.closing or (CloseCode.SERVICE_RESTART, ""))
        except (OSError, RuntimeError) as error:
            # The client has left, or the server closed the socket under us (an oversized frame, a missed
            # heartbeat), which it reports as RuntimeError. The reader hears of it as a disconnect, unless it is in
            # a replay that waits for room in a queue that nobody empties any more.
            log.debug("websocket_gone", error=repr(error))
            client.close(CloseCode.ABNORMAL, "gone")

    # Reading.

    async def _read(self) -> None:
        """Until the socket is disconnected, which also follows our own close."""
        client = self._client
        while True:
            message: Any = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if client.closing is not None:
                continue
            text = message.get("text")
            if not self._allowance.take(self._loop.time()):
                client.close(CloseCode.POLICY_VIOLATION, "rate_limited")
            elif text is None:
                client.close(CloseCode.UNSUPPORTED_DATA, "text_frames_only")
            elif len(text.encode()) > FRAME_BYTES_MAX:
                client.close(CloseCode.MESSAGE_TOO_BIG, "frame_too_big")
            else:
                await self._obey(text)

    async def _obey(self, text: str) -> None:
        client = self._client
        try:
            match frames.decode(text):
                case frames.Subscribe(patterns, resume):
                    await self._subscribe(topics(patterns), resume)
                case frames.Refresh(token):
                    await self._refresh(token)
                case frames.Ping():
                    client.put(frames.PONG)
        except frames.InvalidFrame as error:
            client.put(frames.error("invalid_frame", str(error)))
        except InvalidTopic as error:
            client.put(frames.error("invalid_topic", str(error)))
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("websocket_outage", error=repr(error))
            client.close(CloseCode.TRY_AGAIN_LATER, "unavailable")

    async def _refresh(self, token: str) -> None:
        client = self._client
        try:
            claims = await self._sockets.verifier.verify(token)
        except InvalidToken as error:
            client.put(frames.error(_refusal(error), "the connection goes on with the token it has"))
            return
        if claims.sub != client.user_id:
            client.put(frames.error("another_user", "a connection belongs to one user"))
            return
        client.session_id = claims.sid
        self._expiry.cancel()
        self._expiry = self._expire_at(claims)
        client.put(frames.refreshed(datetime.fromtimestamp(claims.exp, UTC)))

    async def _subscribe(self, wanted: Topics, resume: str | None) -> None:
        client = self._client
        after: int | None = None
        resync: str | None = None
        if resume is not None:
            try:
                after = self._hub.cursors.decode(resume, client.user_id)
            except Problem:
                resync = "unknown_cursor"
        client.put(frames.subscribed(wanted.patterns))
        if after is not None:
            resync = await self._resume(wanted, after)
        if resync is not None:
            client.put(frames.resync(resync))
        if client.closing is None:
            client.go_live(wanted)

    async def _resume(self, wanted: Topics, after: int) -> str | None:
        """Sends what was missed since `after`, then holds what happens now. A reason if that cannot be had.

        In two passes: the first may be long, and events that happen meanwhile are in the table for the
        second, which is short; only during that one events are held in memory.
        """
        client = self._client
        client.begin_replay(wanted, after)
        resync = await self._replay(wanted, self._hub.position)
        client.hold()
        return resync or await self._replay(wanted, self._hub.position)

    async def _replay(self, wanted: Topics, upto: int) -> str | None:
        """Sends the events between what the client was sent and `upto` (included), as fast as it reads."""
        client, sockets = self._client, self._sockets
        after = client.delivered
        if upto <= after:
            return None
        if not await sockets.read_model.wait_for(upto, CATCH_UP_S_MAX):
            client.close(CloseCode.TRY_AGAIN_LATER, "not_caught_up")
            return None
        types = [event_type for event_type in PUBLIC_TYPES if event_type in wanted]
        while client.closing is None:
            page = await sockets.feed.page(client.user_id, after=after, upto=upto, types=types, limit=REPLAY_PAGE)
            if after < page.floor:
                return "cursor_expired"
            for position, event_json in page.rows:
                await client.room()
                client.replay(position, frames.event(self._hub.cursors.encode(position, client.user_id), event_json))
                after = position
            if len(page.rows) < REPLAY_PAGE:
                client.delivered = upto
                return None
        return None


async def _refuse(socket: Socket, code: int, reason: str) -> None:
    offered = BEARER_SUBPROTOCOL in socket.scope["subprotocols"]
    await socket.accept(subprotocols=BEARER_SUBPROTOCOL if offered else None)
    try:
        async with asyncio.timeout(CLOSE_GRACE_S):
            await _say_goodbye(socket.send, code, reason)
    except (OSError, RuntimeError, TimeoutError) as error:
        log.debug("websocket_gone", error=repr(error))


async def _say_goodbye(
    send: Callable[[Any], Awaitable[None]], code: int, reason: str, reconnect_in_ms: int | None = None
) -> None:
    await send({"type": "websocket.send", "text": frames.bye(code, reason, reconnect_in_ms), "bytes": None})
    await send({"type": "websocket.close", "code": int(code), "reason": reason})


def _refusal(error: Problem | InvalidToken) -> str:
    if isinstance(error, Problem):
        return error.code
    return error.code
