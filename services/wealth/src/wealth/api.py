"""`/api/wealth`: what the customer is worth, how their money did, how healthy it is, and what to know about it."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from chassis.consistency import HEADER, CaughtUp, consistency_token
from chassis.problems import Problem, invalid_field
from chassis.request import AnyRequest, metadata_of
from chassis.tokens import Caller
from events.decisions import Streams
from events.envelope import derived_id
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery

from wealth import queries
from wealth.answers import (
    HealthAnswer,
    InsightsAnswer,
    NetWorthAnswer,
    PerformanceAnswer,
    SummaryAnswer,
    net_worth_answer,
)
from wealth.desk import Desk
from wealth.explaining import (
    FIGURES,
    ITEM_FIGURES,
    PERIOD_FIGURES,
    Explanation,
    explain_health,
    explain_items,
    explain_period,
    explain_realized,
)
from wealth.ledger_lines import IST
from wealth.noticed import InsightNotFound, WealthState, dismiss
from wealth.performance import PERIODS

EVENTS_MAX = 200
_EARLIEST_YEAR = 1970
_DISMISSALS = UUID("0b9d3a4e-7a51-5a80-b8f3-52ab6f6f7d0c")


class Dismissed(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    status: str = "dismissed"


def routes(database: asyncpg.Pool, desk: Desk, streams: "Streams[WealthState]") -> list[HTTPRouteHandler]:
    """The routes of this service."""

    @get("/api/wealth/net-worth", summary="Net worth over both platforms, now or at a past instant")
    async def get_net_worth(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        as_of: FromQuery[str | None] = None,
    ) -> NetWorthAnswer:
        _only(request, "as_of")
        if as_of is None:
            return (await desk.look(caller.user_id)).answers.net_worth
        at = _instant(as_of, desk.clock())
        async with queries.snapshot(database) as db:
            past = await queries.past_worth(db, caller.user_id, at)
        return net_worth_answer(at, past.position, past.linked, past.figures)

    @get("/api/wealth/performance", summary="Returns of the last 30, 90 or 365 days")
    async def get_performance(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        period: FromQuery[str] = "365",
    ) -> PerformanceAnswer:
        _only(request, "period")
        days = _period(period)
        look = await desk.look(caller.user_id)
        return look.answers.performance[PERIODS.index(days)]

    @get("/api/wealth/health", summary="Financial health score with its factors")
    async def get_health_score(
        request: AnyRequest, caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]
    ) -> HealthAnswer:
        _only(request)
        return (await desk.look(caller.user_id)).answers.health

    @get("/api/wealth/insights", summary="What is worth knowing, most important first")
    async def get_insights(
        request: AnyRequest, caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]
    ) -> InsightsAnswer:
        _only(request)
        look = await desk.look(caller.user_id)
        return InsightsAnswer(position=look.position, items=look.answers.insights)

    @post("/api/wealth/insights/{insight_id:uuid}/dismiss", status_code=200, summary="Do not show this insight again")
    async def dismiss_insight(
        request: AnyRequest, caller: NamedDependency[Caller], insight_id: FromPath[UUID]
    ) -> Response[Dismissed]:
        look = await desk.look(caller.user_id)
        now = desk.clock()
        _, version = await streams.load(caller.user_id)
        try:
            decided = await streams.execute(
                caller.user_id,
                lambda state: dismiss(state, insight_id, look.computed.shown, now),
                event_id=derived_id(_DISMISSALS, caller.user_id, insight_id, version),
                subject=caller.user_id,
                metadata=metadata_of(request, f"user:{caller.user_id}", caller.platform),
            )
        except InsightNotFound as error:
            raise Problem(404, error.code, str(error)) from None
        headers = {HEADER: consistency_token(decided.event_id)} if decided.events else {}
        return Response(Dismissed(id=insight_id), headers=headers)

    @get("/api/wealth/summary", summary="Every figure, at one position of the log")
    async def get_summary(
        request: AnyRequest, caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]
    ) -> SummaryAnswer:
        _only(request)
        return (await desk.look(caller.user_id)).answers

    @get("/api/wealth/explain/{figure:str}", summary="The formula and the events behind a figure")
    async def get_explanation(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        figure: FromPath[str],
        as_of: FromQuery[str | None] = None,
        period: FromQuery[str] = "365",
        limit: FromQuery[str] = "50",
    ) -> Explanation:
        if figure not in FIGURES:
            raise Problem(404, "figure_not_found", f"There is no such figure; there are {', '.join(FIGURES)}")
        allowed = "as_of" if figure in ITEM_FIGURES or figure == "realized_pnl" else "period"
        _only(request, "limit", *([allowed] if figure != "health" else []))
        events = _limit(limit)
        days = _period(period)
        asked = _instant(as_of, desk.clock()) if as_of is not None else None
        # One snapshot for the figure and the events behind it: what comes meanwhile is in neither.
        async with queries.snapshot(database) as db:
            if figure == "health":
                return explain_health(await desk.look(caller.user_id, db))
            if figure in PERIOD_FIGURES:
                look = await desk.look(caller.user_id, db)
                return await explain_period(db, caller.user_id, figure, look, days, events)
            if figure == "realized_pnl":
                return await explain_realized(db, caller.user_id, asked, events)
            return await explain_items(db, caller.user_id, figure, asked, events)

    return [
        get_net_worth,
        get_performance,
        get_health_score,
        get_insights,
        dismiss_insight,
        get_summary,
        get_explanation,
    ]


def _only(request: AnyRequest, *known: str) -> None:
    """Today's figures must not be mistaken for what an ignored parameter asked for."""
    for name in request.query_params:
        if name not in known:
            raise invalid_field(name, "is not a parameter of this route", "unknown_parameter")
        if len(request.query_params.getall(name)) > 1:
            raise invalid_field(name, "is given more than once")


def _period(text: str) -> int:
    if text not in {str(days) for days in PERIODS}:
        raise invalid_field("period", f"must be one of {', '.join(map(str, PERIODS))}")
    return int(text)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= EVENTS_MAX:
        raise invalid_field("limit", f"must be a number from 1 to {EVENTS_MAX}")
    return int(text)


def _instant(text: str, now: datetime) -> datetime:
    """A past instant: RFC 3339 with its offset, or a date, which means its end in India."""
    moment: Any
    try:
        if len(text) == len("2026-02-12"):
            day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone(IST))
            moment = min(day + timedelta(days=1) - timedelta(microseconds=1), now)
            if day > now:
                raise invalid_field("as_of", "must not be in the future")
        else:
            # A + in a query string is a space unless it was escaped.
            moment = msgspec.convert(text.replace(" ", "+"), Annotated[datetime, msgspec.Meta(tz=True)])
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError, msgspec.ValidationError):
        raise invalid_field("as_of", "must be a time such as 2026-02-12T09:00:00Z, or a date") from None
    if moment.year < _EARLIEST_YEAR:
        raise invalid_field("as_of", "is not a plausible time")
    if moment > now:
        raise invalid_field("as_of", "must not be in the future")
    assert isinstance(moment, datetime)
    return moment
