"""`/ws/notifications`: what is raised, the moment it is, in the frames of `/ws/sync` (api.md).

Its cursor is a version of the customer's own stream, so a client that comes back reads what it missed from that stream,
however long ago it was. A client too slow to keep up is closed with 4008 and resumes.
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import asyncpg
import msgspec
import structlog
from chassis.authentication import BEARER_SUBPROTOCOL, check_origin, socket_token
from chassis.cursors import CursorCodec
from chassis.problems import Problem, unavailable
from chassis.tokens import Claims, InvalidToken, TokenVerifier
from events.contracts import encode
from events.contracts.notification import Notification
from events.envelope import RecordedEvent
from events.follower import Follower
from events.notification_texts import open_text
from events.outage import until_it_works
from events.pg import is_outage
from events.sealing import SealBroken, SubjectKeys
from events.store import EventStore
from litestar import WebSocket
from prometheus_client import Gauge

log = structlog.get_logger(__name__)

_CONNECTIONS = Gauge("notification_sockets", "Open connections on /ws/notifications")

FRAMES_MAX = 500
FRAME_BYTES_MAX = 16 * 1024
HEARTBEAT_S = 20
INBOUND_BURST = 50
INBOUND_PER_S = 10.0
_PAGE = 200
_GRACE_S = 10.0
_DRAIN_S = 3.0
_PURPOSE = "notifications"
_TYPE_PREFIX = "notification."
_TOPIC = re.compile(r"(?:[a-z0-9_]{1,64}|\*|#)(?:\.(?:[a-z0-9_]{1,64}|\*|#)){0,5}", re.ASCII)

UNSUPPORTED_DATA, POLICY_VIOLATION, TOO_BIG, RESTART, TRY_LATER = 1003, 1008, 1009, 1012, 1013
TOO_SLOW, UNAUTHENTICATED = 4008, 4401

Socket = WebSocket[Any, Any, Any]


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    topics: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = ("notification.#",)
    resume: str | None = None


class Refresh(msgspec.Struct, frozen=True, tag="refresh"):
    token: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    pass


_inbound: Final = msgspec.json.Decoder(Subscribe | Refresh | Ping)
_encoder: Final = msgspec.json.Encoder()


class _Place(msgspec.Struct, frozen=True):
    version: int


class Client:
    """A connection's bounded queue, and how far its customer's stream has been sent."""

    def __init__(self, user_id: UUID, session_id: UUID) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.closing: tuple[int, str] | None = None
        self.topics: list[list[str]] | None = None
        """None: not subscribed."""
        self.sent = 0
        self.replaying = False
        self._frames: deque[str] = deque()
        self._held: list[RecordedEvent] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, frame: str) -> None:
        if self.closing is not None:
            return
        if len(self._frames) >= FRAMES_MAX:
            self.close(TOO_SLOW, "too_slow")
            return
        self._frames.append(frame)
        if len(self._frames) * 2 > FRAMES_MAX:
            self._room.clear()
        self._wake.set()

    def hold(self, event: RecordedEvent) -> None:
        """Keeps what happens during a replay for its end."""
        if len(self._held) >= FRAMES_MAX:
            self.close(TOO_SLOW, "too_slow")
        else:
            self._held.append(event)

    def take_held(self) -> list[RecordedEvent]:
        held, self._held = self._held, []
        return held

    def close(self, code: int, reason: str) -> None:
        """The first close counts. Waiting frames are dropped: a cursor brings them back."""
        if self.closing is None:
            self.closing = (code, reason)
            self._frames.clear()
            self._room.set()
            self._wake.set()

    async def next_frame(self) -> str | None:
        while not self._frames:
            if self.closing is not None:
                return None
            self._wake.clear()
            await self._wake.wait()
        frame = self._frames.popleft()
        if len(self._frames) * 2 <= FRAMES_MAX:
            self._room.set()
        return frame

    async def room(self) -> None:
        """Waits until the queue is at most half full, or the client is closing."""
        await self._room.wait()


class NotificationSockets:
    """Every client of this process, and what its follower hears."""

    def __init__(
        self,
        store: EventStore,
        database: "asyncpg.Pool[asyncpg.Record]",
        keys: SubjectKeys,
        verifier: TokenVerifier,
        cursors: CursorCodec,
        *,
        allowed_origins: Collection[str],
    ) -> None:
        self._database = database
        self._store = store
        self._keys = keys
        self._verifier = verifier
        self._cursors = cursors
        self._allowed_origins = allowed_origins
        self._clients: dict[UUID, set[Client]] = {}
        self._follower: Follower | None = None
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        if verifier.revocations is not None:
            verifier.revocations.watch(self._revoked)

    def follow(self, follower: Follower) -> None:
        """`follower` calls `on_events`."""
        self._follower = follower

    async def on_events(self, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if event.type.startswith(_TYPE_PREFIX) and event.public and event.subject in self._clients:
                assert event.subject is not None
                opened = await until_it_works("notifier.sockets", lambda event=event: self._opened(event))  # type: ignore[misc]
                for client in self._clients.get(event.subject, ()):
                    self._offer(client, opened)

    async def _opened(self, event: RecordedEvent) -> RecordedEvent:
        """The event with its words, for the customer whom they are for."""
        payload = event.payload
        if not isinstance(payload, Notification) or event.subject is None:
            return event
        try:
            text = await open_text(self._keys, event.subject, payload)
        except SealBroken:
            log.exception("notification_does_not_open", position=event.position)
            return event
        return event if text is None else msgspec.structs.replace(event, data=encode(text))

    def _offer(self, client: Client, event: RecordedEvent) -> None:
        if client.topics is None or event.version <= client.sent:
            return
        if client.replaying:
            client.hold(event)
        else:
            self._send(client, event)

    def _send(self, client: Client, event: RecordedEvent) -> None:
        client.sent = event.version
        payload = event.payload
        if isinstance(payload, Notification) and "in_app" not in payload.channels:
            return
        if client.topics is None or not any(matches(pattern, event.type.split(".")) for pattern in client.topics):
            return
        cursor = self._cursor(event.version, client.user_id)
        client.put(f'{{"type":"event","cursor":"{cursor}","event":{_encoder.encode(event.cloud_event()).decode()}}}')

    def _cursor(self, version: int, user_id: UUID) -> str:
        return self._cursors.encode(_Place(version), purpose=_PURPOSE, caller=user_id)

    def _revoked(self, sessions: Collection[UUID]) -> None:
        for clients in self._clients.values():
            for client in clients:
                if client.session_id in sessions:
                    client.close(UNAUTHENTICATED, "session_revoked")

    async def drain(self) -> None:
        """Says goodbye to everyone; newcomers are sent away."""
        self._draining = True
        for clients in self._clients.values():
            for client in clients:
                client.close(RESTART, "service_restart")
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._empty.wait()
        except TimeoutError:
            log.warning("websockets_not_drained", users=len(self._clients))

    async def serve(self, socket: Socket) -> None:
        """One connection, until it is closed by either side.

        Raises:
            Problem: 403 for a page of another origin, 503 while starting; the handshake is answered with it.
        """
        check_origin(socket, self._allowed_origins)
        try:
            claims = await self._verifier.verify(socket_token(socket))
        except (Problem, InvalidToken) as error:
            # A browser cannot see the status of a refused handshake, but it can see a close code.
            offered = BEARER_SUBPROTOCOL in socket.scope["subprotocols"]
            await socket.accept(subprotocols=BEARER_SUBPROTOCOL if offered else None)
            await _goodbye(socket, UNAUTHENTICATED, error.code)
            return
        if self._follower is None or not self._follower.started.is_set():
            raise unavailable("The service is starting")
        await socket.accept(subprotocols=BEARER_SUBPROTOCOL)
        if self._draining:
            await _goodbye(socket, RESTART, "service_restart")
            return
        await self._converse(socket, claims)

    async def _converse(self, socket: Socket, claims: Claims) -> None:
        client = Client(claims.sub, claims.sid)
        self._clients.setdefault(client.user_id, set()).add(client)
        self._empty.clear()
        _CONNECTIONS.inc()
        expiry = [self._expire(client, claims)]
        writer = asyncio.create_task(self._write(socket, client))
        try:
            # Where a client that asks for nothing else may come back to.
            head = await self._head(client.user_id)
            client.put(
                _frame(
                    "hello",
                    session_id=claims.sid,
                    resume=self._cursor(head, client.user_id),
                    heartbeat_s=HEARTBEAT_S,
                )
            )
            await self._read(socket, client, expiry)
        finally:
            expiry[0].cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            mates = self._clients[client.user_id]
            mates.discard(client)
            if not mates:
                del self._clients[client.user_id]
            if not self._clients:
                self._empty.set()
            _CONNECTIONS.dec()

    async def _head(self, user_id: UUID) -> int:
        head: int | None = await self._database.fetchval(
            "SELECT max(version) FROM notification WHERE user_id = $1", user_id
        )
        return head or 0

    def _expire(self, client: Client, claims: Claims) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, claims.exp - time.time()), client.close, UNAUTHENTICATED, "token_expired")

    async def _write(self, socket: Socket, client: Client) -> None:
        try:
            while (frame := await client.next_frame()) is not None:
                async with asyncio.timeout(_GRACE_S):
                    await socket.send({"type": "websocket.send", "text": frame, "bytes": None})
            assert client.closing is not None
            await _goodbye(socket, *client.closing)
        except TimeoutError:
            # It takes nothing any more, not even a goodbye.
            client.close(TOO_SLOW, "too_slow")
            await _goodbye(socket, TOO_SLOW, "too_slow")
        except (OSError, RuntimeError) as error:
            log.debug("websocket_gone", error=repr(error))
            client.close(TOO_SLOW, "gone")

    async def _read(self, socket: Socket, client: Client, expiry: list[asyncio.TimerHandle]) -> None:
        allowance, at = float(INBOUND_BURST), time.monotonic()
        while True:
            message: Any = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if client.closing is not None:
                continue
            now = time.monotonic()
            allowance, at = min(INBOUND_BURST, allowance + (now - at) * INBOUND_PER_S) - 1, now
            text = message.get("text")
            if allowance < 0:
                client.close(POLICY_VIOLATION, "rate_limited")
            elif text is None:
                client.close(UNSUPPORTED_DATA, "text_frames_only")
            elif len(text.encode()) > FRAME_BYTES_MAX:
                client.close(TOO_BIG, "frame_too_big")
            else:
                await self._obey(client, text, expiry)

    async def _obey(self, client: Client, text: str, expiry: list[asyncio.TimerHandle]) -> None:
        try:
            match _inbound.decode(text):
                case Subscribe(topics, resume):
                    await self._subscribe(client, topics, resume)
                case Refresh(token):
                    await self._refresh(client, token, expiry)
                case Ping():
                    client.put('{"type":"pong"}')
        except (msgspec.DecodeError, RecursionError) as error:
            client.put(_frame("error", code="invalid_frame", detail=str(error)))
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("websocket_outage", error=repr(error))
            client.close(TRY_LATER, "unavailable")

    async def _refresh(self, client: Client, token: str, expiry: list[asyncio.TimerHandle]) -> None:
        try:
            claims = await self._verifier.verify(token)
        except InvalidToken as error:
            client.put(_frame("error", code=error.code, detail="the connection goes on with the token it has"))
            return
        if claims.sub != client.user_id:
            client.put(_frame("error", code="another_user", detail="a connection belongs to one user"))
            return
        client.session_id = claims.sid
        expiry[0].cancel()
        expiry[0] = self._expire(client, claims)
        client.put(_frame("refreshed", expires_at=claims.exp))

    async def _subscribe(self, client: Client, topics: Sequence[str], resume: str | None) -> None:
        if not topics or not all(_TOPIC.fullmatch(topic) for topic in topics):
            client.put(
                _frame("error", code="invalid_topic", detail="words joined by dots; * is one word, # any number")
            )
            return
        after: int | None = None
        resync: str | None = None
        if resume is not None:
            try:
                after = self._cursors.decode(resume, _Place, purpose=_PURPOSE, caller=client.user_id).version
            except Problem:
                resync = "unknown_cursor"
        client.put(_frame("subscribed", topics=topics))
        if resync is not None:
            client.put(_frame("resync", reason=resync))
        client.topics = [topic.split(".") for topic in topics]
        if after is not None:
            await self._replay(client, after)

    async def _replay(self, client: Client, after: int) -> None:
        """Sends what was missed, then what happened meanwhile."""
        client.replaying, client.sent = True, after
        client.take_held()
        while client.closing is None:
            page = await self._store.read_stream(f"inbox-{client.user_id}", client.sent, limit=_PAGE)
            for event in page:
                await client.room()
                if event.public:
                    self._send(client, await self._opened(event))
                else:
                    client.sent = event.version
            if len(page) < _PAGE:
                break
        # No await from here on: nothing happens between the last of these and the first that is sent as it happens.
        client.replaying = False
        for event in client.take_held():
            self._offer(client, event)


def matches(pattern: list[str], words: list[str]) -> bool:
    """Whether AMQP's topic pattern fits: `*` is one word, `#` any number of them. Types have few words."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return len(pattern) == 1 or any(matches(pattern[1:], words[n:]) for n in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and matches(pattern[1:], words[1:])


async def _goodbye(socket: Socket, code: int, reason: str) -> None:
    try:
        async with asyncio.timeout(_GRACE_S):
            await socket.send(
                {"type": "websocket.send", "text": _frame("bye", code=code, reason=reason), "bytes": None}
            )
            await socket.send({"type": "websocket.close", "code": code, "reason": reason})
    except (OSError, RuntimeError, TimeoutError) as error:
        log.debug("websocket_gone", error=repr(error))


def _frame(kind: str, **members: Any) -> str:
    return _encoder.encode({"type": kind, **members}).decode()
