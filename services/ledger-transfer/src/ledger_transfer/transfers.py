"""Transfers between a customer's own accounts. Pure deciders.

Refusal
├── AccountNotFound            writes nothing: the account may be reported a moment later
├── TransferRefusal            recorded under the request's key: the same request, the same answer for ever
│   ├── SameAccount
│   ├── CurrencyMismatch
│   ├── AccountClosed
│   ├── AccountFrozen
│   ├── AccountNotTransferable
│   ├── InsufficientFunds
│   └── LimitExceeded
└── StepUpRequired             writes nothing: the same request is sent again with a step-up token

in this order of precedence.
"""

from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec
from events.contracts.ledger import Leg, LimitWindow, TransferCompleted, TransferHeld, TransferRefused
from events.contracts.registry import Event
from events.decisions import Refusal

from ledger_transfer.limits import UNUSED, Standing, exceeded
from ledger_transfer.state import MAX_AMOUNT_MINOR, Account, LedgerState, balanced, leg_on


class TransferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `amount_minor` is positive."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None = None
    sealed_texts: str | None = None
    """The memo, sealed (`events.texts`); then it is None itself."""
    hold_s: int | None = None
    """Set: the money is only held, for so many seconds."""
    rule_id: UUID | None = None
    """The rule that fires it."""
    bulk_id: UUID | None = None
    bulk_item: int | None = None


class StepUp(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified step-up token says: the customer has proven again who they are, for this."""

    jti: str
    amount_minor: int
    currency: str
    to_account_id: UUID | None


class Clearance(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may do without further proof, and the proof it brings."""

    threshold_minor: int | None = None
    """Amounts above it need step-up; None: no amount does (rules, whose worst case was cleared when they were made)."""
    step_up: StepUp | None = None


UNRESTRICTED = Clearance()


class AccountNotFound(Refusal):
    """One of the accounts does not exist, or is another customer's."""

    code = "account_not_found"


class TransferRefusal(Refusal):
    """A well-formed transfer between existing accounts that a rule forbids."""

    available_minor: int | None = None
    """What there was to spend, where that is the reason."""
    window: LimitWindow | None = None
    remaining_minor: int | None = None
    """What is left of that window's limit, where that is the reason."""


class SameAccount(TransferRefusal):
    code = "same_account"


class CurrencyMismatch(TransferRefusal):
    """The transfer and both accounts must share one currency."""

    code = "currency_mismatch"


class AccountClosed(TransferRefusal):
    code = "account_closed"


class AccountFrozen(TransferRefusal):
    code = "account_frozen"


class AccountNotTransferable(TransferRefusal):
    """A fixed deposit takes and gives money only at the bank."""

    code = "account_not_transferable"


class InsufficientFunds(TransferRefusal):
    """What is available, less the amount, would be below the account's floor."""

    code = "insufficient_funds"

    def __init__(self, available_minor: int) -> None:
        super().__init__()
        self.available_minor = available_minor


class LimitExceeded(TransferRefusal):
    """The customer's limit of a day, week or month would be exceeded."""

    code = "limit_exceeded"

    def __init__(self, standing: Standing) -> None:
        super().__init__()
        self.window = standing.window
        self.remaining_minor = standing.remaining_minor


class StepUpRequired(Refusal):
    """The amount needs a step-up token made out for it, not used before."""

    code = "step_up_required"

    def __init__(
        self,
        amount_minor: int,
        currency: str,
        to_account_id: UUID | None,
        reason: Literal["missing", "mismatch", "used"],
    ) -> None:
        super().__init__(reason)
        self.amount_minor = amount_minor
        self.currency = currency
        self.to_account_id = to_account_id
        self.reason = reason


REFUSAL_DETAILS: dict[str, str] = {
    AccountNotFound.code: "There is no such account.",
    SameAccount.code: "A transfer needs two different accounts.",
    CurrencyMismatch.code: "The transfer and both of its accounts must have one currency.",
    AccountClosed.code: "One of the accounts is closed.",
    AccountFrozen.code: "One of the accounts is frozen.",
    AccountNotTransferable.code: "A fixed deposit takes and gives money only at the bank.",
    InsufficientFunds.code: "The account's available balance does not cover the amount.",
    LimitExceeded.code: "The amount exceeds what is left of a transfer limit.",
    StepUpRequired.code: "The amount needs a fresh confirmation with a one-time code.",
}
"""What each refusal tells the customer."""


def post_transfer(state: LedgerState, request: TransferRequest) -> tuple[Leg, ...]:
    """The legs of the transfer, first the debit, then the credit.

    Raises:
        Refusal: the first rule, in order of precedence, that forbids it.
    """
    if not 0 < request.amount_minor <= MAX_AMOUNT_MINOR:
        raise ValueError(f"{request.amount_minor} is no amount to transfer")
    source = state.accounts.get(request.from_account_id)
    target = state.accounts.get(request.to_account_id)
    if source is None or target is None:
        raise AccountNotFound()
    if source is target:
        raise SameAccount()
    if not request.currency == source.currency == target.currency:
        raise CurrencyMismatch()
    if source.status != "active" or target.status != "active":
        raise AccountClosed() if "closed" in (source.status, target.status) else AccountFrozen()
    if "fixed_deposit" in (source.kind, target.kind):
        raise AccountNotTransferable()
    if source.available_minor - request.amount_minor < source.floor_minor:
        raise InsufficientFunds(spendable_minor(source))
    return balanced(leg_on(source, -request.amount_minor), leg_on(target, request.amount_minor))


def spendable_minor(account: Account) -> int:
    """How much a transfer may take from the account: never negative."""
    return max(0, account.available_minor - account.floor_minor)


def decide(
    state: LedgerState, request: TransferRequest, now: datetime, clearance: Clearance = UNRESTRICTED
) -> TransferCompleted | TransferHeld:
    """The transfer, or the hold where the request says until when.

    Raises:
        Refusal: the first rule, in order of precedence, that forbids it.
    """
    legs = post_transfer(state, request)
    usage = state.usage.get(request.currency, UNUSED)
    if (standing := exceeded(state.limits, usage, request.amount_minor, now)) is not None:
        raise LimitExceeded(standing)
    jti = cleared(state, request.amount_minor, request.currency, request.to_account_id, clearance)
    if request.hold_s is None:
        return TransferCompleted(
            transfer_id=request.transfer_id,
            from_account_id=request.from_account_id,
            to_account_id=request.to_account_id,
            amount_minor=request.amount_minor,
            currency=request.currency,
            memo=request.memo,
            sealed_texts=request.sealed_texts,
            legs=legs,
            completed_at=now,
            rule_id=request.rule_id,
            bulk_id=request.bulk_id,
            bulk_item=request.bulk_item,
            step_up_jti=jti,
        )
    return TransferHeld(
        transfer_id=request.transfer_id,
        from_account_id=request.from_account_id,
        to_account_id=request.to_account_id,
        amount_minor=request.amount_minor,
        currency=request.currency,
        memo=request.memo,
        sealed_texts=request.sealed_texts,
        held_at=now,
        expires_at=now + timedelta(seconds=request.hold_s),
        bulk_id=request.bulk_id,
        bulk_item=request.bulk_item,
        step_up_jti=jti,
    )


def cleared(
    state: LedgerState, amount_minor: int, currency: str, to_account_id: UUID | None, clearance: Clearance
) -> str | None:
    """The id of the step-up token that clears the amount, to be recorded; None where none is needed.

    Raises:
        StepUpRequired: there is none, or it is made out for something else, or it was used.
    """
    if clearance.threshold_minor is None or amount_minor <= clearance.threshold_minor:
        return None
    step_up = clearance.step_up
    if step_up is None:
        raise StepUpRequired(amount_minor, currency, to_account_id, "missing")
    if (step_up.amount_minor, step_up.currency, step_up.to_account_id) != (amount_minor, currency, to_account_id):
        raise StepUpRequired(amount_minor, currency, to_account_id, "mismatch")
    if step_up.jti in state.step_ups:
        raise StepUpRequired(amount_minor, currency, to_account_id, "used")
    return step_up.jti


def transfer(
    state: LedgerState, request: TransferRequest, now: datetime, clearance: Clearance = UNRESTRICTED
) -> list[Event]:
    """Completes or holds the transfer, or records its refusal.

    Raises:
        AccountNotFound, StepUpRequired: nothing is recorded.
    """
    try:
        return [decide(state, request, now, clearance)]
    except TransferRefusal as refusal:
        return [refused(request, refusal, now)]


def refused(request: TransferRequest, refusal: TransferRefusal, now: datetime) -> TransferRefused:
    """The record of a refusal."""
    return TransferRefused(
        transfer_id=request.transfer_id,
        from_account_id=request.from_account_id,
        to_account_id=request.to_account_id,
        amount_minor=request.amount_minor,
        currency=request.currency,
        memo=request.memo,
        sealed_texts=request.sealed_texts,
        code=refusal.code,
        available_minor=refusal.available_minor,
        refused_at=now,
        window=refusal.window,
        remaining_minor=refusal.remaining_minor,
        bulk_id=request.bulk_id,
        bulk_item=request.bulk_item,
    )
