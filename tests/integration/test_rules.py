"""Auto-replenish in the running product: over HTTP, by the platforms' feeds, by the clock, with the ledger killed."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest
from customers import Answer, Customer, call, make_customer
from events.contracts.ledger import AccountPosted, TransferCompleted
from events.contracts.ledger_rules import RuleFired
from events.envelope import derived_id
from truth import books_balance, everything_applied, nothing_parked, read_log, read_models_equal_a_rebuild

if TYPE_CHECKING:
    from stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

CUSTOMERS = 4
SALARIES = 12
IST = timezone(timedelta(hours=5, minutes=30))


async def test_rules_fire_once_while_the_ledger_is_killed(make_stack: "Callable[..., Stack]") -> None:
    """Each salary fires its percentage in its own append, the minute's run is made once, and all read models agree."""
    stack = make_stack()
    async with aiohttp.ClientSession() as http:
        customers = await asyncio.gather(*(make_customer(stack, http, savings="0.00") for _ in range(CUSTOMERS)))
        # The first minute that leaves enough time for the rules to be made, and the ledger to be killed, before it.
        due = (datetime.now(IST) + timedelta(seconds=25 + 60)).replace(second=0, microsecond=0)
        shares = [await _make(stack, http, each, _share(each)) for each in customers]
        runs = [await _make(stack, http, each, _run(each, due)) for each in customers]
        assert datetime.now(IST) < due, "else the run is tomorrow's"
        feeding = asyncio.gather(*(_salaries(stack, http, each) for each in customers))
        kills = 0
        while not feeding.done() or datetime.now(IST) < due + timedelta(seconds=2):
            await asyncio.sleep(0.7)
            if kills < 4 or timedelta(seconds=-2) < datetime.now(IST) - due < timedelta(seconds=1):
                stack.kill("ledger_transfer")
                kills += 1
                await asyncio.to_thread(stack.wait_ready, ["ledger_transfer"], 60)
        await feeding
        fired: list[Answer] = []
        async with asyncio.timeout(60):
            for each, rule_id in zip(customers, runs, strict=True):
                while not (history := await _history(stack, http, each, rule_id)).body["items"]:
                    await asyncio.sleep(0.2)
                fired.append(history)
        head = await everything_applied(stack.cell, 90)
        log = await read_log(stack.cell)
        by_id = {event.event_id: event for event in log}
        firings = [event for event in log if isinstance(event.payload, RuleFired)]
        counted = Counter(str(event.payload.rule_id) for event in firings)  # type: ignore[attr-defined]
        assert counted == dict.fromkeys(shares, SALARIES) | dict.fromkeys(runs, 1)
        for event in firings:
            firing = event.payload
            assert isinstance(firing, RuleFired)
            transfer = by_id[firing.transfer_id].payload
            assert isinstance(transfer, TransferCompleted)
            assert (str(transfer.rule_id), transfer.amount_minor) == (str(firing.rule_id), firing.amount_minor)
            if str(firing.rule_id) in shares:
                [cause] = [
                    other
                    for other in log
                    if derived_id(other.event_id, 1) == firing.transfer_id and other.stream == event.stream
                ]
                assert isinstance(cause.payload, AccountPosted), "the salary's own append"
                assert cause.version == event.version - 2
        occurrences = {history.body["items"][0]["occurrence"] for history in fired}
        assert occurrences == {due.astimezone(UTC).isoformat().replace("+00:00", "Z")}
        for each in customers:
            listed = await call(http, "GET", f"{stack.origin}/api/accounts", headers=each.headers)
            balances = {account["kind"]: account["balance"] for account in listed.body["items"]}
            # Twelve salaries of ₹1,000, a fifth of each and one run of ₹100 moved.
            assert balances == {"savings": "9500.00", "trading_wallet": "2500.00"}
        books_balance(log)
        await nothing_parked(stack.cell)
        await read_models_equal_a_rebuild(stack, head)


def _share(customer: Customer) -> dict[str, Any]:
    return _rule(
        customer,
        trigger={"type": "percentage", "of": "credit", "percent": "20", "category": "salary"},
        amount={"type": "percent_of_trigger"},
    )


def _run(customer: Customer, due: datetime) -> dict[str, Any]:
    schedule = {"every": "day", "at": f"{due:%H:%M}"}
    return _rule(
        customer,
        trigger={"type": "scheduled", "schedule": schedule, "timezone": "Asia/Kolkata"},
        amount={"type": "fixed", "amount": "100.00"},
    )


def _rule(customer: Customer, **parts: Any) -> dict[str, Any]:
    return {
        "name": "Save",
        "source_account_id": customer.savings,
        "target_account_id": customer.wallet,
        **parts,
    }


async def _make(stack: "Stack", http: aiohttp.ClientSession, customer: Customer, body: dict[str, Any]) -> str:
    made = await call(
        http,
        "POST",
        f"{stack.origin}/api/auto-replenish",
        json=body,
        headers={**customer.headers, "Idempotency-Key": uuid4().hex},
    )
    assert made.status == 201, made
    rule_id: str = made.body["rule_id"]
    return rule_id


async def _history(stack: "Stack", http: aiohttp.ClientSession, customer: Customer, rule_id: str) -> Answer:
    return await call(http, "GET", f"{stack.origin}/api/auto-replenish/{rule_id}/history", headers=customer.headers)


async def _salaries(stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> None:
    """The bank pays, one after the other; its feed repeats what was not answered."""
    accounts = await call(http, "GET", f"{stack.origin}/api/accounts/{customer.savings}", headers=customer.headers)
    number = accounts.body["platform_account_id"]
    for _ in range(SALARIES):
        item = {
            "customer_id": f"BFC-{number.removeprefix('SB-')}",
            "type": "transaction.posted",
            "data": {
                "transaction_id": uuid4().hex,
                "account_id": number,
                "direction": "credit",
                "amount": "1000.00",
                "currency": "INR",
                "category": "salary",
            },
        }
        await call(http, "POST", f"{stack.url('simulator-bfc')}/events", json=item)
        await asyncio.sleep(0.4)
