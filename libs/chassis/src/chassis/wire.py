"""uvicorn's WebSocket protocol for thousands of connections: less memory each, and frames written as they are.

A subclass, not a copy: handshake, parsing, pings and the closing handshake stay uvicorn's and `websockets`'.
"""

import asyncio
from typing import Any, Final, Protocol

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION: Final = "sangam.wire"
"""Under `scope["extensions"]`: the connection's `WebSocketProtocol`."""


class Peer(Protocol):
    """Who is told of what becomes of the connection."""

    def writable(self) -> None:
        """The client reads again: `write` may take more."""
        ...

    def lost(self) -> None:
        """The connection is gone."""
        ...


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection. `write` sends without a copy per client, and without waiting for one that does not read."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.queue = _Inbox()  # type: ignore[assignment]  # asyncio's takes 3 KiB
        self._peer: Peer | None = None

    def attach(self, peer: Peer) -> None:
        """`peer` is told from now on. What only the handshake needed (headers, the token among them) is let go."""
        self._peer = peer
        self.request.headers.clear()
        self.response.headers.clear()
        self.scope["headers"] = []
        self.scope["subprotocols"] = []
        self.scope["state"] = {}
        self.scope["extensions"] = {}  # what refers to itself is freed late

    def write(self, frame: bytes) -> bool:
        """Takes a whole frame (`chassis.frames.framed`); False if the client does not read at the moment."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return True  # nobody gets it any more, and `lost` says so
        if not self.writable.is_set():
            return False
        self.transport.write(frame)
        return True

    def abort(self) -> None:
        """Ends the connection without waiting for the client."""
        self.transport.abort()

    # What uvicorn calls.

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"][EXTENSION] = self  # type: ignore[assignment]

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._peer is not None:
            self._peer.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._peer is not None:
            self._peer.lost()
            self._peer = None


class _Inbox:
    """What of `asyncio.Queue` uvicorn uses, for one reader. Reading from the socket stops while a message waits."""

    __slots__ = ("_messages", "_reader")

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._reader: asyncio.Future[None] | None = None

    def put_nowait(self, message: Any) -> None:
        self._messages.append(message)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def empty(self) -> bool:
        return not self._messages

    async def get(self) -> Any:
        while not self._messages:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._messages.pop(0)
