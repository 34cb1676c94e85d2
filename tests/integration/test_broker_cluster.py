"""Three RabbitMQ nodes, as in production: the log goes on over two of them, and is read from the store with one."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import aio_pika
import packages
import ports
import pytest
from events.contracts import ledger
from events.envelope import new_id
from events.feed import WORK_QUEUE_ARGUMENTS, Chunk, LogFeed
from events.relay import Relay
from events.store import EventStore, StreamAppend
from rabbitmq import ADMIN, RELAY, VHOST, RabbitServer, amqp_url
from supervisor import Program, Supervisor

if TYPE_CHECKING:
    from provision import Cell

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

NODES = ("one", "two", "three")
QUEUE = "wealth.projections"
PASSWORDS = dict.fromkeys((ADMIN, RELAY, "wealth"), "known to this test alone")


class Cluster(NamedTuple):
    nodes: dict[str, RabbitServer]
    supervisor: Supervisor

    def url(self, user: str, node: str) -> str:
        return amqp_url(user, PASSWORDS[user], "127.0.0.1", self.nodes[node].port, VHOST)

    async def queue(self, node: str) -> dict[str, Any]:
        """Our queue, as that node knows it."""
        found: dict[str, Any] = await asyncio.to_thread(
            self.nodes[node].management.call, "GET", f"/queues/{VHOST}/{QUEUE}"
        )
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    packages.require(["rabbitmq-server", "epmd"], print)
    wishes = [f"{node}.{kind}" for node in NODES for kind in ("amqp", "management", "distribution")]
    taken = ports.assign(tmp_path / "ports.json", dict.fromkeys([*wishes, "epmd"]))
    supervisor = Supervisor(tmp_path / "logs", str(tmp_path))
    nodes: dict[str, RabbitServer] = {}
    for node in NODES:
        directory = tmp_path / node
        directory.mkdir()
        nodes[node] = RabbitServer(
            directory,
            port=taken[f"{node}.amqp"],
            management_port=taken[f"{node}.management"],
            distribution_port=taken[f"{node}.distribution"],
            epmd_port=taken["epmd"],
            passwords=PASSWORDS,
            disposable=True,
            name=node,
            cluster=NODES,
        )
        nodes[node].prepare()
        cookie = directory / "rabbitmq" / "home" / ".erlang.cookie"
        cookie.write_text("SANGAM")
        cookie.chmod(0o400)
    try:
        epmd, first = programs(nodes["one"])
        supervisor.start([epmd, first])
        supervisor.wait_ready(timeout_s=90)
        supervisor.start([programs(nodes[node])[1] for node in NODES[1:]])
        supervisor.wait_ready(timeout_s=90)
        yield Cluster(nodes, supervisor)
    finally:
        supervisor.close()


def programs(server: RabbitServer) -> tuple[Program, Program]:
    """epmd, and the node under its own name."""
    epmd, node = server.programs()
    return epmd, replace(node, name=server.name)


class Reader:
    """Follows the log as a consumer does; knows what came by the broker."""

    def __init__(self, feed: LogFeed) -> None:
        self.feed = feed
        self.position = 0
        self.by_broker: set[UUID] = set()
        self.read: list[UUID] = []

    async def run(self) -> None:
        while True:
            chunk: Chunk = await self.feed.next(self.position)
            ids = [event.event_id for event in chunk.events]
            self.read += ids
            if chunk.delivery_tag is not None:
                self.by_broker.update(ids)
            self.position = chunk.events[-1].position
            await self.feed.settle(chunk)


@contextlib.asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Any, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.05)


async def append(store: EventStore, count: int) -> list[UUID]:
    """Appends events one by one, so that each is published by itself."""
    ids = [new_id() for _ in range(count)]
    for event_id in ids:
        settled = ledger.TransferSettled(
            transfer_id=new_id(), platform="bfc", item_id=str(event_id), occurred_at=datetime.now(UTC)
        )
        await store.append([StreamAppend(f"ledger-{event_id}", (settled,), None)], event_id=event_id)
    return ids


async def test_the_log_goes_on_without_the_queues_leader_and_without_a_majority(cluster: Cluster, cell: "Cell") -> None:
    supervisor = cluster.supervisor
    async with await aio_pika.connect(cluster.url("wealth", "one")) as connection:
        # Its leader is where it is declared.
        await (await connection.channel()).declare_queue(QUEUE, durable=True, arguments=WORK_QUEUE_ARGUMENTS)
    queue = await cluster.queue("two")
    assert queue["leader"] == "one@localhost"
    assert set(queue["members"]) == {f"{node}@localhost" for node in NODES}

    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    relay = Relay(cell.store_url("relay"), cluster.url(RELAY, "two"))
    feed = LogFeed(queue=QUEUE, replica=False, store=store, amqp_url=cluster.url("wealth", "three"))
    reader = Reader(feed)
    async with running(relay.run(), feed.receive(), reader.run()):
        await until(lambda: feed.connected)
        appended = await append(store, 20)
        await until(lambda: len(reader.read) == 20)

        await asyncio.to_thread(supervisor.pause, "one", signal.SIGKILL)
        appended += (during := await append(store, 20))
        await until(lambda: len(reader.read) == 40)
        # Until another leads, the log serves; from then on the broker does again.
        await until(lambda: feed.connected)
        async with asyncio.timeout(120):
            while not reader.by_broker.intersection(during):
                during += (one := await append(store, 1))
                appended += one
                await asyncio.sleep(0.3)
        assert (await cluster.queue("two"))["leader"] in ("two@localhost", "three@localhost")

        await asyncio.to_thread(supervisor.pause, "two", signal.SIGKILL)
        appended += (alone := await append(store, 20))
        await until(lambda: set(alone) <= set(reader.read))
        assert not reader.by_broker.intersection(alone), "one of three nodes is no majority"

        for node in ("one", "two"):
            supervisor.resume(node)
        await asyncio.to_thread(supervisor.wait_ready, None, 90)
        during = []
        async with asyncio.timeout(120):
            while not reader.by_broker.intersection(during):
                during += (one := await append(store, 1))
                appended += one
                await asyncio.sleep(0.3)
        await until(lambda: len(reader.read) == len(appended))
    assert sorted(reader.read) == sorted(appended), "each once"
    await store.close()
