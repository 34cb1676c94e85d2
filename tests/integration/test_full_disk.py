"""A broker whose disk was full: its quorum queues are down, and it is started again without a hand.

`deploy/local/full_disk_drill.py` does it to the whole product.
"""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import packages
import ports
import pytest
from events.outage import BROKER_ERRORS
from full_disk_drill import filled, small_disk
from rabbitmq import ADMIN, VHOST, RabbitServer, amqp_url
from supervisor import Supervisor

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="needs a file system of its own: root on Linux"
    ),
]

PASSWORD = secrets.token_hex(16)


@pytest.fixture
def disk() -> Iterator[Path]:
    with small_disk(size_mb=450) as place:
        yield place


@pytest.fixture
def broker(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RabbitServer, Supervisor]]:
    monkeypatch.setattr("supervisor._LOOK_EVERY_S", 2.0)
    packages.require(["rabbitmq-server", "epmd"], print)
    taken = ports.assign(tmp_path / "ports.json", dict.fromkeys(("amqp", "management", "distribution", "epmd")))
    server = RabbitServer(
        disk,
        port=taken["amqp"],
        management_port=taken["management"],
        distribution_port=taken["distribution"],
        epmd_port=taken["epmd"],
        passwords={ADMIN: PASSWORD},
        disposable=True,
    )
    server.prepare()
    supervisor = Supervisor(tmp_path / "logs", str(disk))
    supervisor.start(server.programs())
    yield server, supervisor
    supervisor.close()


async def keep_publishing(server: RabbitServer) -> int:
    """Gives messages to a quorum queue until the broker confirms no more of them; how many it has confirmed."""
    confirmed = 0
    with contextlib.suppress(*BROKER_ERRORS):
        async with await connect(server) as connection:
            exchange = await (await connection.channel()).get_exchange("sangam.dead")
            while True:
                await exchange.publish(message(), routing_key="", timeout=5)
                confirmed += 1
    return confirmed


async def connect(server: RabbitServer) -> aio_pika.abc.AbstractConnection:
    return await aio_pika.connect(amqp_url(ADMIN, PASSWORD, "127.0.0.1", server.port, VHOST), timeout=5)


def message() -> aio_pika.Message:
    return aio_pika.Message(b"x" * 1_000, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def test_a_broker_that_ran_out_of_disk_comes_back_by_itself(
    broker: tuple[RabbitServer, Supervisor], disk: Path
) -> None:
    server, supervisor = broker
    await asyncio.to_thread(supervisor.wait_ready, None, 60)
    publishing = asyncio.create_task(keep_publishing(server))
    await asyncio.sleep(0.5)
    assert server.why_broken() is None
    with filled(disk, leaving=0):
        confirmed = await publishing
        assert confirmed > 0
        assert await asyncio.to_thread(server.why_not_ready) is None, "the node itself does not notice"
        assert server.why_broken() is None, "there is no room to start it again"
        assert supervisor.snapshot()["rabbitmq"]["restarts"] == 0
    assert "quorum queues are down" in (server.why_broken() or "")
    async with asyncio.timeout(60):
        while not supervisor.snapshot()["rabbitmq"]["restarts"]:
            await asyncio.sleep(0.1)
    await asyncio.to_thread(supervisor.wait_ready, None, 60)
    async with await connect(server) as connection:
        channel = await connection.channel()
        await (await channel.get_exchange("sangam.dead")).publish(message(), routing_key="", timeout=10)
        kept = (await channel.declare_queue("sangam.dead", passive=True)).declaration_result.message_count
    assert kept is not None
    assert kept > confirmed, "what it had confirmed, and the one of now"
