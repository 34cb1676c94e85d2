"""The bodies of `/api/wealth`, and figures in their shape. Money as decimal strings of `currency`."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from chassis.money import format_amount
from events.contracts.wealth import Action, Evidence

from wealth.computing import Computed
from wealth.health import Health
from wealth.insights import Insight
from wealth.networth import CURRENCY, NetWorth
from wealth.performance import Performance
from wealth.picture import Noticed

NOTHING_LINKED = "no linked accounts"


class Banking(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    savings: str | None
    current: str | None
    fixed_deposits: str | None
    reason: str | None = None
    """Why a figure is null; absent where every figure is known."""


class Trading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    wallet: str | None
    open_positions: str | None
    realized_pnl: str | None
    """Shown, not added: it is in the wallet."""
    reason: str | None = None


class Investments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    fixed_deposits: str | None
    """The same deposits as under banking; `total` of the whole counts them once."""
    mutual_funds: str | None
    reason: str | None = None


class Liabilities(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    loans: str | None
    reason: str | None = None


class Allocation(msgspec.Struct, frozen=True, kw_only=True, rename={"asset_class": "class"}):
    asset_class: str
    amount: str
    percent: str


class Unconverted(msgspec.Struct, frozen=True, kw_only=True, rename={"asset_class": "class"}):
    asset_class: str
    currency: str
    amount: str


class NetWorthAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Figures in `currency`; a figure that is not known is null, with a `reason` beside it."""

    as_of: datetime | None
    """When the last event in these figures was recorded (null before there was any), or the past instant asked for."""
    position: int
    currency: str
    total: str | None
    banking: Banking
    trading: Trading
    investments: Investments
    liabilities: Liabilities
    allocation: list[Allocation]
    """The assets, with percents that sum to 100.00; what is owed is not subtracted here."""
    unconverted: list[Unconverted] = []
    """Holdings in other currencies. They are in no figure, because there is no rate to convert them at."""
    reason: str | None = None


class CategoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One category's part; every column sums to the whole's."""

    category: str
    start_value: str
    end_value: str
    net_flows: str
    gain: str


class DayValue(msgspec.Struct, frozen=True, kw_only=True):
    date: date
    value: str


class PerformanceAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`gain` = `end_value` - `start_value` - `net_flows`: what the money did, without what came in or went out."""

    position: int
    period_days: int
    from_date: date
    """The period starts from the end of this day (IST)."""
    to_date: date
    currency: str
    start_value: str | None
    end_value: str | None
    net_flows: str | None
    gain: str | None
    gain_percent: str | None
    """Modified Dietz over the period, in percent."""
    twr: str | None
    """Time-weighted return over the period, as a fraction: 0.05 is 5 %. Not annualised."""
    xirr: str | None
    """Money-weighted return a year, as a fraction; null where none or several rates explain the flows."""
    drawdown_max: str | None = None
    """The deepest fall from a peak, as a fraction of it."""
    by_category: list[CategoryAnswer]
    series: list[DayValue]
    xirr_roots: list[str] = []
    """All rates, where there are several."""
    xirr_ambiguous: bool = False
    reasons: dict[str, str] = {}
    """Why a figure is null, by its name."""


class FactorAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    weight: int
    value: str | None
    unit: str
    score: int | None
    contribution: str | None
    """Points of the score; the contributions sum to it."""
    explanation: str
    raise_to: str | None = None
    """What would raise it, and by how many points of the score."""
    raise_points: str | None = None
    missing: bool = False


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    position: int
    score: int | None
    grade: str | None
    score_exact: str | None
    """The sum of the contributions; `score` is it, rounded."""
    confidence: float
    """How much of the weight rests on data, from 0 to 1."""
    factors: list[FactorAnswer]
    reason: str | None = None


class InsightAnswer(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    kind: str
    priority: str
    title: str
    body: str
    evidence: tuple[Evidence, ...]
    effect: str | None
    """Expected effect in `currency`; null where no sum can be named."""
    currency: str
    action: Action | None
    rule: str
    expires_at: datetime | None
    raised_at: datetime | None
    """Null while it has not been recorded yet."""
    automated: bool = True


class InsightsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    position: int
    items: list[InsightAnswer]


class SummaryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """All figures at one `position`."""

    position: int
    as_of: datetime | None
    net_worth: NetWorthAnswer
    performance: list[PerformanceAnswer]
    health: HealthAnswer
    insights: list[InsightAnswer]


def money(minor: int | None) -> str | None:
    return None if minor is None else format_amount(minor, CURRENCY)


def rupee_text(minor: int) -> str:
    return format_amount(minor, CURRENCY)


def fraction(value: float | None) -> str | None:
    """A rate, to nine decimals at most: enough to check with a spreadsheet."""
    return None if value is None else f"{value:.9f}"


def hundredths(value: int) -> str:
    return f"{'-' if value < 0 else ''}{abs(value) // 100}.{abs(value) % 100:02d}"


def net_worth_answer(
    as_of: datetime | None, position: int, linked: frozenset[str], figures: NetWorth
) -> NetWorthAnswer:
    """The figures in the shape of the contract."""

    def reason(platform: str, *parts: int | None) -> str | None:
        if None not in parts:
            return None
        if not linked:
            return NOTHING_LINKED
        return f"{platform} not linked" if platform not in linked else "held in another currency"

    bank = (figures.savings, figures.current, figures.fixed_deposits)
    return NetWorthAnswer(
        as_of=as_of,
        position=position,
        currency=CURRENCY,
        total=money(figures.total),
        banking=Banking(
            total=money(figures.banking_total),
            savings=money(figures.savings),
            current=money(figures.current),
            fixed_deposits=money(figures.fixed_deposits),
            reason=reason("bfc", *bank),
        ),
        trading=Trading(
            total=money(figures.trading_total),
            wallet=money(figures.wallet),
            open_positions=money(figures.open_positions),
            realized_pnl=money(figures.realized_pnl),
            reason=reason("vyomo", figures.wallet, figures.open_positions, figures.realized_pnl),
        ),
        investments=Investments(
            total=money(figures.investments_total),
            fixed_deposits=money(figures.fixed_deposits),
            mutual_funds=money(figures.mutual_funds),
            reason=reason("bfc", figures.fixed_deposits, figures.mutual_funds),
        ),
        liabilities=Liabilities(
            total=money(figures.loans),
            loans=money(figures.loans),
            reason=reason("bfc", figures.loans),
        ),
        allocation=[
            Allocation(
                asset_class=share.asset_class,
                amount=format_amount(share.amount_minor, CURRENCY),
                percent=hundredths(share.percent_bp),
            )
            for share in figures.allocation
        ],
        unconverted=[
            Unconverted(
                asset_class=item.asset_class,
                currency=item.currency,
                amount=format_amount(item.amount_minor, item.currency),
            )
            for item in figures.unconverted
        ],
        reason=None if figures.total is not None else NOTHING_LINKED if not linked else "held in another currency",
    )


def performance_answer(position: int, computed: Computed, found: Performance) -> PerformanceAnswer:
    known = computed.worth.total is not None
    reasons = {
        name: why
        for name, why in (
            ("gain_percent", found.gain_rate.reason),
            ("twr", found.twr.reason),
            ("xirr", found.xirr.reason or ("several rates explain these flows" if found.xirr.ambiguous else None)),
        )
        if why is not None
    }
    if not known:
        nothing = NOTHING_LINKED if not computed.picture.linked else "held in another currency"
        reasons = dict.fromkeys(
            ("start_value", "end_value", "net_flows", "gain", "gain_percent", "twr", "xirr"), nothing
        )
    return PerformanceAnswer(
        position=position,
        period_days=found.days,
        from_date=found.first_day,
        to_date=found.last_day,
        currency=CURRENCY,
        start_value=money(found.start_minor) if known else None,
        end_value=money(found.end_minor) if known else None,
        net_flows=money(found.net_flows_minor) if known else None,
        gain=money(found.gain_minor) if known else None,
        gain_percent=None if found.gain_rate.value is None else f"{100 * found.gain_rate.value:.2f}",
        twr=fraction(found.twr.value),
        xirr=fraction(found.xirr.rate),
        drawdown_max=fraction(found.drawdown_max),
        by_category=[
            CategoryAnswer(
                category=part.category,
                start_value=rupee_text(part.start_minor),
                end_value=rupee_text(part.end_minor),
                net_flows=rupee_text(part.net_flows_minor),
                gain=rupee_text(part.gain_minor),
            )
            for part in found.categories
        ]
        if known
        else [],
        series=[
            DayValue(date=found.first_day + timedelta(days=index), value=rupee_text(value))
            for index, value in enumerate(found.series)
        ]
        if known
        else [],
        xirr_roots=[f"{root:.9f}" for root in found.xirr.roots] if found.xirr.ambiguous else [],
        xirr_ambiguous=found.xirr.ambiguous,
        reasons=reasons,
    )


def health_answer(position: int, health: Health) -> HealthAnswer:
    return HealthAnswer(
        position=position,
        score=health.score,
        grade=health.grade,
        score_exact=None if health.score is None else hundredths(health.exact_hundredths),
        confidence=health.confidence_percent / 100,
        factors=[
            FactorAnswer(
                name=factor.rule.name,
                weight=factor.rule.weight,
                value=None if factor.value is None else f"{factor.value:.2f}",
                unit=factor.rule.unit,
                score=factor.score,
                contribution=None
                if factor.contribution_hundredths is None
                else hundredths(factor.contribution_hundredths),
                explanation=factor.explanation,
                raise_to=factor.raise_to,
                raise_points=None if factor.raise_points is None else f"{factor.raise_points:.2f}",
                missing=factor.value is None,
            )
            for factor in health.factors
        ],
        reason=health.reason,
    )


def insight_answers(computed: Computed) -> list[InsightAnswer]:
    """What is shown; in the words it was raised in for as long as its facts are the same."""
    raised = {item.insight_id: item for item in computed.picture.noticed}
    return [_insight_answer(shown.insight_id, shown.insight, raised.get(shown.insight_id)) for shown in computed.shown]


def _insight_answer(insight_id: UUID, insight: Insight, raised: Noticed | None) -> InsightAnswer:
    same_facts = raised is not None and raised.facts == insight.facts
    return InsightAnswer(
        id=insight_id,
        kind=insight.kind,
        priority=insight.priority,
        title=raised.title if raised and same_facts else insight.title,
        body=raised.body if raised and same_facts else insight.body,
        evidence=insight.evidence,
        effect=money(insight.effect_minor),
        currency=CURRENCY,
        action=insight.action,
        rule=insight.rule,
        expires_at=insight.expires_at,
        raised_at=raised.raised_at if raised else None,
    )


def summary_answer(position: int, as_of: datetime | None, computed: Computed, periods: Sequence[int]) -> SummaryAnswer:
    linked: Any = computed.picture.linked
    return SummaryAnswer(
        position=position,
        as_of=as_of,
        net_worth=net_worth_answer(as_of, position, linked, computed.worth),
        performance=[performance_answer(position, computed, computed.performance[days]) for days in periods],
        health=health_answer(position, computed.health),
        insights=insight_answers(computed),
    )


def summary_at(summary: SummaryAnswer, position: int, as_of: datetime | None) -> SummaryAnswer:
    """The same figures, at a position up to which nothing has changed them."""
    replace = msgspec.structs.replace
    return SummaryAnswer(
        position=position,
        as_of=as_of,
        net_worth=replace(summary.net_worth, position=position, as_of=as_of),
        performance=[replace(answer, position=position) for answer in summary.performance],
        health=replace(summary.health, position=position),
        insights=summary.insights,
    )
