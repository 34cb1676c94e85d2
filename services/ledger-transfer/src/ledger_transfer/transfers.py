"""Transfers between a customer's own accounts. Pure deciders.

Refusal
├── AccountNotFound            writes nothing: the account may be reported a moment later
└── TransferRefusal            recorded under the request's key: the same request, the same answer for ever
    ├── SameAccount
    ├── CurrencyMismatch
    ├── AccountClosed
    ├── AccountNotTransferable
    └── InsufficientFunds

in this order of precedence.
"""

from datetime import datetime
from uuid import UUID

import msgspec
from events.contracts.ledger import Leg, TransferCompleted, TransferRefused
from events.contracts.registry import Event
from events.decisions import Refusal

from ledger_transfer.state import MAX_AMOUNT_MINOR, Account, LedgerState, balanced, leg_on


class TransferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the customer asks for. `amount_minor` is positive."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount_minor: int
    currency: str
    memo: str | None = None


class AccountNotFound(Refusal):
    """One of the accounts does not exist, or is another customer's."""

    code = "account_not_found"


class TransferRefusal(Refusal):
    """A well-formed transfer between existing accounts that a rule forbids."""

    available_minor: int | None = None
    """What there was to spend, where that is the reason."""


class SameAccount(TransferRefusal):
    code = "same_account"


class CurrencyMismatch(TransferRefusal):
    """The transfer and both accounts must share one currency."""

    code = "currency_mismatch"


class AccountClosed(TransferRefusal):
    code = "account_closed"


class AccountNotTransferable(TransferRefusal):
    """A fixed deposit takes and gives money only at the bank."""

    code = "account_not_transferable"


class InsufficientFunds(TransferRefusal):
    """What is available, less the amount, would be below the account's floor."""

    code = "insufficient_funds"

    def __init__(self, available_minor: int) -> None:
        super().__init__()
        self.available_minor = available_minor


REFUSAL_DETAILS: dict[str, str] = {
    AccountNotFound.code: "There is no such account.",
    SameAccount.code: "A transfer needs two different accounts.",
    CurrencyMismatch.code: "The transfer and both of its accounts must have one currency.",
    AccountClosed.code: "One of the accounts is closed.",
    AccountNotTransferable.code: "A fixed deposit takes and gives money only at the bank.",
    InsufficientFunds.code: "The account's available balance does not cover the amount.",
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
    if source.account_id == target.account_id:
        raise SameAccount()
    if not request.currency == source.currency == target.currency:
        raise CurrencyMismatch()
    if "closed" in (source.status, target.status):
        raise AccountClosed()
    if "fixed_deposit" in (source.kind, target.kind):
        raise AccountNotTransferable()
    if source.available_minor - request.amount_minor < source.floor_minor:
        raise InsufficientFunds(spendable_minor(source))
    return balanced(leg_on(source, -request.amount_minor), leg_on(target, request.amount_minor))


def spendable_minor(account: Account) -> int:
    """How much a transfer may take from the account: never negative."""
    return max(0, account.available_minor - account.floor_minor)


def transfer(state: LedgerState, request: TransferRequest, now: datetime) -> list[Event]:
    """Completes the transfer or records its refusal.

    Raises:
        AccountNotFound: nothing is recorded.
    """
    try:
        legs = post_transfer(state, request)
    except TransferRefusal as refusal:
        return [
            TransferRefused(
                transfer_id=request.transfer_id,
                from_account_id=request.from_account_id,
                to_account_id=request.to_account_id,
                amount_minor=request.amount_minor,
                currency=request.currency,
                memo=request.memo,
                code=refusal.code,
                available_minor=refusal.available_minor,
                refused_at=now,
            )
        ]
    return [
        TransferCompleted(
            transfer_id=request.transfer_id,
            from_account_id=request.from_account_id,
            to_account_id=request.to_account_id,
            amount_minor=request.amount_minor,
            currency=request.currency,
            memo=request.memo,
            legs=legs,
            completed_at=now,
        )
    ]
