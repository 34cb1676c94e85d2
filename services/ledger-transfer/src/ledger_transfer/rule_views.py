"""Bodies and answers of `/api/auto-replenish` besides the rule itself (`rule_bodies`)."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from chassis.money import format_amount
from events.contracts.ledger_rules import RuleFired, RuleRefused, RuleSkipped

from ledger_transfer.backtests import Simulated
from ledger_transfer.projections.rules import Outcome
from ledger_transfer.rule_bodies import RuleView, optional_amount

Time = Annotated[str, msgspec.Meta(max_length=40, description="RFC 3339, or a date, which is a day in India")]


class RuleDetailView(RuleView, frozen=True, kw_only=True):
    created_at: datetime
    changed_at: datetime
    """When this version was made."""
    last_fired_at: datetime | None
    executions: int


class RulePage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[RuleDetailView]
    next_cursor: str | None


class StatusBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    status: Literal["active", "paused"]


class HistoryItemView(msgspec.Struct, frozen=True, kw_only=True):
    rule_id: UUID
    version: int
    occurrence: str
    """What made the rule due: fired at most once per rule, version and occurrence."""
    outcome: Outcome
    reason: str | None
    """Of a refusal or a skip."""
    transfer_id: UUID | None
    amount: str | None
    """What moved, or would have."""
    currency: str | None
    available: str | None
    missed: int
    """Earlier runs of the schedule that nobody was there for."""
    retry_at: datetime | None
    at: datetime


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[HistoryItemView]
    next_cursor: str | None


class CheckBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    dry_run: bool = False
    rule_id: UUID | None = None


class CheckItemView(msgspec.Struct, frozen=True, kw_only=True):
    rule_id: UUID
    would_fire: bool
    fired: bool
    """Whether it has, now."""
    amount: str | None
    currency: str
    reason: str
    """Why it fires or not; the code of the refusal where it is due and cannot."""
    available: str | None
    transfer_id: UUID | None


class CheckView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[CheckItemView]


class BacktestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    since: Time = msgspec.field(name="from")
    until: Time = msgspec.field(name="to")


class BacktestItemView(msgspec.Struct, frozen=True, kw_only=True):
    occurrence: str
    outcome: Outcome
    reason: str | None
    amount: str | None
    at: datetime
    source_balance: str
    """As it would have been, afterwards."""
    target_balance: str

    @classmethod
    def of(cls, simulated: Simulated, currency: str) -> "BacktestItemView":
        """The view of one outcome."""
        event = simulated.event
        outcome: Outcome
        reason: str | None = None
        amount_minor: int | None = None
        match event:
            case RuleFired():
                outcome, amount_minor = "fired", event.amount_minor
            case RuleRefused():
                outcome, reason, amount_minor = "refused", event.code, event.amount_minor
            case RuleSkipped():
                outcome, reason = "skipped", event.reason
        return cls(
            occurrence=event.occurrence,
            outcome=outcome,
            reason=reason,
            amount=optional_amount(amount_minor, currency),
            at=simulated.at,
            source_balance=format_amount(simulated.source_balance_minor, currency),
            target_balance=format_amount(simulated.target_balance_minor, currency),
        )


class BacktestView(msgspec.Struct, frozen=True, kw_only=True):
    rule_id: UUID
    since: datetime = msgspec.field(name="from")
    until: datetime = msgspec.field(name="to")
    currency: str
    fired: int
    refused: int
    total: str
    """The sum of what would have moved."""
    truncated: bool
    """Whether there are more items than are listed."""
    items: list[BacktestItemView]
