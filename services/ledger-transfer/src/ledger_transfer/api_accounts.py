"""The routes of `/api/accounts`."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.authentication import ops_may
from chassis.consistency import HEADER as CONSISTENCY_HEADER
from chassis.consistency import CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.money import format_amount
from chassis.problems import Problem
from chassis.request import AnyRequest
from chassis.tokens import Caller
from events.decisions import Refusal
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter

from ledger_transfer.exports import csv_of
from ledger_transfer.freezing import AccountUnlinked, FrozenByOps
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import accounts, transactions
from ledger_transfer.queries import Cursor, Limit, instant, month_of, reject_unknown
from ledger_transfer.transfers import REFUSAL_DETAILS, AccountNotFound
from ledger_transfer.views import AccountPage, AccountView, TransactionView, account_view, transaction_view

_FREEZING = {
    FrozenByOps.code: "The account was frozen by operations.",
    AccountUnlinked.code: "The account's platform is not linked any more.",
}
"""What the refusals of freezing alone tell the customer."""


class FreezeView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    status: Literal["active", "frozen"]


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    account_id: UUID
    currency: str
    balance: str
    as_of: datetime
    known_at: datetime | None
    """Set: from what had been recorded by then."""


class StatementView(msgspec.Struct, frozen=True, kw_only=True):
    """A month in India. `opening` plus the lines is `closing`; each line's `balance_after` is the running balance."""

    account_id: UUID
    month: str
    currency: str
    opening: str
    closing: str
    lines: list[TransactionView]


def account_routes(ledger: Ledger, database: asyncpg.Pool, cursors: CursorCodec) -> list[HTTPRouteHandler]:
    """Accounts: the list, their past, and freezing them."""

    @get("/api/accounts", summary="The caller's accounts on both platforms")
    async def list_accounts(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> AccountPage:
        reject_unknown(request, "limit", "cursor")
        user_id = caller.user_id
        after = cursors.decode(cursor, int, purpose="accounts", caller=user_id) if cursor is not None else 0
        rows = await accounts.list_accounts(database, user_id, after_position=after, limit=limit + 1)
        page = rows[:limit]
        more = len(rows) > limit
        return AccountPage(
            items=[account_view(row) for row in page],
            next_cursor=(
                cursors.encode(page[-1].opened_position, purpose="accounts", caller=user_id) if more else None
            ),
        )

    @get("/api/accounts/{account_id:uuid}", summary="One account")
    async def get_account(
        request: AnyRequest,
        account_id: FromPath[UUID],
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
    ) -> AccountView:
        reject_unknown(request)
        return account_view(await _account(caller.user_id, account_id))

    @get("/api/accounts/{account_id:uuid}/balance", summary="The balance at any instant, by time of occurrence")
    async def get_balance(
        request: AnyRequest,
        account_id: FromPath[UUID],
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        as_of: Annotated[
            str | None, QueryParameter(description="Inclusive; a date is the end of that day in India")
        ] = None,
        known_at: Annotated[str | None, QueryParameter(description="By what we knew then")] = None,
    ) -> BalanceView:
        reject_unknown(request, "as_of", "known_at")
        row = await _account(caller.user_id, account_id)
        at = datetime.now(UTC) if as_of is None else instant("as_of", as_of, day_after=True)
        known = None if known_at is None else instant("known_at", known_at, day_after=True)
        balance = await transactions.balance_at(database, caller.user_id, account_id, at, known)
        return BalanceView(
            account_id=account_id,
            currency=row.currency,
            balance=format_amount(balance, row.currency),
            as_of=at,
            known_at=known,
        )

    @get("/api/accounts/{account_id:uuid}/statement", summary="A month's statement, as JSON or CSV")
    async def get_statement(
        request: AnyRequest,
        account_id: FromPath[UUID],
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        month: Annotated[str, QueryParameter(description="YYYY-MM, in India")],
        format_: Annotated[Literal["json", "csv"], QueryParameter(name="format")] = "json",
    ) -> Response[StatementView | bytes]:
        reject_unknown(request, "month", "format")
        since, until = month_of("month", month)
        row = await _account(caller.user_id, account_id)
        opening, lines = await transactions.account_lines(database, caller.user_id, account_id, since, until)
        if format_ == "csv":
            return Response(
                csv_of(lines).encode(),
                media_type="text/csv; charset=utf-8",
                headers={"Content-Disposition": f'attachment; filename="statement-{month}.csv"'},
            )
        # Balances of the day things happened, which is not the order in which we heard of them.
        running = opening
        views = []
        for line in lines:
            running += line.amount_minor if line.direction == "credit" else -line.amount_minor
            views.append(
                msgspec.structs.replace(transaction_view(line), balance_after=format_amount(running, row.currency))
            )
        return Response(
            StatementView(
                account_id=account_id,
                month=month,
                currency=row.currency,
                opening=format_amount(opening, row.currency),
                closing=format_amount(running, row.currency),
                lines=views,
            )
        )

    @post(
        "/api/accounts/{account_id:uuid}/freeze",
        status_code=200,
        summary="Stop commands on an account; what its platform reports is still posted",
        opt=ops_may("transfers:reverse"),
    )
    async def freeze_account(
        request: AnyRequest, account_id: FromPath[UUID], caller: NamedDependency[Caller]
    ) -> Response[FreezeView]:
        return await _freeze(request, account_id, caller, thaw=False)

    @post(
        "/api/accounts/{account_id:uuid}/unfreeze",
        status_code=200,
        summary="Let commands through again; what operations froze only operations can",
        opt=ops_may("transfers:reverse"),
    )
    async def unfreeze_account(
        request: AnyRequest, account_id: FromPath[UUID], caller: NamedDependency[Caller]
    ) -> Response[FreezeView]:
        return await _freeze(request, account_id, caller, thaw=True)

    async def _freeze(request: AnyRequest, account_id: UUID, caller: Caller, *, thaw: bool) -> Response[FreezeView]:
        reject_unknown(request, *(["user_id"] if caller.operator else []))
        by: Literal["customer", "ops"] = "ops" if caller.operator else "customer"
        try:
            decided = await ledger.freeze(
                caller.user_id, account_id, by, caller.metadata(), datetime.now(UTC), thaw=thaw
            )
        except AccountNotFound:
            raise account_not_found() from None
        except Refusal as refusal:
            detail = REFUSAL_DETAILS.get(refusal.code) or _FREEZING[refusal.code]
            raise Problem(403 if refusal.code in _FREEZING else 422, refusal.code, detail) from None
        headers = {CONSISTENCY_HEADER: consistency_token(decided.event_id)} if decided.events else {}
        return Response(FreezeView(id=account_id, status="active" if thaw else "frozen"), headers=headers)

    async def _account(user_id: UUID, account_id: UUID) -> accounts.AccountRow:
        row = await accounts.get_account(database, user_id, account_id)
        if row is None:
            raise account_not_found()
        return row

    return [
        list_accounts,
        get_account,
        get_balance,
        get_statement,
        freeze_account,
        unfreeze_account,
    ]


def account_not_found() -> Problem:
    """404: unknown, or another customer's."""
    return Problem(404, AccountNotFound.code, REFUSAL_DETAILS[AccountNotFound.code])
