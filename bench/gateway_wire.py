"""The other ends of the gateway's benches: WebSocket clients that cost next to nothing, and an HTTP receiver."""

import asyncio
import base64
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

import uvloop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Client(asyncio.Protocol):
    """Speaks just enough of RFC 6455 to subscribe and to count what comes."""

    def __init__(self, token: str, on_frame: Callable[["Client", bytes], None]) -> None:
        self._token = token
        self._on_frame = on_frame
        self._buffer = bytearray()
        self._open = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        self.frames = 0
        self.number = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /ws/sync HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: bearer, {self._token}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            head, found, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                if not self.ready.done():
                    self.ready.set_exception(ConnectionError(head.decode(errors="replace")[:200]))
                self.transport.close()
                return
            self._open = True
            self._buffer = bytearray(rest)
        while (frame := self._next()) is not None:
            opcode, payload = frame
            if opcode == 1:
                self.frames += 1
                self._on_frame(self, payload)
            elif opcode == 9:
                self.send(payload, opcode=10)
            elif opcode == 8:
                self.transport.close()

    def _next(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1] & 0x7F, 2
        if length == 126:
            if len(buffer) < 4:
                return None
            length, start = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            if len(buffer) < 10:
                return None
            length, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start + length:
            return None
        opcode, payload = buffer[0] & 0x0F, bytes(buffer[start : start + length])
        del buffer[: start + length]
        return opcode, payload

    def send(self, payload: bytes, opcode: int = 1) -> None:
        length = len(payload)
        head = (
            bytes([0x80 | opcode, 0x80 | length]) if length < 126 else struct.pack("!BBH", 0x80 | opcode, 0xFE, length)
        )
        # The mask of zeros is a mask.
        self.transport.write(head + b"\0\0\0\0" + payload)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        if not self.ready.done():
            self.ready.set_exception(error or ConnectionError("closed"))


class _Receiver(asyncio.Protocol):
    """Answers every POST with 200."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            lowered = head.lower()
            if b"content-length:" in lowered:
                length = int(lowered.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            else:
                length = 0
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._transport.write(OK)


async def _receive(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Receiver, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


async def _broadcast(port: int) -> None:
    """The raw ceiling of fan-out: a `websockets` server that broadcasts what a client sends as `<count> <text>`."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    everyone: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        everyone.add(connection)
        await connection.send('{"type":"hello"}')
        async for message in connection:
            text = str(message)
            if text.startswith("{"):
                await connection.send('{"type":"subscribed"}')
                continue
            count, _, frame = text.partition(" ")
            for _ in range(int(count)):
                broadcast(everyone, frame)
                await asyncio.sleep(0)
        everyone.discard(connection)

    async with serve(
        handler,
        "127.0.0.1",
        port,
        compression=None,
        ping_interval=None,
        select_subprotocol=lambda c, p: p[0] if p else None,
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run({"receive": _receive, "broadcast": _broadcast}[sys.argv[1]](int(sys.argv[2])))
