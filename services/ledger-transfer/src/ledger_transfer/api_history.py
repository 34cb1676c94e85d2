"""The routes of `/api/transactions`: the combined history of both platforms."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.consistency import HEADER as CONSISTENCY_HEADER
from chassis.consistency import CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.money import format_amount
from chassis.problems import Problem
from chassis.request import AnyRequest
from chassis.tokens import Caller
from events.contracts.ledger import Direction, Platform
from events.envelope import derived_id, new_id
from events.store import EventIdReused
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, JSONBody, QueryParameter

from ledger_transfer.exports import MEDIA_TYPES, Export, ExportFormat, render
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import accounts, statements, transactions
from ledger_transfer.projections.transactions import LATEST, Filter, GroupBy, Place, TransactionType
from ledger_transfer.queries import Cursor, Key, Limit, filter_of, instant, key_of, plain_text, reject_unknown
from ledger_transfer.views import TransactionPage, optional_amount, transaction_view

ROWS_EXPORTED_MAX = 200_000

From = Annotated[str | None, QueryParameter(name="from", description="Inclusive; a date is a day in India")]
To = Annotated[str | None, QueryParameter(name="to", description="Exclusive; a date includes that day in India")]


class TotalView(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    currency: str
    total_in: str
    total_out: str
    net: str
    count: int


class CurrencyTotalView(msgspec.Struct, frozen=True, kw_only=True):
    currency: str
    total_in: str
    total_out: str
    net: str
    count: int


class SummaryView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but opening balances. The groups sum to the totals, to the paisa."""

    group_by: GroupBy
    groups: list[TotalView]
    totals: list[CurrencyTotalView]
    """One per currency."""


class BreakView(msgspec.Struct, frozen=True, kw_only=True):
    since: datetime
    age_s: int
    difference: str
    """What the platform states more than we know."""


class ReconciliationItem(msgspec.Struct, frozen=True, kw_only=True):
    account_id: UUID
    platform: Platform
    currency: str
    status: Literal["agrees", "break", "not_stated"]
    balance: str
    """Ours, now."""
    stated_balance: str | None
    stated_as_of: datetime | None
    our_balance_then: str | None
    in_transit: str
    """Of it, own transfers that the platform has not reported back."""
    break_: BreakView | None = msgspec.field(name="break", default=None)


class ReconciliationView(msgspec.Struct, frozen=True, kw_only=True):
    items: list[ReconciliationItem]
    breaks: int


class SyncBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    platforms: Annotated[list[Platform], msgspec.Meta(min_length=1, max_length=2)] | None = None
    """None: both."""


class SyncView(msgspec.Struct, frozen=True, kw_only=True):
    sync_id: UUID
    status: Literal["requested"] = "requested"
    platforms: list[Platform]
    href: str
    """Where to follow it."""


def history_routes(ledger: Ledger, database: asyncpg.Pool, cursors: CursorCodec) -> list[HTTPRouteHandler]:
    """The history: list, summary, search, reconciliation, sync and export."""

    @get("/api/transactions", summary="The combined history of both platforms, the latest first")
    async def list_transactions(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        platform: FromQuery[Platform | None] = None,
        account_id: FromQuery[UUID | None] = None,
        type: FromQuery[TransactionType | None] = None,  # noqa: A002 - its public name
        category: Annotated[str | None, QueryParameter(max_length=64)] = None,
        direction: FromQuery[Direction | None] = None,
        since: From = None,
        until: To = None,
        min_amount: Annotated[str | None, QueryParameter(description="Decimal string, inclusive")] = None,
        max_amount: Annotated[str | None, QueryParameter(description="Decimal string, inclusive")] = None,
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> TransactionPage:
        reject_unknown(
            request,
            *("platform", "account_id", "type", "category", "direction", "from", "to"),
            *("min_amount", "max_amount", "limit", "cursor"),
        )
        chosen = filter_of(
            platform=platform,
            account_id=account_id,
            type_=type,
            category=plain_text("category", category),
            direction=direction,
            since=since,
            until=until,
            min_amount=min_amount,
            max_amount=max_amount,
        )
        return await _page(caller.user_id, chosen, "transactions", limit, cursor)

    @get("/api/transactions/search", summary="The history's rows whose memo, counterparty or reference has all words")
    async def search_transactions(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        q: Annotated[str, QueryParameter(min_length=1, max_length=128)],
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> TransactionPage:
        reject_unknown(request, "q", "limit", "cursor")
        words = (plain_text("q", q) or "").split()
        if not words:
            return TransactionPage(items=[], next_cursor=None)
        return await _page(caller.user_id, Filter(), "search", limit, cursor, " ".join(words[:16]))

    async def _page(
        user_id: UUID, chosen: Filter, purpose: str, limit: int, cursor: str | None, text: str | None = None
    ) -> TransactionPage:
        before = LATEST if cursor is None else cursors.decode(cursor, Place, purpose=purpose, caller=user_id)
        rows = await transactions.list_transactions(
            database, user_id, chosen, before=before, limit=limit + 1, text=text
        )
        page = rows[:limit]
        more = len(rows) > limit
        return TransactionPage(
            items=[transaction_view(row) for row in page],
            next_cursor=(cursors.encode(page[-1].place, purpose=purpose, caller=user_id) if more else None),
        )

    @get("/api/transactions/summary", summary="What came in and went out")
    async def get_transaction_summary(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        since: From = None,
        until: To = None,
        group_by: FromQuery[GroupBy] = "category",
    ) -> SummaryView:
        reject_unknown(request, "from", "to", "group_by")
        chosen = _period(since, until)
        groups = await transactions.summarise(database, caller.user_id, chosen, group_by)
        sums: dict[str, tuple[int, int, int]] = {}
        for group in groups:
            into, out, count = sums.get(group.currency, (0, 0, 0))
            sums[group.currency] = (into + group.in_minor, out + group.out_minor, count + group.movements)
        return SummaryView(
            group_by=group_by,
            groups=[
                TotalView(
                    key=group.key,
                    currency=group.currency,
                    total_in=format_amount(group.in_minor, group.currency),
                    total_out=format_amount(group.out_minor, group.currency),
                    net=format_amount(group.in_minor - group.out_minor, group.currency),
                    count=group.movements,
                )
                for group in groups
            ],
            totals=[
                CurrencyTotalView(
                    currency=currency,
                    total_in=format_amount(into, currency),
                    total_out=format_amount(out, currency),
                    net=format_amount(into - out, currency),
                    count=count,
                )
                for currency, (into, out, count) in sorted(sums.items())
            ],
        )

    @get("/api/transactions/reconciliation", summary="Our balances beside the platforms', and the age of each break")
    async def get_reconciliation(
        request: AnyRequest, caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]
    ) -> ReconciliationView:
        reject_unknown(request)
        now = datetime.now(UTC)
        items = [_reconciled(row, now) for row in await statements.compare(database, caller.user_id)]
        return ReconciliationView(items=items, breaks=sum(item.status == "break" for item in items))

    @post("/api/transactions/sync", status_code=202, summary="Ask both platforms for anything missing now")
    async def request_transaction_sync(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        data: JSONBody[SyncBody | None] = None,
        idempotency_key: Key = None,
    ) -> Response[SyncView]:
        reject_unknown(request)
        platforms: list[Platform] = ["bfc", "vyomo"]
        if data is not None and data.platforms is not None:
            platforms = [platform for platform in platforms if platform in data.platforms]
        user_id = caller.user_id
        sync_id = new_id() if idempotency_key is None else derived_id(user_id, "sync", key_of(idempotency_key))
        try:
            await ledger.request_sync(user_id, sync_id, platforms, caller.metadata(), datetime.now(UTC))
        except EventIdReused:
            raise Problem(422, "idempotency_key_reused", "This Idempotency-Key was used for another request") from None
        return Response(
            SyncView(sync_id=sync_id, platforms=platforms, href=f"/api/sync/history/{sync_id}"),
            status_code=202,
            headers={CONSISTENCY_HEADER: consistency_token(sync_id)},
        )

    @get("/api/transactions/export", summary="The history as a file for other accounting tools")
    async def export_transactions(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        format_: Annotated[ExportFormat, QueryParameter(name="format")],
        since: From = None,
        until: To = None,
    ) -> Response[bytes]:
        reject_unknown(request, "format", "from", "to")
        chosen = _period(since, until)
        until_at = min(chosen.until, datetime.now(UTC))
        rows = await transactions.everything(database, caller.user_id, chosen, limit=ROWS_EXPORTED_MAX + 1)
        if len(rows) > ROWS_EXPORTED_MAX:
            raise Problem(422, "export_too_large", "Choose a shorter period with from and to")
        content = render(
            Export(
                accounts=await accounts.all_accounts(database, caller.user_id),
                before=await transactions.balances_before(database, caller.user_id, chosen.since),
                rows=rows,
                until=until_at,
            ),
            format_,
        )
        media_type, extension = MEDIA_TYPES[format_]
        return Response(
            content.encode(),
            media_type=media_type,
            headers={"Content-Disposition": f'attachment; filename="sangam.{extension}"'},
        )

    return [
        list_transactions,
        search_transactions,
        get_transaction_summary,
        get_reconciliation,
        request_transaction_sync,
        export_transactions,
    ]


def _period(since: str | None, until: str | None) -> Filter:
    chosen = Filter()
    if since is not None:
        chosen = msgspec.structs.replace(chosen, since=instant("from", since))
    if until is not None:
        chosen = msgspec.structs.replace(chosen, until=instant("to", until, day_after=True))
    return chosen


def _reconciled(row: statements.Comparison, now: datetime) -> ReconciliationItem:
    status: Literal["agrees", "break", "not_stated"] = "agrees"
    broken = None
    if row.as_of is None:
        status = "not_stated"
    elif row.broken_since is not None:
        status = "break"
        broken = BreakView(
            since=row.broken_since,
            age_s=max(0, int((now - row.broken_since).total_seconds())),
            difference=format_amount(row.difference_minor, row.currency),
        )
    return ReconciliationItem(
        account_id=row.account_id,
        platform=row.platform,
        currency=row.currency,
        status=status,
        balance=format_amount(row.balance_minor, row.currency),
        stated_balance=optional_amount(row.stated_minor, row.currency),
        stated_as_of=row.as_of,
        our_balance_then=optional_amount(row.ours_minor, row.currency),
        in_transit=format_amount(row.in_transit_minor, row.currency),
        break_=broken,
    )
