"""The gateway when things change around it: restarts, outages, a client that takes nothing, 24 hours gone by."""

import asyncio
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from events.projections import Projections, rebuild
from events.store import EventStore
from gateway_harness import Gateway, Wire, amount, append, process, stop
from sync_gateway.projections import PROJECTIONS
from sync_gateway.projections.feed import Feed

pytestmark = pytest.mark.integration


def kyc_items(customer_id: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{customer_id}-{n}",
            "type": "kyc.completed",
            "occurred_at": "2026-02-12T09:00:00Z",
            "customer_id": customer_id,
            "data": {"level": "full"},
        }
        for n in range(count)
    ]


async def test_a_stopping_gateway_says_goodbye_and_its_clients_go_on_elsewhere(
    gateway: Gateway, ledger_store: EventStore, tmp_path: Path
) -> None:
    """Two replicas on one read model: the cursor of one is good at the other."""
    replica, user_id = gateway.replica(), uuid4()
    token = gateway.token(user_id)
    with process("sync_gateway", replica.environment(), f"{replica.http}/health/ready", tmp_path / "replica") as child:
        async with replica.connect(token) as listener:
            await listener.receive()
            await listener.subscribe("ledger.#")
            await append(ledger_store, user_id, 1)
            cursor = (await listener.receive())["cursor"]
            stopping = asyncio.create_task(asyncio.to_thread(stop, child))
            code, frames = await listener.closed()
            assert code == 1012
            (bye,) = frames
            assert 500 <= bye.pop("reconnect_in_ms") < 600, "its turn to come back"
            assert bye == {"type": "bye", "code": 1012, "reason": "service_restart"}
        assert await stopping == 0
    await append(ledger_store, user_id, 2)
    async with gateway.connect(token) as listener:
        await listener.receive()
        await listener.subscribe("ledger.#", resume=cursor)
        assert amount(await listener.receive()) == 2


async def test_a_store_out_of_reach_is_503_and_nothing_is_lost(gateway: Gateway, tmp_path: Path) -> None:
    replica, customer_id = gateway.replica(), f"BFC-{uuid4().hex[:12]}"
    url = gateway.cell.store_url("sync_gateway")
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None
    assert port is not None
    wire = Wire(host, port)
    await wire.start()
    environment = replica.environment(EVENT_STORE_URL=url.replace(f":{port}/", f":{wire.port}/"))
    items = kyc_items(customer_id, 20)
    running = process("sync_gateway", environment, f"{replica.http}/health/ready", tmp_path / "replica")
    # In a thread: the wire needs this loop while the process starts.
    await asyncio.to_thread(running.__enter__)
    try:
        assert (await replica.push("bfc", items[:5])).status == 200
        wire.sever()
        answer = await replica.push("bfc", items)
        assert (answer.status, answer.body["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        wire.mend()
        again = await replica.push("bfc", items)
        assert again.status == 200
        assert [item["status"] for item in again.body["items"]] == ["duplicate"] * 5 + ["accepted"] * 15
    finally:
        await asyncio.to_thread(running.__exit__, None, None, None)
        await wire.stop()


async def test_cursors_from_before_the_kept_day_get_a_resync(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id = uuid4()
    token = gateway.token(user_id)
    async with gateway.connect(token) as listener:
        cursor = (await listener.receive())["resume"]
    await append(ledger_store, user_id, 1, 2, 3)
    deadline = time.monotonic() + 10
    while len(events := (await gateway.get("/api/sync/events", token)).body["items"]) < 3:
        assert time.monotonic() < deadline, "the read model does not move"
    database = await asyncpg.create_pool(gateway.cell.database_url("sync_gateway"), min_size=1, max_size=1)
    assert await Feed(database).prune(datetime.now(UTC) - timedelta(hours=24)) == 0
    assert await Feed(database).prune(datetime.now(UTC)) >= 3
    await database.close()

    assert (await gateway.get("/api/sync/events", token)).body["items"] == []
    expired = await gateway.get(f"/api/sync/events?after={events[0]['position']}", token)
    assert (expired.status, expired.body["code"]) == (410, "events_expired")
    async with gateway.connect(token) as listener:
        hello = await listener.receive()
        await listener.subscribe("#", resume=cursor)
        assert await listener.receive() == {"type": "resync", "reason": "cursor_expired"}
        await append(ledger_store, user_id, 4)
        assert amount(await listener.receive()) == 4
    async with gateway.connect(token) as listener:
        await listener.receive()
        await listener.subscribe("#", resume=hello["resume"])
        assert amount(await listener.receive()) == 4, "a cursor from after the prune is good"


async def test_a_client_that_takes_nothing_is_given_up(gateway: Gateway, ledger_store: EventStore) -> None:
    async def connections() -> float:
        async with aiohttp.ClientSession() as session, session.get(gateway.http + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("websocket_connections "))

    before, user_id = await connections(), uuid4()
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    stuck.connect(("127.0.0.1", urlsplit(gateway.http).port))
    async with gateway.connect(
        gateway.token(user_id), sock=stuck, max_queue=1, ping_interval=None, close_timeout=0.1
    ) as listener:
        await listener.receive()
        await listener.subscribe("#")
        assert await connections() == before + 1
        for number in range(1, 801, 50):
            await append(ledger_store, user_id, *range(number, number + 50), memo="x" * 16_000)
        deadline = time.monotonic() + 40
        while await connections() > before:
            assert time.monotonic() < deadline, "the client is still counted"
            await asyncio.sleep(0.5)


async def test_the_read_models_equal_a_rebuild(gateway: Gateway, ledger_store: EventStore) -> None:
    assert (await gateway.push("bfc", kyc_items(f"BFC-{uuid4().hex[:12]}", 5))).status == 200
    for number in range(1, 11):
        await append(ledger_store, uuid4(), number, number + 1)
    head = await ledger_store.head()
    deadline = time.monotonic() + 10
    while head.position < 15:
        # Appended is durable, but has its position in the log only a moment later.
        assert time.monotonic() < deadline, "the log does not grow"
        head = await ledger_store.head()
    database = await asyncpg.connect(gateway.cell.database_url("sync_gateway"))
    scratch = await asyncpg.connect(gateway.cell.database_url("sync_gateway"))
    async with gateway.store("sync_gateway") as store:
        await rebuild(Projections(PROJECTIONS), store, scratch, "rebuilt", up_to=head.position)
    deadline = time.monotonic() + 10
    consumed = "SELECT position FROM consumed WHERE consumer = 'sync_gateway.projections'"
    while await database.fetchval(consumed) < head.position:
        assert time.monotonic() < deadline, "the read model does not move"
        await asyncio.sleep(0.05)
    floor = await database.fetchval("SELECT coalesce(max(position), 0) FROM feed_floor")
    # Below the floor rows are pruned, which a rebuild does not know.
    for query in (
        f"SELECT * FROM %s.feed WHERE position > {floor} AND position <= {head.position} ORDER BY position",
        "SELECT * FROM %s.feed_status ORDER BY platform",
    ):
        live, rebuilt = await database.fetch(query % "public"), await database.fetch(query % "rebuilt")
        assert live == rebuilt
        assert live
    await scratch.execute("DROP SCHEMA rebuilt CASCADE")
    await scratch.close()
    await database.close()
