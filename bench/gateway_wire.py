"""The other ends of the gateway's benches: an HTTP receiver, and a server that broadcasts."""

import asyncio
import sys
from typing import Any

import uvloop

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


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
