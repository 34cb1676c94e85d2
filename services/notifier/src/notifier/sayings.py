"""What each event says: a function per event takes its values and names the text, whose templates are data in `texts/`.

`rules.py` has the table that says which event is told by which of them.
"""

from collections.abc import Callable
from typing import Any

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
from events.contracts.notification import Action, Priority

from notifier.texts import Account, AccountName, Moment, Money, Value, Word


class Told(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What one event says, beyond what its rule says of all of its kind."""

    text: str
    """The key of the templates in `texts/*.toml`."""
    values: dict[str, Value]
    priority: Priority | None = None
    """Overrides the rule's, where the event itself says how urgent it is."""
    emoji: str | None = None
    currency: str | None = None
    amount_minor: int | None = None
    """What it adds to its group's total: an amount; of a trade the realised P&L with its sign."""
    size_minor: int | None = None
    """What tells whether it is large."""
    received_minor: int = 0
    paid_minor: int = 0
    both_report: str | None = None
    """Names a fact that both platforms report: their two reports become one notification."""
    platform: str | None = None
    """Who reported it, where `both_report` is set."""
    once: str | None = None
    """Names something worth telling once a day."""
    actions: tuple[Action, ...] | None = None


def account_name(opened: ledger.AccountOpened) -> AccountName:
    """What a customer calls an account."""
    return AccountName(opened.platform, opened.kind, opened.platform_account_id)


def transfer(event: ledger.TransferCompleted) -> Told | None:
    if event.rule_id is not None or event.reverses is not None:
        return None  # `ledger.rule.fired` and `ledger.transfer.reversed` tell it
    values = _between(event)
    if event.memo:
        values["memo"] = event.memo
    return Told(
        text="transfer_with_memo" if event.memo else "transfer",
        values=values,
        currency=event.currency,
        amount_minor=event.amount_minor,
        size_minor=event.amount_minor,
    )


def _between(event: Any) -> dict[str, Value]:
    return {
        "amount": Money(event.amount_minor, event.currency),
        "source": Account(event.from_account_id),
        "target": Account(event.to_account_id),
    }


def transfer_held(event: ledger.TransferHeld) -> Told:
    return Told(text="transfer_held", values={**_between(event), "until": Moment(event.expires_at)})


def transfer_voided(event: ledger.TransferVoided) -> Told | None:
    if event.reason == "voided":
        return None  # the customer did
    return Told(text="transfer_voided", values=_between(event))


def transfer_reversed(event: ledger.TransferReversed) -> Told:
    return Told(
        text="transfer_reversed", values=_between(event), currency=event.currency, amount_minor=event.amount_minor
    )


def rule_agreed(text: str) -> Callable[[ledger_rules.RuleCreated | ledger_rules.RuleChanged], Told]:
    def tell(event: ledger_rules.RuleCreated | ledger_rules.RuleChanged) -> Told:
        return Told(
            text=text,
            values={
                "name": event.terms.name,
                "per_day": Money(event.worst_case.per_day_minor, event.terms.currency),
                "source": Account(event.terms.source_account_id),
                "target": Account(event.terms.target_account_id),
            },
        )

    return tell


def rule_fired(event: ledger_rules.RuleFired) -> Told:
    return Told(
        text="rule_fired",
        values={**_between(event), "name": event.name},
        currency=event.currency,
        amount_minor=event.amount_minor,
        size_minor=event.amount_minor,
    )


_REASONS = frozenset({"cap_reached", "insufficient_funds", "limit_exceeded", "account_closed", "account_frozen"})


def rule_refused(event: ledger_rules.RuleRefused) -> Told:
    reason = event.code if event.code in _REASONS else "other_reason"
    return Told(text="rule_refused", values={**_between(event), "name": event.name, "reason": Word(reason)})


def posting(event: ledger.AccountPosted) -> Told | None:
    if event.type == "trade":
        return None  # `trading.trade.executed` tells it, with the symbol and the price
    mine = str(event.account_id)
    for leg in event.legs:
        if leg.account_id == mine:
            break
    else:
        return None  # nothing moved on the account
    credit = leg.amount_minor > 0
    who: Value
    if event.counterparty:
        who = Word("from" if credit else "to", {"name": event.counterparty})
    else:
        words = event.memo or event.category.replace("_", " ")
        who = words[:1].upper() + words[1:]
    balance, amount = leg.balance_after_minor, abs(leg.amount_minor)
    return Told(
        text="received" if credit else "paid",
        values={
            "amount": Money(amount, leg.currency),
            "account": Account(event.account_id),
            "who": who,
            "balance": "" if balance is None else Word("balance", {"amount": Money(balance, leg.currency)}),
        },
        emoji="💰" if credit else "💳",
        priority="high" if event.below_floor else None,
        currency=leg.currency,
        amount_minor=amount,
        size_minor=amount,
        received_minor=amount if credit else 0,
        paid_minor=0 if credit else amount,
        # Money on its way from one platform to the other is reported by both, with the payment's reference.
        both_report=f"{event.reference}:{amount}:{leg.currency}" if event.reference else None,
        platform=event.platform,
    )


def account_opened(event: ledger.AccountOpened) -> Told:
    balance = sum(leg.amount_minor for leg in event.legs if leg.account_id == str(event.account_id))
    return Told(
        text="account_opened",
        values={"account": Account(event.account_id), "balance": Money(balance, event.currency)},
    )


def account(text: str) -> Callable[[Any], Told]:
    return lambda event: Told(
        text=text, values={"account": Account(event.account_id), "platform": Word(event.platform)}
    )


def limits(event: ledger.LimitsChanged) -> Told:
    return Told(
        text="limits_changed",
        values={
            "daily": Money(event.daily_minor, event.currency),
            "weekly": Money(event.weekly_minor, event.currency),
            "monthly": Money(event.monthly_minor, event.currency),
        },
    )


def money_alert(event: ledger.AlertRaised) -> Told:
    return Told(
        text=f"money_alert_{event.severity}",
        values={"detail": event.detail},
        priority="critical" if event.severity == "critical" else "high",
        emoji="🚨" if event.severity == "critical" else None,
    )


def link(text: str) -> Callable[[identity.LinkConfirmed | identity.LinkRemoved], Told]:
    return lambda event: Told(
        text=text, values={"platform": Word(event.platform), "customer": event.platform_customer_id}
    )


def session(event: identity.SessionStarted) -> Told:
    return Told(text="signed_in", values={"platform": Word(event.platform)})


def plain(text: str) -> Callable[[Any], Told]:
    return lambda event: Told(text=text, values={})


def credential(event: identity.CredentialChanged) -> Told | None:
    return None if event.reason == "registered" else Told(text="password_changed", values={})


def profile(event: identity.ProfileChanged) -> Told | None:
    # The proof of an address records the profile again.
    return None if event.email_verified else Told(text="profile_changed", values={})


def locked(event: identity.UserLocked) -> Told:
    return Told(text="locked", values={"until": Moment(event.locked_until)})


def recovery_code(event: identity.RecoveryCodeUsed) -> Told:
    return Told(text="recovery_code_used", values={"left": str(event.left)})


def trade(event: trading.TradeExecuted) -> Told:
    values: dict[str, Value] = {
        "quantity": str(event.quantity),
        "symbol": event.symbol,
        "price": Money(event.price_minor, event.currency),
        "charges": Money(event.charges_minor, event.currency),
    }
    if event.realized_pnl_minor is not None:
        values["pnl"] = Money(event.realized_pnl_minor, event.currency, True)
    buys = event.side == "buy"
    return Told(
        text=("bought" if buys else "sold") + ("_with_pnl" if "pnl" in values else ""),
        values=values,
        emoji="🟢" if buys else "🔴",
        currency=event.currency,
        amount_minor=event.realized_pnl_minor,
        size_minor=event.quantity * event.price_minor,
    )


_LOSS_STEP_PERCENT = 10
_LOSS_PERCENT_MIN = 20


def position(event: trading.PositionChanged) -> Told | None:
    if event.quantity == 0:
        return Told(text="position_closed", values={"symbol": event.symbol}, currency=event.currency, priority="low")
    # Every tick changes a position. What is worth a word is a loss that has reached a further step.
    cost_minor = abs(event.quantity) * event.average_price_minor
    loss_percent = -event.unrealized_pnl_minor * 100 // cost_minor if cost_minor else 0
    if loss_percent < _LOSS_PERCENT_MIN:
        return None
    return Told(
        text="position_loss",
        values={
            "symbol": event.symbol,
            "pnl": Money(event.unrealized_pnl_minor, event.currency, True),
            "quantity": str(event.quantity),
            "average": Money(event.average_price_minor, event.currency),
            "mark": Money(event.mark_price_minor, event.currency),
        },
        currency=event.currency,
        once=f"loss:{event.position_id}:{loss_percent // _LOSS_STEP_PERCENT}",
    )


_RISK_PRIORITIES: dict[str, Priority] = {"critical": "critical", "warning": "high", "info": "medium"}


def risk(event: trading.RiskAlerted) -> Told:
    return Told(
        text=f"risk_{event.severity}",
        values={"message": event.message},
        priority=_RISK_PRIORITIES[event.severity],
        emoji="ℹ️" if event.severity == "info" else None,
    )


def kyc(event: banking.KycCompleted) -> Told:
    return Told(text="kyc_completed", values={"level": event.level})


def credit(event: banking.CreditApproved) -> Told:
    return Told(
        text="credit_approved",
        values={"product": event.product.replace("_", " "), "amount": Money(event.amount_minor, event.currency)},
    )


def conflict(event: customer.ConflictDetected) -> Told:
    waits = any(decision.winner is None for decision in event.decisions)
    return Told(
        text="conflict_detected" if waits else "conflict_settled",
        values={"fields": ", ".join(decision.field for decision in event.decisions)},
        priority="high" if waits else "low",
    )


def quarantined(event: sync.WebhookQuarantined) -> Told:
    return Told(text="webhook_quarantined", values={"failures": str(event.failures), "reason": event.reason})


def sync_run(event: sync.SyncRunCompleted) -> Told | None:
    return None if event.status == "completed" else Told(text="sync_failed", values={})


_INSIGHT_EMOJI = {
    "opportunity": "💡",
    "profit_booking": "📈",
    "loss_warning": "📉",
    "tax": "🧾",
    "achievement": "🏆",
}


def insight(event: wealth.InsightRaised) -> Told:
    dismiss = Action(label="dismiss", method="POST", href=f"/api/wealth/insights/{event.insight_id}/dismiss")
    offered: tuple[Action, ...] = ()
    if event.action is not None:
        action = event.action
        body = None if action.body is None else dict(action.body)
        offered = (Action(label=action.label, method=action.method, href=action.href, body=body),)
    return Told(
        text="insight",
        values={"title": event.title, "body": event.body},
        priority=event.priority,
        emoji=_INSIGHT_EMOJI[event.kind],
        actions=(*offered, dismiss),
    )


def health(event: wealth.HealthChanged) -> Told | None:
    if event.grade is None or event.previous_grade is None:
        return None  # nothing to compare with
    return Told(text="health_changed", values={"grade": event.grade, "score": str(event.score)})


def message(event: notification.NotificationRequested) -> Told:
    return Told(
        text="message",
        values={"title": event.title, "body": event.body},
        priority=event.priority,
        actions=event.actions,
    )
