"""What a rule would have done over the customer's own past. Pure.

Their postings, transfers and holds come again in the order they happened, without what the rule itself moved, and the
rule is judged by the same code as ever: balances, holds, limits, caps, back-off and the calendar are those that would
have been. A fact is never refused.
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
    LimitsChanged,
    TransferCaptured,
    TransferCompleted,
    TransferHeld,
    TransferReversed,
    TransferVoided,
)
from events.contracts.ledger_rules import RuleFired, RuleRefused, RuleSkipped
from events.contracts.registry import Event
from events.envelope import derived_id

from ledger_transfer.replenish import come_due, consequences, look, next_wake
from ledger_transfer.rulebook import NOTHING_MOVED, Rule, RuleBook
from ledger_transfer.state import Decision, LedgerState, customer_account, evolve

_Told = (
    AccountOpened
    | AccountPosted
    | AccountClosed
    | AccountFrozen
    | AccountUnfrozen
    | LimitsChanged
    | TransferCompleted
    | TransferHeld
    | TransferCaptured
    | TransferVoided
    | TransferReversed
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
    for at, events in _in_time(history, rule.rule_id):
        if at > until:
            break
        past.tell(at, events)
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

    def tell(self, at: datetime, events: Sequence[_Told]) -> None:
        """Something happened at that time."""
        if at < self._since:
            for event in events:
                self._state = evolve(self._state, _rebased(self._state, event))
            return
        self.until(at)
        decision = self._decision(at)
        for event in events:
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


def _in_time(history: Sequence[Event], but: UUID) -> Iterator[tuple[datetime, tuple[_Told, ...]]]:
    """What happened, by when it happened, without what the rule moved. What belongs together comes together.

    An account is there before its first movement, and a hold before its end.
    """
    steps = _steps([event for event in history if isinstance(event, _Told)], but)
    first: dict[UUID, datetime] = {}
    held: dict[UUID, TransferHeld] = {}
    for step in steps:
        for event in step:
            if isinstance(event, TransferHeld):
                held[event.transfer_id] = event
            for account_id in _accounts(event):
                first[account_id] = min(first.get(account_id, _time_of(event)), _time_of(event))

    def when(step: tuple[_Told, ...]) -> datetime:
        at = _time_of(step[0])
        match step[0]:
            case AccountOpened(account_id=account_id):
                return min(at, first.get(account_id, at))
            case TransferVoided(transfer_id=transfer_id, reason="expired"):
                return held[transfer_id].expires_at  # recorded later, but it held nothing any more
            case TransferCaptured(held_at=held_at) | TransferVoided(held_at=held_at):
                return max(at, held_at)  # by two clocks
        return at

    timed = [
        # Of one instant, openings come first, the rest as in the stream.
        (when(step), not isinstance(step[0], AccountOpened), number, step)
        for number, step in enumerate(steps)
    ]
    for at, _, _, step in sorted(timed, key=lambda entry: entry[:3]):
        yield at, step


def _steps(told: Sequence[_Told], but: UUID) -> list[tuple[_Told, ...]]:
    """The events that were decided together, without the rule's transfers and their reversals; every hold ends."""
    steps: list[tuple[_Told, ...]] = []
    open_holds: dict[UUID, TransferHeld] = {}
    own: set[UUID] = set()
    for event in told:
        match event:
            case TransferCompleted() if event.rule_id == but or event.reverses in own:
                own.add(event.transfer_id)
            case TransferReversed() if event.reversal_id in own:
                pass
            case TransferReversed():
                steps[-1] = (*steps[-1], event)
            case TransferCompleted(held=True):
                steps[-1] = (*steps[-1], event)
            case _:
                steps.append((event,))
                if isinstance(event, TransferHeld):
                    open_holds[event.transfer_id] = event
                elif isinstance(event, TransferCaptured | TransferVoided):
                    del open_holds[event.transfer_id]
    return steps + [(_lapsed(hold),) for hold in open_holds.values()]


def _lapsed(hold: TransferHeld) -> TransferVoided:
    """The end of a hold that nobody has recorded yet."""
    return TransferVoided(
        transfer_id=hold.transfer_id,
        from_account_id=hold.from_account_id,
        to_account_id=hold.to_account_id,
        amount_minor=hold.amount_minor,
        currency=hold.currency,
        reason="expired",
        held_at=hold.held_at,
        voided_at=hold.expires_at,
    )


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
        case TransferHeld():
            return event.held_at
        case TransferCaptured():
            return event.captured_at
        case TransferVoided():
            return event.voided_at
        case TransferReversed():
            return event.reversed_at


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


def _accounts(event: _Told) -> list[UUID]:
    """The customer's accounts that it needs to be there."""
    match event:
        case AccountOpened() | AccountPosted() | TransferCompleted():
            return [account_id for leg in event.legs if (account_id := customer_account(leg)) is not None]
        case TransferHeld():
            return [event.from_account_id, event.to_account_id]
        case _:
            return []
