"""How the demo talks: JSON over HTTP to Sangam and the platforms, frames from `/ws/sync`, bounded waiting."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import aiohttp
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

T = TypeVar("T")

POLL_S = 0.2
_TIMEOUT = aiohttp.ClientTimeout(total=15)
_NOT_NOW = frozenset({429, 502, 503, 504})
"""Answers that may be different a moment later: rate limited, restarting, not caught up."""


class DemoFailed(Exception):
    """The story cannot go on; the message says what happened, for a person."""


class NotNow(DemoFailed):
    """The answer may be different a moment later."""


class Reply(NamedTuple):
    """An HTTP answer that was expected."""

    status: int
    headers: Mapping[str, str]
    body: Any


class JsonClient:
    """One server, spoken to in JSON; every answer that is not expected is an error with its reason."""

    def __init__(self, session: aiohttp.ClientSession, name: str, url: str) -> None:
        self._session = session
        self.name = name
        self._url = url.rstrip("/")
        self.bearer: str | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        expect: tuple[int, ...] = (200, 201, 204),
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request.

        Raises:
            NotNow: unreachable, rate limited, restarting or not caught up.
            DemoFailed: any other status than the expected.
        """
        sent = dict(headers or {})
        if self.bearer:
            sent["Authorization"] = f"Bearer {self.bearer}"
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            sent["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method, self._url + path, data=data, headers=sent, params=params, timeout=_TIMEOUT
            ) as response:
                raw = await response.read()
                status, answered = response.status, response.headers.copy()
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise NotNow(f"{method} {path}: {self.name} did not answer ({reason})") from error
        if status not in expect:
            failure = NotNow if status in _NOT_NOW else DemoFailed
            raise failure(f"{method} {path}: {self.name} answered {status} {_reason(raw)}")
        try:
            return Reply(status, answered, msgspec.json.decode(raw) if raw else None)
        except msgspec.DecodeError as error:
            raise DemoFailed(f"{method} {path}: {self.name} answered {status} with no JSON") from error


def _reason(raw: bytes) -> str:
    """The code and detail of a problem, else the start of whatever came."""
    with contextlib.suppress(msgspec.DecodeError):
        problem = msgspec.json.decode(raw)
        if isinstance(problem, dict) and "code" in problem:
            return f"{problem['code']}: {problem.get('detail', '')} {problem.get('errors', '')}".strip()
    return raw[:200].decode(errors="replace")


async def until(
    what: str, fetch: Callable[[], Awaitable[T]], accept: Callable[[T], bool], *, timeout_s: float = 30.0
) -> T:
    """Fetch again and again until the answer is acceptable.

    Raises:
        DemoFailed: it was not within `timeout_s`; says what was waited for and what came last.
    """
    deadline = time.monotonic() + timeout_s
    last = "no answer"
    while True:
        try:
            value = await fetch()
        except NotNow as error:
            last = str(error)
        else:
            if accept(value):
                return value
            last = f"last seen: {str(value)[:500]}"
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {timeout_s:.0f} s for {what}, in vain; {last}")
        await asyncio.sleep(POLL_S)


class Frame(NamedTuple):
    """One `event` frame of `/ws/sync`."""

    arrived_at: float
    """`time.perf_counter()` when it was read from the socket."""
    event: dict[str, Any]


class EventWatch:
    """A subscription on `/ws/sync` that remembers every event frame that arrived."""

    def __init__(self, url: str, token: str, topics: list[str]) -> None:
        self._url = url
        self._token = token
        self._topics = topics
        self._frames: list[Frame] = []
        self._changed = asyncio.Condition()
        self._closed: str | None = None

    async def __aenter__(self) -> Self:
        try:
            # The token travels as a subprotocol: in a query it would end up in logs.
            protocols = [Subprotocol("bearer"), Subprotocol(self._token)]
            self._socket: ClientConnection = await connect(self._url, subprotocols=protocols)
            hello = await self._next_frame()
            await self._socket.send(msgspec.json.encode({"type": "subscribe", "topics": self._topics}), text=True)
            answer = await self._next_frame()
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError) as error:
            raise DemoFailed(f"WebSocket {self._url}: {error or type(error).__name__}") from error
        if (hello.get("type"), answer.get("type")) != ("hello", "subscribed"):
            raise DemoFailed(f"WebSocket {self._url}: expected hello and subscribed, got {hello}, {answer}")
        self._reader = asyncio.create_task(self._read(), name="event watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._socket.close()

    async def _next_frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = msgspec.json.decode(await asyncio.wait_for(self._socket.recv(), 10))
        return frame

    async def _read(self) -> None:
        try:
            async for message in self._socket:
                arrived_at = time.perf_counter()
                frame = msgspec.json.decode(message)
                if frame["type"] == "event":
                    async with self._changed:
                        self._frames.append(Frame(arrived_at, frame["event"]))
                        self._changed.notify_all()
            self._closed = "the server closed it"
        except ConnectionClosed as error:
            self._closed = str(error)
        async with self._changed:
            self._changed.notify_all()

    async def event(self, what: str, wanted: Callable[[dict[str, Any]], bool], *, timeout_s: float = 30.0) -> Frame:
        """The first frame, past or coming, whose CloudEvent is `wanted`.

        Raises:
            DemoFailed: it did not come in time, or the connection broke.
        """

        def found() -> Frame | None:
            return next((frame for frame in self._frames if wanted(frame.event)), None)

        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: found() is not None or self._closed is not None), timeout_s
                )
            frame = found()
        if frame is None:
            seen = ", ".join(sorted({str(frame.event["type"]) for frame in self._frames})) or "nothing"
            why = f"the WebSocket broke: {self._closed}" if self._closed else f"not within {timeout_s:.0f} s"
            raise DemoFailed(f"no frame for {what}: {why}; seen: {seen}")
        return frame
