"""Feeds in, over HTTP, into the real event store: what is taken once, what is refused, what changes nothing."""

import base64
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from events.contracts import banking
from events.envelope import platform_stream
from gateway_harness import Gateway, running
from standardwebhooks import Webhook
from sync_gateway.feeds import event_id_of

pytestmark = pytest.mark.integration


def posting(number: int, customer_id: str, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"{customer_id}-ev-{number}",
        "sequence": number,
        "type": "transaction.posted",
        "occurred_at": "2026-02-12T09:00:00Z",
        "customer_id": customer_id,
        "data": {
            "transaction_id": f"T{number}",
            "account_id": "SB-1",
            "direction": "credit",
            "amount": f"{number}.00",
            "currency": "INR",
            "category": "salary",
        },
        **changed,
    }


@pytest.fixture
def customer_id() -> str:
    return f"BFC-{uuid4().hex[:12]}"


async def amounts(gateway: Gateway, customer_id: str) -> list[int]:
    """What is on the customer's stream."""
    async with gateway.store("sync_gateway") as store:
        events = [event.payload for event in await store.read_stream(platform_stream("bfc", customer_id))]
    return [event.amount_minor for event in events if isinstance(event, banking.TransactionPosted)]


async def test_a_batch_is_taken_in_order_and_once(gateway: Gateway, customer_id: str) -> None:
    items = [posting(n, customer_id) for n in range(1, 301)]
    answer = await gateway.push("bfc", items)
    assert answer.status == 200
    assert answer.body == {"items": [{"id": item["id"], "status": "accepted"} for item in items]}
    assert await amounts(gateway, customer_id) == [n * 100 for n in range(1, 301)]

    again = await gateway.push("bfc", items)
    assert again.status == 200
    assert {item["status"] for item in again.body["items"]} == {"duplicate"}
    assert await amounts(gateway, customer_id) == [n * 100 for n in range(1, 301)]


async def test_the_event_says_where_it_came_from(gateway: Gateway, customer_id: str) -> None:
    item = posting(1, customer_id)
    await gateway.push("bfc", [item], headers={"X-Request-Id": "feed-request-1"})
    async with gateway.store("sync_gateway") as store:
        found = await store.find(event_id_of("bfc", item["id"]))
    assert found is not None
    assert found.event.subject is None
    assert found.event.metadata.actor == "platform:bfc"
    assert found.event.metadata.platform == "bfc"
    assert found.event.metadata.correlation_id == "feed-request-1"


async def test_a_bad_item_costs_only_itself(gateway: Gateway, customer_id: str) -> None:
    good = [posting(n, customer_id) for n in (1, 2, 3)]
    bad_amount = posting(4, customer_id)
    bad_amount["data"]["amount"] = "1.005"
    answer = await gateway.push(
        "bfc",
        [good[0], bad_amount, "no object", good[1], posting(5, customer_id, type="gift.given"), {}, good[2]],
    )
    assert answer.status == 200
    statuses = [(item["id"], item["status"], item.get("reason", "").split(":")[0]) for item in answer.body["items"]]
    assert statuses == [
        (good[0]["id"], "accepted", ""),
        (bad_amount["id"], "rejected", "invalid_amount"),
        (None, "rejected", "malformed_item"),
        (good[1]["id"], "accepted", ""),
        (f"{customer_id}-ev-5", "rejected", "unknown_type"),
        (None, "rejected", "invalid_data"),
        (good[2]["id"], "accepted", ""),
    ]
    assert await amounts(gateway, customer_id) == [100, 200, 300]


async def test_a_number_that_nothing_can_hold_costs_only_its_item(gateway: Gateway, customer_id: str) -> None:
    good, bad = msgspec.json.encode(posting(1, customer_id)), b'{"id": "x", "data": {"units": 1e999}}'
    answer = await gateway.push_bytes("bfc", b'{"items": [' + bad + b"," + good + b"]}")
    assert (answer.status, [item["status"] for item in answer.body["items"]]) == (200, ["rejected", "accepted"])
    assert await amounts(gateway, customer_id) == [100]


async def test_an_id_with_other_content_is_refused(gateway: Gateway, customer_id: str) -> None:
    item = posting(1, customer_id)
    other = posting(1, customer_id)
    other["data"]["amount"] = "99999.00"
    answer = await gateway.push("bfc", [item, item, other])
    assert [(i["status"], i.get("reason")) for i in answer.body["items"]] == [
        ("accepted", None),
        ("duplicate", None),
        ("rejected", "id_reused"),
    ]
    again = await gateway.push("bfc", [other])
    assert again.body["items"] == [{"id": item["id"], "status": "rejected", "reason": "id_reused"}]
    assert await amounts(gateway, customer_id) == [100]


async def test_attacks_change_nothing(gateway: Gateway, customer_id: str) -> None:
    items = [posting(1, customer_id)]
    now = int(time.time())
    stale = datetime.now(UTC) - timedelta(minutes=10)
    attacks: list[dict[str, str]] = [
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,%%%"},
        {"webhook-signature": "v1,abc"},
        {"webhook-signature": "v1," + base64.b64encode(b"0" * 32).decode()},
        {"webhook-timestamp": "NaN"},
        {"webhook-timestamp": "inf"},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": str(now - 3600)},
        {"webhook-timestamp": str(now + 3600)},
        {"webhook-timestamp": "1e400"},
        {"webhook-id": ""},
        {"webhook-id": "msg_other"},
        {
            "webhook-id": "m",
            "webhook-timestamp": str(int(stale.timestamp())),
            "webhook-signature": Webhook(gateway.secrets["bfc"]).sign("m", stale, "{}"),
        },
    ]
    for headers in attacks:
        answer = await gateway.push("bfc", items, headers=headers)
        assert (answer.status, answer.body["code"]) == (401, "invalid_signature"), headers
        assert answer.headers["Content-Type"] == "application/problem+json"
    foreign = await gateway.push("bfc", items, key=gateway.secrets["vyomo"])
    assert (foreign.status, foreign.body["code"]) == (401, "invalid_signature")
    assert await amounts(gateway, customer_id) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"items": [NaN]}', "malformed_json"),
        (b'{"items": ' + b"[" * 100_000, "malformed_json"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"items": {}}', "invalid_request"),
        (b'{"items": [' + b",".join([b"{}"] * 1001) + b"]}", "invalid_request"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_body_that_is_no_batch_is_refused(gateway: Gateway, body: bytes, code: str) -> None:
    answer = await gateway.push_bytes("bfc", body)
    assert (answer.status, answer.body["code"]) == (400, code)


async def test_an_oversized_body_is_refused(gateway: Gateway) -> None:
    answer = await gateway.push_bytes("bfc", b'{"items": ["' + b"x" * 1024 * 1024 + b'"]}')
    assert (answer.status, answer.body["code"]) == (413, "payload_too_large")


async def test_there_are_two_platforms(gateway: Gateway) -> None:
    gateway.secrets["other"] = gateway.secrets["bfc"]
    answer = await gateway.push("other", [])
    assert (answer.status, answer.body["code"]) == (404, "unknown_platform")


async def test_health_counts_what_came(gateway: Gateway, customer_id: str) -> None:
    token = gateway.token(uuid4())
    assert (await gateway.get("/api/sync/health")).status == 401

    async def items_of(platform: str) -> dict[str, Any]:
        answer = await gateway.get("/api/sync/health", token)
        assert answer.status == 200
        return next(item for item in answer.body["items"] if item["platform"] == platform)

    before = (await items_of("bfc"))["items"]
    await gateway.push("bfc", [posting(n, customer_id) for n in range(1, 6)])
    deadline = time.monotonic() + 10
    while (status := await items_of("bfc"))["items"] < before + 5:
        assert time.monotonic() < deadline, "the read model does not move"
    assert status["items"] == before + 5
    assert status["state"] == "heard"
    assert status["last_event_at"].endswith("Z")
    assert status["success_rate"] is not None
    assert (status["lag_s"], status["open_conflicts"]) == (0.0, 0)
    vyomo = await items_of("vyomo")
    assert (vyomo["state"], vyomo["items"], vyomo["last_event_at"]) == ("never_heard", 0, None)


async def test_a_deeply_nested_item_costs_its_neighbours_nothing(gateway: Gateway, customer_id: str) -> None:
    good = [msgspec.json.encode(posting(n, customer_id)) for n in (1, 2)]
    deep = b'{"id": "deep", "data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    text = b'{"id": "quoted \\" ]}", "type": "x"}'
    answer = await gateway.push_bytes("bfc", b'{"items": [' + b",".join([good[0], deep, text, good[1]]) + b"]}")
    assert answer.status == 200
    assert [item["status"] for item in answer.body["items"]] == ["accepted", "rejected", "rejected", "accepted"]
    unended = await gateway.push_bytes("bfc", b'{"items": [' + b"[" * 50_000)
    assert (unended.status, unended.body["code"]) == (400, "malformed_json")


async def test_while_a_secret_is_rotated_both_are_valid(gateway: Gateway, customer_id: str, tmp_path: Path) -> None:
    replica = gateway.replica()
    following = "whsec_" + base64.b64encode(b"n" * 16 + customer_id.encode()[:16].ljust(16)).decode()
    async with running(replica, tmp_path / "rotating", FEED_SECRET_BFC_NEXT=following):
        for number, key in enumerate((None, following), 1):
            answer = await replica.push("bfc", [posting(number, customer_id)], key=key)
            assert [item["status"] for item in answer.body["items"]] == ["accepted"]
        other = await replica.push("vyomo", [], key=following)
        assert other.status == 401, "another platform's key"
    assert (await gateway.push("bfc", [posting(3, customer_id)], key=following)).status == 401
