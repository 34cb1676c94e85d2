"""The HTTP server of a service: uvicorn, with a stop that no request meets.

A proxy in front learns that a server is going by a refused connection, and tries another replica: nothing was sent yet.
What it must never meet is a connection that accepts its request and then breaks. So a server that stops goes on
accepting for a while and closes each connection with its answer; when the proxy has none left, it takes what the kernel
has accepted in the meantime, closes the listening socket at that same moment, and answers the rest.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chassis.wire import WebSocketProtocol

DRAIN_S_MAX = 10
"""How long requests under way may take to finish at shutdown."""

LINGER_S_MAX = 5.0
"""So long a stopping server accepts connections at most. Longer than a proxy keeps an idle one (nginx here: 4 s)."""

_FRAME_BYTES_MAX = 64 * 1024
_KEEP_ALIVE_S = 75  # longer than nginx keeps its connections to us, so that it never meets a closed one
_LOOK_S = 0.02
_LAST_ANSWERS_S = 2.0
_CLOSE = (b"connection", b"close")

SERVER_OPTIONS: Final[dict[str, Any]] = {
    "http": HttpToolsProtocol,
    "ws": WebSocketProtocol,
    "ws_max_size": _FRAME_BYTES_MAX,
    "ws_per_message_deflate": False,  # compression buffers cost more memory per connection than frames
    "lifespan": "on",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "timeout_keep_alive": _KEEP_ALIVE_S,
    "timeout_graceful_shutdown": DRAIN_S_MAX,
}
"""How every service speaks HTTP and WebSocket (uvicorn)."""


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the service says when it stops, with `drain`."""

    def __init__(self, app: Litestar, *, host: str, port: int) -> None:
        super().__init__(uvicorn.Config(app, host=host, port=port, **SERVER_OPTIONS))
        self._listening: socket.socket | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens and answers until `should_exit`."""
        assert sockets is None, "the server binds its own"
        bound = self.config.bind_socket()
        # A second handle on the same listening socket: closing the first resets no connection.
        self._listening = bound.dup()
        try:
            await super().serve([bound])
        finally:
            self._listening.close()

    async def drain(self) -> None:
        """Returns when no proxy holds a connection any more, and none can be made."""
        self.config.encoded_headers = [*self.config.encoded_headers, _CLOSE]
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        await self._until_no_connections(LINGER_S_MAX)
        await self._stop_listening()
        await self._until_no_connections(_LAST_ANSWERS_S)

    async def _stop_listening(self) -> None:
        if self._listening is None or not self.started:
            return
        for server in self.servers:
            server.close()
        waiting = []
        with contextlib.suppress(OSError):
            while True:
                waiting.append(self._listening.accept()[0])
        self._listening.close()  # with nothing awaited since the last `accept`: nobody is left in the queue
        loop = asyncio.get_running_loop()
        protocol = partial(
            HttpToolsProtocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        for connection in waiting:
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # it has gone meanwhile
                await loop.connect_accepted_socket(protocol, connection)

    async def _until_no_connections(self, timeout_s: float) -> None:
        """WebSockets do not count: those who hold them are told by the service."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while any(  # noqa: ASYNC110 - uvicorn tells nobody when one goes
                    isinstance(each, HttpToolsProtocol) for each in self.server_state.connections
                ):
                    await asyncio.sleep(_LOOK_S)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
