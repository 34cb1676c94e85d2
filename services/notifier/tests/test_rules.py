"""Given an event, then this notification: the texts as a customer reads them."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from events.contracts import contract_of, identity, ledger, trading
from events.contracts.registry import Event
from notifier.rules import RULES, Priority, Text, moment, money, text_of

SAVINGS = UUID("00000000-0000-4000-8000-000000000001")
WALLET = UUID("00000000-0000-4000-8000-000000000002")
TRANSFER = UUID("00000000-0000-4000-8000-000000000003")
NAMES = {SAVINGS: "BFC savings account SB-1001", WALLET: "Vyomo trading wallet VW-1001"}
AT = datetime(2026, 2, 12, 20, 0, tzinfo=UTC)


def told(event: Event) -> Text:
    text = text_of(contract_of(event).type, event, AT, NAMES)
    assert text is not None
    return text


def leg(account: object, amount_minor: int, balance_minor: int | None = None) -> ledger.Leg:
    return ledger.Leg(
        account_id=str(account), amount_minor=amount_minor, currency="INR", balance_after_minor=balance_minor
    )


def transfer(memo: str | None = None) -> ledger.TransferCompleted:
    return ledger.TransferCompleted(
        transfer_id=TRANSFER,
        from_account_id=SAVINGS,
        to_account_id=WALLET,
        amount_minor=50_000_00,
        currency="INR",
        memo=memo,
        legs=(leg(SAVINGS, -50_000_00, 35_000_00), leg(WALLET, 50_000_00, 50_000_00)),
        completed_at=AT,
    )


def posting(amount_minor: int, **changes: object) -> ledger.AccountPosted:
    event = ledger.AccountPosted(
        account_id=SAVINGS,
        platform="bfc",
        legs=(leg(SAVINGS, amount_minor, 85_000_00), leg("clearing:bfc", -amount_minor)),
        type="transaction",
        category="salary",
        counterparty="Acme Ltd",
        item_id="bfc-ev-1",
        occurred_at=AT,
    )
    return msgspec.structs.replace(event, **changes)


def trade(**changes: object) -> trading.TradeExecuted:
    event = trading.TradeExecuted(
        item_id="v1",
        customer_id="VY-1",
        occurred_at=AT,
        trade_id="T1",
        wallet_id="VW-1001",
        symbol="NIFTY CALL",
        underlying="NIFTY",
        instrument="option",
        side="sell",
        quantity=50,
        price_minor=120_50,
        charges_minor=40_00,
        currency="INR",
        realized_pnl_minor=15_000_00,
    )
    return msgspec.structs.replace(event, **changes)


def risk(severity: str) -> trading.RiskAlerted:
    return trading.RiskAlerted(
        item_id="v2",
        customer_id="VY-1",
        occurred_at=AT,
        alert_id="A1",
        severity=severity,  # type: ignore[arg-type]
        message="Margin is at 92 %",
    )


def test_transfer() -> None:
    text = told(transfer())
    assert (text.category, text.priority, text.emoji) == ("transfer", "medium", "💸")
    assert text.title == "₹50,000 transferred"
    assert text.body == "From BFC savings account SB-1001 to Vyomo trading wallet VW-1001."
    assert [(a.label, a.method, a.href) for a in text.actions] == [
        ("View transfer", "GET", f"/api/transfers/{TRANSFER}")
    ]


def test_a_memo_is_text_and_never_a_template() -> None:
    assert told(transfer(memo="{source} {0} {")).body.endswith("VW-1001 ({source} {0} {).")


def test_money_in() -> None:
    text = told(posting(85_000_50))
    assert (text.title, text.emoji, text.category) == ("₹85,000.50 received", "💰", "transaction")
    assert text.body == "From Acme Ltd, into BFC savings account SB-1001. Balance: ₹85,000."
    assert text.actions[0].href == f"/api/accounts/{SAVINGS}"


def test_money_out_without_a_counterparty() -> None:
    text = told(posting(-1_200_00, counterparty=None, category="utilities"))
    assert (text.title, text.emoji, text.priority) == ("₹1,200 paid", "💳", "medium")
    assert text.body == "Utilities, from BFC savings account SB-1001. Balance: ₹85,000."


def test_a_posting_below_the_floor_is_urgent() -> None:
    assert told(posting(-1_200_00, below_floor=True)).priority == "high"


def test_the_cash_of_a_trade_is_told_by_the_trade() -> None:
    event = posting(-100, type="trade")
    assert text_of("ledger.account.posted", event, AT, NAMES) is None


def test_account_opened() -> None:
    event = ledger.AccountOpened(
        account_id=SAVINGS,
        platform="bfc",
        platform_account_id="SB-1001",
        kind="savings",
        currency="INR",
        legs=(leg(SAVINGS, 12_34_567_50, 12_34_567_50), leg("opening:bfc", -12_34_567_50)),
        occurred_at=AT,
    )
    text = told(event)
    assert text.body == "BFC savings account SB-1001 is now in your view, with ₹12,34,567.50."
    assert (text.category, text.priority) == ("account", "high")


def test_link_and_sign_in() -> None:
    link = identity.LinkConfirmed(
        link_id=TRANSFER, platform="bfc", platform_customer_id="BFC-1001", platform_stream="bank_customer-x"
    )
    assert told(link).title == "BFC linked"
    session = identity.SessionStarted(session_id=TRANSFER, user_id=SAVINGS, platform="vyomo", acr=1, expires_at=AT)
    text = told(session)
    assert (text.title, text.category, text.priority) == ("New sign-in on Vyomo", "security", "critical")
    assert text.body.startswith("13 Feb 2026, 01:30 IST.")


@pytest.mark.parametrize(
    ("realized", "ending"),
    [(15_000_00, " P&L: +₹15,000."), (-1_50, " P&L: -₹1.50."), (0, " P&L: ₹0."), (None, "charges ₹40.")],
)
def test_trade(realized: int | None, ending: str) -> None:
    text = told(trade(realized_pnl_minor=realized))
    assert (text.title, text.category, text.emoji) == ("Sold 50 NIFTY CALL", "trade", "🔴")
    assert text.body.startswith("At ₹120.50 each, charges ₹40.")
    assert text.body.endswith(ending)


@pytest.mark.parametrize(("severity", "priority"), [("critical", "critical"), ("warning", "high"), ("info", "medium")])
def test_a_risk_alert_is_as_urgent_as_it_says(severity: str, priority: Priority) -> None:
    text = told(risk(severity))
    assert (text.category, text.priority, text.body) == ("alert", priority, "Margin is at 92 %")
    assert text.title == f"Risk alert: {severity.capitalize()}"


def test_another_currency_is_named() -> None:
    assert money(5000, "USD") == "USD 50.00"
    assert told(trade(currency="USD", realized_pnl_minor=-5000)).body.endswith("P&L: USD -50.00.")


def test_moments_are_indian() -> None:
    assert moment(datetime(2026, 1, 1, 18, 29, tzinfo=UTC)) == "1 Jan 2026, 23:59 IST"
    assert moment(datetime(2026, 1, 1, 18, 30, tzinfo=UTC)) == "2 Jan 2026, 00:00 IST"


def test_one_rule_per_event() -> None:
    types = [contract_of(rule.on).type for rule in RULES]
    assert len(types) == len(set(types))
