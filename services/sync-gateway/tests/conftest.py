"""Fixtures of this service's integration tests."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from events.store import EventStore
    from gateway_harness import Gateway
    from stack import Stack


@pytest.fixture(scope="module")
def gateway(infrastructure: "Stack", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Gateway"]:
    """A gateway process and a relay on a cell of their own, shared by a module: use customers of your own."""
    from gateway_harness import Gateway, free_port, process

    cell = infrastructure.fresh_cell()
    logs = tmp_path_factory.mktemp("gateway")
    gateway = Gateway(cell, free_port())
    relay_port = free_port()
    relay = {
        **gateway.environment(),
        "EVENT_STORE_URL": cell.store_url("relay"),
        "AMQP_URL": cell.amqp_url("relay"),
        "HTTP_PORT": str(relay_port),
    }
    with (
        process("events.relay", relay, f"http://127.0.0.1:{relay_port}/health/ready", logs / "relay"),
        process("sync_gateway", gateway.environment(), f"{gateway.http}/health/ready", logs / "gateway"),
    ):
        asyncio.run(gateway.publish_key())
        yield gateway
    cell.drop()


@pytest_asyncio.fixture
async def ledger_store(gateway: "Gateway") -> AsyncIterator["EventStore"]:
    """The event store as ledger-transfer: for events of customers."""
    async with gateway.store("ledger_transfer") as store:
        yield store
