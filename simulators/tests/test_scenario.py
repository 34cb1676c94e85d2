"""The seeded scenario: repeatable, and true to the feed's contract."""

import random
import re
from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from simulators import scenario

AS_OF = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)

FIELDS = {
    "account.opened": {"account_id", "kind", "currency", "opening_balance", "name"},
    "transaction.posted": {
        "transaction_id", "account_id", "direction", "amount", "currency",
        "category", "counterparty", "memo", "reference",
    },
    "fixed_deposit.opened": {
        "deposit_id", "account_id", "principal", "currency", "rate_percent", "opened_on", "matures_on",
    },
    "fund.changed": {"scheme_code", "scheme_name", "units", "nav", "cost", "currency", "as_of"},
    "kyc.completed": {"level"},
    "wallet.opened": {"wallet_id", "currency", "opening_balance"},
    "trade.executed": {
        "trade_id", "wallet_id", "symbol", "underlying", "instrument", "side",
        "quantity", "price", "charges", "realized_pnl", "currency",
    },
    "position.changed": {
        "position_id", "symbol", "underlying", "instrument", "quantity",
        "average_price", "mark_price", "unrealized_pnl", "currency",
    },
    "risk.alerted": {"alert_id", "severity", "message"},
}  # fmt: skip
MONEY = {
    "opening_balance", "amount", "principal", "cost", "nav", "price", "charges", "realized_pnl",
    "average_price", "mark_price", "unrealized_pnl",
}  # fmt: skip
CATEGORIES = {
    "salary", "interest", "rent", "utilities", "groceries", "shopping", "transfer", "emi", "tax",
    "investment", "other",
}  # fmt: skip


def test_same_seed_gives_the_same_items() -> None:
    assert scenario.generate(7, 3, AS_OF) == scenario.generate(7, 3, AS_OF)


def test_other_seed_gives_other_amounts_under_the_same_ids() -> None:
    one, other = scenario.generate(7, 3, AS_OF), scenario.generate(8, 3, AS_OF)
    assert [item.id for item in one.items] == [item.id for item in other.items]
    assert [item.data for item in one.items] != [item.data for item in other.items]


def test_customer_one_is_asha() -> None:
    who = scenario.generate(1, 1, AS_OF).customer
    assert (who.name, who.bfc_customer_id, who.vyomo_client_id) == ("Asha Rao", "BFC-1001", "VY-2001")


def test_customers_start_at_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        scenario.customer(0)


def test_customers_share_nothing() -> None:
    ids = [item.id for number in range(1, 51) for item in scenario.generate(1, number, AS_OF).items]
    accounts = {scenario.customer(number).savings_account_id for number in range(1, 51)}
    assert len(ids) == len(set(ids))
    assert len(accounts) == 50


@pytest.mark.parametrize("number", range(1, 31))
def test_items_follow_the_feed_contract(number: int) -> None:
    story = scenario.generate(4025, number, AS_OF)
    last: dict[str, int] = defaultdict(int)
    for item in story.items:
        last[item.platform] += 1
        assert item.sequence == last[item.platform]
        assert set(item.data) == FIELDS[item.type]
        assert AS_OF - scenario.HISTORY <= item.occurred_at <= AS_OF
        for name in MONEY & item.data.keys():
            value = item.data[name]
            assert value is None or re.fullmatch(r"-?\d+\.\d\d", value), (name, value)
        if item.type == "transaction.posted":
            assert item.data["category"] in CATEGORIES
    assert {item.type for item in story.items} == FIELDS.keys()


@pytest.mark.parametrize("number", range(1, 31))
def test_no_account_is_ever_overdrawn_and_positions_match_trades(number: int) -> None:
    savings = wallet = Decimal(0)
    held: dict[str, int] = defaultdict(int)
    for item in scenario.generate(4025, number, AS_OF).items:
        data = item.data
        match item.type:
            case "account.opened":
                savings += Decimal(data["opening_balance"])
            case "wallet.opened":
                wallet += Decimal(data["opening_balance"])
            case "fixed_deposit.opened":
                savings -= Decimal(data["principal"])
            case "transaction.posted":
                savings += Decimal(data["amount"]) * (1 if data["direction"] == "credit" else -1)
            case "trade.executed":
                sign = 1 if data["side"] == "buy" else -1
                held[data["symbol"]] += sign * data["quantity"]
                wallet -= sign * data["quantity"] * Decimal(data["price"]) + Decimal(data["charges"])
            case "position.changed":
                assert data["quantity"] == held[data["symbol"]]
                move = Decimal(data["mark_price"]) - Decimal(data["average_price"])
                assert Decimal(data["unrealized_pnl"]) == move * data["quantity"]
        assert savings >= 0
        assert wallet >= 0
    assert savings >= 50_000


def test_option_symbols_are_next_months_in_nse_form() -> None:
    symbols = {
        item.data["symbol"]
        for item in scenario.generate(1, 1, datetime(2026, 12, 31, tzinfo=UTC)).items
        if item.type == "trade.executed" and item.data["instrument"] == "option"
    }
    assert symbols == {"NIFTY27JAN24500CE", "BANKNIFTY27JAN52000PE"}


def test_feed_json_is_what_the_gateway_reads() -> None:
    item = scenario.generate(1, 1, AS_OF).items[0]
    assert item.feed_json() == {
        "id": "bfc-BFC-1001-0001",
        "sequence": 1,
        "type": "account.opened",
        "occurred_at": "2025-11-14T09:00:00Z",
        "customer_id": "BFC-1001",
        "data": {
            "account_id": "SB-1001",
            "kind": "savings",
            "currency": "INR",
            "opening_balance": "300000.00",
            "name": "BFC Savings",
        },
    }


def test_live_payments_alternate_between_debit_and_credit() -> None:
    opened = {"account_id": "SB-1001", "currency": "INR"}
    made = [scenario.live_transaction(opened, random.Random(n), n) for n in range(4)]
    assert [data["direction"] for data in made] == ["debit", "credit", "debit", "credit"]
    assert all(set(data) == FIELDS["transaction.posted"] for data in made)


def test_live_mark_moves_the_price_and_the_profit_with_it() -> None:
    position = next(
        item.data for item in reversed(scenario.generate(1, 1, AS_OF).items) if item.type == "position.changed"
    )
    moved = scenario.live_mark(position, random.Random(5))
    assert moved["mark_price"] != position["mark_price"]
    gain = (Decimal(moved["mark_price"]) - Decimal(position["average_price"])) * position["quantity"]
    assert Decimal(moved["unrealized_pnl"]) == gain
    assert moved.keys() == position.keys()
