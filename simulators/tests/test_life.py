"""The scenario of many customers: what it says adds up, and it says the same every time."""

import subprocess
import sys
from collections import defaultdict
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from simulators.life import Life, Truth, generate
from simulators.market import expiry_after
from simulators.scenario import Item
from sync_gateway.feeds import translate

START = date(2025, 11, 1)


def paise(text: str) -> int:
    return int(Decimal(text) * 100)


@pytest.fixture(scope="module")
def year() -> tuple[list[Item], list[Truth]]:
    life = Life(7, 60, START, 12)
    items = list(life.items())
    return items, life.truth()


def test_the_feed_accepts_every_item(year: tuple[list[Item], list[Truth]]) -> None:
    for item in year[0]:
        translate(item.platform, item.feed_json())


def test_in_order_of_time_with_gap_free_sequences(year: tuple[list[Item], list[Truth]]) -> None:
    items = year[0]
    assert all(a.occurred_at <= b.occurred_at for a, b in pairwise(items))
    sequences: dict[str, int] = defaultdict(int)
    for item in items:
        sequences[item.customer_id] += 1
        assert item.sequence == sequences[item.customer_id]
    assert len({(item.platform, item.id) for item in items}) == len(items)
    for name in ("trade_id", "transaction_id", "movement_id", "alert_id"):
        named = [item.data[name] for item in items if name in item.data]
        assert len(set(named)) == len(named) > 0, name


def test_the_truth_is_what_the_items_add_up_to(year: tuple[list[Item], list[Truth]]) -> None:
    """Folded here a second time, from the strings of the feed alone."""
    items, truths = year
    balances: dict[str, int] = defaultdict(int)
    deposits: dict[str, int] = {}
    funds: dict[tuple[str, str], int] = {}
    loans: dict[str, int] = defaultdict(int)
    positions: dict[tuple[str, str], int] = {}
    realized: dict[str, int] = defaultdict(int)
    for item in items:
        data: dict[str, Any] = dict(item.data)
        match item.type:
            case "account.opened":
                balances[data["account_id"]] = paise(data["opening_balance"])
            case "wallet.opened":
                balances[data["wallet_id"]] = paise(data["opening_balance"])
            case "transaction.posted" | "wallet.posted":
                account = data.get("account_id") or data["wallet_id"]
                balances[account] += paise(data["amount"]) * (1 if data["direction"] == "credit" else -1)
            case "fixed_deposit.opened":
                deposits[data["deposit_id"]] = paise(data["principal"])
                balances[data["account_id"]] -= paise(data["principal"])
            case "fixed_deposit.matured":
                del deposits[data["deposit_id"]]
                balances[data["account_id"]] += paise(data["payout"])
            case "trade.executed":
                profit = paise(data.get("realized_pnl", "0"))
                value = data["quantity"] * paise(data["price"])
                cash = profit if data["instrument"] == "future" else value if data["side"] == "sell" else -value
                balances[data["wallet_id"]] += cash - paise(data["charges"])
                realized[item.customer_id] += profit
            case "position.changed":
                value = data["quantity"] * paise(data["mark_price"])
                unrealized = paise(data["unrealized_pnl"])
                assert unrealized == value - data["quantity"] * paise(data["average_price"])
                is_future = data["instrument"] == "future"
                positions[item.customer_id, data["position_id"]] = unrealized if is_future else value
            case "fund.changed":
                worth = Decimal(data["units"]) * Decimal(data["nav"]) * 100
                funds[item.customer_id, data["scheme_code"]] = int(worth.quantize(Decimal(1), ROUND_HALF_UP))
            case "loan.opened" | "loan.changed":
                loans[item.customer_id] = paise(data["outstanding"])
        assert min(balances.values()) >= 0, "nobody spends what they do not have"
    for truth in truths:
        ours = {account: (balances | deposits)[account] for account in truth.balances}
        assert ours == truth.balances
        assert sum(v for k, v in funds.items() if k[0] == truth.bfc_customer_id) == truth.funds
        assert sum(v for k, v in positions.items() if k[0] == truth.vyomo_client_id) == truth.positions
        assert loans[truth.bfc_customer_id] == truth.loans
        assert realized[truth.vyomo_client_id] == truth.realized_pnl
        assert truth.net_worth == sum(ours.values()) + truth.funds + truth.positions - truth.loans
    assert sum(len(truth.balances) for truth in truths) == len(balances) + len(deposits)


def test_every_kind_of_item_is_told(year: tuple[list[Item], list[Truth]]) -> None:
    from sync_gateway.feeds import ITEM_TYPES

    told = {(item.platform, item.type) for item in year[0]}
    later_additions = {"balance.stated"}  # stated by the pull side, not by a scenario
    known = {(p, t) for p, types in ITEM_TYPES.items() for t in types if t not in later_additions}
    assert told == known
    instruments = {item.data["instrument"] for item in year[0] if item.type == "trade.executed"}
    assert instruments == {"option", "future", "equity"}
    conflicts = [item for item in year[0] if item.type == "profile.changed"]
    assert {(i.data["base_version"], "phone" in i.data["fields"]) for i in conflicts[:2]} == {(0, True)}


def test_the_same_seed_gives_the_same_life_and_a_longer_one_begins_with_it() -> None:
    short = list(generate(3, 4, START, 2))
    assert short == list(generate(3, 4, START, 2))
    assert list(generate(3, 4, START, 5))[: len(short)] == short
    assert short != list(generate(4, 4, START, 2))


def test_labels_name_what_was_done_on_purpose() -> None:
    life = Life(5, 60, START, 12)
    items = list(life.items())
    labels = life.labels()
    assert {label.kind for label in labels} == {"spending_anomaly", "salary_missed"}
    paid = {
        (item.customer_id, f"{item.occurred_at + timedelta(hours=5.5):%Y-%m}")
        for item in items
        if item.data.get("category") == "salary"
    }
    for label in labels:
        if label.kind == "salary_missed":
            assert (label.customer_id, label.month) not in paid


def test_contracts_expire_on_the_last_tuesday_of_the_next_month() -> None:
    assert expiry_after(date(2026, 2, 10)) == date(2026, 3, 31)
    assert expiry_after(date(2026, 12, 30)) == date(2027, 1, 26)


def test_the_command_writes_the_feed_and_the_truth(tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    command = [sys.executable, "-m", "simulators.life", "--customers", "2", "--months", "2", "--seed", "7"]
    done = subprocess.run([*command, "--truth", str(truth)], capture_output=True, timeout=60, check=True)
    lines = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    life = Life(7, 2, START, 2)
    assert lines == [
        msgspec.json.decode(msgspec.json.encode({"platform": i.platform, **i.feed_json()})) for i in life.items()
    ]
    customers = msgspec.json.decode(truth.read_bytes())["customers"]
    assert msgspec.convert(customers, list[Truth]) == life.truth()
