"""What `/stats`, `/health` and `/pending` say is what happened: counted, timed and added up over replicas."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from events.store import EventStore
from gateway_harness import Gateway, Receiver, append, status
from sync_gateway.measures import BUCKET_S, MEASURES_DDL, Measures

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def database(cell: "Cell") -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    pool = await asyncpg.create_pool(cell.database_url("sync_gateway"), min_size=1, max_size=2)
    await pool.execute(MEASURES_DDL)
    yield pool
    await pool.close()


async def test_a_window_adds_up_replicas_and_restarts(database: "asyncpg.Pool[asyncpg.Record]") -> None:
    first, second = Measures(database), Measures(database)
    for measures in (first, second):
        for by in (1, 2):
            measures.count("frames", by)
            await measures.flush()
    restarted = Measures(database)
    restarted.count("frames", 4)
    sums = await restarted.window(timedelta(minutes=1))
    assert sums.counts == {"frames": 10}


async def test_quantiles_are_those_of_the_samples_to_a_place(database: "asyncpg.Pool[asyncpg.Record]") -> None:
    replicas = [Measures(database), Measures(database)]
    for number in range(1, 1001):
        replicas[number % 2].latency("latency", [float(number)])
        if number % 100 == 0:
            await asyncio.gather(*(measures.flush() for measures in replicas))
    sums = await replicas[0].window(timedelta(minutes=1))
    assert sums.counts == {"latency": 1000}
    found = sums.quantiles("latency")
    assert found == {
        "p50": pytest.approx(500, rel=0.05),
        "p95": pytest.approx(950, rel=0.05),
        "p99": pytest.approx(990, rel=0.05),
    }
    assert sums.quantiles("nothing") == {"p50": None, "p95": None, "p99": None}


async def test_a_window_ends_and_says_how_long_it_is(database: "asyncpg.Pool[asyncpg.Record]") -> None:
    measures = Measures(database)
    measures.count("new")
    await measures.flush()
    old = datetime.now(UTC) - timedelta(seconds=60 + 2 * BUCKET_S)
    await database.execute("INSERT INTO measure VALUES ($1, $2, 'old', 1)", old, uuid4())
    sums = await measures.window(timedelta(seconds=60))
    assert sums.counts == {"new": 1}
    assert 60 <= sums.seconds < 60 + BUCKET_S + 1
    assert (await measures.window(timedelta(minutes=10))).counts == {"new": 1, "old": 1}


async def figures(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.get("/api/sync/stats?window=24h", gateway.ops_token())
    assert answer.status == 200
    return dict(answer.body)


def kyc(customer_id: str, number: int) -> dict[str, Any]:
    return {
        "id": f"{customer_id}-{number}",
        "type": "kyc.completed",
        "occurred_at": "2026-02-12T09:00:00Z",
        "customer_id": customer_id,
        "data": {"level": "full"},
    }


async def test_stats_count_what_came_in_and_what_went_out(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path, customer_id = uuid4(), f"/{uuid4()}", f"BFC-{uuid4().hex[:12]}"
    token = gateway.token(user_id)
    await gateway.settled()
    before = await figures(gateway)
    async with Receiver(gateway.receiver_port) as receiver, gateway.connect(token) as listener:
        await listener.receive()
        await listener.subscribe("ledger.#")
        good = [kyc(customer_id, number) for number in range(7)]
        await gateway.push("bfc", [*good, "no item"])
        await gateway.push("bfc", good[:3])
        await gateway.webhook(token, "ledger.#", path=path, retry_delays_s=[0])
        receiver.replies[path] = status(500)
        await append(ledger_store, user_id, 1)
        await receiver.until(2, path)  # given up
        receiver.replies.clear()
        await append(ledger_store, user_id, 2, 3, 4)
        await receiver.until(5, path)
        for _ in range(4):
            await listener.receive()
        during = await figures(gateway)
        assert during["websocket_connections"] == before["websocket_connections"] + 1
        async with asyncio.timeout(10):
            while (after := await figures(gateway))["webhooks"]["delivered"] < before["webhooks"]["delivered"] + 3:
                await asyncio.sleep(0.05)
    counted = {name: after["events"][name] - before["events"][name] for name in after["events"]}
    # Received: eleven items. Delivered: four frames, and three messages. Failed: no item, and the message given up.
    assert counted == {"received": 11, "applied": 7, "duplicates": 3, "delivered": 4 + 3, "failed": 1 + 1}
    hooks = {name: after["webhooks"][name] - before["webhooks"][name] for name in ("failed_attempts", "exhausted")}
    assert hooks == {"failed_attempts": 2, "exhausted": 1}
    assert after["success_rate"] < 1
    assert 0 < after["latency_ms"]["p50"] <= after["latency_ms"]["p95"] <= after["latency_ms"]["p99"] < 60_000
    assert 0 < after["webhooks"]["latency_ms"]["p50"] < 60_000
    short = (await gateway.get("/api/sync/stats?window=1s", gateway.ops_token())).body
    # A window is made of whole buckets: other tests' figures may be in the first one, here and in what is compared.
    assert 0 < short["throughput_per_s"] <= short["events"]["received"] + short["events"]["delivered"], "per second"


async def test_what_waits_is_pending_with_its_age_and_attempts(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[path] = status(500)
        webhook = await gateway.webhook(token, "ledger.#", path=path, retry_delays_s=[3600])
        appended = datetime.now(UTC)
        await append(ledger_store, user_id, 1)
        async with asyncio.timeout(10):
            while True:
                items = (await gateway.get("/api/sync/pending", token)).body["items"]
                if items and items[0]["attempt"]:
                    break
                await asyncio.sleep(0.05)
        (item,) = items
        assert (item["kind"], item["target"], item["attempt"]) == ("webhook", webhook["id"], 1)
        assert item["event_id"] == receiver.at(path)[0].headers["webhook-id"]
        assert 0 <= item["age_s"] <= (datetime.now(UTC) - appended).total_seconds() + 1
        wait_s = (datetime.fromisoformat(item["next_attempt_at"]) - appended).total_seconds()
        assert 0.7 * 3600 < wait_s < 1.3 * 3600
        stranger = await gateway.get("/api/sync/pending", gateway.token(uuid4()))
        assert stranger.body["items"] == []
        await gateway.call("DELETE", f"/api/sync/webhooks/{webhook['id']}", token)


async def test_too_many_batches_at_once_are_429_and_taken_later(gateway: Gateway) -> None:
    customer_id = f"BFC-{uuid4().hex[:12]}"
    batches = [[kyc(customer_id, number) for number in range(start, start + 500)] for start in range(0, 10_000, 500)]
    answers = await asyncio.gather(*(gateway.push("bfc", batch) for batch in batches))
    refused = [place for place, answer in enumerate(answers) if answer.status == 429]
    assert refused, "twenty at once were taken"
    assert {answer.status for answer in answers} == {200, 429}
    for place in refused:
        assert answers[place].body["code"] == "too_many_batches"
        assert int(answers[place].headers["Retry-After"]) > 0
        assert {item["status"] for item in (await gateway.push("bfc", batches[place])).body["items"]} == {"accepted"}
