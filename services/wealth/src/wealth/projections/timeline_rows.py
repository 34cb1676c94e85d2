"""How the rows of the timeline are read and written: set by set, a few statements for a batch whatever its size.

New rows are copied; only rows that may be there already are upserted. Days that were over are mended in the database.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from wealth.folding import BEGINNING, Customer, DayRow, Rows, Touched, statement_days, traded_before
from wealth.ledger_lines import Item, Statement, local_day, start_of_day

_ITEMS = """
    SELECT wanted.n, item.asset_class, item.currency, item.label, item.value_minor, item.last_day, item.stated_at,
        item.stated_position, item.quantity::text AS quantity, item.price::text AS price, item.cost
    FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS wanted (user_id, item, n)
    JOIN item ON item.user_id = wanted.user_id AND item.item = wanted.item
"""
_TRADED = """
    SELECT wanted.n
    FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS wanted (user_id, symbol, at, n)
    WHERE EXISTS (SELECT FROM trade WHERE trade.user_id = wanted.user_id AND trade.at <= wanted.at
                  AND trade.symbol = wanted.symbol)
"""
_TRADED_LATE = """
    SELECT trade.n, item.item
    FROM unnest($1::uuid[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS trade (user_id, symbol, at, n)
    JOIN item ON item.user_id = trade.user_id AND item.label = trade.symbol
    WHERE item.asset_class IN ('option', 'future', 'equity')
    AND trade.at <= (SELECT min(at) FROM fact WHERE fact.user_id = item.user_id AND fact.item = item.item)
"""


async def load(db: asyncpg.Connection, customers: Sequence[Customer]) -> None:
    """Gives the items that the batch touches what the database knows of them.

    Raises:
        LookupError: money on an account that was never opened.
        ValueError: an item is stated in another currency than before.
    """
    touched = [(customer.user_id, item) for customer in customers for item in customer.items.values()]
    if touched:
        for row in await db.fetch(_ITEMS, [user_id for user_id, _ in touched], [item.name for _, item in touched]):
            _know(touched[row["n"] - 1][1], row)
    unknown = [item.name for _, item in touched if item.item is None]
    if unknown:
        raise LookupError(f"{len(unknown)} of {len(touched)} accounts were never opened: {min(unknown)}")
    new = [(customer.user_id, item) for customer in customers for item in traded_before(customer)]
    if new:
        first = [(user_id, item.item and item.item.label, min(s.at for s in item.statements)) for user_id, item in new]
        for row in await db.fetch(_TRADED, *columns(first)):
            new[row["n"] - 1][1].traded = True
    trades = [(c, symbol, at) for c in customers if c.trades for symbol, at in c.first_trades().items()]
    if trades:
        found = await db.fetch(_TRADED_LATE, *columns([(c.user_id, symbol, at) for c, symbol, at in trades]))
        for row in found:
            trades[row["n"] - 1][0].touch(row["item"]).late_since = BEGINNING


def _know(touched: Touched, row: asyncpg.Record) -> None:
    _, asset_class, currency, label, value, last_day, stated_at, stated_position, quantity, price, cost = row
    touched.stated_in(currency)
    touched.item = Item(touched.name, asset_class, currency, label, "")
    touched.stored = True
    touched.value_minor, touched.last_day = value, last_day
    if stated_at is not None:
        touched.latest = Statement(stated_at, stated_position, UUID(int=0), "", value, quantity, price, cost)


async def write(db: asyncpg.Connection, customers: Sequence[Customer], rows: Rows) -> None:
    """Writes what a batch comes to."""
    await _copy(db, "fact", rows.facts)
    await _write_items(db, customers)
    await _copy(db, "daily", rows.new_days)
    if rows.last_days:
        await db.execute(
            "INSERT INTO daily (user_id, item, day, value_minor, flow_minor, emi_minor) SELECT * FROM "
            "unnest($1::uuid[], $2::text[], $3::date[], $4::bigint[], $5::bigint[], $6::bigint[]) "
            "ON CONFLICT (user_id, item, day) DO UPDATE SET value_minor = excluded.value_minor, "
            "flow_minor = daily.flow_minor + excluded.flow_minor, "
            "emi_minor = daily.emi_minor + excluded.emi_minor",
            *columns(rows.last_days),
        )
    await _write_trades_and_deposits(db, customers)  # before what is restated: it asks for trades
    if rows.late:
        await _write_late(db, rows.late)
    for customer in customers:
        for touched in customer.items.values():
            if touched.late_since is not None:
                await restate(db, customer.user_id, touched.name, touched.late_since)
    cashflow = [(c.user_id, *key, *sums) for c in customers for key, sums in c.cashflow.items()]
    if cashflow:
        await db.execute(
            "INSERT INTO cashflow (user_id, month, category, in_minor, out_minor) SELECT * FROM "
            "unnest($1::uuid[], $2::date[], $3::text[], $4::bigint[], $5::bigint[]) "
            "ON CONFLICT (user_id, month, category) DO UPDATE SET "
            "in_minor = cashflow.in_minor + excluded.in_minor, out_minor = cashflow.out_minor + excluded.out_minor",
            *columns(cashflow),
        )
    if customers:
        await db.execute(
            "INSERT INTO changed (user_id, position) SELECT * FROM unnest($1::uuid[], $2::bigint[]) "
            "ON CONFLICT (user_id) DO UPDATE SET position = greatest(changed.position, excluded.position)",
            *columns([(customer.user_id, customer.position) for customer in customers]),
        )


async def _write_items(db: asyncpg.Connection, customers: Sequence[Customer]) -> None:
    new: list[tuple[Any, ...]] = []
    known: list[tuple[Any, ...]] = []
    for customer in customers:
        for touched in customer.items.values():
            if not touched.lines and not touched.statements:
                continue  # only to be stated again
            item, latest = touched.item, touched.latest
            assert item is not None
            stated = (latest.at, latest.position, latest.quantity, latest.price, latest.cost) if latest else _UNSTATED
            if touched.stored:
                known.append((customer.user_id, touched.name, touched.value_minor, touched.last_day, *stated))
            else:
                what = (item.asset_class, item.currency, item.label, item.underlying)
                new.append((customer.user_id, touched.name, *what, touched.value_minor, touched.last_day, *stated))
    if new:
        await db.execute(
            "INSERT INTO item (user_id, item, asset_class, currency, label, underlying, value_minor, last_day, "
            "stated_at, stated_position, quantity, price, cost) "
            "SELECT a, b, c, d, e, f, g, h, i, j, k::numeric, l::numeric, m FROM "
            "unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::date[], "
            "$9::timestamptz[], $10::bigint[], $11::text[], $12::text[], $13::bigint[]) "
            "AS new (a, b, c, d, e, f, g, h, i, j, k, l, m)",
            *columns(new),
        )
    if known:
        await db.execute(
            "UPDATE item SET value_minor = new.value_minor, last_day = new.last_day, stated_at = new.stated_at, "
            "stated_position = new.stated_position, quantity = new.quantity::numeric, price = new.price::numeric, "
            "cost = new.cost FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::date[], $5::timestamptz[], "
            "$6::bigint[], $7::text[], $8::text[], $9::bigint[]) AS new (user_id, item, value_minor, last_day, "
            "stated_at, stated_position, quantity, price, cost) "
            "WHERE item.user_id = new.user_id AND item.item = new.item",
            *columns(known),
        )


_UNSTATED = (None,) * 5


async def _write_late(db: asyncpg.Connection, late: Sequence[DayRow]) -> None:
    """Postings of days that were over: their rows, and the value of every later row of their accounts."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for user_id, item, day, amount, flow, emi in late:
        row = sums.setdefault((user_id, item, day), [0, 0, 0])
        row[0] += amount
        row[1] += flow
        row[2] += emi
    days = columns([(*key, *row) for key, row in sums.items()])
    await db.execute(  # first as if nothing had happened on that day
        "INSERT INTO daily (user_id, item, day, value_minor, flow_minor, emi_minor) "
        "SELECT user_id, item, day, coalesce((SELECT value_minor FROM daily WHERE daily.user_id = late.user_id "
        "AND daily.item = late.item AND daily.day < late.day ORDER BY day DESC LIMIT 1), 0), 0, 0 "
        "FROM unnest($1::uuid[], $2::text[], $3::date[]) AS late (user_id, item, day) ON CONFLICT DO NOTHING",
        *days[:3],
    )
    await db.execute(
        "WITH late AS (SELECT * FROM unnest($1::uuid[], $2::text[], $3::date[], $4::bigint[], $5::bigint[], "
        "$6::bigint[]) AS late (user_id, item, day, amount, flow, emi)) "
        "UPDATE daily SET value_minor = value_minor + mended.amount, flow_minor = flow_minor + mended.flow, "
        "emi_minor = emi_minor + mended.emi FROM ("
        "SELECT later.user_id, later.item, later.day, sum(late.amount)::bigint AS amount, "
        "coalesce(sum(late.flow) FILTER (WHERE late.day = later.day), 0)::bigint AS flow, "
        "coalesce(sum(late.emi) FILTER (WHERE late.day = later.day), 0)::bigint AS emi "
        "FROM late JOIN daily AS later ON later.user_id = late.user_id AND later.item = late.item "
        "AND later.day >= late.day GROUP BY 1, 2, 3) AS mended "
        "WHERE daily.user_id = mended.user_id AND daily.item = mended.item AND daily.day = mended.day",
        *days,
    )


async def restate(db: asyncpg.Connection, user_id: UUID, name: str, since: datetime) -> None:
    """Computes the rows of a stated item again, from the day of `since` on."""
    item = await db.fetchrow("SELECT asset_class, label FROM item WHERE user_id = $1 AND item = $2", user_id, name)
    assert item is not None, "an item with a late statement has earlier ones"
    rows = await db.fetch(
        "SELECT at, position, amount_minor, quantity, price, cost FROM fact WHERE user_id = $1 AND item = $2 "
        "AND at >= coalesce((SELECT max(at) FROM fact WHERE user_id = $1 AND item = $2 AND at < $3), $3) "
        "ORDER BY at, position",
        user_id,
        name,
        start_of_day(since),
    )
    statements = [
        Statement(row["at"], row["position"], UUID(int=0), "", row["amount_minor"], row["quantity"], row["price"],
                  row["cost"])
        for row in rows
    ]  # fmt: skip
    first_day = local_day(since) if since.year > 1 else since.date()
    before = next((one for one in reversed(statements) if local_day(one.at) < first_day), None)
    again = [one for one in statements if local_day(one.at) >= first_day]
    traded = await db.fetchval(
        "SELECT EXISTS (SELECT FROM trade WHERE user_id = $1 AND symbol = $2 AND at <= $3)",
        user_id,
        item["label"],
        statements[0].at,
    )
    days = list(statement_days(item["asset_class"], before, again, traded))
    await db.execute("DELETE FROM daily WHERE user_id = $1 AND item = $2 AND day >= $3", user_id, name, first_day)
    await _copy(db, "daily", [DayRow(user_id, name, *row, 0) for row in days])


async def _write_trades_and_deposits(db: asyncpg.Connection, customers: Sequence[Customer]) -> None:
    trades = [
        (customer.user_id, trade.occurred_at, event.position, event.event_id, trade.symbol, trade.instrument,
         trade.quantity if trade.side == "buy" else -trade.quantity, trade.price_minor, trade.charges_minor,
         trade.realized_pnl_minor, trade.currency)
        for customer in customers
        for event, trade in customer.trades
    ]  # fmt: skip
    await _copy(db, "trade", trades)
    deposits = [
        (customer.user_id, d.deposit_id, d.principal_minor, d.currency, Decimal(d.rate_percent), d.matures_on)
        for customer in customers
        for d in customer.deposits
    ]
    if deposits:
        await db.execute(
            "INSERT INTO deposit SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], "
            "$5::numeric[], $6::date[]) ON CONFLICT DO NOTHING",
            *columns(deposits),
        )


async def _copy(db: asyncpg.Connection, table: str, records: Sequence[tuple[Any, ...]]) -> None:
    if records:
        await db.copy_records_to_table(table, records=records)


def columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as arrays for `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)]
