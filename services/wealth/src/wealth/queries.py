"""Reads of the read model: a customer's whole picture at one position, what they had at a past instant, the events
behind an item."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID

import asyncpg

from wealth.behaviour import month_before
from wealth.ledger_lines import EPOCH_DAY, local_day, start_of_day
from wealth.networth import CURRENCY, NetWorth, Valued, figures
from wealth.performance import EMI_DAYS, PERIODS
from wealth.picture import (
    Deposit,
    FundPurchase,
    ItemDays,
    ItemNow,
    MonthFlow,
    Noticed,
    Picture,
    Posting,
    Trade,
)

MONTHS_KEPT = 14
"""How many months of spending say what is usual."""


class Stamp(NamedTuple):
    """How far the read model is, and what of it belongs to a customer: the same stamp, the same figures."""

    position: int
    as_of: datetime | None
    changed: int
    noticed: int


class PastWorth(NamedTuple):
    """A net worth at a past instant, as the read model at `position` knows it."""

    position: int
    values: tuple[Valued, ...]
    figures: NetWorth
    linked: frozenset[str]


_STAMP = """
    SELECT coalesce(applied.position, 0) AS position, applied.recorded_at,
        coalesce((SELECT position FROM changed WHERE user_id = $1), 0) AS changed,
        coalesce((SELECT position FROM noticed_changed WHERE user_id = $1), 0) AS noticed
    FROM (SELECT 1) AS one LEFT JOIN timeline_applied AS applied ON true
"""
# A closed position is worth nothing and is no holding any more.
_HELD = "NOT (asset_class IN ('option', 'future', 'equity', 'fund') AND coalesce(quantity, 0) = 0)"
_ITEMS = f"""
    SELECT item.*, last.event_id FROM item LEFT JOIN LATERAL (
        SELECT event_id FROM fact WHERE fact.user_id = item.user_id AND fact.item = item.item
        ORDER BY at DESC, position DESC LIMIT 1
    ) AS last ON true
    WHERE item.user_id = $1 AND {_HELD} ORDER BY item.item
"""
_DAYS = """
    SELECT held.asset_class,
        array_agg(row.day ORDER BY row.day) AS days, array_agg(row.value_minor ORDER BY row.day) AS values,
        array_agg(row.flow_minor ORDER BY row.day) AS flows, array_agg(row.emi_minor ORDER BY row.day) AS emis
    FROM item AS held CROSS JOIN LATERAL (
        -- Ordered by the column, not by the number made of it: the last row is the first that the index gives.
        (SELECT daily.day - $4::date AS day, value_minor, flow_minor, emi_minor FROM daily
         WHERE daily.user_id = $1 AND daily.item = held.item AND daily.day <= $2 ORDER BY daily.day DESC LIMIT 1)
        UNION ALL
        SELECT daily.day - $4::date, value_minor, flow_minor, emi_minor FROM daily
        WHERE daily.user_id = $1 AND daily.item = held.item AND daily.day > $2
    ) AS row
    WHERE held.user_id = $1 AND held.currency = $3 GROUP BY held.item, held.asset_class
"""
_TRADES = """
    SELECT at, event_id, symbol, instrument, quantity, price_minor, charges_minor, realized_minor FROM trade
    WHERE user_id = $1 AND currency = $2 AND (instrument = 'equity' OR at >= $3) ORDER BY at, position
"""
_FUNDS = """
    SELECT fact.item, at, event_id, fact.quantity::numeric, fact.price::numeric, fact.cost FROM fact
    JOIN item ON item.user_id = fact.user_id AND item.item = fact.item
    WHERE fact.user_id = $1 AND item.asset_class = 'fund' AND item.currency = $2 ORDER BY fact.item, at, position
"""
_POSTINGS = """
    SELECT at, event_id, nature, amount_minor FROM fact JOIN item ON item.user_id = fact.user_id
        AND item.item = fact.item AND item.asset_class IN ('savings', 'current') AND item.currency = $3
    WHERE fact.user_id = $1 AND at >= $2 ORDER BY at, position
"""


Reader = asyncpg.Connection | asyncpg.Pool
"""What answers a query: a connection inside of a `snapshot` where several answers must agree."""


@asynccontextmanager
async def snapshot(database: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose reads are all of one position of the read model."""
    async with database.acquire() as proxy, proxy.transaction(isolation="repeatable_read", readonly=True):
        yield cast(asyncpg.Connection, proxy)


async def stamp(database: Reader, user_id: UUID) -> Stamp:
    """How far the read model is, and when the customer's part of it changed last."""
    row = await database.fetchrow(_STAMP, user_id)
    assert row is not None  # a left join from one row gives one row
    return Stamp(row["position"], row["recorded_at"], row["changed"], row["noticed"])


async def picture(db: Reader, user_id: UUID, now: datetime) -> tuple[Stamp, Picture]:
    """Everything known of `user_id`: read it in a `snapshot`."""
    today = local_day(now)
    first = today - timedelta(days=PERIODS[-1] + EMI_DAYS)
    stamped = await stamp(db, user_id)
    linked = await db.fetch("SELECT platform FROM linked_platform WHERE user_id = $1", user_id)
    items = await db.fetch(_ITEMS, user_id)
    days = await db.fetch(_DAYS, user_id, first, CURRENCY, EPOCH_DAY)
    realized = await db.fetch(
        "SELECT currency, sum(realized_minor)::bigint AS amount FROM trade "
        "WHERE user_id = $1 AND realized_minor IS NOT NULL GROUP BY currency",
        user_id,
    )
    months = await db.fetch(
        "SELECT month, category, in_minor, out_minor FROM cashflow WHERE user_id = $1 AND month >= $2 "
        "ORDER BY month, category",
        user_id,
        _months_ago(today, MONTHS_KEPT),
    )
    year_ago = start_of_day(now) - timedelta(days=731)  # reaches over the financial year's start
    trades = await db.fetch(_TRADES, user_id, CURRENCY, year_ago)
    funds = await db.fetch(_FUNDS, user_id, CURRENCY)
    deposits = await db.fetch(
        "SELECT deposit_id, principal_minor, rate_percent, matures_on FROM deposit "
        "WHERE user_id = $1 AND currency = $2 AND matures_on >= $3 ORDER BY deposit_id",
        user_id,
        CURRENCY,
        today,
    )
    postings = await db.fetch(_POSTINGS, user_id, start_of_day(now) - timedelta(days=64), CURRENCY)
    noticed = await db.fetch(
        "SELECT insight_id, rule, subject, level, state, title, body, facts, raised_at FROM noticed "
        "WHERE user_id = $1 ORDER BY insight_id",
        user_id,
    )
    return stamped, Picture(
        user_id=user_id,
        now=now,
        today=today,
        position=stamped.position,
        as_of=stamped.as_of,
        linked=frozenset(row["platform"] for row in linked),
        items=tuple(_item(row) for row in items),
        realized={row["currency"]: row["amount"] for row in realized},
        days=tuple(ItemDays(row["asset_class"], row["days"], row["values"], row["flows"], row["emis"]) for row in days),
        months=tuple(MonthFlow(*row) for row in months),
        trades=tuple(Trade(*row) for row in trades),
        fund_purchases=tuple(FundPurchase(*row.values()) for row in funds),
        deposits=tuple(Deposit(*row) for row in deposits),
        postings=tuple(Posting(*row) for row in postings),
        noticed=tuple(Noticed(*row) for row in noticed),
    )


def _item(row: asyncpg.Record) -> ItemNow:
    nothing = Decimal(0)
    return ItemNow(
        item=row["item"],
        asset_class=row["asset_class"],
        currency=row["currency"],
        label=row["label"],
        underlying=row["underlying"],
        value_minor=row["value_minor"],
        quantity=row["quantity"] or nothing,
        price=row["price"] or nothing,
        cost=Decimal(row["cost"] or 0),
        event_id=row["event_id"],
    )


def _months_ago(today: date, months: int) -> date:
    month = today.replace(day=1)
    for _ in range(months):
        month = month_before(month)
    return month


# An account is its last day before that one plus the day's postings so far; what is stated is its last statement.
_AS_OF = """
    SELECT held.item, held.asset_class, held.currency, held.label, past.value_minor, past.closed
    FROM item AS held CROSS JOIN LATERAL (
        SELECT amount_minor AS value_minor, coalesce(quantity::numeric, 1) = 0 AND held.asset_class <> 'loan' AS closed
        FROM (SELECT amount_minor, quantity FROM fact
              WHERE fact.user_id = $1 AND fact.item = held.item AND at <= $2
              ORDER BY at DESC, position DESC LIMIT 1) AS last
        WHERE held.stated_at IS NOT NULL
        UNION ALL
        SELECT coalesce((SELECT value_minor FROM daily WHERE daily.user_id = $1 AND daily.item = held.item
                         AND day < $3 ORDER BY day DESC LIMIT 1), 0)
             + coalesce((SELECT sum(amount_minor) FROM fact WHERE fact.user_id = $1 AND fact.item = held.item
                         AND at >= $4 AND at <= $2), 0)::bigint, false
        WHERE held.stated_at IS NULL
        AND EXISTS (SELECT FROM fact WHERE fact.user_id = $1 AND fact.item = held.item AND at <= $2)
    ) AS past
    WHERE held.user_id = $1 ORDER BY held.item
"""


async def past_worth(db: Reader, user_id: UUID, at: datetime) -> PastWorth:
    """What `user_id` was worth at `at`, by time of occurrence: every event up to that instant counts.

    Read it in a `snapshot`.
    """
    stamped = await stamp(db, user_id)
    linked = await db.fetch("SELECT platform FROM linked_platform WHERE user_id = $1", user_id)
    rows = await db.fetch(_AS_OF, user_id, at, local_day(at), start_of_day(at))
    realized = await db.fetch(
        "SELECT currency, sum(realized_minor)::bigint AS amount FROM trade "
        "WHERE user_id = $1 AND at <= $2 AND realized_minor IS NOT NULL GROUP BY currency",
        user_id,
        at,
    )
    values = tuple(
        Valued(
            item=found["item"],
            asset_class=found["asset_class"],
            currency=found["currency"],
            label=found["label"],
            value_minor=found["value_minor"],
        )
        for found in rows
        if not found["closed"]
    )
    platforms: Any = frozenset(found["platform"] for found in linked)
    return PastWorth(
        stamped.position,
        values,
        figures(platforms, values, {found["currency"]: found["amount"] for found in realized}),
        platforms,
    )


class Cause(NamedTuple):
    """An event that a figure comes from, with what it added (or stated)."""

    event_id: UUID
    position: int
    type: str
    at: datetime
    nature: str
    amount_minor: int


class Causes(NamedTuple):
    """The last events behind an item, and what everything before them came to. Together they are its value."""

    events: tuple[Cause, ...]
    earlier_count: int
    earlier_minor: int


_CAUSES = """
    SELECT event_id, position, type, at, nature, amount_minor FROM fact
    WHERE user_id = $1 AND item = $2 AND at <= $3 ORDER BY at DESC, position DESC, part DESC LIMIT $4
"""


async def causes(db: Reader, user_id: UUID, item: str, *, stated: bool, at: datetime, limit: int) -> Causes:
    """The events behind an item's value at `at`: its last statement, or the last postings and the sum of all before."""
    rows = await db.fetch(_CAUSES, user_id, item, at, 1 if stated else limit)
    events = tuple(Cause(*row) for row in rows)
    if stated or len(events) < limit:
        return Causes(events, 0, 0)
    total = await db.fetchrow(
        "SELECT count(*) AS count, coalesce(sum(amount_minor), 0)::bigint AS amount FROM fact "
        "WHERE user_id = $1 AND item = $2 AND at <= $3",
        user_id,
        item,
        at,
    )
    assert total is not None
    return Causes(events, total["count"] - len(events), total["amount"] - sum(event.amount_minor for event in events))


async def realizing_trades(db: Reader, user_id: UUID, at: datetime, limit: int) -> Causes:
    """The trades behind the realised profit and loss, the last first."""
    rows = await db.fetch(
        "SELECT event_id, position, 'trading.trade.executed' AS type, at, symbol, realized_minor FROM trade "
        "WHERE user_id = $1 AND currency = $2 AND realized_minor IS NOT NULL AND at <= $3 "
        "ORDER BY at DESC, position DESC",
        user_id,
        CURRENCY,
        at,
    )
    trades: Sequence[Cause] = [Cause(*row) for row in rows]
    return Causes(tuple(trades[:limit]), len(trades[limit:]), sum(trade.amount_minor for trade in trades[limit:]))
