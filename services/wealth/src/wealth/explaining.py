"""`/api/wealth/explain/{figure}`: the formula behind a figure, its parts, and the events behind each part.

The parts sum to the figure exactly; the events of a part, with what came before them, sum to the part. An item
whose whole value is stated (a loan, a fund, a position) rests on its last statement.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import numpy as np

from wealth import queries
from wealth.answers import fraction, hundredths, money, rupee_text
from wealth.computing import Computed
from wealth.desk import Look
from wealth.ledger_lines import IST
from wealth.networth import CURRENCY, Valued
from wealth.performance import CATEGORY_OF, CategoryReturn, Performance
from wealth.queries import Cause, Causes

_BANK = ("savings", "current", "fixed_deposit")
_POSITIONS = ("option", "future", "equity")


class _Rule(NamedTuple):
    formula: str
    classes: tuple[str, ...]
    value_of: str
    """The property of `NetWorth` that shows it."""
    sign: int = 1


ITEM_FIGURES: dict[str, _Rule] = {
    "total": _Rule("banking + trading + mutual funds - loans; fixed deposits count once, under banking",
                   (*_BANK, "trading_wallet", *_POSITIONS, "fund", "loan"), "total"),
    "banking": _Rule("savings + current + fixed deposits", _BANK, "banking_total"),
    "savings": _Rule("the balances of savings accounts: every posting since the opening, summed",
                     ("savings",), "savings"),
    "current": _Rule("the balances of current accounts: every posting since the opening, summed",
                     ("current",), "current"),
    "fixed_deposits": _Rule("the principal of every deposit that has not matured; interest is the bank's until paid",
                            ("fixed_deposit",), "fixed_deposits"),
    "trading": _Rule("wallet + open positions", ("trading_wallet", *_POSITIONS), "trading_total"),
    "wallet": _Rule("the balance of the trading wallet: every movement and trade since the opening, summed",
                    ("trading_wallet",), "wallet"),
    "open_positions": _Rule("options and shares at quantity × mark price; futures at their unrealised profit or loss",
                            _POSITIONS, "open_positions"),
    "investments": _Rule("fixed deposits + mutual funds", ("fixed_deposit", "fund"), "investments_total"),
    "mutual_funds": _Rule("units × NAV of each scheme, rounded half up to the paisa", ("fund",), "mutual_funds"),
    "liabilities": _Rule("the outstanding of every loan", ("loan",), "loans", -1),
    "loans": _Rule("the outstanding of every loan, as the bank stated it last", ("loan",), "loans", -1),
}  # fmt: skip
PERIOD_FIGURES: dict[str, str] = {
    "start_value": "the net worth at the end of the day before the period: every account, loan, fund and position",
    "end_value": "the net worth at the end of the period: every account, loan, fund and position",
    "net_flows": "what came in from outside less what went out: opening balances, salaries, payments, loans; moves "
    "between own accounts and purchases cancel, interest, charges and profits are gain",
    "gain": "end value - start value - net flows, of each category and on each day",
    "gain_percent": "Modified Dietz: gain / (start value + Σ flow × days left / days of the period)",
    "twr": "Π over the days of (1 + (value - value of the day before - flow) / value of the day before) - 1 (GIPS); "
    "on a day that began with nothing, the day's flow is the base",
    "drawdown_max": "the deepest fall of the product of the listed days' factors from its peak so far (at first 1), "
    "over that peak",
    "xirr": "the rate r with Σ flow / (1 + r)^(days / 365) = 0 over the listed flows, as a spreadsheet's XIRR does",
}
ALWAYS = datetime(9999, 1, 1, tzinfo=UTC)
"""As of now: a clock ahead of ours may have reported of tomorrow, and today's figures contain that."""
FIGURES = (*ITEM_FIGURES, "realized_pnl", *PERIOD_FIGURES, "health")


class EventAnswer(msgspec.Struct, frozen=True, kw_only=True):
    event_id: UUID
    position: int
    type: str
    occurred_at: datetime
    nature: str
    amount: str


class Earlier(msgspec.Struct, frozen=True, kw_only=True):
    """What the events before the listed ones came to."""

    count: int
    amount: str


class DayAmount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    date: date
    amount: str
    flow: str | None = None
    factor: str | None = None


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    label: str = ""
    amount: str
    events: list[EventAnswer] = []
    earlier: Earlier | None = None
    days: list[DayAmount] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`parts` sum to `value`; the events of a part, with `earlier` and `days`, sum to its amount."""

    figure: str
    value: str | None
    unit: str
    """`INR`, `fraction`, `percent` or `points`."""
    position: int
    as_of: datetime | None = None
    period_days: int | None = None
    formula: str
    parts: list[Part]
    days: list[DayAmount] = []
    """Of a return: the days or flows that it is computed from."""
    reason: str | None = None


async def explain_items(
    db: asyncpg.Connection, user_id: UUID, figure: str, as_of: datetime | None, limit: int
) -> Explanation:
    """A figure of the net worth, now or at `as_of`: every account, loan, fund and position in it.

    Like the others, in a snapshot: all that it reads is of one position.
    """
    at = as_of or ALWAYS
    past = await queries.past_worth(db, user_id, at)
    rule = ITEM_FIGURES[figure]
    value: int | None = getattr(past.figures, rule.value_of)
    return Explanation(
        figure=figure,
        value=money(value),
        unit=CURRENCY,
        position=past.position,
        as_of=as_of,
        formula=rule.formula,
        parts=await _items(db, user_id, past.values, rule.classes, rule.sign, at, limit),
        reason="not known: nothing of it is linked or held in this currency" if value is None else None,
    )


async def _items(
    db: asyncpg.Connection,
    user_id: UUID,
    values: Sequence[Valued],
    classes: Collection[str],
    sign: int,
    at: datetime,
    limit: int,
) -> list[Part]:
    parts = []
    for item in values:
        if item.currency != CURRENCY or item.asset_class not in classes:
            continue
        stated = item.asset_class in (*_POSITIONS, "fund", "loan")
        found = await queries.causes(db, user_id, item.item, stated=stated, at=at, limit=limit)
        parts.append(_part(item.item, item.label, sign * item.value_minor, found, sign))
    return parts


async def explain_realized(db: asyncpg.Connection, user_id: UUID, as_of: datetime | None, limit: int) -> Explanation:
    """The realised profit and loss: the trades that closed a position."""
    at = as_of or ALWAYS
    past = await queries.past_worth(db, user_id, at)
    found = await queries.realizing_trades(db, user_id, at, limit)
    value = past.figures.realized_pnl
    return Explanation(
        figure="realized_pnl",
        value=money(value),
        unit=CURRENCY,
        position=past.position,
        as_of=as_of,
        formula="the profit or loss that the broker stated with every closing trade, summed; it is in the wallet",
        parts=[] if value is None else [_part("trades", "closing trades", value, found, 1)],
        reason="not known: no trading account is linked" if value is None else None,
    )


def _part(name: str, label: str, amount: int, found: Causes, sign: int) -> Part:
    return Part(
        name=name,
        label=label,
        amount=rupee_text(amount),
        events=[_event(cause, sign) for cause in found.events],
        earlier=Earlier(count=found.earlier_count, amount=rupee_text(sign * found.earlier_minor))
        if found.earlier_count
        else None,
    )


def _event(cause: Cause, sign: int = 1) -> EventAnswer:
    return EventAnswer(
        event_id=cause.event_id,
        position=cause.position,
        type=cause.type,
        occurred_at=cause.at,
        nature=cause.nature,
        amount=rupee_text(sign * cause.amount_minor),
    )


async def explain_period(
    db: asyncpg.Connection, user_id: UUID, figure: str, look: Look, period: int, limit: int
) -> Explanation:
    """A figure of a period's performance. `look` is of the same snapshot as `db`."""
    computed = look.computed
    found = computed.performance[period]
    value, unit, reason = _period_value(figure, found)
    if computed.worth.total is None:
        value, reason = None, "nothing is linked or held in this currency"
    parts: list[Part] = []
    days: list[DayAmount] = []
    if value is not None and figure in ("start_value", "end_value"):
        at = ALWAYS if figure == "end_value" else _end_of(found.first_day)
        past = await queries.past_worth(db, user_id, at)
        parts = await _items(db, user_id, past.values, CATEGORY_OF.keys(), 1, at, limit)
    elif value is not None and figure == "net_flows":
        parts = [await _flows(db, user_id, part, found, computed, limit) for part in found.categories]
    elif value is not None and figure == "gain":
        parts = [_gains(part, found, computed) for part in found.categories]
    elif figure in ("twr", "drawdown_max"):
        days = _return_days(computed, found)
    elif figure in ("xirr", "gain_percent"):
        days = _flow_days(computed, found)
    return Explanation(
        figure=figure,
        value=value,
        unit=unit,
        position=look.position,
        period_days=period,
        formula=PERIOD_FIGURES[figure],
        parts=parts,
        days=days,
        reason=reason,
    )


def _end_of(day: date) -> datetime:
    """The last instant of a day in India."""
    return datetime.combine(day, time.max, timezone(IST)).astimezone(UTC)


def _period_value(figure: str, found: Performance) -> tuple[str | None, str, str | None]:
    match figure:
        case "twr":
            return fraction(found.twr.value), "fraction", found.twr.reason
        case "drawdown_max":
            return fraction(found.drawdown_max), "fraction", found.twr.reason
        case "xirr":
            several = "several rates explain these flows" if found.xirr.ambiguous else None
            return fraction(found.xirr.rate), "fraction", found.xirr.reason or several
        case "gain_percent":
            rate = found.gain_rate
            return None if rate.value is None else f"{100 * rate.value:.2f}", "percent", rate.reason
    amounts = {
        "start_value": found.start_minor,
        "end_value": found.end_minor,
        "net_flows": found.net_flows_minor,
        "gain": found.gain_minor,
    }
    return rupee_text(amounts[figure]), CURRENCY, None


_FLOWS = """
    SELECT event_id, position, type, at, nature, flow_minor FROM fact
    JOIN item USING (user_id, item)
    WHERE user_id = $1 AND item.currency = $2 AND item.asset_class = ANY ($3) AND flow_minor <> 0
    AND (at + interval '5 hours 30 minutes') AT TIME ZONE 'UTC' >= $4::date + 1
    ORDER BY at DESC, position DESC
"""


async def _flows(
    db: asyncpg.Connection, user_id: UUID, part: CategoryReturn, found: Performance, computed: Computed, limit: int
) -> Part:
    """The postings behind a category's flows; what flowed into funds and loans, by day."""
    classes = [name for name, category in CATEGORY_OF.items() if category == part.category]
    rows = [Cause(*row) for row in await db.fetch(_FLOWS, user_id, CURRENCY, classes, found.first_day)]
    days = []
    if part.net_flows_minor != sum(row.amount_minor for row in rows):
        rows = []  # some of it was stated, and only the days know it: they say all of it
        days = _by_day(found, computed.whole.flows[part.category][-found.days :])
    return Part(
        name=part.category,
        amount=rupee_text(part.net_flows_minor),
        events=[_event(row) for row in rows[:limit]],
        earlier=Earlier(count=len(rows) - limit, amount=rupee_text(sum(r.amount_minor for r in rows[limit:])))
        if len(rows) > limit
        else None,
        days=days,
    )


def _gains(part: CategoryReturn, found: Performance, computed: Computed) -> Part:
    """What a category earned, day by day."""
    values = computed.whole.values[part.category][-found.days - 1 :]
    flows = computed.whole.flows[part.category][-found.days :]
    return Part(name=part.category, amount=rupee_text(part.gain_minor), days=_by_day(found, np.diff(values) - flows))


def _by_day(found: Performance, amounts: Iterable[int]) -> list[DayAmount]:
    return [
        DayAmount(date=found.first_day + timedelta(days=index + 1), amount=rupee_text(int(amount)))
        for index, amount in enumerate(amounts)
        if amount
    ]


def _day_flows(computed: Computed, found: Performance) -> list[int]:
    return [
        sum(int(flows[-found.days :][index]) for flows in computed.whole.flows.values()) for index in range(found.days)
    ]


def _flow_days(computed: Computed, found: Performance) -> list[DayAmount]:
    """The flows that XIRR is computed from: what was put in negative, what could be taken out positive."""
    dated = [(found.first_day, -found.start_minor)]
    dated += [
        (found.first_day + timedelta(days=index + 1), -flow)
        for index, flow in enumerate(_day_flows(computed, found))
        if flow
    ]
    dated.append((found.last_day, found.end_minor))
    return [DayAmount(date=day, amount=rupee_text(amount)) for day, amount in dated if amount]


def _return_days(computed: Computed, found: Performance) -> list[DayAmount]:
    """The days on which something changed, with the factor each contributes to the product."""
    days = []
    for index, flow in enumerate(_day_flows(computed, found)):
        before, after = found.series[index], found.series[index + 1]
        if before == after and not flow:
            continue
        base = before if before > 0 else before + flow
        factor = 1 + (after - before - flow) / base if base > 0 else None
        days.append(
            DayAmount(
                date=found.first_day + timedelta(days=index + 1),
                amount=rupee_text(after),
                flow=rupee_text(flow),
                factor=fraction(factor),
            )
        )
    return days


def explain_health(look: Look) -> Explanation:
    """The score: the factors' contributions, in points."""
    health = look.computed.health
    return Explanation(
        figure="health",
        value=None if health.score is None else hundredths(health.exact_hundredths),
        unit="points",
        position=look.position,
        formula="Σ weight × factor's score / weight of the factors that are known",
        parts=[
            Part(
                name=factor.rule.name,
                label=f"{factor.explanation} ({factor.rule.source})",
                amount=hundredths(factor.contribution_hundredths),
            )
            for factor in health.factors
            if factor.contribution_hundredths is not None
        ],
        reason=health.reason,
    )
