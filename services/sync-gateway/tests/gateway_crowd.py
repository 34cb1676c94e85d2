"""Thousands of WebSocket clients of a gateway, which cost next to nothing themselves."""

import asyncio
import base64
import json
import os
import resource
import struct
from collections.abc import Callable
from typing import Any

_AT_ONCE = 200


def allow_many_connections() -> None:
    """Raises this process's limit of open files as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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


class Crowd:
    """Clients of a gateway, and what has come to them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.clients: list[Client] = []
        self.received: dict[int, set[int]] = {}
        """By client's number, the amounts of the events it got."""
        self.twice = 0
        self.cursors: dict[int, str] = {}
        self.subscribed = 0

    async def join(self, tokens: list[str], *, resume: bool = False, topics: list[str] | None = None) -> None:
        """Connects a client per token, a bounded number at a time, until each is subscribed."""
        turn = asyncio.Semaphore(_AT_ONCE)
        self.clients = []

        async def one(number: int, token: str) -> None:
            while True:
                async with turn:
                    try:
                        client = await self._connect(number, token, resume, topics or ["ledger.#"])
                        async with asyncio.timeout(30):
                            await client.ready
                    except (OSError, TimeoutError):
                        await asyncio.sleep(0.2)
                        continue
                self.clients.append(client)
                return

        await asyncio.gather(*(one(number, token) for number, token in enumerate(tokens)))

    async def _connect(self, number: int, token: str, resume: bool, topics: list[str]) -> Client:
        def on_frame(client: Client, payload: bytes) -> None:
            if payload.startswith(b'{"type":"event"'):
                frame = json.loads(payload)
                amount = frame["event"]["data"]["amount_minor"]
                got = self.received.setdefault(number, set())
                self.twice += amount in got
                got.add(amount)
                self.cursors[number] = frame["cursor"]
            elif payload.startswith(b'{"type":"hello"'):
                self.cursors.setdefault(number, json.loads(payload).get("resume", ""))
                subscribe: dict[str, Any] = {"type": "subscribe", "topics": topics}
                if resume:
                    subscribe["resume"] = self.cursors[number]
                client.send(json.dumps(subscribe).encode())
            elif payload.startswith(b'{"type":"subscribed"'):
                client.ready.set_result(None)

        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: Client(token, on_frame), "127.0.0.1", self._port)
        client.number = number
        return client

    async def return_lost(self, token: str) -> None:
        """Connects again, with its cursor, whoever has lost its connection."""

        async def again(place: int) -> None:
            try:
                client = await self._connect(self.clients[place].number, token, True, ["ledger.#"])
                async with asyncio.timeout(10):
                    await client.ready
            except (OSError, TimeoutError):
                return
            self.clients[place] = client

        lost = [place for place, client in enumerate(self.clients) if client.lost.is_set()]
        await asyncio.gather(*(again(place) for place in lost[:_AT_ONCE]))

    def leave(self) -> None:
        for client in self.clients:
            client.transport.abort()
