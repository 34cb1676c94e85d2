"""wealth: what was noticed about a customer's money, and their health score, on `wealth-<user>`.

An insight is raised once per `bucket`: its facts, rounded so coarsely that a change within a bucket is no
news. It is cleared when its condition no longer holds or its time is over, and dismissed by the customer;
a dismissed one is not raised again for the same bucket.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract

InsightKind = Literal["opportunity", "profit_booking", "loss_warning", "tax", "achievement"]
InsightPriority = Literal["low", "medium", "high"]
Grade = Literal["A+", "A", "B", "C", "D", "F"]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One fact an insight rests on."""

    fact: str
    """What it is, in a few words, e.g. "savings balance"."""
    value: str
    """As a person reads it, e.g. "₹4,20,000"."""
    event_id: UUID | None = None
    """The event that says so; None for a figure computed from many."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What the customer can do about it: a route of the API."""

    label: str
    method: Literal["GET", "POST", "PUT"]
    href: str
    body: dict[str, str] | None = None


@contract("wealth.insight.raised")
class InsightRaised(Event, frozen=True, kw_only=True):
    insight_id: UUID
    rule: str
    """The generator that found it, e.g. "idle_cash"."""
    bucket: str
    """With the rule: what it is about, for telling news from the same again."""
    kind: InsightKind
    priority: InsightPriority
    title: str
    body: str
    evidence: tuple[Evidence, ...]
    effect_minor: int | None = None
    """What acting on it (or leaving it) is expected to be worth, in `currency`; None where no sum can be named."""
    currency: str = "INR"
    action: Action | None = None
    raised_at: datetime
    expires_at: datetime | None = None


@contract("wealth.insight.cleared")
class InsightCleared(Event, frozen=True, kw_only=True):
    insight_id: UUID
    reason: Literal["condition_ended", "expired", "superseded"]
    cleared_at: datetime


@contract("wealth.insight.dismissed")
class InsightDismissed(Event, frozen=True, kw_only=True):
    insight_id: UUID
    dismissed_at: datetime


@contract("wealth.health.changed")
class HealthChanged(Event, frozen=True, kw_only=True):
    """The score's grade, or whether there is one, is another than before."""

    score: int | None
    """0 to 100; None when nothing is known."""
    grade: Grade | None
    previous_score: int | None = None
    previous_grade: Grade | None = None
    confidence_percent: int
    """How much of the score's weight rests on data that is there."""
    changed_at: datetime
