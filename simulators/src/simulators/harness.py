"""For tests: a platform as a real process, and a receiver of its feed that checks every signature."""

import asyncio
import base64
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
from aiohttp import web
from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(os.urandom(32)).decode()
"""The feed secret both sides of a test share."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Batch(NamedTuple):
    """One request as the receiver saw it; its signature was good."""

    webhook_id: str
    items: list[dict[str, Any]]
    at: float
    """`time.monotonic()`."""


class Receiver:
    """Stands where sync-gateway stands. `answers` are given first, then everything is accepted."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.batches: list[Batch] = []
        self.taken: list[dict[str, Any]] = []
        """Items of batches answered 200, in order of arrival."""
        self.answers: deque[tuple[int, dict[str, str]]] = deque()
        self.reject: set[str] = set()
        self.refuse_batches_with: str | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/sync/feeds/bfc"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/api/sync/feeds/bfc", self._feed)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _feed(self, request: web.Request) -> web.Response:
        raw = await request.read()
        Webhook(SECRET).verify(raw, dict(request.headers))
        items = msgspec.json.decode(raw)["items"]
        self.batches.append(Batch(request.headers["webhook-id"], items, time.monotonic()))
        if self.answers:
            status, headers = self.answers.popleft()
            return web.Response(status=status, headers=headers)
        if self.refuse_batches_with in {item["id"] for item in items}:
            return web.Response(status=400, text="malformed")
        self.taken += items
        return web.json_response(
            {
                "items": [
                    {"id": item["id"], "status": "rejected", "reason": "unknown type"}
                    if item["id"] in self.reject
                    else {"id": item["id"], "status": "accepted"}
                    for item in items
                ]
            }
        )


class Platform:
    """A BFC simulator in a process of its own."""

    def __init__(self, feed_url: str, directory: Path, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self._feed_url = feed_url
        self._directory = directory
        self._session = session
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "simulators.platform", "bfc",
            env={
                "PATH": os.environ["PATH"],
                "PLATFORM_HTTP_PORT": str(port),
                "FEED_URL": self._feed_url,
                "FEED_SECRET": SECRET,
                "PLATFORM_KEY_FILE": str(self._directory / "bfc.pem"),
                "PLATFORM_STATE_DIR": str(self._directory / "state"),
            },
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def up() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, "the platform did not start"
            try:
                return (await self.call("GET", "/health/ready"))[0] == 200
            except aiohttp.ClientConnectionError:
                return False

        await eventually(up)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 20)

    async def call(self, method: str, path: str, body: object = None, **options: Any) -> tuple[int, Any]:
        """Status and decoded JSON of one request; an error must be a problem with a code."""
        if body is not None:
            options["data"] = msgspec.json.encode(body)
            options["headers"] = {"Content-Type": "application/json"} | options.get("headers", {})
        async with self._session.request(method, self.url + path, **options) as response:
            raw = await response.read()
            decoded: Any = msgspec.json.decode(raw) if raw else None
            if response.status >= 400:
                assert response.content_type == "application/problem+json"
                assert decoded["code"]
                assert decoded["status"] == response.status
            return response.status, decoded

    async def customer(self, customer_id: str = "BFC-1001", pin: str = "4321") -> None:
        status, _ = await self.call("POST", "/customers", {"customer_id": customer_id, "pin": pin})
        assert status in (200, 201)

    async def emit(self, customer_id: str = "BFC-1001", **fields: object) -> dict[str, Any]:
        body = {"customer_id": customer_id, "type": "kyc.completed", "data": {"level": "full"}} | fields
        status, item = await self.call("POST", "/events", body)
        assert status == 201
        return dict(item)


async def eventually(condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
    """Waits until `condition()`, awaited when it can be, holds."""
    deadline = time.monotonic() + timeout_s
    while True:
        held = condition()
        if await held if asyncio.iscoroutine(held) else held:
            return
        assert time.monotonic() < deadline, "it never came to be"
        await asyncio.sleep(0.02)
