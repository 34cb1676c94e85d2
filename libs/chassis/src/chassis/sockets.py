"""`/ws/sync` and `/ws/notifications`: one connection from its handshake to its close (protocol: api.md).

`clients.py` says what becomes of an event; a service says, as the `Source`, where its clients' cursors lead.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import structlog
from events.pg import is_outage
from litestar.connection import ASGIConnection

from chassis import frames
from chassis.authentication import BEARER_SUBPROTOCOL, check_origin, socket_token
from chassis.clients import FRAMES_MAX, Client, Clients, try_again_ms
from chassis.frames import FRAME_BYTES_MAX, CloseCode
from chassis.problems import Problem, unavailable
from chassis.request import AnyConnection
from chassis.scopes import check_scope
from chassis.tokens import Claims, InvalidToken, TokenVerifier
from chassis.topics import InvalidTopic, Topics, topics
from chassis.wire import EXTENSION, WebSocketProtocol

log = structlog.get_logger(__name__)

CLOSE_GRACE_S = 10.0
"""How long a client that does not read may take to receive its `bye`."""

INBOUND_BURST = 50
INBOUND_PER_S = 10.0

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Source(Protocol):
    """Where a service's events come from."""

    @property
    def started(self) -> bool:
        """Whether clients may be added."""
        ...

    async def cursor(self, user_id: UUID) -> str:
        """Where a client that is served from now on may come back to."""
        ...

    async def resume(self, client: Client, wanted: Topics, cursor: str) -> str | None:
        """Sends (`client.replay`) what was missed since the cursor; a reason where that cannot be had.

        On return the client is `held` or silent; what happens from then on is its `go_live`'s.
        """
        ...


class Sockets:
    """Serves the WebSocket at `path` for every client of this process."""

    def __init__(
        self,
        path: str,
        clients: Clients,
        source: Source,
        verifier: TokenVerifier,
        *,
        allowed_origins: Collection[str],
        frames_max: int = FRAMES_MAX,
        default_topics: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.clients = clients
        self.source = source
        self.verifier = verifier
        self.frames_max = frames_max
        self.default_topics = default_topics
        self._allowed_origins = allowed_origins
        if verifier.revocations is not None:
            verifier.revocations.watch(clients.sessions_ended)

    async def open(self, scope: Any, receive: Receive, send: Send) -> Callable[[], Awaitable[None]]:
        """Judges the handshake; what is returned answers it and serves the connection until either side closes it.

        Raises:
            Problem: 403 for a page of another origin, 503 while starting; the handshake is answered with it.
        """
        await receive()  # websocket.connect
        connection: AnyConnection = ASGIConnection(scope)
        check_origin(connection, self._allowed_origins)
        wire: WebSocketProtocol = scope["extensions"][EXTENSION]
        subprotocol = BEARER_SUBPROTOCOL if BEARER_SUBPROTOCOL in scope["subprotocols"] else None

        def refuse(code: int, reason: str) -> Callable[[], Awaitable[None]]:
            # A browser cannot see the status of a refused handshake, but it can see a close code.
            return lambda: _refuse(wire, send, subprotocol, code, reason)

        try:
            claims = await self.verified(socket_token(connection))
        except (Problem, InvalidToken) as error:
            return refuse(CloseCode.UNAUTHENTICATED, error.code)
        if not self.source.started:
            raise unavailable("The service is starting")
        if self.clients.draining:
            return refuse(CloseCode.SERVICE_RESTART, "service_restart")
        return Connection(self, wire, receive, send, claims).run

    async def verified(self, token: str) -> Claims:
        """Whose token it is; one that was narrowed must still be good for this.

        Raises:
            InvalidToken, Problem: 403 `insufficient_scope`.
        """
        claims = await self.verifier.verify(token)
        check_scope(frozenset(claims.scope.split()), "GET", self.path)
        return claims


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


class Connection:
    """An accepted connection. Its task only reads: frames are written where they are put (`chassis.wire`)."""

    __slots__ = (
        "_allowance", "_bye_sent", "_client", "_closer", "_expiry", "_grace", "_loop", "_receive", "_send", "_sockets",
        "_wire",
    )  # fmt: skip

    def __init__(self, sockets: Sockets, wire: WebSocketProtocol, receive: Receive, send: Send, claims: Claims) -> None:
        self._sockets = sockets
        self._wire = wire
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._client = Client(claims.sub, claims.sid, wire, frames_max=sockets.frames_max, on_close=self._say_goodbye)
        self._allowance = Allowance(INBOUND_BURST, INBOUND_PER_S, self._loop.time())
        self._grace: asyncio.TimerHandle | None = None
        self._bye_sent = False
        self._closer: asyncio.Task[None] | None = None
        self._expiry = self._expire_at(claims)

    async def run(self) -> None:
        client, sockets = self._client, self._sockets
        try:
            await self._send({"type": "websocket.accept", "subprotocol": BEARER_SUBPROTOCOL, "headers": []})
        except OSError:
            self._expiry.cancel()
            return
        self._wire.attach(self)
        sockets.clients.add(client)
        try:
            revocations = sockets.verifier.revocations
            if revocations is not None and client.session_id in revocations:
                client.close(CloseCode.UNAUTHENTICATED, "session_revoked")  # it ended during the handshake
            await self._or_try_later(self._greet())
            await self._read()
        finally:
            self._expiry.cancel()
            if self._grace is not None:
                self._grace.cancel()
            sockets.clients.remove(client)

    async def _greet(self) -> None:
        client = self._client
        client.put(frames.hello(client.session_id, await self._sockets.source.cursor(client.user_id)))

    # What the wire tells.

    def writable(self) -> None:
        """The client reads again."""
        if self._client.closing is None:
            self._client.flush()
        else:
            self._say_goodbye()

    def lost(self) -> None:
        """The client is gone. The reader hears of it as a disconnect, unless it is in a replay that waits for room."""
        self._bye_sent = True  # to nobody
        self._client.close(CloseCode.ABNORMAL, "gone")

    # Ending.

    def _expire_at(self, claims: Claims) -> asyncio.TimerHandle:
        return self._loop.call_later(
            max(0.0, claims.exp - time.time()), self._client.close, CloseCode.UNAUTHENTICATED, "token_expired"
        )

    def _say_goodbye(self) -> None:
        """Called when it has been decided that the connection ends, and again when the client reads again."""
        closing = self._client.closing
        assert closing is not None
        if self._bye_sent:
            return
        if self._grace is None:
            # It may take nothing, not even the close frame.
            self._grace = self._loop.call_later(CLOSE_GRACE_S, self._wire.abort)
        if self._wire.write(frames.bye(*closing)):
            self._bye_sent = True
            self._closer = self._loop.create_task(_close(self._send, closing.code, closing.reason))

    # Reading.

    async def _read(self) -> None:
        """Until the socket is disconnected, which also follows our own close."""
        client = self._client
        while True:
            message: Any = await self._receive()
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
                await self._or_try_later(self._obey(text))

    async def _or_try_later(self, doing: Awaitable[None]) -> None:
        try:
            await doing
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("websocket_outage", error=repr(error))
            self._client.close(CloseCode.TRY_AGAIN_LATER, "unavailable", try_again_ms())

    async def _obey(self, text: str) -> None:
        client = self._client
        try:
            match frames.decode(text):
                case frames.Subscribe(patterns, resume):
                    await self._subscribe(topics(patterns or self._sockets.default_topics), resume)
                case frames.Refresh(token):
                    await self._refresh(token)
                case frames.Ping():
                    client.put(frames.PONG)
        except frames.InvalidFrame as error:
            client.put(frames.error("invalid_frame", str(error)))
        except InvalidTopic as error:
            client.put(frames.error("invalid_topic", str(error)))

    async def _subscribe(self, wanted: Topics, resume: str | None) -> None:
        client = self._client
        client.put(frames.subscribed(wanted.patterns))
        if resume is not None:
            try:
                resync = await self._sockets.source.resume(client, wanted, resume)
            except Problem as error:
                if error.code != "invalid_cursor":
                    raise
                resync = "unknown_cursor"
            if resync is not None:
                client.put(frames.resync(resync))
        if client.closing is None:
            client.go_live(wanted)

    async def _refresh(self, token: str) -> None:
        client = self._client
        try:
            claims = await self._sockets.verified(token)
        except (Problem, InvalidToken) as error:
            client.put(frames.error(error.code, "the connection goes on with the token it has"))
            return
        if claims.sub != client.user_id:
            client.put(frames.error("another_user", "a connection belongs to one user"))
            return
        client.session_id = claims.sid
        self._expiry.cancel()
        self._expiry = self._expire_at(claims)
        client.put(frames.refreshed(datetime.fromtimestamp(claims.exp, UTC)))


async def _refuse(wire: WebSocketProtocol, send: Send, subprotocol: str | None, code: int, reason: str) -> None:
    try:
        async with asyncio.timeout(CLOSE_GRACE_S):
            await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
            wire.write(frames.bye(code, reason))
            await _close(send, code, reason)
    except (OSError, RuntimeError, TimeoutError) as error:
        log.debug("websocket_gone", error=repr(error))


async def _close(send: Send, code: int, reason: str) -> None:
    try:
        await send({"type": "websocket.close", "code": int(code), "reason": reason})
    except (OSError, RuntimeError) as error:
        # The client has left, or the server closed the socket under us (an oversized frame, a missed heartbeat),
        # which it reports as RuntimeError.
        log.debug("websocket_gone", error=repr(error))
