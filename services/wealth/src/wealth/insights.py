"""What is worth telling a customer: an insight's shape, when it is the same one again, which thresholds apply. Pure.

An insight is about a `subject` (an account, a symbol, a month) and has a `level`: its main fact in steps of about
a quarter. The same rule and subject within one step is the same insight, so neither a price that moves a little
nor one that swings around a step's edge brings it again, and a dismissal holds for the neighbouring steps too.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from math import floor, log
from typing import NamedTuple, Protocol
from uuid import UUID

import msgspec
from events.contracts.wealth import Action, Evidence, InsightKind, InsightPriority
from events.envelope import derived_id

_INSIGHTS = UUID("5f0b6a1e-4c57-5d0f-8f0e-2f9b8f0f7a61")
"""Namespace of insights' ids. Changing it would raise every insight again."""
_STEP = 1.25


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on something is worth telling. Set as JSON in `INSIGHT_THRESHOLDS`; amounts in paise."""

    idle_cash_minor: int = 50_000_00
    emergency_fund_months: int = 6
    savings_rate_percent: float = 3.0
    """What idle money earns; the difference to `deposit_rate_percent` is what it could earn more."""
    deposit_rate_percent: float = 7.0
    profit_percent: float = 25.0
    loss_percent: float = 15.0
    position_minor: int = 5_000_00
    """Positions worth less than this (at cost) are left alone."""
    concentration_percent: float = 40.0
    concentration_minor: int = 50_000_00
    deposit_matures_in_days: int = 15
    anomaly_z: float = 3.5
    anomaly_excess_minor: int = 2_000_00
    salary_streak_months: int = 6
    salary_due_day: int = 10
    long_term_gain_minor: int = 10_000_00
    harvest_loss_minor: int = 5_000_00
    advance_tax_in_days: int = 21
    turnover_share_of_audit_percent: float = 80.0


class Insight(NamedTuple):
    """Something found in a customer's figures, with what it rests on."""

    rule: str
    subject: str
    level: int
    kind: InsightKind
    priority: InsightPriority
    title: str
    body: str
    evidence: tuple[Evidence, ...]
    effect_minor: int | None
    """What acting on it (or leaving it) is expected to be worth."""
    action: Action | None
    expires_at: datetime | None
    importance: float
    """How far up it belongs: its weight against the customer's own usual."""

    @property
    def facts(self) -> str:
        """Its evidence as one text: the same facts, the same text."""
        return "; ".join(f"{item.fact}: {item.value}" for item in self.evidence)


class Known(Protocol):
    """An insight that was raised before."""

    @property
    def insight_id(self) -> UUID: ...
    @property
    def rule(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def state(self) -> str: ...


class Shown(NamedTuple):
    """An insight that the customer is to see, and whether it was raised before."""

    insight_id: UUID
    insight: Insight
    raised: bool


def level_of(amount_minor: int) -> int:
    """The step of an amount: a step is a quarter more than the one before."""
    return floor(log(max(amount_minor, 1)) / log(_STEP))


def bucket_of(insight: Insight) -> str:
    return f"{insight.subject}|{insight.level}"


def from_bucket(bucket: str) -> tuple[str, int]:
    """Subject and level."""
    subject, level = bucket.rsplit("|", 1)
    return subject, int(level)


def insight_id(user_id: UUID, insight: Insight) -> UUID:
    return derived_id(_INSIGHTS, user_id, insight.rule, insight.subject, insight.level)


def settle(user_id: UUID, found: Iterable[Insight], known: Sequence[Known]) -> list[Shown]:
    """What the customer is to see of what was found, most important first: without what they dismissed."""
    about: dict[tuple[str, str], list[Known]] = {}
    for item in known:
        about.setdefault((item.rule, item.subject), []).append(item)
    shown = []
    for insight in found:
        same = [item for item in about.get((insight.rule, insight.subject), ()) if abs(item.level - insight.level) <= 1]
        if any(item.state == "dismissed" for item in same):
            continue
        active = [item for item in same if item.state == "active"]
        if active:
            shown.append(Shown(min(active, key=lambda item: str(item.insight_id)).insight_id, insight, True))
        else:
            shown.append(Shown(insight_id(user_id, insight), insight, False))
    return sorted(shown, key=lambda entry: (-entry.insight.importance, entry.insight.rule, entry.insight.subject))
