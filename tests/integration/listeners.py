"""Customers who listen to `/ws/sync` through everything: each socket comes back with its cursor, as clients should."""

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import aiohttp
import msgspec
from customers import Customer, refresh

if TYPE_CHECKING:
    from stack import Stack

TOPIC = "ledger.account.posted"

_REFRESH_S = 200.0
"""Access tokens live for five minutes."""
_PAUSE_S_MAX = 2.0


class _Data(msgspec.Struct):
    item_id: str


class _Event(msgspec.Struct):
    data: _Data


class _Frame(msgspec.Struct):
    type: str
    cursor: str = ""
    resume: str = ""
    event: _Event | None = None
    reconnect_in_ms: int | None = None
    reason: str = ""


_decode = msgspec.json.Decoder(_Frame).decode


class Session:
    """A customer who is signed in for as long as it takes; their sockets share it."""

    def __init__(self, stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> None:
        self._stack, self._http = stack, http
        self.customer = customer
        self.sockets: list[Listener] = []

    async def keep(self) -> None:
        """Refreshes the tokens, and hands them to the open sockets."""
        while True:
            await asyncio.sleep(_REFRESH_S * random.uniform(0.9, 1.1))
            self.customer = await refresh(self._stack, self._http, self.customer)
            for socket in self.sockets:
                await socket.renew()


class Listener:
    """One socket of a customer, and how often it was told of each item.

    Args:
        items: how many the run emits at most; an item's number is at the end of its id.
    """

    def __init__(self, url: str, http: aiohttp.ClientSession, session: Session, items: int) -> None:
        self._url, self._http, self._session = url, http, session
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._cursor: str | None = None
        self._pause_s = 0.0
        self.connections = 0
        self.told = bytearray(items)
        self.frames = 0
        session.sockets.append(self)

    async def run(self) -> None:
        """Listens until cancelled.

        Raises:
            AssertionError: the gateway has broken the protocol.
        """
        while True:
            try:
                await self._follow()
            except (OSError, TimeoutError, aiohttp.ClientError):
                # The gateway is away. All others come back too: in turns.
                self._pause_s = min(_PAUSE_S_MAX, 0.2 + 2 * self._pause_s) * random.uniform(0.5, 1)
            await asyncio.sleep(self._pause_s)

    async def renew(self) -> None:
        """Goes on with the session's newest token, without a new connection."""
        socket = self._socket
        if socket is not None and not socket.closed:
            with contextlib.suppress(OSError, aiohttp.ClientError):  # it comes back with the new one
                await socket.send_json({"type": "refresh", "token": self._session.customer.access_token})

    async def _follow(self) -> None:
        protocols = ("bearer", self._session.customer.access_token)
        async with self._http.ws_connect(self._url, protocols=protocols) as socket:
            self._socket = socket
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return
                await self._take(socket, _decode(message.data))

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, frame: _Frame) -> None:
        match frame.type:
            case "event":
                assert frame.event is not None
                self._cursor = frame.cursor
                number = int(frame.event.data.item_id.rpartition("-")[2])
                self.told[number] = min(self.told[number] + 1, 255)
                self.frames += 1
            case "hello":
                self._cursor = self._cursor or frame.resume
                await socket.send_json({"type": "subscribe", "topics": [TOPIC], "resume": self._cursor})
            case "subscribed":
                self.connections += 1
                self._pause_s = 0.0
            case "bye":
                self._pause_s = 1.0 if frame.reconnect_in_ms is None else frame.reconnect_in_ms / 1000
            case "error" | "resync":
                raise AssertionError(frame)
