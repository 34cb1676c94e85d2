"""What a decision about a customer's money needs to know: the fold of their `ledger-<user>` stream."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from events.contracts.ledger import (
    AccountClosed,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountPosted,
    AccountUnfrozen,
    FrozenBy,
    Leg,
    LimitsChanged,
    Movement,
    Platform,
    PostingDeferred,
    TransferCaptured,
    TransferCompleted,
    TransferHeld,
    TransferReversed,
    TransferVoided,
)
from events.contracts.ledger_rules import RuleChanged, RuleCreated
from events.contracts.registry import Event
from events.envelope import derived_id
from msgspec.structs import replace

from ledger_transfer import rulebook
from ledger_transfer.limits import DEFAULT_LIMITS, UNUSED, Limits, Usage, windows_of
from ledger_transfer.rulebook import RuleBook

MAX_AMOUNT_MINOR = 10**15
"""The largest single amount, ten lakh crore rupees: 9,000 of them still fit a 64-bit balance."""

STEP_UP_REMEMBERED: Final = timedelta(hours=1)
"""How long a used step-up token is remembered; it is good for two minutes."""

_HOUSE_PREFIXES = ("clearing:", "opening:")


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One account of the customer. Amounts are minor units of `currency`."""

    account_id: UUID
    platform: Platform
    kind: AccountKind
    currency: str
    balance_minor: int
    floor_minor: int
    status: Literal["active", "frozen", "closed"]
    held_minor: int = 0
    """The sum of the holds on it."""
    frozen_by: FrozenBy | None = None

    @property
    def available_minor(self) -> int:
        """What the customer may dispose of, down to the floor."""
        return self.balance_minor - self.held_minor


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """Money of the source account set aside for a transfer."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None
    sealed_texts: str | None = None
    held_at: datetime
    expires_at: datetime


class Waiting(NamedTuple):
    """Movements waiting for one account, the latest first: a chain, so that each costs the same to add."""

    movement: Movement
    earlier: "Waiting | None"

    def in_order(self) -> list[Movement]:
        """The movements as they arrived."""
        movements: list[Movement] = []
        link: Waiting | None = self
        while link is not None:
            movements.append(link.movement)
            link = link.earlier
        movements.reverse()
        return movements


class LedgerState(msgspec.Struct, frozen=True, kw_only=True):
    """All that is decided together for one customer.

    Grows with the customer's accounts, open holds and rules, not with their history: transfers are found by event id
    in the store, so neither keys nor unsettled transfers are kept here.
    """

    accounts: Mapping[UUID, Account] = {}
    waiting: Mapping[UUID, Waiting] = {}
    holds: Mapping[UUID, Hold] = {}
    """By transfer id: those neither captured nor voided."""
    usage: Mapping[str, Usage] = {}
    """What of the limits is used, by currency."""
    limits: Limits = DEFAULT_LIMITS
    step_ups: Mapping[str, datetime] = {}
    """The step-up tokens used of late, by their `jti`, and when."""
    rules: RuleBook = RuleBook()


class UnbalancedLegsError(AssertionError):
    """Legs do not sum to zero, or a stated balance does not follow from them: a bug, never bad input."""


def account_id_of(user_id: UUID, platform: Platform, platform_account_id: str) -> UUID:
    """The account's id for this customer: known before the account itself is."""
    return derived_id(user_id, platform, platform_account_id)


def customer_account(leg: Leg) -> UUID | None:
    """The customer's account that the leg is on; None for a clearing or opening account."""
    return _account_named(leg.account_id)


# Reading or writing a UUID costs as much as a tenth of a decision, and a busy account's is in each of its events.
@lru_cache(maxsize=100_000)
def _account_named(name: str) -> UUID | None:
    return None if name.startswith(_HOUSE_PREFIXES) else UUID(name)


@lru_cache(maxsize=100_000)
def _name_of(account_id: UUID) -> str:
    return str(account_id)


def clearing(platform: Platform, amount_minor: int, currency: str) -> Leg:
    """The other side of what a platform reports."""
    return Leg(account_id=f"clearing:{platform}", amount_minor=amount_minor, currency=currency, platform=platform)


def opening(platform: Platform, amount_minor: int, currency: str) -> Leg:
    """The other side of an opening balance."""
    return Leg(account_id=f"opening:{platform}", amount_minor=amount_minor, currency=currency, platform=platform)


def leg_on(account: Account, amount_minor: int) -> Leg:
    """The leg that changes `account` by a signed amount."""
    return Leg(
        account_id=_name_of(account.account_id),
        amount_minor=amount_minor,
        currency=account.currency,
        balance_after_minor=account.balance_minor + amount_minor,
        platform=account.platform,
    )


def balanced(*legs: Leg) -> tuple[Leg, ...]:
    """The legs that move money, certified to sum to zero in each currency.

    Raises:
        UnbalancedLegsError: they do not. Deliberately no `assert`: it must hold under `python -O` too.
    """
    totals: dict[str, int] = {}
    for leg in legs:
        totals[leg.currency] = totals.get(leg.currency, 0) + leg.amount_minor
    for total in totals.values():
        if total:
            raise UnbalancedLegsError(f"legs sum to {totals}")
    return tuple([leg for leg in legs if leg.amount_minor])


def evolve(state: LedgerState, event: Event) -> LedgerState:
    """The state after one event. Copies at most the customer's handful of accounts."""
    state = _evolve(state, event)
    if type(event) in rulebook.EVENTS:
        state = _replace(state, rules=rulebook.evolve(state.rules, event))
        match event:
            case RuleCreated(step_up_jti=jti, created_at=at) | RuleChanged(step_up_jti=jti, changed_at=at):
                return _replace(state, step_ups=_stepped_up(state, jti, at))
    return state


def _evolve(state: LedgerState, event: Event) -> LedgerState:
    match event:
        case TransferCompleted():
            # Captures used up the limits when they were held; reversals use up none.
            free = event.held or event.reverses is not None
            return LedgerState(
                accounts=_moved(state.accounts, event.legs),
                waiting=state.waiting,
                holds=state.holds,
                usage=state.usage if free else _consumed(state, event.currency, event.amount_minor, event.completed_at),
                limits=state.limits,
                step_ups=_stepped_up(state, event.step_up_jti, event.completed_at),
                rules=state.rules,
            )
        case AccountPosted():
            return _replace(state, accounts=_moved(state.accounts, event.legs))
        case AccountOpened():
            account = Account(
                account_id=event.account_id,
                platform=event.platform,
                kind=event.kind,
                currency=event.currency,
                balance_minor=0,
                floor_minor=event.floor_minor,
                status="active",
            )
            accounts = _moved({**state.accounts, event.account_id: account}, event.legs)
            # What waited for the account is decided again in the same append as its opening.
            waiting = {key: chain for key, chain in state.waiting.items() if key != event.account_id}
            return _replace(state, accounts=accounts, waiting=waiting)
        case AccountClosed():
            return _with_account(state, event.account_id, status="closed")
        case AccountFrozen():
            return _with_account(state, event.account_id, status="frozen", frozen_by=event.by)
        case AccountUnfrozen():
            return _with_account(state, event.account_id, status="active", frozen_by=None)
        case PostingDeferred():
            chain = Waiting(event.movement, state.waiting.get(event.account_id))
            return _replace(state, waiting={**state.waiting, event.account_id: chain})
        case TransferHeld():
            hold = Hold(
                transfer_id=event.transfer_id,
                from_account_id=event.from_account_id,
                to_account_id=event.to_account_id,
                amount_minor=event.amount_minor,
                currency=event.currency,
                memo=event.memo,
                sealed_texts=event.sealed_texts,
                held_at=event.held_at,
                expires_at=event.expires_at,
            )
            return _replace(
                state,
                accounts=_held(state.accounts, event.from_account_id, event.amount_minor),
                holds={**state.holds, event.transfer_id: hold},
                usage=_consumed(state, event.currency, event.amount_minor, event.held_at),
                step_ups=_stepped_up(state, event.step_up_jti, event.held_at),
            )
        case TransferCaptured():
            return _released(state, event.transfer_id, unused_minor=event.released_minor)
        case TransferVoided():
            return _released(state, event.transfer_id, unused_minor=event.amount_minor)
        case TransferReversed():
            return _replace(state, usage=_restored(state, event.currency, event.amount_minor, event.consumed_at))
        case LimitsChanged():
            return _replace(
                state,
                limits=Limits(
                    daily_minor=event.daily_minor,
                    weekly_minor=event.weekly_minor,
                    monthly_minor=event.monthly_minor,
                ),
                step_ups=_stepped_up(state, event.step_up_jti, event.changed_at),
            )
        case _:
            # Refusals, settlements, rejections and alerts leave everything as it is.
            return state


def fold(events: Sequence[Event], state: LedgerState = LedgerState()) -> LedgerState:  # noqa: B008 - immutable
    """The state after several events."""
    for event in events:
        state = evolve(state, event)
    return state


class Decision:
    """The events decided so far and the state after them: a later step sees what earlier ones did.

    Args:
        event_id: of the append: its first event gets this id, later ones follow from it.
        beforehand: events that count as having happened before, and are appended behind the others.
    """

    __slots__ = ("beforehand", "event_id", "events", "now", "state")

    def __init__(self, state: LedgerState, *, event_id: UUID, now: datetime, beforehand: Sequence[Event] = ()) -> None:
        self.beforehand = tuple(beforehand)
        self.state = fold(self.beforehand, state) if beforehand else state
        self.events: list[Event] = []
        self.event_id = event_id
        self.now = now

    def record(self, *events: Event) -> None:
        """Adds the events."""
        for event in events:
            self.events.append(event)
            self.state = evolve(self.state, event)

    def fork(self) -> "Decision":
        """A copy to try something on."""
        copy = Decision(self.state, event_id=self.event_id, now=self.now)
        copy.events = list(self.events)
        return copy

    def adopt(self, trial: "Decision") -> None:
        """Takes over what was tried on a fork of this."""
        self.state, self.events = trial.state, trial.events

    def next_id(self) -> UUID:
        """The id that the next recorded event will have in the store."""
        return derived_id(self.event_id, len(self.events)) if self.events else self.event_id


def _replace(state: LedgerState, **changes: Any) -> LedgerState:
    return replace(state, **changes)


def _with_account(state: LedgerState, account_id: UUID, **changes: Any) -> LedgerState:
    changed = replace(state.accounts[account_id], **changes)
    return _replace(state, accounts={**state.accounts, account_id: changed})


def _held(accounts: Mapping[UUID, Account], account_id: UUID, amount_minor: int) -> Mapping[UUID, Account]:
    account = accounts[account_id]
    return {**accounts, account_id: replace(account, held_minor=account.held_minor + amount_minor)}


def _released(state: LedgerState, transfer_id: UUID, *, unused_minor: int) -> LedgerState:
    """Without the hold; what it did not move is given back to the limits."""
    hold = state.holds[transfer_id]
    return _replace(
        state,
        accounts=_held(state.accounts, hold.from_account_id, -hold.amount_minor),
        holds={key: other for key, other in state.holds.items() if key != transfer_id},
        usage=_restored(state, hold.currency, unused_minor, hold.held_at) if unused_minor else state.usage,
    )


def _consumed(state: LedgerState, currency: str, amount_minor: int, at: datetime) -> Mapping[str, Usage]:
    usage = state.usage.get(currency, UNUSED).consumed(amount_minor, windows_of(at))
    return {**state.usage, currency: usage}


def _restored(state: LedgerState, currency: str, amount_minor: int, consumed_at: datetime) -> Mapping[str, Usage]:
    usage = state.usage.get(currency, UNUSED).restored(amount_minor, windows_of(consumed_at))
    return {**state.usage, currency: usage}


def _stepped_up(state: LedgerState, jti: str | None, at: datetime) -> Mapping[str, datetime]:
    if jti is None:
        return state.step_ups
    remembered = {key: used_at for key, used_at in state.step_ups.items() if at - used_at < STEP_UP_REMEMBERED}
    return {**remembered, jti: at}


def _moved(accounts: Mapping[UUID, Account], legs: Sequence[Leg]) -> Mapping[UUID, Account]:
    after = dict(accounts)
    for leg in legs:
        account_id = _account_named(leg.account_id)
        if account_id is None:
            continue
        account = after[account_id]
        balance_minor = leg.balance_after_minor
        if account.balance_minor + leg.amount_minor != balance_minor:
            raise UnbalancedLegsError(f"{account_id}: {account.balance_minor} + {leg.amount_minor} != {balance_minor}")
        after[account_id] = replace(account, balance_minor=balance_minor)
    return after
