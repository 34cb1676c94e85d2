"""Which event becomes which notification: `RULES` is the whole of it, and pure.

A rule's function (`sayings.py`) takes the values from the event and names the text, whose templates are data in
`texts/`. An event that is not in the table is told to nobody: either another one tells it, or the customer did it
themselves a moment ago and saw the answer (a refused transfer, a paused rule).
"""

import re
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
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

from notifier import sayings as say
from notifier.sayings import Told

PRIORITIES: tuple[Priority, ...] = ("low", "medium", "high", "critical")
"""From the least urgent on."""

_FIELD = re.compile(r"{(\w+)}")

HISTORY = "history"
"""The text of what happened before a link, told all in one."""


class Fact(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """An event as its customer is to be told of it. The unit that grouping counts."""

    event_id: UUID
    position: int
    recorded_at: datetime
    category: Category
    priority: Priority
    emoji: str
    alone: bool = False
    """It is no member of any group: an operator's message."""
    told: Told
    rule: str = ""
    """The event's type, and with it the rule whose buttons it has, where what it says brings none of its own."""
    ids: tuple[UUID, ...] = ()
    """What the rule's buttons are about, in the order of `Rule.about`. The buttons are made when it is told."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One row of the table."""

    on: type[Event]
    category: Category
    priority: Priority
    emoji: str
    actions: tuple[Action, ...] = ()
    """The `href` is a template over the event's ids. Labels are keys of `words.actions`."""
    tell: Callable[[Any], Told | None]
    """None: another event's notification tells it."""

    @cached_property
    def about(self) -> tuple[str, ...]:
        """The fields of the event that its buttons are about."""
        return tuple(dict.fromkeys(field for action in self.actions for field in _FIELD.findall(action.href)))


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
    _row(ledger.TransferCompleted, "transfer", "medium", "💸", say.transfer, _TRANSFER),
    _row(ledger.TransferHeld, "transfer", "low", "⏳", say.transfer_held, _TRANSFER),
    _row(ledger.TransferVoided, "transfer", "low", "⌛", say.transfer_voided, _TRANSFER),
    _row(ledger.TransferReversed, "transfer", "high", "↩️", say.transfer_reversed, _TRANSFER),
    _row(ledger_rules.RuleFired, "transfer", "medium", "🔁", say.rule_fired, _TRANSFER, _RULE),
    _row(ledger_rules.RuleRefused, "transfer", "high", "⛔", say.rule_refused, _RULE, _PAUSE),
    _row(ledger_rules.RuleCreated, "account", "high", "🔁", say.rule_agreed("rule_created"), _RULE, _PAUSE),
    _row(ledger_rules.RuleChanged, "account", "high", "🔁", say.rule_agreed("rule_changed"), _RULE, _PAUSE),
    # Money that a platform reports.
    _row(ledger.AccountPosted, "transaction", "medium", "💳", say.posting, _ACCOUNT),
    _row(trading.TradeExecuted, "trade", "medium", "📈", say.trade, _NET_WORTH),
    _row(trading.PositionChanged, "position", "medium", "📉", say.position, _NET_WORTH),
    # Accounts.
    _row(ledger.AccountOpened, "account", "high", "🏦", say.account_opened, _ACCOUNT),
    _row(ledger.AccountClosed, "account", "high", "🏦", say.account("account_closed"), _ACCOUNTS),
    _row(ledger.AccountFrozen, "account", "high", "❄️", say.account("account_frozen"), _ACCOUNT),
    _row(ledger.AccountUnfrozen, "account", "high", "🏦", say.account("account_unfrozen"), _ACCOUNT, _FREEZE),
    _row(ledger.LimitsChanged, "account", "high", "📏", say.limits, _LIMITS),
    _row(identity.LinkConfirmed, "account", "high", "🔗", say.link("linked"), _ACCOUNTS),
    _row(identity.LinkRemoved, "account", "high", "⛓️", say.link("unlinked"), _ACCOUNTS),
    _row(banking.KycCompleted, "account", "medium", "🪪", say.kyc),
    _row(banking.CreditApproved, "account", "medium", "🏦", say.credit),
    # What must never wait.
    _row(trading.RiskAlerted, "alert", "critical", "⚠️", say.risk, _NET_WORTH),
    _row(ledger.AlertRaised, "alert", "critical", "⚠️", say.money_alert, _RECONCILIATION),
    _row(identity.SessionStarted, "security", "critical", "🔐", say.session, _SESSIONS, _LOGOUT_ALL),
    _row(
        identity.RefreshReuseDetected,
        "security",
        "critical",
        "🚨",
        say.plain("token_reused"),
        _SESSIONS,
        _LOGOUT_ALL,
    ),
    _row(identity.CredentialChanged, "security", "critical", "🔑", say.credential, _SESSIONS),
    _row(identity.ProfileChanged, "security", "critical", "📇", say.profile, _SESSIONS),
    _row(identity.UserLocked, "security", "critical", "🔒", say.locked, _SESSIONS),
    _row(identity.MfaEnrolled, "security", "critical", "🛡️", say.plain("mfa_enrolled"), _SESSIONS),
    _row(identity.MfaRemoved, "security", "critical", "🛡️", say.plain("mfa_removed"), _SESSIONS),
    _row(identity.RecoveryCodeUsed, "security", "critical", "🛟", say.recovery_code, _SESSIONS),
    # The platforms among each other, and what Sangam noticed.
    _row(customer.ConflictDetected, "conflict", "high", "⚖️", say.conflict, _CONFLICT),
    _row(sync.WebhookQuarantined, "system", "high", "🔌", say.quarantined, _WEBHOOK),
    _row(sync.WebhookDisabled, "system", "high", "🔌", say.plain("webhook_disabled"), _WEBHOOK),
    _row(sync.SyncRunCompleted, "system", "low", "🔄", say.sync_run, _SYNC),
    _row(wealth.InsightRaised, "insight", "low", "💡", say.insight),
    _row(wealth.HealthChanged, "insight", "low", "🩺", say.health, _HEALTH),
    _row(notification.NotificationRequested, "system", "medium", "📣", say.message),
)

_BY_TYPE = {contract_of(rule.on).type: rule for rule in RULES}

_MESSAGE = _BY_TYPE[contract_of(notification.NotificationRequested).type]

TYPES = frozenset(_BY_TYPE)
"""The event types that become notifications."""


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
    category, alone = rule.category, False
    if rule is _MESSAGE:
        assert isinstance(event, notification.NotificationRequested)
        category, alone = event.category, True
    return Fact(
        event_id=event_id,
        position=position,
        recorded_at=recorded_at,
        category=category,
        priority=told.priority or rule.priority,
        emoji=told.emoji or rule.emoji,
        alone=alone,
        told=told,
        rule=event_type,
        ids=tuple([getattr(event, field) for field in rule.about]),
    )


def history_of(fact: Fact) -> Fact:
    """The fact as a part of the past that a link brought: quiet, and told together with the rest of it."""
    return msgspec.structs.replace(
        fact,
        category="account",
        priority="low",
        emoji="🗂️",
        told=Told(text=HISTORY, values={}, actions=(HISTORY_ACTION,)),
    )


def actions_of(fact: Fact) -> tuple[Action, ...]:
    """The fact's buttons, each the call that it makes."""
    if fact.told.actions is not None:
        return fact.told.actions
    rule = _BY_TYPE.get(fact.rule)
    if rule is None:
        return ()
    ids = dict(zip(rule.about, map(str, fact.ids), strict=True))
    return tuple(msgspec.structs.replace(action, href=action.href.format_map(ids)) for action in rule.actions)


def more_urgent(one: Priority, other: Priority) -> Priority:
    return one if PRIORITIES.index(one) >= PRIORITIES.index(other) else other
