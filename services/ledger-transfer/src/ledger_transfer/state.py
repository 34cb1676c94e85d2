"""What a decision about a customer's money needs to know: the fold of their `ledger-<user>` stream."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec
from events.contracts.ledger import (
    AccountClosed,
    AccountKind,
    AccountOpened,
    AccountPosted,
    Leg,
    Movement,
    Platform,
    PostingDeferred,
    TransferCompleted,
)
from events.contracts.registry import Event
from events.envelope import derived_id

MAX_AMOUNT_MINOR = 10**15
"""The largest single amount, ten lakh crore rupees: 9,000 of them still fit a 64-bit balance."""

_HOUSE_PREFIXES = ("clearing:", "opening:")


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One account of the customer. Amounts are minor units of `currency`."""

    account_id: UUID
    platform: Platform
    kind: AccountKind
    currency: str
    balance_minor: int
    floor_minor: int
    status: Literal["active", "closed"]

    @property
    def available_minor(self) -> int:
        """What the customer may dispose of, down to the floor."""
        return self.balance_minor


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
    """All accounts of one customer on both platforms, and the movements that wait for an account.

    Grows with the customer's accounts, not with their history: transfers are found by event id in the
    store, so neither keys nor unsettled transfers are kept here.
    """

    accounts: Mapping[UUID, Account] = {}
    waiting: Mapping[UUID, Waiting] = {}


class UnbalancedLegsError(AssertionError):
    """Legs do not sum to zero, or a stated balance does not follow from them: a bug, never bad input."""


def account_id_of(user_id: UUID, platform: Platform, platform_account_id: str) -> UUID:
    """The account's id for this customer: known before the account itself is."""
    return derived_id(user_id, platform, platform_account_id)


def customer_account(leg: Leg) -> UUID | None:
    """The customer's account that the leg is on; None for a clearing or opening account."""
    return None if leg.account_id.startswith(_HOUSE_PREFIXES) else UUID(leg.account_id)


def clearing(platform: Platform, amount_minor: int, currency: str) -> Leg:
    """The other side of what a platform reports."""
    return Leg(account_id=f"clearing:{platform}", amount_minor=amount_minor, currency=currency, platform=platform)


def opening(platform: Platform, amount_minor: int, currency: str) -> Leg:
    """The other side of an opening balance."""
    return Leg(account_id=f"opening:{platform}", amount_minor=amount_minor, currency=currency, platform=platform)


def leg_on(account: Account, amount_minor: int) -> Leg:
    """The leg that changes `account` by a signed amount."""
    return Leg(
        account_id=str(account.account_id),
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
    if any(totals.values()):
        raise UnbalancedLegsError(f"legs sum to {totals}")
    return tuple(leg for leg in legs if leg.amount_minor)


def evolve(state: LedgerState, event: Event) -> LedgerState:
    """The state after one event. Copies at most the customer's handful of accounts."""
    match event:
        case TransferCompleted() | AccountPosted():
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
            return LedgerState(accounts=accounts, waiting=waiting)
        case AccountClosed():
            closed = msgspec.structs.replace(state.accounts[event.account_id], status="closed")
            return _replace(state, accounts={**state.accounts, event.account_id: closed})
        case PostingDeferred():
            chain = Waiting(event.movement, state.waiting.get(event.account_id))
            return LedgerState(accounts=state.accounts, waiting={**state.waiting, event.account_id: chain})
        case _:
            # Refusals, settlements and rejections leave every balance as it is.
            return state


def fold(events: Sequence[Event], state: LedgerState = LedgerState()) -> LedgerState:  # noqa: B008 - immutable
    """The state after several events."""
    for event in events:
        state = evolve(state, event)
    return state


class Decision:
    """The events decided so far and the state after them: a later step sees what earlier ones did."""

    def __init__(self, state: LedgerState) -> None:
        self.state = state
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)
        self.state = evolve(self.state, event)


def _replace(state: LedgerState, *, accounts: Mapping[UUID, Account]) -> LedgerState:
    return LedgerState(accounts=accounts, waiting=state.waiting)


def _moved(accounts: Mapping[UUID, Account], legs: Sequence[Leg]) -> Mapping[UUID, Account]:
    after = dict(accounts)
    for leg in legs:
        account_id = customer_account(leg)
        if account_id is None:
            continue
        account = after[account_id]
        if account.balance_minor + leg.amount_minor != leg.balance_after_minor:
            raise UnbalancedLegsError(
                f"{account_id}: {account.balance_minor} + {leg.amount_minor} != {leg.balance_after_minor}"
            )
        after[account_id] = msgspec.structs.replace(account, balance_minor=leg.balance_after_minor)
    return after
