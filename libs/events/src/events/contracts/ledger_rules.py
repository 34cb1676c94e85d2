"""ledger: auto-replenish rules of one customer, on the same `ledger-<user>` stream as the money they move.

A rule moves money from one account of the customer to another when its trigger says so. A firing is
`ledger.rule.fired` beside the `ledger.transfer.completed` it stands for, in the append of what triggered it.
`occurrence` names what made the rule due; a rule fires at most once per (rule, version, occurrence).
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract


class BalanceBelow(msgspec.Struct, frozen=True, kw_only=True, tag="balance_below"):
    """Due while what the target can dispose of, with what is on its way to it, is below `threshold_minor`."""

    threshold_minor: int


class Scheduled(msgspec.Struct, frozen=True, kw_only=True, tag="scheduled"):
    """Due by the calendar of `timezone`."""

    every: Literal["day", "week", "month"]
    on: int | None = None
    """Every week: the ISO weekday, 1 is Monday. Every month: the day, or the month's last where it is
    shorter. None every day."""
    at: str
    """Local time, `HH:MM`."""
    timezone: str = "Asia/Kolkata"
    """IANA name."""


class Percentage(msgspec.Struct, frozen=True, kw_only=True, tag="percentage"):
    """Due when a platform reports a credit on the source."""

    of: Literal["credit"] = "credit"
    percent_hundredths: int
    """2000 is 20 %."""
    min_credit_minor: int = 0
    """Smaller credits do not count."""
    category: str | None = None
    """Only credits of this category; None: of every one."""


class FixedAmount(msgspec.Struct, frozen=True, kw_only=True, tag="fixed"):
    """This much, or nothing."""

    amount_minor: int


class ToTarget(msgspec.Struct, frozen=True, kw_only=True, tag="to_target"):
    """What the target lacks to `target_minor`, in one transfer."""

    target_minor: int


class PercentOfTrigger(msgspec.Struct, frozen=True, kw_only=True, tag="percent_of_trigger"):
    """The trigger's percentage of the credit, rounded down."""


Trigger = BalanceBelow | Scheduled | Percentage
RuleAmount = FixedAmount | ToTarget | PercentOfTrigger


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """What the rule moves at most. Days and months are those of India. None: only the customer's limits bind."""

    per_day_minor: int | None = None
    per_month_minor: int | None = None
    executions_per_day: int | None = None


class RuleTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the customer has agreed to. Amounts are minor units of `currency`, which both accounts have."""

    name: str
    sealed_texts: str | None = None
    """The name, sealed for the customer (`events.texts`), as the memo of what the rule moves too; then it is empty."""
    source_account_id: UUID
    target_account_id: UUID
    currency: str
    trigger: Trigger
    amount: RuleAmount
    caps: Caps = Caps()


class WorstCase(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a rule can take from its source, in minor units of its currency."""

    per_day_minor: int
    per_week_minor: int
    per_month_minor: int


@contract("ledger.rule.created")
class RuleCreated(Event, frozen=True, kw_only=True):
    """Version 1 of a rule, active from now on."""

    rule_id: UUID
    terms: RuleTerms
    worst_case: WorstCase
    step_up_jti: str | None = None
    """The step-up token that allowed it, where the worst case needed one."""
    created_at: datetime


@contract("ledger.rule.changed")
class RuleChanged(Event, frozen=True, kw_only=True):
    """A new version with other terms. What the version before has used of its caps counts on."""

    rule_id: UUID
    version: int
    terms: RuleTerms
    worst_case: WorstCase
    step_up_jti: str | None = None
    changed_at: datetime


@contract("ledger.rule.paused")
class RulePaused(Event, frozen=True, kw_only=True):
    rule_id: UUID
    version: int
    paused_at: datetime


@contract("ledger.rule.resumed")
class RuleResumed(Event, frozen=True, kw_only=True):
    """What came due during the pause is not made up for."""

    rule_id: UUID
    version: int
    resumed_at: datetime


@contract("ledger.rule.deleted")
class RuleDeleted(Event, frozen=True, kw_only=True):
    rule_id: UUID
    version: int
    deleted_at: datetime


@contract("ledger.rule.fired")
class RuleFired(Event, frozen=True, kw_only=True):
    """The rule has moved money: the transfer is in the same append."""

    rule_id: UUID
    version: int
    name: str
    sealed_texts: str | None = None
    """The name, sealed for the customer (`events.texts`); then it is empty."""
    occurrence: str
    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    due_at: datetime | None = None
    """When it was due, for a scheduled one."""
    missed: int = 0
    """Earlier scheduled occurrences that nobody was there for; they are not made up for."""
    fired_at: datetime


@contract("ledger.rule.refused")
class RuleRefused(Event, frozen=True, kw_only=True):
    """The rule was due and nothing moved."""

    rule_id: UUID
    version: int
    name: str
    sealed_texts: str | None = None
    """The name, sealed for the customer (`events.texts`); then it is empty."""
    occurrence: str
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    """What it would have moved."""
    currency: str
    code: str
    """Of a refused transfer, or `cap_reached`."""
    available_minor: int | None = None
    """What there was to spend, with `insufficient_funds`."""
    retry_at: datetime | None = None
    """Until then a further refusal is not recorded; then a `balance_below` rule looks again by itself."""
    due_at: datetime | None = None
    missed: int = 0
    refused_at: datetime


@contract("ledger.rule.skipped")
class RuleSkipped(Event, frozen=True, kw_only=True):
    """The rule came due by the calendar, or looked again after a refusal, and there was nothing to move."""

    rule_id: UUID
    version: int
    name: str
    sealed_texts: str | None = None
    """The name, sealed for the customer (`events.texts`); then it is empty."""
    occurrence: str
    reason: Literal["target_reached", "above_threshold"]
    due_at: datetime | None = None
    missed: int = 0
    skipped_at: datetime


@contract("ledger.rules.ended", public=False)
class RulesEnded(Event, frozen=True, kw_only=True):
    """The customer was erased: none of their rules does anything from here on."""

    ended_at: datetime
