"""The gateway: webhooks, connections, fan-out, and a storm of clients that come back after a kill.

Each beside its raw ceiling on the same machine. Command → frame is in `latency.py`, protocol conformance in
`gateway_conformance.py`.
"""

import asyncio
import base64
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import psutil
from chassis.egress import Egress, signed_headers
from events import pg
from events.envelope import new_id
from report import ROUNDS, Figure, Line

sys.path.insert(0, str(Path(__file__).parents[1] / "services" / "sync-gateway" / "tests"))
from gateway_crowd import Client, Crowd, allow_many_connections
from gateway_harness import Gateway, append, free_port, process
from sync_gateway.announcements import Announcements
from sync_gateway.deliveries import DeliveryLedger, enqueue
from sync_gateway.delivery import NewDelivery
from sync_gateway.dispatch import Dispatcher
from sync_gateway.endpoint import Limits, Owner
from sync_gateway.measures import MEASURES_DDL, Measures
from sync_gateway.secret_box import SecretBox

if TYPE_CHECKING:
    from provision import Cell

WEBHOOKS = 4_000
CHAINS = 400
CONCURRENCY = 64
CONNECTIONS = 10_000
FAN_OUT = 1_000
EVENTS = 20
RETURNING = 5_000
USERS = 50
_SECRET = "whsec_" + base64.b64encode(b"bench" * 6).decode()


def _other_end(what: str, port: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, str(Path(__file__).parent / "gateway_wire.py"), what, str(port)])


# Webhooks.


async def _raw_posts(url: str, count: int) -> None:
    body = json.dumps({"type": "ledger.transfer.completed", "data": "x" * 700}).encode()
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            headers = signed_headers([_SECRET], f"msg_{new_id()}", datetime.now(UTC), body)
            async with session.post(url, data=body, headers=headers) as response:
                await response.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


async def _never(*_: object) -> None:
    raise AssertionError("no webhook fails here")


async def _webhooks(cell: "Cell") -> list[Line]:
    port = free_port()
    receiver = _other_end("receive", port)
    url = cell.database_url("sync_gateway")
    database = await asyncpg.create_pool(url, min_size=0, max_size=8, reset=pg.keep_session)
    url = f"http://127.0.0.1:{port}/hook"
    box = SecretBox(secrets.token_bytes(32))
    ledger = DeliveryLedger(Announcements(()))
    await database.execute(ledger.ddl + MEASURES_DDL)
    raw, ours = [], []

    async def compose(_: str, body: bytes) -> bytes | None:
        return body

    try:
        await asyncio.sleep(1)
        for _ in range(ROUNDS):
            started_s = time.perf_counter()
            await _raw_posts(url, WEBHOOKS)
            raw.append(WEBHOOKS / (time.perf_counter() - started_s))
            webhook_id = uuid4()
            await database.execute(
                "INSERT INTO webhook_endpoint (webhook_id, url, patterns, state, retry_delays_s, concurrency_max,"
                " rate_per_s, sealed_secret) VALUES ($1, $2, '{}', 'active', '{1,1}', $3, 100000, $4)",
                webhook_id, url, CONCURRENCY, box.seal(_SECRET, str(webhook_id)),
            )  # fmt: skip
            body = b'"type":"ledger.transfer.completed","data":"%s"}' % (b"x" * 700)
            now = datetime.now(UTC)
            async with database.acquire() as db, db.transaction():
                await enqueue(
                    db,
                    [
                        NewDelivery(webhook_id, "event", new_id(), "bench", None, f"s-{n % CHAINS}", body, now)
                        for n in range(WEBHOOKS)
                    ],
                )
            async with Egress([f"127.0.0.1:{port}"], timeout_s=10) as egress:
                owner = Owner(_never, _never, _never, compose)
                dispatcher = Dispatcher(database, egress, box, owner, Limits(5, 30), Measures(database))
                started_s = time.perf_counter()
                running = asyncio.create_task(dispatcher.run())
                while not running.done() and await database.fetchval(
                    "SELECT count(*) FROM webhook_delivery WHERE webhook_id = $1 AND status <> 'delivered'", webhook_id
                ):
                    await asyncio.sleep(0.05)
                ours.append(WEBHOOKS / (time.perf_counter() - started_s))
                if running.done():
                    running.result()  # raises why it ended
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            attempts = await database.fetchval("SELECT count(*) FROM webhook_attempt WHERE webhook_id = $1", webhook_id)
            assert attempts == WEBHOOKS, "an attempt row for each"
    finally:
        receiver.terminate()
        await database.close()
    return [
        Line(
            f"webhooks, {CHAINS} streams, durable attempts",
            Figure(ours),
            "/s",
            "aiohttp POST loop, signed",
            Figure(raw),
            "≥ 0.5×, ≥ 2,000/s",
        )
    ]


# WebSockets.


@asynccontextmanager
async def gateway_process(cell: "Cell", directory: Path) -> AsyncIterator[tuple[Gateway, Callable[[], Any], Any]]:
    """A relay and a gateway; `start` starts the gateway (again)."""
    gateway = Gateway(cell, free_port())
    relay_port = free_port()
    relay = {
        **gateway.environment(),
        "EVENT_STORE_URL": cell.store_url("relay"),
        "AMQP_URL": cell.amqp_url("relay"),
        "HTTP_PORT": str(relay_port),
        "LOG_LEVEL": "warning",
    }
    environment = gateway.environment(LOG_LEVEL="warning", WEBSOCKET_FRAMES_MAX="2000")
    started = []

    async def start() -> Any:
        manager = process("sync_gateway", environment, f"{gateway.http}/health/ready", directory / "gateway.log")
        child = await asyncio.to_thread(manager.__enter__)
        started.append(manager)
        return child

    with process("events.relay", relay, f"http://127.0.0.1:{relay_port}/health/ready", directory / "relay.log"):
        child = await start()
        await gateway.publish_key()
        try:
            yield gateway, start, child
        finally:
            for manager in started:
                manager.__exit__(None, None, None)


def _tokens(gateway: Gateway, users: list[UUID], count: int) -> list[str]:
    by_user = [gateway.token(user, exp=int(time.time()) + 3000) for user in users]
    return [by_user[n % len(users)] for n in range(count)]


async def _fan_out(crowd: Crowd, send: Callable[[int], Any], events: int) -> float:
    """Frames per second until every client has got all of them."""
    before = [client.frames for client in crowd.clients]
    started_s = time.perf_counter()
    await send(events)
    async with asyncio.timeout(60):
        while any(client.frames - had < events for client, had in zip(crowd.clients, before, strict=True)):
            await asyncio.sleep(0.01)
    return len(crowd.clients) * events / (time.perf_counter() - started_s)


async def _raw_fan_out(frame: str) -> list[float]:
    port = free_port()
    server = _other_end("broadcast", port)
    try:
        await asyncio.sleep(1)
        crowd = Crowd(port)
        await crowd.join(["x"] * FAN_OUT)
        for client in crowd.clients:
            client._on_frame = lambda client, payload: None

        async def send(count: int) -> None:
            crowd.clients[0].send(f"{count} {frame}".encode())

        rates = [await _fan_out(crowd, send, EVENTS) for _ in range(ROUNDS)]
        crowd.leave()
        return rates
    finally:
        server.terminate()


async def _sockets(cell: "Cell", directory: Path) -> list[Line]:
    lines = []
    async with gateway_process(cell, directory) as (gateway, start, child), gateway.store("ledger_transfer") as store:
        port = int(gateway.http.rsplit(":", 1)[1])
        users = [uuid4() for _ in range(USERS)]

        # Memory per connection.
        before = psutil.Process(child.pid).memory_info().rss
        crowd = Crowd(port)
        started_s = time.perf_counter()
        await crowd.join(_tokens(gateway, users, CONNECTIONS))
        rate = CONNECTIONS / (time.perf_counter() - started_s)
        each = (psutil.Process(child.pid).memory_info().rss - before) / CONNECTIONS / 1024
        lines.append(Line(f"{CONNECTIONS:,} WebSockets, memory each", Figure([each]), "KiB", "", None, "≤ 25 KiB"))
        lines.append(Line("connected and subscribed", Figure([rate]), "/s", "", None, ""))
        crowd.leave()
        await asyncio.sleep(2)

        # Fan-out of one customer's events to many connections.
        user = uuid4()
        crowd = Crowd(port)
        await crowd.join(_tokens(gateway, [user], FAN_OUT))
        frame = ""

        def keep(client: Client, payload: bytes) -> None:
            nonlocal frame
            frame = frame or payload.decode()

        for client in crowd.clients:
            client._on_frame = keep

        async def send(count: int) -> None:
            await append(store, user, *range(1, count + 1))

        rates = [await _fan_out(crowd, send, EVENTS) for _ in range(ROUNDS)]
        crowd.leave()
        raw = await _raw_fan_out(frame)
        lines.append(
            Line(
                f"{EVENTS} events to {FAN_OUT:,} sockets, append included",
                Figure(rates),
                "frames/s",
                "websockets.broadcast",
                Figure(raw),
                "≥ 0.7×",
            )
        )

        # A kill while everybody listens and events go on.
        crowd = Crowd(port)
        tokens = _tokens(gateway, users, RETURNING)
        await crowd.join(tokens)
        await append(store, users[0], 1)
        child.send_signal(signal.SIGKILL)
        killed_s = time.perf_counter()
        for number, user in enumerate(users):
            await append(store, user, *range(2 if number == 0 else 1, 11))
        await start()
        await crowd.join(tokens, resume=True)
        async with asyncio.timeout(60):
            while sum(len(got) for got in crowd.received.values()) < RETURNING * 10:
                await asyncio.sleep(0.05)
        took_s = time.perf_counter() - killed_s
        lost = RETURNING * 10 - sum(len(got) for got in crowd.received.values())
        assert (lost, crowd.twice) == (0, 0), (lost, crowd.twice)
        crowd.leave()
        lines.append(
            Line(f"{RETURNING:,} clients back after SIGKILL, 0 lost, 0 twice", Figure([took_s]), "s", "", None, "")
        )
    return lines


async def measure(cell: "Cell", other_cell: "Cell") -> list[Line]:
    """The gateway's lines of the report."""
    allow_many_connections()
    with tempfile.TemporaryDirectory(prefix="sangam-gateway-") as directory:
        return await _webhooks(cell) + await _sockets(other_cell, Path(directory))
