"""Which event becomes which notification: `RULES` is the whole of it, and pure.

A rule's function takes the values from the event and names the text, whose templates are data in `texts/`. An event
that is not in the table is told to nobody: either another one tells it, or the customer did it themselves a moment ago
and saw the answer (a refused transfer, a paused rule).
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from events.contracts import (
    banking,
    contract_of,
    customer,
    identity,
    ledger,
    ledger_rules,
    notification,
    sync,
    trading,
    wealth,
)
from events.contracts.notification import Action, Category, Priority
from events.contracts.registry import Event

from notifier.texts import Account, AccountName, Moment, Money, Value, Word

PRIORITIES: tuple[Priority, ...] = ("low", "medium", "high", "critical")
"""From the least urgent on."""

HISTORY = "history"
"""The text of what happened before a link, told all in one."""


class Told(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event as its customer is to be told of it. The unit that grouping counts."""

    event_id: UUID
    position: int
    recorded_at: datetime
    category: Category
    priority: Priority
    emoji: str
    actions: tuple[Action, ...]
    """Labels are keys of `words.actions`."""
    alone: bool
    """It is no member of any group: an operator's message."""
    told: Told


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    on: type[Event]
    category: Category
    priority: Priority
    emoji: str
    actions: tuple[Action, ...] = ()
    """The `href` is a template over the event's fields."""
    tell: Callable[[Any], Told | None]
    """None: another event's notification tells it."""


def account_name(opened: ledger.AccountOpened) -> AccountName:
    """What a customer calls an account."""
    return AccountName(opened.platform, opened.kind, opened.platform_account_id)


def _transfer(event: ledger.TransferCompleted) -> Told | None:
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


def _transfer_held(event: ledger.TransferHeld) -> Told:
    return Told(text="transfer_held", values={**_between(event), "until": Moment(event.expires_at)})


def _transfer_voided(event: ledger.TransferVoided) -> Told | None:
    if event.reason == "voided":
        return None  # the customer did
    return Told(text="transfer_voided", values=_between(event))


def _transfer_reversed(event: ledger.TransferReversed) -> Told:
    return Told(
        text="transfer_reversed", values=_between(event), currency=event.currency, amount_minor=event.amount_minor
    )


def _rule_agreed(text: str) -> Callable[[ledger_rules.RuleCreated | ledger_rules.RuleChanged], Told]:
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


def _rule_fired(event: ledger_rules.RuleFired) -> Told:
    return Told(
        text="rule_fired",
        values={**_between(event), "name": event.name},
        currency=event.currency,
        amount_minor=event.amount_minor,
        size_minor=event.amount_minor,
    )


_REASONS = frozenset({"cap_reached", "insufficient_funds", "limit_exceeded", "account_closed", "account_frozen"})


def _rule_refused(event: ledger_rules.RuleRefused) -> Told:
    reason = event.code if event.code in _REASONS else "other_reason"
    return Told(text="rule_refused", values={**_between(event), "name": event.name, "reason": Word(reason)})


def _posting(event: ledger.AccountPosted) -> Told | None:
    if event.type == "trade":
        return None  # `trading.trade.executed` tells it, with the symbol and the price
    mine = str(event.account_id)
    leg = next((leg for leg in event.legs if leg.account_id == mine), None)
    if leg is None:
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


def _account_opened(event: ledger.AccountOpened) -> Told:
    balance = sum(leg.amount_minor for leg in event.legs if leg.account_id == str(event.account_id))
    return Told(
        text="account_opened",
        values={"account": Account(event.account_id), "balance": Money(balance, event.currency)},
    )


def _account(text: str) -> Callable[[Any], Told]:
    return lambda event: Told(
        text=text, values={"account": Account(event.account_id), "platform": Word(event.platform)}
    )


def _limits(event: ledger.LimitsChanged) -> Told:
    return Told(
        text="limits_changed",
        values={
            "daily": Money(event.daily_minor, event.currency),
            "weekly": Money(event.weekly_minor, event.currency),
            "monthly": Money(event.monthly_minor, event.currency),
        },
    )


def _money_alert(event: ledger.AlertRaised) -> Told:
    return Told(
        text=f"money_alert_{event.severity}",
        values={"detail": event.detail},
        priority="critical" if event.severity == "critical" else "high",
        emoji="🚨" if event.severity == "critical" else None,
    )


def _link(text: str) -> Callable[[identity.LinkConfirmed | identity.LinkRemoved], Told]:
    return lambda event: Told(
        text=text, values={"platform": Word(event.platform), "customer": event.platform_customer_id}
    )


def _session(event: identity.SessionStarted) -> Told:
    return Told(text="signed_in", values={"platform": Word(event.platform)})


def _plain(text: str) -> Callable[[Any], Told]:
    return lambda event: Told(text=text, values={})


def _credential(event: identity.CredentialChanged) -> Told | None:
    return None if event.reason == "registered" else Told(text="password_changed", values={})


def _profile(event: identity.ProfileChanged) -> Told | None:
    # The proof of an address records the profile again.
    return None if event.email_verified else Told(text="profile_changed", values={})


def _locked(event: identity.UserLocked) -> Told:
    return Told(text="locked", values={"until": Moment(event.locked_until)})


def _recovery_code(event: identity.RecoveryCodeUsed) -> Told:
    return Told(text="recovery_code_used", values={"left": str(event.left)})


def _trade(event: trading.TradeExecuted) -> Told:
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


def _position(event: trading.PositionChanged) -> Told | None:
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


def _risk(event: trading.RiskAlerted) -> Told:
    return Told(
        text=f"risk_{event.severity}",
        values={"message": event.message},
        priority=_RISK_PRIORITIES[event.severity],
        emoji="ℹ️" if event.severity == "info" else None,
    )


def _kyc(event: banking.KycCompleted) -> Told:
    return Told(text="kyc_completed", values={"level": event.level})


def _credit(event: banking.CreditApproved) -> Told:
    return Told(
        text="credit_approved",
        values={"product": event.product.replace("_", " "), "amount": Money(event.amount_minor, event.currency)},
    )


def _conflict(event: customer.ConflictDetected) -> Told:
    waits = any(decision.winner is None for decision in event.decisions)
    return Told(
        text="conflict_detected" if waits else "conflict_settled",
        values={"fields": ", ".join(decision.field for decision in event.decisions)},
        priority="high" if waits else "low",
    )


def _quarantined(event: sync.WebhookQuarantined) -> Told:
    return Told(text="webhook_quarantined", values={"failures": str(event.failures), "reason": event.reason})


def _sync_run(event: sync.SyncRunCompleted) -> Told | None:
    return None if event.status == "completed" else Told(text="sync_failed", values={})


_INSIGHT_EMOJI = {
    "opportunity": "💡",
    "profit_booking": "📈",
    "loss_warning": "📉",
    "tax": "🧾",
    "achievement": "🏆",
}


def _insight(event: wealth.InsightRaised) -> Told:
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


def _health(event: wealth.HealthChanged) -> Told | None:
    if event.grade is None or event.previous_grade is None:
        return None  # nothing to compare with
    return Told(text="health_changed", values={"grade": event.grade, "score": str(event.score)})


def _message(event: notification.NotificationRequested) -> Told:
    return Told(
        text="message",
        values={"title": event.title, "body": event.body},
        priority=event.priority,
        actions=event.actions,
    )


_ACCOUNTS = Action(label="view_accounts", method="GET", href="/api/accounts")
_ACCOUNT = Action(label="view_account", method="GET", href="/api/accounts/{account_id}")
_FREEZE = Action(label="freeze_account", method="POST", href="/api/accounts/{account_id}/freeze", body={})
_NET_WORTH = Action(label="view_net_worth", method="GET", href="/api/wealth/net-worth")
_TRANSFER = Action(label="view_transfer", method="GET", href="/api/transfers/{transfer_id}")
_SESSIONS = Action(label="view_session", method="GET", href="/api/auth/sessions")
_LOGOUT_ALL = Action(label="logout_all", method="POST", href="/api/auth/logout-all", body={})
_RULE = Action(label="view_rule", method="GET", href="/api/auto-replenish/{rule_id}")
_PAUSE = Action(
    label="pause_rule", method="PATCH", href="/api/auto-replenish/{rule_id}/status", body={"status": "paused"}
)
_LIMITS = Action(label="view_limits", method="GET", href="/api/transfers/limits")
_CONFLICT = Action(label="view_conflict", method="GET", href="/api/sync/conflicts/{conflict_id}")
_WEBHOOK = Action(label="view_webhook", method="GET", href="/api/sync/webhooks/{webhook_id}")
_RECONCILIATION = Action(label="view_reconciliation", method="GET", href="/api/transactions/reconciliation")
_SYNC = Action(label="sync_again", method="POST", href="/api/sync/trigger", body={})
_HEALTH = Action(label="view_health", method="GET", href="/api/wealth/health")
HISTORY_ACTION = Action(label="view_history", method="GET", href="/api/transactions")


def _row(
    on: type[Event], category: Category, priority: Priority, emoji: str, tell: Callable[[Any], Told | None], *do: Action
) -> Rule:
    return Rule(on=on, category=category, priority=priority, emoji=emoji, tell=tell, actions=do)


RULES: tuple[Rule, ...] = (
    # Money that the customer moved, or a rule of theirs.
    _row(ledger.TransferCompleted, "transfer", "medium", "💸", _transfer, _TRANSFER),
    _row(ledger.TransferHeld, "transfer", "low", "⏳", _transfer_held, _TRANSFER),
    _row(ledger.TransferVoided, "transfer", "low", "⌛", _transfer_voided, _TRANSFER),
    _row(ledger.TransferReversed, "transfer", "high", "↩️", _transfer_reversed, _TRANSFER),
    _row(ledger_rules.RuleFired, "transfer", "medium", "🔁", _rule_fired, _TRANSFER, _RULE),
    _row(ledger_rules.RuleRefused, "transfer", "high", "⛔", _rule_refused, _RULE, _PAUSE),
    _row(ledger_rules.RuleCreated, "account", "high", "🔁", _rule_agreed("rule_created"), _RULE, _PAUSE),
    _row(ledger_rules.RuleChanged, "account", "high", "🔁", _rule_agreed("rule_changed"), _RULE, _PAUSE),
    # Money that a platform reports.
    _row(ledger.AccountPosted, "transaction", "medium", "💳", _posting, _ACCOUNT),
    _row(trading.TradeExecuted, "trade", "medium", "📈", _trade, _NET_WORTH),
    _row(trading.PositionChanged, "position", "medium", "📉", _position, _NET_WORTH),
    # Accounts.
    _row(ledger.AccountOpened, "account", "high", "🏦", _account_opened, _ACCOUNT),
    _row(ledger.AccountClosed, "account", "high", "🏦", _account("account_closed"), _ACCOUNTS),
    _row(ledger.AccountFrozen, "account", "high", "❄️", _account("account_frozen"), _ACCOUNT),
    _row(ledger.AccountUnfrozen, "account", "high", "🏦", _account("account_unfrozen"), _ACCOUNT, _FREEZE),
    _row(ledger.LimitsChanged, "account", "high", "📏", _limits, _LIMITS),
    _row(identity.LinkConfirmed, "account", "high", "🔗", _link("linked"), _ACCOUNTS),
    _row(identity.LinkRemoved, "account", "high", "⛓️", _link("unlinked"), _ACCOUNTS),
    _row(banking.KycCompleted, "account", "medium", "🪪", _kyc),
    _row(banking.CreditApproved, "account", "medium", "🏦", _credit),
    # What must never wait.
    _row(trading.RiskAlerted, "alert", "critical", "⚠️", _risk, _NET_WORTH),
    _row(ledger.AlertRaised, "alert", "critical", "⚠️", _money_alert, _RECONCILIATION),
    _row(identity.SessionStarted, "security", "critical", "🔐", _session, _SESSIONS, _LOGOUT_ALL),
    _row(identity.RefreshReuseDetected, "security", "critical", "🚨", _plain("token_reused"), _SESSIONS, _LOGOUT_ALL),
    _row(identity.CredentialChanged, "security", "critical", "🔑", _credential, _SESSIONS),
    _row(identity.ProfileChanged, "security", "critical", "📇", _profile, _SESSIONS),
    _row(identity.UserLocked, "security", "critical", "🔒", _locked, _SESSIONS),
    _row(identity.MfaEnrolled, "security", "critical", "🛡️", _plain("mfa_enrolled"), _SESSIONS),
    _row(identity.MfaRemoved, "security", "critical", "🛡️", _plain("mfa_removed"), _SESSIONS),
    _row(identity.RecoveryCodeUsed, "security", "critical", "🛟", _recovery_code, _SESSIONS),
    # The platforms among each other, and what Sangam noticed.
    _row(customer.ConflictDetected, "conflict", "high", "⚖️", _conflict, _CONFLICT),
    _row(sync.WebhookQuarantined, "system", "high", "🔌", _quarantined, _WEBHOOK),
    _row(sync.WebhookDisabled, "system", "high", "🔌", _plain("webhook_disabled"), _WEBHOOK),
    _row(sync.SyncRunCompleted, "system", "low", "🔄", _sync_run, _SYNC),
    _row(wealth.InsightRaised, "insight", "low", "💡", _insight),
    _row(wealth.HealthChanged, "insight", "low", "🩺", _health, _HEALTH),
    _row(notification.NotificationRequested, "system", "medium", "📣", _message),
)

_BY_TYPE = {contract_of(rule.on).type: rule for rule in RULES}

TYPES = frozenset(_BY_TYPE)
"""The event types that become notifications."""


class _Fields(dict[str, str]):
    """An event's fields as the templates of links use them."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self._event = event

    def __missing__(self, name: str) -> str:
        return str(getattr(self._event, name))


def fact_of(event_type: str, event: Event, *, event_id: UUID, position: int, recorded_at: datetime) -> Fact | None:
    """The fact that an event is to its customer; None where it is none, or another event's notification tells it.

    Raises:
        KeyError: no rule for the type.
    """
    # Many thousand a second come through here, and none of what is made is ever in a cycle: hence gc=False above.
    rule = _BY_TYPE[event_type]
    told = rule.tell(event)
    if told is None:
        return None
    message = isinstance(event, notification.NotificationRequested)
    return Fact(
        event_id=event_id,
        position=position,
        recorded_at=recorded_at,
        category=event.category if isinstance(event, notification.NotificationRequested) else rule.category,
        priority=told.priority or rule.priority,
        emoji=told.emoji or rule.emoji,
        actions=told.actions if told.actions is not None else tuple(_filled(action, event) for action in rule.actions),
        alone=message,
        told=told,
    )


def history_of(fact: Fact) -> Fact:
    """The fact as a part of the past that a link brought: quiet, and told together with the rest of it."""
    return msgspec.structs.replace(
        fact,
        category="account",
        priority="low",
        emoji="🗂️",
        actions=(HISTORY_ACTION,),
        told=Told(text=HISTORY, values={}),
    )


def _filled(action: Action, event: Event) -> Action:
    if "{" not in action.href:
        return action
    return msgspec.structs.replace(action, href=action.href.format_map(_Fields(event)))


def more_urgent(one: Priority, other: Priority) -> Priority:
    return one if PRIORITIES.index(one) >= PRIORITIES.index(other) else other
