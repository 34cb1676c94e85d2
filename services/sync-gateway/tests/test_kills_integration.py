"""A gateway killed with SIGKILL amid its work: no webhook is lost, and no client that comes back misses an event."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import pytest_asyncio
from aiohttp import web
from gateway_crowd import Crowd, allow_many_connections
from gateway_harness import Gateway, Received, Receiver, append, free_port, process

if TYPE_CHECKING:
    from stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

CLIENTS = 1_000
USERS = 20
WEBHOOKS = 300


class Mortal:
    """A gateway that can be killed and started again, beside a relay that goes on."""

    def __init__(self, gateway: Gateway, logs: Path) -> None:
        self.gateway = gateway
        self._logs = logs
        self._started: list[Any] = []
        self.child: subprocess.Popen[bytes]

    async def start(self) -> None:
        # A short timeout: the lease of a process that was killed runs out soon after it.
        environment = self.gateway.environment(WEBHOOK_TIMEOUT_S="1", LOG_LEVEL="warning", WEBSOCKET_FRAMES_MAX="1000")
        ready = f"{self.gateway.http}/health/ready"
        manager = process("sync_gateway", environment, ready, self._logs / f"gateway{len(self._started)}")
        self.child = await asyncio.to_thread(manager.__enter__)
        self._started.append(manager)

    def kill(self) -> None:
        os.kill(self.child.pid, signal.SIGKILL)
        self.child.wait()

    async def stop(self) -> None:
        for manager in self._started:
            await asyncio.to_thread(manager.__exit__, None, None, None)


@pytest_asyncio.fixture
async def mortal(infrastructure: "Stack", tmp_path: Path) -> AsyncIterator[Mortal]:
    allow_many_connections()
    cell = infrastructure.fresh_cell()
    gateway = Gateway(cell, free_port())
    port = free_port()
    relay = {
        **gateway.environment(),
        "EVENT_STORE_URL": cell.store_url("relay"),
        "AMQP_URL": cell.amqp_url("relay"),
        "HTTP_PORT": str(port),
    }
    running = process("events.relay", relay, f"http://127.0.0.1:{port}/health/ready", tmp_path / "relay")
    await asyncio.to_thread(running.__enter__)
    mortal = Mortal(gateway, tmp_path)
    try:
        await mortal.start()
        await gateway.publish_key()
        yield mortal
    finally:
        await mortal.stop()
        await asyncio.to_thread(running.__exit__, None, None, None)
    cell.drop()


async def test_no_webhook_in_flight_is_lost_and_no_listener_misses_an_event(mortal: Mortal) -> None:
    gateway, users = mortal.gateway, [uuid4() for _ in range(USERS)]
    tokens = [gateway.token(users[n % USERS]) for n in range(CLIENTS)]
    in_flight = 0

    async def slowly(_: Received) -> web.StreamResponse:
        nonlocal in_flight
        in_flight += 1
        await asyncio.sleep(0.05)
        in_flight -= 1
        return web.Response()

    port = int(gateway.http.rsplit(":", 1)[1])
    crowd = Crowd(port)
    async with Receiver(gateway.receiver_port) as receiver, gateway.store("ledger_transfer") as store:
        receiver.replies["/hook"] = slowly
        webhook = await gateway.webhook(gateway.ops_token(), "ledger.#", concurrency_max=4, rate_per_s=1000)
        await crowd.join(tokens)
        each = WEBHOOKS // USERS
        for user in users:
            await append(store, user, *range(1, each + 1))
        await receiver.until(WEBHOOKS // 10)
        assert in_flight, "the kill would come between two messages"
        mortal.kill()
        assert len(receiver.at("/hook")) < WEBHOOKS, "everything had been sent"
        for user in users:
            await append(store, user, each + 1)
        await mortal.start()
        await crowd.join(tokens, resume=True)
        total = WEBHOOKS + USERS
        async with asyncio.timeout(60):
            while len({message.body["sequence"] for message in receiver.at("/hook")}) < total:
                await asyncio.sleep(0.05)
        async with asyncio.timeout(30):
            while sum(map(len, crowd.received.values())) < CLIENTS * (each + 1):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)  # what comes twice comes now
        messages = receiver.at("/hook")

    # The receiver's proof, from what is signed alone: every number, and none that it does not know.
    for message in messages:
        message.verify(webhook["secret"])
    assert {message.body["sequence"] for message in messages} == set(range(1, total + 1))
    ids: dict[int, set[str]] = {}
    amounts: dict[str, list[int]] = {}
    for message in messages:
        first = message.body["sequence"] not in ids
        ids.setdefault(message.body["sequence"], set()).add(message.headers["webhook-id"])
        if first:
            amounts.setdefault(message.body["subject"], []).append(message.amount)
    assert all(len(same) == 1 for same in ids.values()), "sent again under the same id"
    assert all(of_one == list(range(1, each + 2)) for of_one in amounts.values()), "in each stream's order"
    assert len(messages) - total <= 2 * 4, "only what was in flight or not written down is sent again"

    assert all(got == set(range(1, each + 2)) for got in crowd.received.values())
    assert len(crowd.received) == CLIENTS
    assert crowd.twice == 0
    crowd.leave()
