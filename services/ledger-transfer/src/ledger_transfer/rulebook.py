"""What of the auto-replenish rules is folded into the ledger's state. Pure; stands below `state`.

The rules live in the customer's own `ledger-<user>` stream, so their state is a field of `LedgerState`
(`state.rules`): which rules there are, in which version, what each has fired and counted.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from events.contracts.ledger_rules import (
    RuleChanged,
    RuleCreated,
    RuleDeleted,
    RuleFired,
    RulePaused,
    RuleRefused,
    RuleResumed,
    RulesEnded,
    RuleSkipped,
    RuleTerms,
    WorstCase,
)
from events.contracts.registry import Event

from ledger_transfer.limits import windows_of


class Moved(NamedTuple):
    """What a rule has moved in the day and the month, in India, in which it last fired."""

    day: int
    day_minor: int
    executions: int
    month: int
    month_minor: int

    def at(self, now: datetime) -> "Moved":
        """As of a later time: a day or month that is over counts no more. A clock that is behind gets none back."""
        windows = windows_of(now)
        later_day, later_month = windows.day > self.day, windows.month > self.month
        return Moved(
            windows.day if later_day else self.day,
            0 if later_day else self.day_minor,
            0 if later_day else self.executions,
            windows.month if later_month else self.month,
            0 if later_month else self.month_minor,
        )

    def with_firing(self, amount_minor: int, at: datetime) -> "Moved":
        """After one more firing."""
        day, day_minor, executions, month, month_minor = self.at(at)
        return Moved(day, day_minor + amount_minor, executions + 1, month, month_minor + amount_minor)


NOTHING_MOVED: Final = Moved(0, 0, 0, 0, 0)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule as it stands."""

    rule_id: UUID
    version: int
    terms: RuleTerms
    worst_case: WorstCase
    status: Literal["active", "paused"]
    counted_until: datetime
    """Scheduled occurrences until then are done with, or were none of this version's."""
    moved: Moved = NOTHING_MOVED
    refusals: int = 0
    """Recorded ones since it last fired."""
    retry_at: datetime | None = None
    """Until then it backs off after a refusal."""


class RuleBook(msgspec.Struct, frozen=True, kw_only=True):
    """All rules of one customer, in the order of their making. Empty for most, and then nothing is evaluated."""

    rules: Mapping[UUID, Rule] = {}


EVENTS: frozenset[type[Event]] = frozenset(
    (RuleCreated, RuleChanged, RulePaused, RuleResumed, RuleDeleted, RuleFired, RuleRefused, RuleSkipped, RulesEnded)
)
"""The types of event that change the book. Others cost it nothing."""


def evolve(book: RuleBook, event: Event) -> RuleBook:
    """The book after one event of `EVENTS`."""
    match event:
        case RuleCreated():
            rule = Rule(
                rule_id=event.rule_id,
                version=1,
                terms=event.terms,
                worst_case=event.worst_case,
                status="active",
                counted_until=event.created_at,
            )
            return RuleBook(rules={**book.rules, event.rule_id: rule})
        case RulesEnded():
            return RuleBook()
        case RuleDeleted():
            return RuleBook(rules={key: rule for key, rule in book.rules.items() if key != event.rule_id})
        case RuleChanged():
            return _with(
                book,
                event.rule_id,
                version=event.version,
                terms=event.terms,
                worst_case=event.worst_case,
                counted_until=event.changed_at,
                refusals=0,
                retry_at=None,
            )
        case RulePaused():
            return _with(book, event.rule_id, status="paused")
        case RuleResumed():
            return _with(
                book, event.rule_id, status="active", counted_until=event.resumed_at, refusals=0, retry_at=None
            )
        case RuleFired():
            rule = book.rules[event.rule_id]
            return _with(
                book,
                event.rule_id,
                counted_until=event.due_at or rule.counted_until,
                moved=rule.moved.with_firing(event.amount_minor, event.fired_at),
                refusals=0,
                retry_at=None,
            )
        case RuleRefused():
            rule = book.rules[event.rule_id]
            return _with(
                book,
                event.rule_id,
                counted_until=event.due_at or rule.counted_until,
                refusals=rule.refusals + 1,
                retry_at=event.retry_at,
            )
        case RuleSkipped():
            rule = book.rules[event.rule_id]
            return _with(
                book,
                event.rule_id,
                counted_until=event.due_at or rule.counted_until,
                refusals=0,
                retry_at=None,
            )
        case _:
            return book


def _with(book: RuleBook, rule_id: UUID, **changes: object) -> RuleBook:
    return RuleBook(rules={**book.rules, rule_id: msgspec.structs.replace(book.rules[rule_id], **changes)})
