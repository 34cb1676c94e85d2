"""One event of every kind that the table of rules knows, with values a person can check."""

from typing import Any
from uuid import UUID

import msgspec
from events.contracts import (
    banking,
    customer,
    identity,
    ledger,
    ledger_rules,
    notification,
    sync,
    trading,
    wealth,
)
from events.contracts.registry import Event
from notifier.texts import AccountName
from tellers import AT

TRANSFER = UUID("01900000-0000-7000-8000-000000000001")
SAVINGS = UUID("01900000-0000-7000-8000-000000000002")
WALLET = UUID("01900000-0000-7000-8000-000000000003")
THING = UUID("01900000-0000-7000-8000-000000000004")
ACCOUNTS = {
    SAVINGS: AccountName("bfc", "savings", "SB-1001"),
    WALLET: AccountName("vyomo", "trading_wallet", "VW-1001"),
}


def leg(account: object, amount_minor: int, balance_minor: int | None = None) -> ledger.Leg:
    return ledger.Leg(
        account_id=str(account), amount_minor=amount_minor, currency="INR", balance_after_minor=balance_minor
    )


def transfer(**changes: Any) -> ledger.TransferCompleted:
    event = ledger.TransferCompleted(
        transfer_id=TRANSFER,
        from_account_id=SAVINGS,
        to_account_id=WALLET,
        amount_minor=50_000_00,
        currency="INR",
        legs=(leg(SAVINGS, -50_000_00, 35_000_00), leg(WALLET, 50_000_00, 50_000_00)),
        completed_at=AT,
    )
    return msgspec.structs.replace(event, **changes)


def posting(amount_minor: int, **changes: Any) -> ledger.AccountPosted:
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


def trade(**changes: Any) -> trading.TradeExecuted:
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


def opened(account_id: UUID = SAVINGS, **changes: Any) -> ledger.AccountOpened:
    event = ledger.AccountOpened(
        account_id=account_id,
        platform="bfc",
        platform_account_id="SB-1001",
        kind="savings",
        currency="INR",
        legs=(leg(account_id, 12_34_567_50, 12_34_567_50), leg("opening:bfc", -12_34_567_50)),
        occurred_at=AT,
    )
    return msgspec.structs.replace(event, **changes)


_BETWEEN: dict[str, Any] = {
    "from_account_id": SAVINGS,
    "to_account_id": WALLET,
    "amount_minor": 10_000_00,
    "currency": "INR",
}
_TERMS = ledger_rules.RuleTerms(
    name="Keep the wallet full",
    source_account_id=SAVINGS,
    target_account_id=WALLET,
    currency="INR",
    trigger=ledger_rules.BalanceBelow(threshold_minor=5_000_00),
    amount=ledger_rules.FixedAmount(amount_minor=10_000_00),
)
_WORST = ledger_rules.WorstCase(per_day_minor=1_00_000_00, per_week_minor=7_00_000_00, per_month_minor=30_00_000_00)
_LINK: dict[str, Any] = {
    "link_id": TRANSFER,
    "platform": "bfc",
    "platform_customer_id": "BFC-1001",
    "platform_stream": "bank_customer-x",
}
_ITEM: dict[str, Any] = {"item_id": "i1", "customer_id": "C-1", "occurred_at": AT}
_POSITION = trading.PositionChanged(
    **_ITEM,
    position_id="P1",
    symbol="RELIANCE",
    underlying="RELIANCE",
    instrument="equity",
    quantity=10,
    average_price_minor=2_500_00,
    mark_price_minor=1_900_00,
    unrealized_pnl_minor=-6_000_00,
    currency="INR",
)


def _conflict(winner: customer.Winner | None) -> customer.ConflictDetected:
    return customer.ConflictDetected(
        conflict_id=THING,
        entity="profile",
        entity_id=THING,
        base_version=3,
        platform="vyomo",
        decisions=(
            customer.FieldDecision(field="nominee", policy="manual", winner=winner, bfc_clock="1.0", vyomo_clock="2.0"),
        ),
        sealed_values="s1.x.y",
    )


EVENTS: dict[str, Event] = {
    "transfer": transfer(),
    "transfer_with_memo": transfer(memo="For options"),
    "transfer_held": ledger.TransferHeld(transfer_id=TRANSFER, **_BETWEEN, held_at=AT, expires_at=AT),
    "transfer_voided": ledger.TransferVoided(
        transfer_id=TRANSFER, **_BETWEEN, reason="expired", held_at=AT, voided_at=AT
    ),
    "transfer_reversed": ledger.TransferReversed(
        transfer_id=TRANSFER, reversal_id=THING, **_BETWEEN, consumed_at=AT, reversed_at=AT
    ),
    "rule_created": ledger_rules.RuleCreated(rule_id=THING, terms=_TERMS, worst_case=_WORST, created_at=AT),
    "rule_changed": ledger_rules.RuleChanged(rule_id=THING, version=2, terms=_TERMS, worst_case=_WORST, changed_at=AT),
    "rule_fired": ledger_rules.RuleFired(
        rule_id=THING,
        version=1,
        name="Keep the wallet full",
        occurrence="1",
        transfer_id=TRANSFER,
        **_BETWEEN,
        fired_at=AT,
    ),
    "rule_refused": ledger_rules.RuleRefused(
        rule_id=THING,
        version=1,
        name="Keep the wallet full",
        occurrence="2",
        **_BETWEEN,
        code="insufficient_funds",
        refused_at=AT,
    ),
    "received": posting(85_000_00),
    "paid": posting(-1_250_50, counterparty=None, memo="electricity, February"),
    "sold": trade(),
    "bought": trade(side="buy", realized_pnl_minor=None),
    "position_closed": msgspec.structs.replace(_POSITION, quantity=0),
    "position_loss": _POSITION,
    "account_opened": opened(),
    "account_closed": ledger.AccountClosed(account_id=SAVINGS, platform="bfc", occurred_at=AT),
    "account_frozen": ledger.AccountFrozen(account_id=SAVINGS, platform="bfc", by="customer", frozen_at=AT),
    "account_unfrozen": ledger.AccountUnfrozen(account_id=SAVINGS, platform="bfc", by="customer", unfrozen_at=AT),
    "limits_changed": ledger.LimitsChanged(
        daily_minor=10_00_000_00, weekly_minor=25_00_000_00, monthly_minor=1_00_00_000_00, changed_at=AT
    ),
    "money_alert": ledger.AlertRaised(
        alert_id=THING,
        kind="floor_broken",
        severity="critical",
        detail="An account is below its floor after a movement the platform reported.",
        raised_at=AT,
    ),
    "linked": identity.LinkConfirmed(**_LINK),
    "unlinked": identity.LinkRemoved(**_LINK),
    "signed_in": identity.SessionStarted(session_id=TRANSFER, user_id=SAVINGS, platform="vyomo", acr=1, expires_at=AT),
    "token_reused": identity.RefreshReuseDetected(session_id=TRANSFER, user_id=SAVINGS),
    "password_changed": identity.CredentialChanged(sealed_password_hash="x", reason="changed"),
    "profile_changed": identity.ProfileChanged(sealed_profile="x"),
    "locked": identity.UserLocked(locked_until=AT, cause="password"),
    "mfa_enrolled": identity.MfaEnrolled(sealed_secret="x", recovery_hashes=(), time_step=1),
    "mfa_removed": identity.MfaRemoved(),
    "recovery_code_used": identity.RecoveryCodeUsed(recovery_hash="x", left=7),
    "risk_critical": risk("critical"),
    "risk_warning": risk("warning"),
    "risk_info": risk("info"),
    "kyc_completed": banking.KycCompleted(**_ITEM, level="full"),
    "credit_approved": banking.CreditApproved(
        **_ITEM, product="personal_loan", amount_minor=5_00_000_00, currency="INR"
    ),
    "conflict_detected": _conflict(None),
    "conflict_settled": _conflict("bfc"),
    "webhook_quarantined": sync.WebhookQuarantined(webhook_id=THING, reason="http_500", failures=10),
    "webhook_disabled": sync.WebhookDisabled(webhook_id=THING, reason="gone"),
    "sync_failed": sync.SyncRunCompleted(sync_id=THING, status="failed", outcomes=()),
    "insight": wealth.InsightRaised(
        insight_id=THING,
        rule="idle_cash",
        bucket="4L",
        kind="opportunity",
        priority="medium",
        title="₹4,20,000 lies idle",
        body="It earned 3 % a year; a fixed deposit earns 7 %.",
        evidence=(),
        action=wealth.Action(label="See balances", method="GET", href="/api/accounts"),
        raised_at=AT,
    ),
    "health_changed": wealth.HealthChanged(
        score=82, grade="A", previous_score=78, previous_grade="B", confidence_percent=100, changed_at=AT
    ),
    "message": notification.NotificationRequested(
        category="system", priority="medium", title="Maintenance on Sunday", body="From 02:00 to 03:00 IST."
    ),
}

BROWSER = {
    "endpoint": "https://push.example/1",
    "keys": {
        "p256dh": "BPtGyrmBw5Ck3tbFrlSFYzUsVbUzIQ-A1pqWWf4lkC8pqkN3QCXgJCXDPo6xYMhdKqBQUpRG8AEnvqQaajxdWrk",
        "auth": "BTBZMqHH6r4Tts7J_aSIgg",
    },
}
