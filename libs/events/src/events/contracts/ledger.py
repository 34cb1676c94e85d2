"""ledger: every account of one customer on both platforms, on `ledger-<user>` (published by ledger-transfer).

Each money event carries balanced legs (Σ amount_minor = 0 per currency) and the balances after it.
A leg's account is one of the customer's account ids, or `clearing:<platform>` / `opening:<platform>`:
the other side of what a platform reports, whose balance is a sum computed by a projection.

A fixed deposit is an account of kind `fixed_deposit` (platform account id = deposit id): the money moves
from the savings account into it when it is opened and back when it matures, which closes it. Its balance
is the principal; `banking.fixed_deposit.*` only adds the terms (rate, dates).
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract

AccountKind = Literal["savings", "current", "fixed_deposit", "trading_wallet"]
Platform = Literal["bfc", "vyomo"]
Direction = Literal["credit", "debit"]
MovementType = Literal["transaction", "trade", "wallet_movement", "fixed_deposit"]


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a double entry. Positive credits the account (its balance grows), negative debits it."""

    account_id: str
    amount_minor: int
    currency: str
    balance_after_minor: int | None = None
    """None for clearing and opening accounts."""
    platform: Platform | None = None
    """Where the account is held. Always set by this publisher."""


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """Money that a platform says has moved on one of its accounts."""

    platform: Platform
    platform_account_id: str
    direction: Direction
    amount_minor: int
    currency: str | None
    """None where the platform does not say it: the account's own."""
    deposit_id: str | None = None
    """The fixed deposit at the other end: a debit of the account fills it, a credit empties and closes it.
    None: the other end is the clearing account."""
    type: MovementType
    category: str
    counterparty: str | None = None
    memo: str | None = None
    reference: str | None = None
    item_id: str
    """The platform's own id of the item."""
    occurred_at: datetime


@contract("ledger.account.opened")
class AccountOpened(Event, frozen=True, kw_only=True):
    account_id: UUID
    platform: Platform
    platform_account_id: str
    kind: AccountKind
    currency: str
    name: str | None = None
    floor_minor: int = 0
    """Commands may not take `available` below this."""
    legs: tuple[Leg, ...] = ()
    """The opening balance against `opening:<platform>`; empty when it is zero."""
    occurred_at: datetime


@contract("ledger.account.posted")
class AccountPosted(Event, frozen=True, kw_only=True):
    """A movement that a platform reported, posted against its clearing account."""

    account_id: UUID
    platform: Platform
    legs: tuple[Leg, ...]
    type: MovementType
    category: str
    counterparty: str | None = None
    memo: str | None = None
    reference: str | None = None
    item_id: str
    """The platform's own id of the item."""
    below_floor: bool = False
    """A platform's fact is posted whatever the floor; this says that an account is below its own now."""
    occurred_at: datetime


@contract("ledger.account.closed")
class AccountClosed(Event, frozen=True, kw_only=True):
    """The platform closed the account: commands are refused, late facts are still posted."""

    account_id: UUID
    platform: Platform
    occurred_at: datetime


@contract("ledger.posting.deferred", public=False)
class PostingDeferred(Event, frozen=True, kw_only=True):
    """A movement whose account has not been reported yet: it waits in this stream for it."""

    account_id: UUID
    """The account that is waited for: the movement's own, or its fixed deposit."""
    movement: Movement


@contract("ledger.posting.rejected", public=False)
class PostingRejected(Event, frozen=True, kw_only=True):
    """A reported movement that no posting can express. Kept for reconciliation; the balances stay as they are."""

    account_id: UUID
    movement: Movement
    reason: Literal["currency_mismatch", "amount_out_of_range"]


@contract("ledger.transfer.completed")
class TransferCompleted(Event, frozen=True, kw_only=True):
    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None = None
    legs: tuple[Leg, ...]
    """First the debit, then the credit."""
    completed_at: datetime


@contract("ledger.transfer.refused")
class TransferRefused(Event, frozen=True, kw_only=True):
    """Recorded under the request's key, so that the same request gets the same answer for ever."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None = None
    code: str
    available_minor: int | None = None
    """What was there to spend, in the transfer's currency; set with `insufficient_funds`."""
    refused_at: datetime


@contract("ledger.transfer.settled")
class TransferSettled(Event, frozen=True, kw_only=True):
    """A platform reported our own transfer back (`reference` = transfer id): confirmed, nothing posted."""

    transfer_id: UUID
    platform: Platform
    item_id: str
    occurred_at: datetime
