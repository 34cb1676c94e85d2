"""What items of the feeds mean for the ledger."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from events.contracts import banking, trading
from ledger_transfer.facts import MONEY_ITEMS, AccountReport, fact_of
from ledger_transfer.facts import trade_cash_minor as cash

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
BANK: dict[str, Any] = {"item_id": "b1", "customer_id": "BFC-1001", "occurred_at": AT}
BROKER: dict[str, Any] = {"item_id": "v1", "customer_id": "VY-1", "occurred_at": AT}


def trade(**changes: Any) -> trading.TradeExecuted:
    fields: dict[str, Any] = {
        "trade_id": "TR1",
        "wallet_id": "W1",
        "symbol": "NIFTY26FEB24000CE",
        "underlying": "NIFTY",
        "instrument": "option",
        "side": "buy",
        "quantity": 50,
        "price_minor": 120_50,
        "charges_minor": 45_00,
        "currency": "INR",
    }
    return trading.TradeExecuted(**BROKER, **(fields | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"side": "buy"}, -(50 * 120_50) - 45_00),
        ({"side": "sell"}, 50 * 120_50 - 45_00),
        ({"instrument": "equity", "side": "buy"}, -(50 * 120_50) - 45_00),
        ({"instrument": "equity", "side": "sell"}, 50 * 120_50 - 45_00),
        ({"side": "sell", "quantity": 1, "price_minor": 10_00}, 10_00 - 45_00),
        ({"instrument": "future", "realized_pnl_minor": 900_00}, 900_00 - 45_00),
        ({"instrument": "future", "realized_pnl_minor": -900_00, "side": "sell"}, -900_00 - 45_00),
        ({"instrument": "future", "realized_pnl_minor": None}, -45_00),
        ({"instrument": "future", "realized_pnl_minor": 45_00}, 0),
        ({"instrument": "option", "realized_pnl_minor": 900_00}, -(50 * 120_50) - 45_00),
    ],
)
def test_the_cash_of_a_trade(changes: dict[str, Any], expected: int) -> None:
    item = trade(**changes)
    assert cash(item) == expected
    fact = fact_of(item)
    if expected == 0:
        assert fact is None
    else:
        assert fact is not None
        assert not isinstance(fact, AccountReport)
        assert (fact.direction, fact.amount_minor) == ("credit" if expected > 0 else "debit", abs(expected))
        assert (fact.platform, fact.platform_account_id, fact.type) == ("vyomo", "W1", "trade")


def test_a_deposit_is_an_account_filled_from_the_savings_account() -> None:
    fact = fact_of(
        banking.FixedDepositOpened(
            **BANK,
            deposit_id="FD1",
            account_id="SB1",
            principal_minor=500_000_00,
            currency="INR",
            rate_percent="7.10",
            opened_on=date(2026, 2, 12),
            matures_on=date(2027, 2, 12),
        )
    )
    assert isinstance(fact, AccountReport)
    assert (fact.kind, fact.platform_account_id, fact.opening_balance_minor) == ("fixed_deposit", "FD1", 0)
    assert fact.funding is not None
    assert (fact.funding.platform_account_id, fact.funding.direction) == ("SB1", "debit")
    assert (fact.funding.deposit_id, fact.funding.amount_minor) == ("FD1", 500_000_00)


def test_what_moves_no_money_is_no_fact() -> None:
    item = banking.KycCompleted(**BANK, level="full")
    assert fact_of(item) is None
    assert "banking.kyc.completed" not in MONEY_ITEMS


def test_every_money_item_is_a_fact() -> None:
    items = [
        banking.AccountOpened(**BANK, account_id="S", kind="savings", currency="INR", opening_balance_minor=1),
        banking.TransactionPosted(
            **BANK,
            transaction_id="T",
            account_id="S",
            direction="credit",
            amount_minor=1,
            currency="INR",
            category="salary",
        ),
        banking.FixedDepositMatured(**BANK, deposit_id="FD1", account_id="S", payout_minor=1),
        trading.WalletOpened(**BROKER, wallet_id="W", currency="INR", opening_balance_minor=0),
        trading.WalletPosted(
            **BROKER,
            movement_id="M",
            wallet_id="W",
            direction="debit",
            amount_minor=1,
            currency="INR",
            reason="charges",
        ),
    ]
    facts = [fact_of(item) for item in items]
    assert all(fact is not None and fact.occurred_at == AT for fact in facts)
    assert [fact.platform for fact in facts if fact] == ["bfc", "bfc", "bfc", "vyomo", "vyomo"]
