"""The push side: signed (the receiver verifies every batch), in order, until taken; and its faults."""

import signal
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from simulators.feed import BATCH_BYTES_MAX, BATCH_ITEMS_MAX, RETRY_AFTER_MAX_S, fitting, retry_after_s
from simulators.harness import Platform, Receiver, eventually
from simulators.journal import FeedItem

NOW = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)


def _sequences(receiver: Receiver, customer_id: str = "BFC-1001") -> list[int]:
    return [item["sequence"] for item in receiver.taken if item["customer_id"] == customer_id]


def _numbers(items: list[dict[str, Any]]) -> list[int]:
    return [item["sequence"] for item in items]


async def test_events_arrive_as_the_feed_contract_says(platform: Platform, receiver: Receiver) -> None:
    await platform.customer()
    data = {"transaction_id": "T1", "account_id": "SB-1001", "amount": "85000.00"}
    item = await platform.emit(type="transaction.posted", data=data, occurred_at="2026-02-12T09:00:00Z")
    await eventually(lambda: receiver.taken)
    assert receiver.taken == [item]
    assert item == {
        "id": item["id"],
        "sequence": 1,
        "type": "transaction.posted",
        "occurred_at": "2026-02-12T09:00:00Z",
        "customer_id": "BFC-1001",
        "data": data,
    }
    assert item["id"].startswith("bfc-")


async def test_nothing_is_lost_while_the_gateway_is_down(platform: Platform, receiver: Receiver) -> None:
    await receiver.stop()
    for customer_id in ("BFC-1", "BFC-2"):
        await platform.customer(customer_id)
    for _ in range(25):
        await platform.emit("BFC-1")
        await platform.emit("BFC-2")
    assert (await platform.call("GET", "/health/ready"))[1]["pending"] == 50
    await receiver.start()
    await eventually(lambda: len(receiver.taken) == 50)
    assert _sequences(receiver, "BFC-1") == list(range(1, 26))
    assert _sequences(receiver, "BFC-2") == list(range(1, 26))

    async def settled() -> bool:
        return bool((await platform.call("GET", "/health/ready"))[1]["pending"] == 0)

    await eventually(settled)


async def test_nothing_is_lost_when_the_platform_is_killed(platform: Platform, receiver: Receiver) -> None:
    await receiver.stop()
    await platform.customer()
    for _ in range(10):
        await platform.emit()
    await platform.stop(signal.SIGKILL)
    await receiver.start()
    await platform.start()
    await eventually(lambda: len(receiver.taken) == 10)
    assert _sequences(receiver) == list(range(1, 11))


async def test_a_failed_batch_is_repeated_under_its_id(platform: Platform, receiver: Receiver) -> None:
    receiver.answers.extend([(500, {}), (401, {}), (503, {})])
    await platform.customer()
    await platform.emit()
    await eventually(lambda: receiver.taken)
    assert len(receiver.batches) == 4
    assert len({batch.webhook_id for batch in receiver.batches}) == 1
    assert all(batch.items == receiver.taken for batch in receiver.batches)


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured(platform: Platform, receiver: Receiver, status: int) -> None:
    receiver.answers.append((status, {"Retry-After": "2"}))
    await platform.customer()
    await platform.emit()
    await eventually(lambda: receiver.taken)
    first, second = receiver.batches
    assert second.at - first.at >= 2


async def test_a_rejected_item_is_not_sent_again_and_is_counted(platform: Platform, receiver: Receiver) -> None:
    receiver.reject.add("bad-1")
    await platform.customer()
    await platform.emit(id="bad-1")
    await platform.emit(id="good-1")

    async def settled() -> bool:
        health = (await platform.call("GET", "/health/ready"))[1]
        return (health["pending"], health["rejected"]) == (0, 1)

    await eventually(settled)
    assert sorted(item["id"] for item in receiver.taken) == ["bad-1", "good-1"]


async def test_one_item_that_makes_a_batch_unacceptable_holds_up_no_other(
    platform: Platform, receiver: Receiver
) -> None:
    receiver.refuse_batches_with = "poison"
    await platform.customer()
    await platform.call("POST", "/control/pause")
    for number in range(5):
        await platform.emit(id="poison" if number == 2 else f"good-{number}")
    await platform.call("POST", "/control/resume")
    await eventually(lambda: len(receiver.taken) == 4)
    assert [item["id"] for item in receiver.taken] == ["good-0", "good-1", "good-3", "good-4"]

    async def counted() -> bool:
        return bool((await platform.call("GET", "/health/ready"))[1]["rejected"] == 1)

    await eventually(counted)


async def test_paused_feed_sends_nothing_until_resumed(platform: Platform, receiver: Receiver) -> None:
    await platform.customer()
    assert (await platform.call("POST", "/control/pause"))[1]["paused"] is True
    for _ in range(3):
        await platform.emit()
    await platform.call("GET", "/customers")
    assert receiver.batches == []
    await platform.call("POST", "/control/resume")
    await eventually(lambda: _sequences(receiver) == [1, 2, 3])


async def test_duplicating_feed_repeats_under_the_same_and_another_id(platform: Platform, receiver: Receiver) -> None:
    await platform.customer()
    await platform.call("POST", "/control/duplicate")
    item = await platform.emit()
    await eventually(lambda: len(receiver.batches) == 3)
    first, second, third = receiver.batches
    assert first.webhook_id == second.webhook_id != third.webhook_id
    assert first.items == second.items == third.items == [item]


async def test_shuffling_feed_is_out_of_order_and_complete(platform: Platform, receiver: Receiver) -> None:
    await platform.customer()
    await platform.call("POST", "/control/shuffle")

    async def disorder() -> bool:
        for _ in range(5):
            await platform.emit()
        return any(_numbers(batch.items) != sorted(_numbers(batch.items)) for batch in receiver.batches)

    await eventually(disorder)
    await platform.call("POST", "/control/resume")
    _, listed = await platform.call("GET", "/customers")
    last = listed["items"][0]["last_sequence"]
    await eventually(lambda: sorted(_numbers(receiver.taken)) == list(range(1, last + 1)))


async def test_live_feed_runs_until_it_is_turned_off(platform: Platform, receiver: Receiver) -> None:
    await platform.customer("BFC-1")
    await platform.customer("BFC-2")
    opened = {"account_id": "SB-1", "kind": "savings", "currency": "INR", "opening_balance": "10.00"}
    await platform.emit("BFC-1", type="account.opened", data=opened)
    await platform.call("POST", "/control/live", {"every_s": 0.1})
    await eventually(lambda: len(receiver.taken) >= 4)
    assert {item["customer_id"] for item in receiver.taken} == {"BFC-1"}, "BFC-2 has no account"
    assert {item["type"] for item in receiver.taken[1:]} == {"transaction.posted"}
    assert {item["data"]["account_id"] for item in receiver.taken} == {"SB-1"}
    await platform.call("POST", "/control/live", {"every_s": 0})
    _, listed = await platform.call("GET", "/customers")
    last = listed["items"][0]["last_sequence"]
    await eventually(lambda: len(receiver.taken) == last)
    await platform.emit("BFC-2")
    await eventually(lambda: receiver.taken[-1]["customer_id"] == "BFC-2")
    assert len(receiver.taken) == last + 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("7", 7),
        ("Thu, 12 Feb 2026 09:00:30 GMT", 30),
        ("Thu, 12 Feb 2026 08:00:00 GMT", 0),
        ("999999", RETRY_AFTER_MAX_S),
        ("soon", 0),
        ("-5", 0),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, NOW) == seconds


def _item(number: int, size: int = 10) -> FeedItem:
    return FeedItem(
        id=f"e-{number}",
        sequence=number,
        type="t",
        occurred_at="2026-02-12T09:00:00Z",
        customer_id="B",
        data=msgspec.Raw(msgspec.json.encode({"text": "x" * size})),
    )


def test_a_batch_is_bounded_by_count_and_bytes_and_never_empty() -> None:
    many = [_item(number) for number in range(BATCH_ITEMS_MAX + 5)]
    assert fitting(many) == many[:BATCH_ITEMS_MAX]
    big = [_item(number, 400_000) for number in range(3)]
    assert fitting(big) == big[:2]
    assert fitting([_item(1, BATCH_BYTES_MAX + 1)]) == [_item(1, BATCH_BYTES_MAX + 1)]
