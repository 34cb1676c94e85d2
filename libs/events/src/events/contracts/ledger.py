"""ledger: every account of one customer on both platforms, on `ledger-<user>` (published by ledger-transfer).

Each money event carries balanced legs (Σ amount_minor = 0 per currency) and the balances after it.
A leg's account is one of the customer's account ids, or `clearing:<platform>` / `opening:<platform>`:
the other side of what a platform reports, whose balance is a sum computed by a projection.

Money moves in `account.opened`, `account.posted` and `transfer.completed` alone. A captured hold and a reversal append
a `transfer.completed` each; `transfer.captured` and `transfer.reversed` tell what became of the first one.
A hold (`transfer.held`) moves nothing: it lowers `available` until it is captured, voided or expires.

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
LimitWindow = Literal["daily", "weekly", "monthly"]
AlertKind = Literal["floor_broken", "self_check_failed", "reconciliation_break"]
FrozenBy = Literal["customer", "ops", "link"]
"""`link`: the customer has unlinked the platform, and keeps a history that is read only."""


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
    sealed_texts: str | None = None
    """Counterparty, memo and reference, sealed for the customer (`events.texts`); then they are None."""
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
    sealed_texts: str | None = None
    """The name, sealed for the customer (`events.texts`); then it is None."""
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
    sealed_texts: str | None = None
    """Counterparty, memo and reference, sealed for the customer (`events.texts`); then they are None."""
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
    sealed_texts: str | None = None
    """The memo, sealed for the customer (`events.texts`); then it is None."""
    legs: tuple[Leg, ...]
    """First the debit, then the credit."""
    completed_at: datetime
    rule_id: UUID | None = None
    """The auto-replenish rule that fired it; None: the customer asked for it."""
    held: bool = False
    """The capture of a hold: it used up the limits when it was held."""
    reverses: UUID | None = None
    """The transfer that this one takes back. It uses up no limit."""
    bulk_id: UUID | None = None
    """The bulk request that it was a part of."""
    bulk_item: int | None = None
    """Its place among that request's items, from 0."""
    step_up_jti: str | None = None
    """The step-up token that allowed it: good for one event of this stream."""


@contract("ledger.transfer.refused")
class TransferRefused(Event, frozen=True, kw_only=True):
    """Recorded under the request's key, so that the same request gets the same answer for ever."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None = None
    sealed_texts: str | None = None
    """The memo, sealed for the customer (`events.texts`); then it is None."""
    code: str
    available_minor: int | None = None
    """What was there to spend, in the transfer's currency; set with `insufficient_funds`."""
    refused_at: datetime
    window: LimitWindow | None = None
    """The narrowest window that has too little left; set with `limit_exceeded`."""
    remaining_minor: int | None = None
    """What is left of that window's limit."""
    bulk_id: UUID | None = None
    bulk_item: int | None = None
    """The item that was refused, and with it, where all or nothing was asked for, all others."""


@contract("ledger.transfer.settled")
class TransferSettled(Event, frozen=True, kw_only=True):
    """A platform reported our own transfer back (`reference` = transfer id): confirmed, nothing posted."""

    transfer_id: UUID
    platform: Platform
    item_id: str
    occurred_at: datetime


@contract("ledger.transfer.held")
class TransferHeld(Event, frozen=True, kw_only=True):
    """Money set aside for a transfer that is yet to be captured: `available` is lower, the balance is not."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None = None
    sealed_texts: str | None = None
    """The memo, sealed for the customer (`events.texts`); then it is None."""
    held_at: datetime
    expires_at: datetime
    """From then on it holds nothing, whether or not its `transfer.voided` is in the stream yet."""
    bulk_id: UUID | None = None
    bulk_item: int | None = None
    step_up_jti: str | None = None


@contract("ledger.transfer.captured")
class TransferCaptured(Event, frozen=True, kw_only=True):
    """A hold ended in a transfer, whose `transfer.completed` follows in the same append under the same transfer id."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    """What was transferred: at most what was held."""
    released_minor: int
    """The rest of the hold: available again, and given back to the limits."""
    currency: str
    held_at: datetime
    captured_at: datetime


@contract("ledger.transfer.voided")
class TransferVoided(Event, frozen=True, kw_only=True):
    """A hold ended and moved nothing: its amount is available again, and given back to the limits."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    reason: Literal["voided", "expired"]
    held_at: datetime
    voided_at: datetime


@contract("ledger.transfer.reversed")
class TransferReversed(Event, frozen=True, kw_only=True):
    """A completed transfer was taken back by a correcting one, and what it used of the limits was given back."""

    transfer_id: UUID
    """The transfer that was taken back."""
    reversal_id: UUID
    """The correcting transfer."""
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    consumed_at: datetime
    """When the limits were used: only the windows of that time get something back."""
    reversed_at: datetime


@contract("ledger.limits.changed")
class LimitsChanged(Event, frozen=True, kw_only=True):
    """How much the customer's transfers, holds and rules may move per day, week and month in India."""

    daily_minor: int
    weekly_minor: int
    monthly_minor: int
    currency: str = "INR"
    step_up_jti: str | None = None
    """The step-up token that allowed a raise."""
    changed_at: datetime


@contract("ledger.account.frozen")
class AccountFrozen(Event, frozen=True, kw_only=True):
    """Commands are refused; what the platform reports is still posted."""

    account_id: UUID
    platform: Platform
    by: FrozenBy
    """What operations froze, or the removal of a link, the customer cannot unfreeze."""
    frozen_at: datetime


@contract("ledger.account.unfrozen")
class AccountUnfrozen(Event, frozen=True, kw_only=True):
    account_id: UUID
    platform: Platform
    by: FrozenBy
    unfrozen_at: datetime


@contract("ledger.alert.raised")
class AlertRaised(Event, frozen=True, kw_only=True):
    """Something is wrong with money. A customer's is in their own stream; `self_check_failed` is nobody's, and is
    in the stream `ledger-00000000-0000-0000-0000-000000000000` without a subject."""

    alert_id: UUID
    kind: AlertKind
    severity: Literal["critical", "warning"]
    account_id: UUID | None = None
    platform: Platform | None = None
    currency: str | None = None
    balance_minor: int | None = None
    """Our balance of the account; its available balance where a floor was broken."""
    floor_minor: int | None = None
    stated_minor: int | None = None
    """What the platform says the balance is."""
    difference_minor: int | None = None
    detail: str
    """One sentence without names or numbers of accounts."""
    raised_at: datetime


@contract("ledger.sync.requested")
class SyncRequested(Event, frozen=True, kw_only=True):
    """The customer asks for anything missing: the gateway pulls from the platforms in a run of the same id."""

    sync_id: UUID
    platforms: tuple[Platform, ...]
    requested_at: datetime
