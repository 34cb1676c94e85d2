"""One valid item of each type of platforms.md, with the event that it becomes."""

import copy
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from events.contracts import banking, trading
from sync_gateway.feeds import Platform

AT = "2026-02-12T14:30:00+05:30"
AT_UTC = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)


def item(type_: str, data: dict[str, Any], **envelope: Any) -> dict[str, Any]:
    return {
        "id": "ev-1",
        "sequence": 17,
        "type": type_,
        "occurred_at": AT,
        "customer_id": "C-1001",
        "data": data,
        **envelope,
    }


VALID: list[tuple[Platform, dict[str, Any], msgspec.Struct]] = []
"""Each type of platforms.md, with the event that it becomes."""


def _valid(platform: Platform, type_: str, data: dict[str, Any], contract: Any, **fields: Any) -> None:
    event = contract(item_id="ev-1", customer_id="C-1001", occurred_at=AT_UTC, sequence=17, **fields)
    VALID.append((platform, item(type_, data), event))


_valid(
    "bfc",
    "account.opened",
    {"account_id": "SB-1001", "kind": "savings", "currency": "INR", "opening_balance": "125000.50"},
    banking.AccountOpened,
    account_id="SB-1001",
    kind="savings",
    currency="INR",
    opening_balance_minor=125_000_50,
)
_valid(
    "bfc",
    "account.opened",
    {"account_id": "CA-1", "kind": "current", "currency": "INR", "opening_balance": "-10.00", "name": "Shop"},
    banking.AccountOpened,
    account_id="CA-1",
    kind="current",
    currency="INR",
    opening_balance_minor=-10_00,
    name="Shop",
)
_valid(
    "bfc",
    "transaction.posted",
    {
        "transaction_id": "T1",
        "account_id": "SB-1001",
        "direction": "credit",
        "amount": "85000.00",
        "currency": "INR",
        "category": "salary",
        "counterparty": "Acme Ltd",
        "memo": "फ़रवरी का वेतन",
        "reference": "NEFT123",
    },
    banking.TransactionPosted,
    transaction_id="T1",
    account_id="SB-1001",
    direction="credit",
    amount_minor=85_000_00,
    currency="INR",
    category="salary",
    counterparty="Acme Ltd",
    memo="फ़रवरी का वेतन",
    reference="NEFT123",
)
_valid(
    "bfc",
    "fixed_deposit.opened",
    {
        "deposit_id": "FD-1",
        "account_id": "SB-1001",
        "principal": "200000",
        "currency": "INR",
        "rate_percent": "7.10",
        "opened_on": "2026-02-12",
        "matures_on": "2027-02-12",
    },
    banking.FixedDepositOpened,
    deposit_id="FD-1",
    account_id="SB-1001",
    principal_minor=200_000_00,
    currency="INR",
    rate_percent="7.10",
    opened_on=date(2026, 2, 12),
    matures_on=date(2027, 2, 12),
)
_valid(
    "bfc",
    "fixed_deposit.matured",
    {"deposit_id": "FD-1", "account_id": "SB-1001", "payout": "214200.00"},
    banking.FixedDepositMatured,
    deposit_id="FD-1",
    account_id="SB-1001",
    payout_minor=214_200_00,
)
_LOAN = {
    "loan_id": "L-1",
    "kind": "home",
    "principal": "3000000.00",
    "outstanding": "0.00",
    "emi": "26000.00",
    "currency": "INR",
    "rate_percent": 8.5,
}
for _type, _contract in (("loan.opened", banking.LoanOpened), ("loan.changed", banking.LoanChanged)):
    _valid(
        "bfc",
        _type,
        _LOAN,
        _contract,
        loan_id="L-1",
        kind="home",
        principal_minor=3_000_000_00,
        outstanding_minor=0,
        emi_minor=26_000_00,
        currency="INR",
        rate_percent="8.5",
    )
_valid(
    "bfc",
    "fund.changed",
    {
        "scheme_code": "INF-1",
        "scheme_name": "Nifty 50 Index",
        "units": "312.4410",
        "nav": "183.2511",
        "cost": "50000.00",
        "currency": "INR",
        "as_of": "2026-02-11",
    },
    banking.FundChanged,
    scheme_code="INF-1",
    scheme_name="Nifty 50 Index",
    units="312.4410",
    nav="183.2511",
    cost_minor=50_000_00,
    currency="INR",
    as_of=date(2026, 2, 11),
)
_valid("bfc", "kyc.completed", {"level": "full"}, banking.KycCompleted, level="full")
_valid(
    "bfc",
    "credit.approved",
    {"product": "card", "amount": "150000.00", "currency": "INR"},
    banking.CreditApproved,
    product="card",
    amount_minor=150_000_00,
    currency="INR",
)
_PROFILE = {
    "base_version": 3,
    "changed_at": AT,
    "fields": {
        "phone": "+919800000000",
        "tags": ["nri", "premium"],
        "nominee": None,
        "address": {"pin": "560001"},
    },
}
for _platform, _stated, _holder in (
    ("bfc", banking.BalanceStated, "account_id"),
    ("vyomo", trading.BalanceStated, "wallet_id"),
):
    _valid(
        _platform,  # type: ignore[arg-type]
        "balance.stated",
        {_holder: "H-1", "balance": "-12.50", "currency": "INR", "as_of": AT, "through_sequence": 16},
        _stated,
        balance_minor=-12_50,
        currency="INR",
        as_of=AT_UTC,
        through_sequence=16,
        **{_holder: "H-1"},
    )
for _platform, _profile in (("bfc", banking.ProfileReported), ("vyomo", trading.ProfileReported)):
    _valid(
        _platform,  # type: ignore[arg-type]
        "profile.changed",
        _PROFILE,
        _profile,
        base_version=3,
        changed_at=AT_UTC,
        fields=_PROFILE["fields"],
    )
_valid(
    "vyomo",
    "wallet.opened",
    {"wallet_id": "W-1", "currency": "INR", "opening_balance": "0.00"},
    trading.WalletOpened,
    wallet_id="W-1",
    currency="INR",
    opening_balance_minor=0,
)
_valid(
    "vyomo",
    "wallet.posted",
    {
        "movement_id": "M-1",
        "wallet_id": "W-1",
        "direction": "debit",
        "amount": "0.01",
        "currency": "INR",
        "reason": "charges",
    },
    trading.WalletPosted,
    movement_id="M-1",
    wallet_id="W-1",
    direction="debit",
    amount_minor=1,
    currency="INR",
    reason="charges",
)
_valid(
    "vyomo",
    "trade.executed",
    {
        "trade_id": "TR-1",
        "wallet_id": "W-1",
        "symbol": "NIFTY26FEB24500CE",
        "underlying": "NIFTY",
        "instrument": "option",
        "side": "sell",
        "quantity": 75,
        "price": "0.00",
        "charges": "23.60",
        "realized_pnl": "-1250.75",
        "currency": "INR",
    },
    trading.TradeExecuted,
    trade_id="TR-1",
    wallet_id="W-1",
    symbol="NIFTY26FEB24500CE",
    underlying="NIFTY",
    instrument="option",
    side="sell",
    quantity=75,
    price_minor=0,
    charges_minor=23_60,
    realized_pnl_minor=-1_250_75,
    currency="INR",
)
_valid(
    "vyomo",
    "position.changed",
    {
        "position_id": "P-1",
        "symbol": "NIFTY26FEBFUT",
        "underlying": "NIFTY",
        "instrument": "future",
        "quantity": -50,
        "average_price": "24500.05",
        "mark_price": "24480.00",
        "unrealized_pnl": "1002.50",
        "currency": "INR",
    },
    trading.PositionChanged,
    position_id="P-1",
    symbol="NIFTY26FEBFUT",
    underlying="NIFTY",
    instrument="future",
    quantity=-50,
    average_price_minor=24_500_05,
    mark_price_minor=24_480_00,
    unrealized_pnl_minor=1_002_50,
    currency="INR",
)
_valid(
    "vyomo",
    "risk.alerted",
    {"alert_id": "A-1", "severity": "critical", "message": "Margin shortfall"},
    trading.RiskAlerted,
    alert_id="A-1",
    severity="critical",
    message="Margin shortfall",
)


def valid(platform: Platform, type_: str) -> dict[str, Any]:
    return copy.deepcopy(next(raw for p, raw, _ in VALID if p == platform and raw["type"] == type_))
