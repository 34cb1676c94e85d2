"""What the routes answer, and how it is made of rows and events."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec
from chassis.money import format_amount
from events.contracts.ledger import (
    AccountKind,
    Direction,
    LimitWindow,
    Platform,
    TransferCompleted,
    TransferHeld,
    TransferRefused,
    TransferVoided,
)

from ledger_transfer.outcomes import FoundTransfer
from ledger_transfer.projections.accounts import AccountRow
from ledger_transfer.projections.transactions import TransactionRow, TransactionType
from ledger_transfer.transfers import REFUSAL_DETAILS


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    platform: Platform
    platform_account_id: str
    kind: AccountKind
    name: str | None
    currency: str
    balance: str
    available: str
    """The balance less holds."""
    status: str


class AccountPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[AccountView]
    next_cursor: str | None


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    platform: Platform
    account_id: UUID
    type: TransactionType
    direction: Direction
    amount: str
    currency: str
    category: str
    counterparty: str | None
    memo: str | None
    reference: str | None
    balance_after: str
    occurred_at: datetime
    transfer_id: UUID | None
    """Both sides of an own transfer carry it."""


class TransactionPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[TransactionView]
    next_cursor: str | None


class CompletedView(msgspec.Struct, frozen=True, kw_only=True):
    transfer_id: UUID
    status: Literal["completed", "reversed"] = "completed"
    from_account_id: UUID
    to_account_id: UUID
    amount: str
    currency: str
    memo: str | None
    completed_at: datetime
    from_balance: str
    to_balance: str
    rule_id: UUID | None = None
    """The auto-replenish rule that made it."""
    reverses: UUID | None = None
    """The transfer that this one took back."""
    reversed_by: UUID | None = None
    """The transfer that took this one back."""


class HeldView(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer whose money is, or was, only set aside."""

    transfer_id: UUID
    status: Literal["held", "voided", "expired"] = "held"
    from_account_id: UUID
    to_account_id: UUID
    amount: str
    currency: str
    memo: str | None
    held_at: datetime
    expires_at: datetime


class RefusedView(msgspec.Struct, frozen=True, kw_only=True):
    transfer_id: UUID
    status: Literal["refused"] = "refused"
    from_account_id: UUID
    to_account_id: UUID
    amount: str
    currency: str
    memo: str | None
    refused_at: datetime
    code: str
    detail: str


class StepUpView(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask `POST /api/auth/step-up` for."""

    amount: str
    currency: str
    to_account_id: UUID | None


class RefusalView(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    detail: str
    available: str | None = None
    window: LimitWindow | None = None
    remaining: str | None = None
    step_up: StepUpView | None = None


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    limit: str
    used: str
    remaining: str
    resets_at: datetime


class LimitsView(msgspec.Struct, frozen=True, kw_only=True):
    """The customer's limits of a day, week and month in India."""

    currency: str
    daily: LimitView
    weekly: LimitView
    monthly: LimitView


class PreviewView(msgspec.Struct, frozen=True, kw_only=True):
    """What the transfer would do now. Balances and limits are after it; balances are null when it would be refused."""

    allowed: bool
    amount: str
    currency: str
    from_balance: str | None
    to_balance: str | None
    refusal: RefusalView | None
    limits: LimitsView


class BulkItemView(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    status: Literal["completed", "held", "refused", "not_made"]
    """`not_made`: another item was refused, and all or nothing was asked for."""
    transfer_id: UUID | None = None
    code: str | None = None
    detail: str | None = None
    from_balance: str | None = None
    to_balance: str | None = None


class BulkView(msgspec.Struct, frozen=True, kw_only=True):
    bulk_id: UUID
    mode: Literal["all_or_nothing", "independent"]
    status: Literal["completed", "partial", "refused"]
    items: list[BulkItemView]


TransferView = CompletedView | HeldView | RefusedView


def account_view(row: AccountRow) -> AccountView:
    return AccountView(
        id=row.account_id,
        platform=row.platform,
        platform_account_id=row.platform_account_id,
        kind=row.kind,
        name=row.name,
        currency=row.currency,
        balance=format_amount(row.balance_minor, row.currency),
        available=format_amount(row.available_minor, row.currency),
        status=row.status,
    )


def transaction_view(row: TransactionRow) -> TransactionView:
    return TransactionView(
        id=row.transaction_id,
        platform=row.platform,
        account_id=row.account_id,
        type=row.type,
        direction=row.direction,
        amount=format_amount(row.amount_minor, row.currency),
        currency=row.currency,
        category=row.category,
        counterparty=row.counterparty,
        memo=row.memo,
        reference=row.reference,
        balance_after=format_amount(row.balance_after_minor, row.currency),
        occurred_at=row.occurred_at,
        transfer_id=row.transfer_id,
    )


def completed_view(event: TransferCompleted, reversed_by: UUID | None = None) -> CompletedView:
    debit, credit = event.legs
    return CompletedView(
        transfer_id=event.transfer_id,
        status="completed" if reversed_by is None else "reversed",
        from_account_id=event.from_account_id,
        to_account_id=event.to_account_id,
        amount=format_amount(event.amount_minor, event.currency),
        currency=event.currency,
        memo=event.memo,
        completed_at=event.completed_at,
        from_balance=format_amount(debit.balance_after_minor or 0, debit.currency),
        to_balance=format_amount(credit.balance_after_minor or 0, credit.currency),
        rule_id=event.rule_id,
        reverses=event.reverses,
        reversed_by=reversed_by,
    )


def held_view(event: TransferHeld, status: Literal["held", "voided", "expired"] = "held") -> HeldView:
    return HeldView(
        transfer_id=event.transfer_id,
        status=status,
        from_account_id=event.from_account_id,
        to_account_id=event.to_account_id,
        amount=format_amount(event.amount_minor, event.currency),
        currency=event.currency,
        memo=event.memo,
        held_at=event.held_at,
        expires_at=event.expires_at,
    )


def refused_view(event: TransferRefused) -> RefusedView:
    return RefusedView(
        transfer_id=event.transfer_id,
        from_account_id=event.from_account_id,
        to_account_id=event.to_account_id,
        amount=format_amount(event.amount_minor, event.currency),
        currency=event.currency,
        memo=event.memo,
        refused_at=event.refused_at,
        code=event.code,
        detail=REFUSAL_DETAILS[event.code],
    )


def found_view(found: FoundTransfer) -> TransferView:
    """A transfer as it is now."""
    if found.completed is not None:
        return completed_view(found.completed, found.reversed.reversal_id if found.reversed else None)
    first = found.first
    if isinstance(first, TransferRefused):
        return refused_view(first)
    assert isinstance(first, TransferHeld)
    if found.open:
        return held_view(first)
    return held_view(first, "voided" if isinstance(found.ended, TransferVoided) else "expired")


def optional_amount(minor: int | None, currency: str) -> str | None:
    return None if minor is None else format_amount(minor, currency)
