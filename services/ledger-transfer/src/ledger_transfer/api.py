"""The routes of `/api/accounts`, `/api/transfers` and `/api/transactions`."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.consistency import HEADER as CONSISTENCY_HEADER
from chassis.consistency import CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.money import format_amount, parse_amount
from chassis.problems import Problem, invalid_field
from chassis.request import AnyRequest
from chassis.revocations import MOVES_MONEY
from chassis.tokens import Caller
from events.contracts.ledger import AccountKind, Direction, Platform, TransferCompleted, TransferRefused
from events.store import EventIdReused
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter

from ledger_transfer.ledger import Ledger, TransferOutcome, transfer_id_of
from ledger_transfer.projections import accounts, transactions
from ledger_transfer.projections.transactions import LATEST, Place, TransactionType
from ledger_transfer.queries import filter_of, reject_unknown
from ledger_transfer.state import MAX_AMOUNT_MINOR
from ledger_transfer.transfers import (
    REFUSAL_DETAILS,
    AccountNotFound,
    TransferRefusal,
    TransferRequest,
    post_transfer,
)

REPLAYED_HEADER = "Idempotent-Replayed"
MEMO_LENGTH_MAX = 140

_KEY = re.compile(r"[\x21-\x7e]{1,255}")

Limit = Annotated[int, Parameter(ge=1, le=200, description="How many items to return")]
Cursor = Annotated[str | None, Parameter(description="`next_cursor` of the page before")]
Key = Annotated[
    str | None,
    Parameter(header="Idempotency-Key", description="Names the request; 1 to 255 visible characters"),
]


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


class TransferBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    from_account_id: UUID
    to_account_id: UUID
    amount: Annotated[str, msgspec.Meta(max_length=32, description="Decimal string", examples=["50000.00"])]
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3, examples=["INR"])]
    memo: Annotated[str, msgspec.Meta(max_length=MEMO_LENGTH_MAX)] | None = None


class CompletedView(msgspec.Struct, frozen=True, kw_only=True):
    transfer_id: UUID
    status: Literal["completed"] = "completed"
    from_account_id: UUID
    to_account_id: UUID
    amount: str
    currency: str
    memo: str | None
    completed_at: datetime
    from_balance: str
    to_balance: str


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


class RefusalView(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    detail: str
    available: str | None


class PreviewView(msgspec.Struct, frozen=True, kw_only=True):
    """What the transfer would do now. Balances are after it, null when it would be refused."""

    allowed: bool
    amount: str
    currency: str
    from_balance: str | None
    to_balance: str | None
    refusal: RefusalView | None


def routes(ledger: Ledger, database: asyncpg.Pool, cursors: CursorCodec) -> list[HTTPRouteHandler]:
    """All routes of the service."""

    @get("/api/accounts", summary="The caller's accounts on both platforms")
    async def list_accounts(
        request: AnyRequest, caller: Caller, caught_up: CaughtUp, limit: Limit = 50, cursor: Cursor = None
    ) -> AccountPage:
        reject_unknown(request, "limit", "cursor")
        user_id = caller.user_id
        after = cursors.decode(cursor, int, purpose="accounts", caller=user_id) if cursor is not None else 0
        rows = await accounts.list_accounts(database, user_id, after_position=after, limit=limit + 1)
        page = rows[:limit]
        more = len(rows) > limit
        return AccountPage(
            items=[_account_view(row) for row in page],
            next_cursor=(
                cursors.encode(page[-1].opened_position, purpose="accounts", caller=user_id) if more else None
            ),
        )

    @get("/api/accounts/{account_id:uuid}", summary="One account")
    async def get_account(request: AnyRequest, account_id: UUID, caller: Caller, caught_up: CaughtUp) -> AccountView:
        reject_unknown(request)
        row = await accounts.get_account(database, caller.user_id, account_id)
        if row is None:
            raise _account_not_found()
        return _account_view(row)

    @get("/api/transactions", summary="The combined history of both platforms, the latest first")
    async def list_transactions(
        request: AnyRequest,
        caller: Caller,
        caught_up: CaughtUp,
        platform: Platform | None = None,
        account_id: UUID | None = None,
        type: TransactionType | None = None,  # noqa: A002 - its public name
        category: Annotated[str | None, Parameter(max_length=64)] = None,
        direction: Direction | None = None,
        since: Annotated[str | None, Parameter(query="from", description="Inclusive; a date is a day in India")] = None,
        until: Annotated[
            str | None, Parameter(query="to", description="Exclusive; a date includes that day in India")
        ] = None,
        min_amount: Annotated[str | None, Parameter(description="Decimal string, inclusive")] = None,
        max_amount: Annotated[str | None, Parameter(description="Decimal string, inclusive")] = None,
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> TransactionPage:
        reject_unknown(
            request,
            *("platform", "account_id", "type", "category", "direction", "from", "to"),
            *("min_amount", "max_amount", "limit", "cursor"),
        )
        user_id = caller.user_id
        chosen = filter_of(
            platform=platform,
            account_id=account_id,
            type_=type,
            category=_plain_text("category", category),
            direction=direction,
            since=since,
            until=until,
            min_amount=min_amount,
            max_amount=max_amount,
        )
        before = LATEST
        if cursor is not None:
            before = cursors.decode(cursor, Place, purpose="transactions", caller=user_id)
        rows = await transactions.list_transactions(database, user_id, chosen, before=before, limit=limit + 1)
        page = rows[:limit]
        more = len(rows) > limit
        return TransactionPage(
            items=[_transaction_view(row) for row in page],
            next_cursor=(cursors.encode(page[-1].place, purpose="transactions", caller=user_id) if more else None),
        )

    @post("/api/transfers", summary="Move money between the caller's own accounts, at once", opt=MOVES_MONEY)
    async def create_transfer(
        request: AnyRequest, data: TransferBody, caller: Caller, idempotency_key: Key = None
    ) -> Response[CompletedView]:
        reject_unknown(request)
        transfer_id = transfer_id_of(caller.user_id, _key(idempotency_key))
        try:
            outcome = await ledger.transfer(
                caller.user_id, _transfer_request(data, transfer_id), caller.metadata(), datetime.now(UTC)
            )
        except AccountNotFound:
            raise _account_not_found() from None
        except EventIdReused:
            raise Problem(422, "idempotency_key_reused", "This Idempotency-Key was used for another request") from None
        headers = _outcome_headers(outcome)
        if isinstance(outcome.event, TransferRefused):
            raise _refused(outcome.event, headers)
        return Response(_completed_view(outcome.event), status_code=201, headers=headers)

    @post("/api/transfers/preview", status_code=200, summary="What a transfer would do now; nothing is written")
    async def preview_transfer(request: AnyRequest, data: TransferBody, caller: Caller) -> PreviewView:
        reject_unknown(request)
        # No key, no event: the id only has to be a well-formed one.
        wanted = _transfer_request(data, transfer_id_of(caller.user_id, ""))
        try:
            legs = post_transfer(await ledger.state(caller.user_id), wanted)
        except AccountNotFound:
            raise _account_not_found() from None
        except TransferRefusal as refusal:
            return PreviewView(
                allowed=False,
                amount=format_amount(wanted.amount_minor, wanted.currency),
                currency=wanted.currency,
                from_balance=None,
                to_balance=None,
                refusal=RefusalView(
                    code=refusal.code,
                    detail=REFUSAL_DETAILS[refusal.code],
                    available=_optional_amount(refusal.available_minor, wanted.currency),
                ),
            )
        debit, credit = legs
        return PreviewView(
            allowed=True,
            amount=format_amount(wanted.amount_minor, wanted.currency),
            currency=wanted.currency,
            from_balance=_optional_amount(debit.balance_after_minor, debit.currency),
            to_balance=_optional_amount(credit.balance_after_minor, credit.currency),
            refusal=None,
        )

    @get("/api/transfers/{transfer_id:uuid}", summary="One transfer")
    async def get_transfer(request: AnyRequest, transfer_id: UUID, caller: Caller) -> CompletedView | RefusedView:
        reject_unknown(request)
        return await _transfer_view(ledger, caller.user_id, transfer_id)

    @get("/api/transfers", summary="The outcome of a transfer request by its key, after a lost response")
    async def get_transfer_by_key(
        request: AnyRequest,
        caller: Caller,
        idempotency_key: Annotated[str, Parameter(query="idempotency_key")],
    ) -> CompletedView | RefusedView:
        reject_unknown(request, "idempotency_key")
        return await _transfer_view(ledger, caller.user_id, transfer_id_of(caller.user_id, _key(idempotency_key)))

    return [
        list_accounts,
        get_account,
        list_transactions,
        create_transfer,
        preview_transfer,
        get_transfer,
        get_transfer_by_key,
    ]


async def _transfer_view(ledger: Ledger, user_id: UUID, transfer_id: UUID) -> CompletedView | RefusedView:
    event = await ledger.find_transfer(user_id, transfer_id)
    if event is None:
        raise Problem(404, "transfer_not_found", "There is no such transfer")
    return _completed_view(event) if isinstance(event, TransferCompleted) else _refused_view(event)


def _key(key: str | None) -> str:
    if not key:
        raise Problem(400, "idempotency_key_required", "A transfer needs an Idempotency-Key")
    if _KEY.fullmatch(key) is None:
        raise invalid_field("Idempotency-Key", "must be 1 to 255 visible ASCII characters", "invalid_idempotency_key")
    return key


def _transfer_request(body: TransferBody, transfer_id: UUID) -> TransferRequest:
    amount_minor = parse_amount(body.amount, body.currency)
    if amount_minor > MAX_AMOUNT_MINOR:
        raise invalid_field("amount", "is too large", "invalid_amount")
    return TransferRequest(
        transfer_id=transfer_id,
        from_account_id=body.from_account_id,
        to_account_id=body.to_account_id,
        amount_minor=amount_minor,
        currency=body.currency,
        memo=_plain_text("memo", body.memo),
    )


def _plain_text(field: str, text: str | None) -> str | None:
    if text is not None and any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise invalid_field(field, "must not contain control characters")
    return text


def _outcome_headers(outcome: TransferOutcome) -> dict[str, str]:
    headers = {CONSISTENCY_HEADER: consistency_token(outcome.event.transfer_id)}
    return headers | {REPLAYED_HEADER: "true"} if outcome.replayed else headers


def _refused(event: TransferRefused, headers: dict[str, str]) -> Problem:
    extensions: dict[str, Any] = {"transfer_id": event.transfer_id, "currency": event.currency}
    if event.available_minor is not None:
        extensions["available"] = format_amount(event.available_minor, event.currency)
    return Problem(422, event.code, REFUSAL_DETAILS[event.code], headers=headers, **extensions)


def _account_not_found() -> Problem:
    return Problem(404, AccountNotFound.code, REFUSAL_DETAILS[AccountNotFound.code])


def _account_view(row: accounts.AccountRow) -> AccountView:
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


def _transaction_view(row: transactions.TransactionRow) -> TransactionView:
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


def _completed_view(event: TransferCompleted) -> CompletedView:
    debit, credit = event.legs
    assert debit.balance_after_minor is not None
    assert credit.balance_after_minor is not None
    return CompletedView(
        transfer_id=event.transfer_id,
        from_account_id=event.from_account_id,
        to_account_id=event.to_account_id,
        amount=format_amount(event.amount_minor, event.currency),
        currency=event.currency,
        memo=event.memo,
        completed_at=event.completed_at,
        from_balance=format_amount(debit.balance_after_minor, debit.currency),
        to_balance=format_amount(credit.balance_after_minor, credit.currency),
    )


def _refused_view(event: TransferRefused) -> RefusedView:
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


def _optional_amount(minor: int | None, currency: str) -> str | None:
    return None if minor is None else format_amount(minor, currency)
