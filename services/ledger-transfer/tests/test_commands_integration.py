"""Holds, limits, step-up, bulk, reversals and freezing over HTTP and a real event store."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from events.contracts.ledger import TransferCompleted, TransferSettled, TransferVoided
from events.envelope import Metadata, new_id
from ledger_client import Client, token_of
from ledger_transfer.holds import HoldNotOpen
from ledger_transfer.transfers import TransferRequest
from ledger_transfer.vigil import Vigil

pytestmark = pytest.mark.integration

LAKH = 1_00_000_00


async def rich(client: Client) -> None:
    await client.bank_posts(50 * LAKH)


async def available(client: Client) -> list[str]:
    await client.read_model.catch_up()
    return [item["available"] for item in (await client.get("/api/accounts")).json()["items"]]


async def test_a_hold_is_captured_in_part_and_the_rest_is_given_back(client: Client) -> None:
    held = await client.transfer(client.body(hold=True, expires_in_s=600))
    assert (held.status_code, held.json()["status"]) == (201, "held")
    transfer_id = held.json()["transfer_id"]
    assert await client.balances() == ["1000.00", "0.00"]
    assert await available(client) == ["600.00", "0.00"]
    assert (await client.send("GET", "/api/transfers/limits")).json()["daily"]["used"] == "400.00"
    over = await client.transfer(client.body(amount="600.01"), key="over")
    assert (over.json()["code"], over.json()["available"]) == ("insufficient_funds", "600.00")

    path = f"/api/transfers/{transfer_id}"
    too_much = await client.send("POST", f"{path}/capture", {"amount": "400.01"})
    assert (too_much.status_code, too_much.json()["code"]) == (422, "capture_exceeds_hold")
    captures = await asyncio.gather(*(client.send("POST", f"{path}/capture", {"amount": "150.00"}) for _ in range(5)))
    assert {answer.status_code for answer in captures} == {200}
    assert sum("Idempotent-Replayed" not in answer.headers for answer in captures) == 1
    assert captures[0].json()["from_balance"] == "850.00"
    assert await client.balances() == await available(client) == ["850.00", "150.00"]
    assert (await client.send("GET", "/api/transfers/limits")).json()["daily"]["used"] == "150.00"
    assert (await client.get(path)).json()["status"] == "completed"
    for again in (client.send("POST", f"{path}/capture", {"amount": "1.00"}), client.send("POST", f"{path}/void")):
        assert ((await again).status_code, (await client.get(path)).json()["amount"]) == (409, "150.00")


async def test_a_hold_is_voided_once(client: Client) -> None:
    transfer_id = (await client.transfer(client.body(hold=True))).json()["transfer_id"]
    path = f"/api/transfers/{transfer_id}"
    first, second = [await client.send("POST", f"{path}/void") for _ in range(2)]
    assert (first.json()["status"], first.content) == ("voided", second.content)
    assert second.headers["Idempotent-Replayed"] == "true"
    assert (await client.send("POST", f"{path}/capture")).json()["code"] == "hold_not_open"
    assert await available(client) == ["1000.00", "0.00"]
    assert (await client.send("POST", f"/api/transfers/{new_id()}/void")).status_code == 404
    completed = (await client.transfer(client.body(), key="k2")).json()["transfer_id"]
    assert (await client.send("POST", f"/api/transfers/{completed}/capture")).json()["code"] == "hold_not_open"


async def test_an_expired_hold_holds_nothing_recorded_or_not(client: Client) -> None:
    """The clock of the decision counts; the voiding is appended with what was decided on it, or by the timer."""
    now = datetime.now(UTC)

    def wanted(amount: int, hold_s: int | None = None) -> TransferRequest:
        return TransferRequest(
            transfer_id=new_id(),
            from_account_id=client.savings,
            to_account_id=client.wallet,
            amount_minor=amount,
            currency="INR",
            hold_s=hold_s,
        )

    nobody = Metadata(actor="test")
    first = wanted(900_00, hold_s=60)
    for request in (first, wanted(50_00, hold_s=120)):
        await client.ledger.transfer(client.user_id, request, nobody, now)
    refused = await client.ledger.transfer(client.user_id, wanted(800_00), nobody, now + timedelta(seconds=59))
    assert not isinstance(refused.event, TransferCompleted)
    spent = await client.ledger.transfer(client.user_id, wanted(800_00), nobody, now + timedelta(seconds=60))
    assert isinstance(spent.event, TransferCompleted)
    stream = await client.read_model.store.read_stream(f"ledger-{client.user_id}")
    assert [type(event.payload) for event in stream][-2:] == [TransferCompleted, TransferVoided]
    # A replica whose clock is behind cannot capture it any more.
    with pytest.raises(HoldNotOpen):
        await client.ledger.capture(client.user_id, first.transfer_id, None, nobody, now)

    await client.read_model.catch_up()
    vigil = Vigil(client.ledger, client.read_model.database)
    assert await vigil.expire(now + timedelta(seconds=119)) == 0
    assert await vigil.expire(now + timedelta(seconds=121)) == 1
    await client.read_model.catch_up()
    assert await vigil.expire(now + timedelta(seconds=121)) == 0
    assert (await client.ledger.state(client.user_id)).holds == {}
    assert await available(client) == ["200.00", "800.00"]


async def test_limits_are_lowered_at_once_and_raised_with_step_up(client: Client) -> None:
    lowered = await client.send("PUT", "/api/transfers/limits", {"daily": "500.00"})
    assert lowered.json()["daily"] | {"resets_at": 0} == {
        "limit": "500.00",
        "used": "0.00",
        "remaining": "500.00",
        "resets_at": 0,
    }
    assert (await client.transfer(client.body())).status_code == 201
    refused = (await client.transfer(client.body(amount="100.01"), key="k2")).json()
    assert (refused["code"], refused["window"], refused["remaining"]) == ("limit_exceeded", "daily", "100.00")
    path = "/api/transfers/limits"
    without = await client.send("PUT", path, {"daily": "600.00", "weekly": "1.00"})
    assert (without.status_code, without.json()["code"]) == (403, "step_up_required")
    assert without.json()["step_up"] == {"amount": "600.00", "currency": "INR", "to_account_id": None}
    wrong = await client.send("PUT", path, {"daily": "600.00"}, **client.step_up(500_00, None))
    assert wrong.status_code == 403
    proof = client.step_up(600_00, client.savings)
    raised = await client.send("PUT", path, {"daily": "600.00"}, **proof)
    assert (raised.status_code, raised.json()["daily"]["remaining"]) == (200, "200.00")
    # The same limits again change nothing and need nothing; the same token for anything else is used up.
    assert (await client.send("PUT", path, {"daily": "600.00"})).status_code == 200
    await client.send("PUT", path, {"daily": "1.00"})
    assert (await client.send("PUT", path, {"daily": "600.00"}, **proof)).status_code == 403
    zero = await client.send("PUT", path, {"daily": "0"})
    assert (zero.status_code, zero.json()["daily"]["remaining"]) == (200, "0.00")
    assert (await client.transfer(client.body(amount="0.01"), key="k3")).json()["code"] == "limit_exceeded"


async def test_above_the_threshold_one_token_is_good_for_one_transfer_of_its_amount_and_payee(client: Client) -> None:
    await rich(client)
    assert (await client.transfer(client.body(amount="200000.00"), key="at the threshold"[:2])).status_code == 201
    body = client.body(amount="200000.01")
    asked = await client.transfer(body)
    assert (asked.status_code, asked.json()["code"], asked.json()["enrol"]) == (403, "step_up_required", True)
    assert asked.json()["step_up"] == {"amount": "200000.01", "currency": "INR", "to_account_id": str(client.wallet)}
    assert (await client.get("/api/transfers?idempotency_key=k")).status_code == 404
    for other in (client.step_up(2 * LAKH, client.wallet), client.step_up(2 * LAKH + 1, client.savings)):
        assert (await client.send("POST", "/api/transfers", body, Idempotency_Key="k", **other)).status_code == 403
    proof = client.step_up(2 * LAKH + 1, client.wallet)
    # Used for two transfers at once: one of them is made. The same request again gets its first answer.
    answers = await asyncio.gather(
        *(client.send("POST", "/api/transfers", body, Idempotency_Key=key, **proof) for key in ("k", "l", "k", "l"))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 201, 403, 403]
    bulk = {"mode": "independent", "items": [client.body(amount="150000.00")] * 2}
    split = await client.send("POST", "/api/transfers/bulk", bulk, Idempotency_Key="b")
    assert (split.status_code, split.json()["step_up"]["amount"]) == (403, "300000.00")
    total = client.step_up(3 * LAKH, client.wallet)
    made = await client.send("POST", "/api/transfers/bulk", bulk, Idempotency_Key="b", **total)
    assert (made.status_code, made.json()["status"]) == (201, "completed")
    again = await client.send("POST", "/api/transfers/bulk", bulk, Idempotency_Key="c", **total)
    assert again.status_code == 403


async def test_bulk_all_or_nothing_and_each_for_itself(client: Client) -> None:
    items = [client.body(amount=amount) for amount in ("700.00", "400.00", "300.00")]
    unknown = client.body(to_account_id=str(new_id()))
    path = "/api/transfers/bulk"
    nothing = await client.send("POST", path, {"mode": "all_or_nothing", "items": items}, Idempotency_Key="a")
    assert (nothing.status_code, nothing.json()["status"]) == (422, "refused")
    assert [item["status"] for item in nothing.json()["items"]] == ["not_made", "refused", "not_made"]
    assert nothing.json()["items"][1]["code"] == "insufficient_funds"
    assert await client.balances() == ["1000.00", "0.00"]
    body = {"mode": "independent", "items": [unknown, *items]}
    each, again = [await client.send("POST", path, body, Idempotency_Key="b") for _ in range(2)]
    assert (each.status_code, each.json()["status"], each.content) == (201, "partial", again.content)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert [item["code"] for item in each.json()["items"]] == ["account_not_found", None, "insufficient_funds", None]
    assert await client.balances() == ["0.00", "1000.00"]
    for item in each.json()["items"][1:]:
        assert (await client.get(f"/api/transfers/{item['transfer_id']}")).json()["status"] == item["status"]
    other = await client.send("POST", path, {"mode": "independent", "items": items}, Idempotency_Key="b")
    assert other.json()["code"] == "idempotency_key_reused"
    assert (await client.transfer(client.body(), key="b")).json()["code"] == "idempotency_key_reused"
    none = await client.send(
        "POST", path, {"mode": "all_or_nothing", "items": [unknown, items[0]]}, Idempotency_Key="c"
    )
    assert none.status_code == 404
    for wrong in ([], items * 167):
        answer = await client.send("POST", path, {"mode": "independent", "items": wrong}, Idempotency_Key="d")
        assert answer.status_code == 400


async def test_a_transfer_is_taken_back_once_by_who_may(client: Client) -> None:
    transfer_id = (await client.transfer(client.body())).json()["transfer_id"]
    path = f"/api/transfers/{transfer_id}/reverse"
    assert (await client.send("POST", path)).json()["code"] == "insufficient_scope"
    scope = "accounts:read transfers:write transfers:reverse"
    client._authorization = {"Authorization": f"Bearer {token_of(client.user_id, client.session_id, scope=scope)}"}
    answers = await asyncio.gather(*(client.send("POST", path) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert await client.balances() == ["1000.00", "0.00"]
    body = answers[0].json()
    assert body["reverses"] == transfer_id
    first = (await client.get(f"/api/transfers/{transfer_id}")).json()
    assert (first["status"], first["reversed_by"]) == ("reversed", body["transfer_id"])
    assert (await client.send("GET", "/api/transfers/limits")).json()["daily"]["used"] == "0.00"
    back = await client.send("POST", f"/api/transfers/{body['transfer_id']}/reverse")
    assert (back.status_code, back.json()["code"]) == (422, "transfer_not_reversible")
    assert (await client.send("POST", f"/api/transfers/{new_id()}/reverse")).status_code == 404
    # The money is gone: refused, nothing recorded, and possible again once it is back.
    spent = (await client.transfer(client.body(), key="k2")).json()["transfer_id"]
    back_again = client.body(from_account_id=str(client.wallet), to_account_id=str(client.savings))
    await client.transfer(back_again, key="k3")
    refused = await client.send("POST", f"/api/transfers/{spent}/reverse")
    assert refused.json()["code"] == "insufficient_funds"
    await client.transfer(client.body(), key="k4")
    assert (await client.send("POST", f"/api/transfers/{spent}/reverse")).status_code == 201


async def test_a_frozen_account_takes_no_commands_and_every_fact(clients: tuple[Client, Client]) -> None:
    client, other = clients
    held = (await client.transfer(client.body(amount="100.00", hold=True), key="h")).json()["transfer_id"]
    path = f"/api/accounts/{client.savings}"
    assert (await other.send("POST", f"{path}/freeze")).status_code == 404
    for _ in range(2):
        assert (await client.send("POST", f"{path}/freeze")).json()["status"] == "frozen"
    for body in (client.body(), client.body(from_account_id=str(client.wallet), to_account_id=str(client.savings))):
        answer = await client.transfer(body, key=str(new_id()))
        assert (answer.status_code, answer.json()["code"]) == (422, "account_frozen")
    assert (await client.send("POST", f"/api/transfers/{held}/capture")).json()["code"] == "account_frozen"
    await client.bank_posts(-900_00)
    assert (await client.get(path)).json()["status"] == "frozen"
    assert await client.balances() == ["100.00", "0.00"]
    assert (await client.send("POST", f"{path}/unfreeze")).json()["status"] == "active"
    assert (await client.send("POST", f"/api/transfers/{held}/capture")).status_code == 200
    await client.ledger.freeze(client.user_id, client.savings, "ops", Metadata(), datetime.now(UTC))
    assert (await client.send("POST", f"{path}/unfreeze")).json()["code"] == "frozen_by_ops"


async def test_the_echo_of_a_captured_hold_and_of_a_bulk_item_settles(client: Client) -> None:
    held = (await client.transfer(client.body(hold=True))).json()["transfer_id"]
    await client.send("POST", f"/api/transfers/{held}/capture", {"amount": "50.00"})
    body: dict[str, Any] = {"mode": "independent", "items": [client.body(amount="1.00"), client.body(amount="2.00")]}
    bulk = await client.send("POST", "/api/transfers/bulk", body, Idempotency_Key="b")
    await client.bank_posts(-50_00, reference=held)
    await client.bank_posts(-2_00, reference=bulk.json()["items"][1]["transfer_id"])
    assert await client.balances() == ["947.00", "53.00"]
    stream = await client.read_model.store.read_stream(f"ledger-{client.user_id}")
    assert sum(isinstance(event.payload, TransferSettled) for event in stream) == 2
