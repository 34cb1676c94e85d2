"""What a rule would have done over the customer's own past. Pure.

Their postings and transfers come again in the order they happened, without what the rule itself moved, and the rule is
judged by the same code as ever: balances, limits, caps, back-off and the calendar are those that would have been. Holds
are left out (a captured one moves its money when it was captured), and a fact is never refused.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from events.contracts.ledger import (
    AccountClosed,
    AccountFrozen,
    AccountOpened,
    AccountPosted,
    AccountUnfrozen,
    Leg,
    LimitsChanged,
    TransferCompleted,
)
from events.contracts.ledger_rules import RuleFired, RuleRefused, RuleSkipped
from events.contracts.registry import Event
from events.envelope import derived_id

from ledger_transfer.replenish import come_due, consequences, look, next_wake
from ledger_transfer.rulebook import NOTHING_MOVED, Rule, RuleBook
from ledger_transfer.state import Decision, LedgerState, customer_account, evolve

_Told = (
    AccountOpened | AccountPosted | AccountClosed | AccountFrozen | AccountUnfrozen | LimitsChanged | TransferCompleted
)


class Simulated(NamedTuple):
    """One evaluation that would have ended in something, and the balances after it."""

    event: RuleFired | RuleRefused | RuleSkipped
    at: datetime
    source_balance_minor: int
    target_balance_minor: int


def backtest(history: Sequence[Event], rule: Rule, since: datetime, until: datetime) -> list[Simulated]:
    """What the rule would have done from `since` until `until`, had it been made at `since`.

    `history` is the customer's stream.
    """
    past = _Past(rule, since)
    for at, event in _in_time(history, rule.rule_id):
        if at > until:
            break
        past.tell(at, event)
    past.until(until)
    return past.outcomes


class _Past:
    """The ledger as it would have been."""

    def __init__(self, rule: Rule, since: datetime) -> None:
        self.outcomes: list[Simulated] = []
        self._rule = msgspec.structs.replace(
            rule, status="active", counted_until=since, moved=NOTHING_MOVED, refusals=0, retry_at=None
        )
        self._since = since
        self._begun = False
        self._state = LedgerState()
        self._decisions = 0

    def tell(self, at: datetime, event: _Told) -> None:
        """Something happened at that time."""
        if at < self._since:
            self._state = evolve(self._state, _rebased(self._state, event))
            return
        self.until(at)
        decision = self._decision(at)
        decision.record(_rebased(decision.state, event))
        consequences(decision)
        self._end(decision)

    def until(self, at: datetime) -> None:
        """Time passes: the rule begins, and what its calendar says is made."""
        if not self._begun:
            self._begun = True
            self._state = msgspec.structs.replace(self._state, rules=RuleBook(rules={self._rule.rule_id: self._rule}))
            decision = self._decision(self._since)
            look(decision, (self._rule.rule_id,))
            self._end(decision)
        while (wake := next_wake(self._state.rules.rules[self._rule.rule_id])) is not None and wake <= at:
            decision = self._decision(wake)
            come_due(decision, self._rule.rule_id, self._rule.version)
            self._end(decision)

    def _decision(self, at: datetime) -> Decision:
        self._decisions += 1
        return Decision(self._state, event_id=derived_id(self._rule.rule_id, "backtest", self._decisions), now=at)

    def _end(self, decision: Decision) -> None:
        self._state = decision.state
        accounts = decision.state.accounts
        terms = self._rule.terms
        source, target = accounts.get(terms.source_account_id), accounts.get(terms.target_account_id)
        self.outcomes += [
            Simulated(event, decision.now, source.balance_minor if source else 0, target.balance_minor if target else 0)
            for event in decision.events
            if isinstance(event, RuleFired | RuleRefused | RuleSkipped)
        ]


def _in_time(history: Sequence[Event], but: UUID) -> Iterator[tuple[datetime, _Told]]:
    """What happened, by when it happened, without what the rule moved. An account is there before its first posting."""
    told = [event for event in history if isinstance(event, _Told)]
    first: dict[UUID, datetime] = {}
    for event in told:
        if isinstance(event, AccountOpened | AccountPosted | TransferCompleted):
            for account_id in _accounts(event.legs):
                first[account_id] = min(first.get(account_id, _time_of(event)), _time_of(event))
    timed = [
        (
            min(_time_of(event), first.get(event.account_id, _time_of(event)))
            if isinstance(event, AccountOpened)
            else _time_of(event),
            # Of one instant, openings come first, the rest as in the stream.
            not isinstance(event, AccountOpened),
            number,
            event,
        )
        for number, event in enumerate(told)
        if not (isinstance(event, TransferCompleted) and event.rule_id == but)
    ]
    for at, _, _, event in sorted(timed, key=lambda entry: entry[:3]):
        yield at, event


def _time_of(event: _Told) -> datetime:
    match event:
        case AccountOpened() | AccountPosted() | AccountClosed():
            return event.occurred_at
        case TransferCompleted():
            return event.completed_at
        case AccountFrozen():
            return event.frozen_at
        case AccountUnfrozen():
            return event.unfrozen_at
        case LimitsChanged():
            return event.changed_at


def _rebased(state: LedgerState, event: _Told) -> _Told:
    """The event on the balances of the simulation."""
    if not isinstance(event, AccountOpened | AccountPosted | TransferCompleted):
        return event
    balances = {account_id: account.balance_minor for account_id, account in state.accounts.items()}
    legs = []
    for leg in event.legs:
        account_id = customer_account(leg)
        if account_id is None:
            legs.append(leg)
            continue
        balances[account_id] = balances.get(account_id, 0) + leg.amount_minor
        legs.append(msgspec.structs.replace(leg, balance_after_minor=balances[account_id]))
    return msgspec.structs.replace(event, legs=tuple(legs))


def _accounts(legs: Sequence[Leg]) -> list[UUID]:
    return [account_id for leg in legs if (account_id := customer_account(leg)) is not None]
