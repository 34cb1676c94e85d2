"""What each customer has and owes, now and at the end of every day on which it changed.

Balances come from the ledger only; the platforms' items add what the ledger does not hold. Rows of days are
sparse: a day without a row is like the day before it. An event of an earlier day changes that day's row and the
later ones of its item, nothing else. Items of a platform may come out of order: an older statement never
replaces a newer one, it only mends its own days.
"""

import asyncio
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from events.contracts import banking, contract_of, identity, ledger, trading
from events.envelope import RecordedEvent
from events.platform_items import PlatformItems

from wealth.ledger_lines import (
    IST,
    MONEY_TYPES,
    DayChange,
    Item,
    Line,
    account_flow,
    fold_statements,
    in_order,
    local_day,
    money_lines,
    opened_account,
    stated_item,
    statement,
)

ERASED = "identity.user.erased"
_PLATFORM_ITEMS = (
    banking.LoanOpened,
    banking.LoanChanged,
    banking.FundChanged,
    banking.FixedDepositOpened,
    trading.PositionChanged,
    trading.TradeExecuted,
)
_THREAD_FROM = 32
"""From how many events on a batch is folded in a thread, so that requests are answered meanwhile."""
_TRADED_CLASSES = frozenset({"option", "future", "equity"})
_SPENDING_CLASSES = frozenset({"savings", "current"})
_NOT_SPENDING = frozenset({"opening", "own_transfer", "fixed_deposit"})

Key = tuple[UUID, str]

TABLES = ("item", "fact", "daily", "cashflow", "trade", "deposit", "linked_platform", "changed")
"""The tables with rows of a person."""


class _State:
    """An item as the database has it, moved on by the batch."""

    __slots__ = ("asset_class", "item", "last_day", "late_minor", "latest", "opened", "traded", "value_minor")

    def __init__(self, item: Item, *, opened: bool) -> None:
        self.item = item
        self.asset_class = item.asset_class
        self.opened = opened
        """Not in the database yet."""
        self.value_minor = 0
        self.late_minor = 0
        self.last_day: date | None = None
        self.latest: Line | None = None
        """The newest statement."""
        self.traded = False


class _Batch:
    """Everything a batch changes."""

    def __init__(self) -> None:
        self.opened: dict[Key, Item] = {}
        self.lines: list[tuple[UUID, Line]] = []
        self.stated: dict[Key, Item] = {}
        self.trades: list[tuple[UUID, RecordedEvent, trading.TradeExecuted]] = []
        self.deposits: list[tuple[UUID, banking.FixedDepositOpened]] = []
        self.days: dict[tuple[UUID, str, date], DayChange] = {}
        self.late: list[tuple[UUID, str, date, int, int, int]] = []
        self.late_statements: dict[Key, datetime] = {}
        self.cashflow: dict[tuple[UUID, date, str], list[int]] = {}
        self.changed: dict[UUID, int] = {}


class TimelineProjection:
    """The read model behind every figure of a customer."""

    name = "timeline"
    types = (
        MONEY_TYPES
        | {contract_of(struct).type for struct in (*_PLATFORM_ITEMS, identity.LinkConfirmed, identity.LinkRemoved)}
        | {ERASED}
    )
    _own_ddl = """
        CREATE TABLE IF NOT EXISTS item (
            user_id uuid NOT NULL,
            item text NOT NULL,
            asset_class text NOT NULL,
            currency text NOT NULL,
            label text NOT NULL,
            underlying text NOT NULL,
            value_minor bigint NOT NULL,
            last_day date NOT NULL,
            stated_at timestamptz,
            stated_position bigint,
            quantity numeric,
            price numeric,
            cost numeric,
            PRIMARY KEY (user_id, item)
        ) WITH (fillfactor = 80);
        CREATE TABLE IF NOT EXISTS fact (
            user_id uuid NOT NULL,
            item text NOT NULL,
            at timestamptz NOT NULL,
            position bigint NOT NULL,
            part smallint NOT NULL,
            event_id uuid NOT NULL,
            type text NOT NULL,
            nature text NOT NULL,
            amount_minor bigint NOT NULL,
            flow_minor bigint NOT NULL,
            quantity numeric,
            price numeric,
            cost numeric,
            PRIMARY KEY (user_id, item, at, position, part)
        );
        CREATE TABLE IF NOT EXISTS daily (
            user_id uuid NOT NULL,
            item text NOT NULL,
            day date NOT NULL,
            value_minor bigint NOT NULL,
            flow_minor bigint NOT NULL,
            emi_minor bigint NOT NULL,
            PRIMARY KEY (user_id, item, day)
        );
        CREATE TABLE IF NOT EXISTS cashflow (
            user_id uuid NOT NULL,
            month date NOT NULL,
            category text NOT NULL,
            in_minor bigint NOT NULL,
            out_minor bigint NOT NULL,
            PRIMARY KEY (user_id, month, category)
        );
        CREATE TABLE IF NOT EXISTS trade (
            user_id uuid NOT NULL,
            at timestamptz NOT NULL,
            position bigint NOT NULL,
            event_id uuid NOT NULL,
            symbol text NOT NULL,
            instrument text NOT NULL,
            quantity bigint NOT NULL,
            price_minor bigint NOT NULL,
            charges_minor bigint NOT NULL,
            realized_minor bigint,
            currency text NOT NULL,
            PRIMARY KEY (user_id, at, position)
        );
        CREATE TABLE IF NOT EXISTS deposit (
            user_id uuid NOT NULL,
            deposit_id text NOT NULL,
            principal_minor bigint NOT NULL,
            currency text NOT NULL,
            rate_percent numeric NOT NULL,
            matures_on date NOT NULL,
            PRIMARY KEY (user_id, deposit_id)
        );
        CREATE TABLE IF NOT EXISTS linked_platform (
            user_id uuid NOT NULL,
            platform text NOT NULL,
            PRIMARY KEY (user_id, platform)
        );
        CREATE TABLE IF NOT EXISTS changed (
            user_id uuid PRIMARY KEY,
            position bigint NOT NULL
        ) WITH (fillfactor = 50);
        CREATE TABLE IF NOT EXISTS erased (
            user_id uuid PRIMARY KEY
        );
        CREATE TABLE IF NOT EXISTS timeline_applied (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            position bigint NOT NULL,
            recorded_at timestamptz NOT NULL
        );
    """

    def __init__(self) -> None:
        self._platform_items = PlatformItems()
        self.ddl = self._own_ddl + self._platform_items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Raises:
        LookupError: a leg on an account that was never opened.
        """
        if not events:
            return
        # Nothing that comes after an erasure brings the person back.
        gone = {UUID(int=row["user_id"].int) for row in await db.fetch("SELECT user_id FROM erased")}
        erased = [event.subject for event in events if event.type == ERASED and event.subject is not None]
        gone |= set(erased)
        items = await self._platform_items.resolve(db, [e for e in events if not e.type.startswith("ledger.")])
        batch = await _off_the_loop(len(events), _read, events, items, gone)
        states = await _states(db, batch)
        await _off_the_loop(len(events), _fold, batch, states)
        await _write(db, batch, states)
        await _link(db, [event for event in events if event.type == "identity.user.link_confirmed"], gone)
        for user_id in erased:
            await _erase(db, user_id)
        await db.execute(
            "INSERT INTO timeline_applied (position, recorded_at) VALUES ($1, $2) "
            "ON CONFLICT (only_row) DO UPDATE SET position = excluded.position, recorded_at = excluded.recorded_at",
            events[-1].position,
            events[-1].recorded_at,
        )


async def _off_the_loop(size: int, work: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(work, *arguments) if size >= _THREAD_FROM else work(*arguments)


def _read(events: Sequence[RecordedEvent], items: Sequence[tuple[UUID, RecordedEvent]], gone: set[UUID]) -> _Batch:
    """What the events say, by item."""
    batch = _Batch()
    for event in events:
        if event.type in MONEY_TYPES and (user_id := UUID(event.stream_id)) not in gone:
            if isinstance(event.payload, ledger.AccountOpened):
                item = opened_account(event.payload)
                batch.opened[user_id, item.item] = item
                if not event.payload.legs:  # with nothing in it, but there
                    nothing = Line(item.item, event.payload.occurred_at, event.position, 0, event.event_id,
                                   event.type, "opening", 0, False)  # fmt: skip
                    batch.lines.append((user_id, nothing))
            batch.lines += [(user_id, line) for line in money_lines(event)]
            batch.changed[user_id] = event.position
    for user_id, event in items:
        if user_id in gone:
            continue
        payload = event.payload
        if (stated := stated_item(payload)) is not None:
            batch.stated[user_id, stated.item] = stated
            batch.lines.append((user_id, statement(event, stated)))
        elif isinstance(payload, trading.TradeExecuted):
            batch.trades.append((user_id, event, payload))
        elif isinstance(payload, banking.FixedDepositOpened):
            batch.deposits.append((user_id, payload))
        else:
            continue
        batch.changed[user_id] = max(event.position, batch.changed.get(user_id, 0))
    return batch


_STATES = """
    SELECT item.* FROM item JOIN unnest($1::uuid[], $2::text[]) AS wanted (user_id, item) USING (user_id, item)
"""
_LATE_BY_TRADE = """
    SELECT item.user_id, item.item FROM item
    JOIN unnest($1::uuid[], $2::text[], $3::timestamptz[]) AS trade (user_id, symbol, at)
    ON item.user_id = trade.user_id AND item.label = trade.symbol
    WHERE item.asset_class IN ('option', 'future', 'equity')
    AND trade.at <= (SELECT min(at) FROM fact WHERE fact.user_id = item.user_id AND fact.item = item.item)
"""


async def _states(db: asyncpg.Connection, batch: _Batch) -> dict[Key, _State]:
    """The items the batch touches, as they are, and as new where they are not there yet."""
    keys = {(user_id, line.item) for user_id, line in batch.lines}
    if not keys:
        return {}
    states: dict[Key, _State] = {}
    for row in await db.fetch(_STATES, *_columns(sorted(keys))):
        key = (UUID(int=row["user_id"].int), row["item"])
        state = states[key] = _State(
            Item(row["item"], row["asset_class"], row["currency"], row["label"], row["underlying"]), opened=False
        )
        state.value_minor, state.last_day = row["value_minor"], row["last_day"]
        if row["stated_at"] is not None:
            state.latest = Line(row["item"], row["stated_at"], row["stated_position"], 0, UUID(int=0), "", "stated",
                                row["value_minor"], True, row["quantity"], row["price"], row["cost"])  # fmt: skip
    new = {key: item for key, item in (batch.opened | batch.stated).items() if key not in states}
    states |= {key: _State(item, opened=True) for key, item in new.items()}
    unknown = keys - states.keys()
    if unknown:
        raise LookupError(f"{len(unknown)} of {len(keys)} accounts were never opened: {sorted(unknown)[0][1]}")
    await _find_trades(db, batch, states, [key for key, item in new.items() if item.asset_class in _TRADED_CLASSES])
    return states


async def _find_trades(db: asyncpg.Connection, batch: _Batch, states: dict[Key, _State], new: Sequence[Key]) -> None:
    """Which new positions were bought by a trade we know, and which old ones by a trade that comes only now."""
    if new:
        first: dict[Key, datetime] = {}
        for user_id, line in batch.lines:
            key = (user_id, line.item)
            first[key] = min(first.get(key, line.at), line.at)
        for user_id, _, trade in batch.trades:
            for key in new:
                if key[0] == user_id and states[key].item.label == trade.symbol and trade.occurred_at <= first[key]:
                    states[key].traded = True
        rows = await db.fetch(
            "SELECT DISTINCT wanted.user_id, wanted.item "
            "FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[]) AS wanted (user_id, item, symbol, at) "
            "JOIN trade ON trade.user_id = wanted.user_id AND trade.symbol = wanted.symbol AND trade.at <= wanted.at",
            *_columns([(*key, states[key].item.label, first[key]) for key in new]),
        )
        for row in rows:
            states[UUID(int=row["user_id"].int), row["item"]].traded = True
    if batch.trades:
        trades = [(user_id, trade.symbol, trade.occurred_at) for user_id, _, trade in batch.trades]
        for row in await db.fetch(_LATE_BY_TRADE, *_columns(trades)):
            batch.late_statements[UUID(int=row["user_id"].int), row["item"]] = datetime.min.replace(
                tzinfo=trades[0][2].tzinfo
            )


def _fold(batch: _Batch, states: dict[Key, _State]) -> None:
    """The rows of days that the batch's lines give, apart from those of days that were over before."""
    statements: dict[Key, list[Line]] = {}
    for user_id, line in batch.lines:
        key = (user_id, line.item)
        state = states[key]
        if line.stated:
            statements.setdefault(key, []).append(line)
            continue
        flow, emi = account_flow(state.asset_class, line)
        day = line.day
        if state.last_day is not None and day < state.last_day:
            batch.late.append((user_id, line.item, day, line.amount_minor, flow, emi))
            state.late_minor += line.amount_minor
        else:
            state.last_day = day
            state.value_minor += line.amount_minor
            row = batch.days.get((user_id, line.item, day))
            if row is None:
                row = batch.days[user_id, line.item, day] = DayChange(0)
            row.value_minor = state.value_minor
            row.flow_minor += flow
            row.emi_minor += emi
        if state.asset_class in _SPENDING_CLASSES and line.nature not in _NOT_SPENDING and state.item.currency == "INR":
            sums = batch.cashflow.setdefault((user_id, day.replace(day=1), line.nature), [0, 0])
            sums[0 if line.amount_minor > 0 else 1] += abs(line.amount_minor)
    for key, unordered in statements.items():
        state = states[key]
        lines = in_order(unordered)
        if state.latest is not None and (lines[0].at, lines[0].position) < (state.latest.at, state.latest.position):
            batch.late_statements[key] = min(lines[0].at, batch.late_statements.get(key, lines[0].at))
        else:
            for day, row in fold_statements(state.asset_class, state.latest, lines, state.traded).items():
                batch.days[(*key, day)] = row
        last = lines[-1]
        if state.latest is None or (last.at, last.position) >= (state.latest.at, state.latest.position):
            state.latest, state.value_minor, state.last_day = last, last.amount_minor, last.day


async def _write(db: asyncpg.Connection, batch: _Batch, states: dict[Key, _State]) -> None:
    if batch.lines:
        await db.copy_records_to_table(
            "fact",
            records=[
                (user_id, line.item, line.at, line.position, line.part, line.event_id, line.type, line.nature,
                 line.amount_minor, _flow(states[user_id, line.item], line),
                 *((line.quantity, line.price, line.cost) if line.stated else (None, None, None)))
                for user_id, line in batch.lines
            ],
            columns=("user_id", "item", "at", "position", "part", "event_id", "type", "nature",
                     "amount_minor", "flow_minor", "quantity", "price", "cost"),
        )  # fmt: skip
    if states:
        await _write_items(db, states)
    if batch.days:
        await db.execute(
            "INSERT INTO daily (user_id, item, day, value_minor, flow_minor, emi_minor) SELECT * FROM "
            "unnest($1::uuid[], $2::text[], $3::date[], $4::bigint[], $5::bigint[], $6::bigint[]) "
            "ON CONFLICT (user_id, item, day) DO UPDATE SET value_minor = excluded.value_minor, "
            "flow_minor = daily.flow_minor + excluded.flow_minor, "
            "emi_minor = daily.emi_minor + excluded.emi_minor",
            *_columns([(*k, row.value_minor, row.flow_minor, row.emi_minor) for k, row in sorted(
                batch.days.items(), key=lambda entry: entry[0])]),
        )  # fmt: skip
    await _write_trades_and_deposits(db, batch)  # before what is restated: it asks for trades
    for change in batch.late:
        await _write_late(db, *change)
    for (user_id, name), since in batch.late_statements.items():
        await restate(db, user_id, name, since)
    if batch.cashflow:
        await db.execute(
            "INSERT INTO cashflow (user_id, month, category, in_minor, out_minor) SELECT * FROM "
            "unnest($1::uuid[], $2::date[], $3::text[], $4::bigint[], $5::bigint[]) "
            "ON CONFLICT (user_id, month, category) DO UPDATE SET "
            "in_minor = cashflow.in_minor + excluded.in_minor, out_minor = cashflow.out_minor + excluded.out_minor",
            *_columns([(*key, *sums) for key, sums in batch.cashflow.items()]),
        )
    if batch.changed:
        await db.execute(
            "INSERT INTO changed (user_id, position) SELECT * FROM unnest($1::uuid[], $2::bigint[]) "
            "ON CONFLICT (user_id) DO UPDATE SET position = greatest(changed.position, excluded.position)",
            *_columns(sorted(batch.changed.items())),
        )


def _flow(state: _State, line: Line) -> int:
    """A posting's flow. What flowed by a statement depends on the one before it: only its day's row knows."""
    return 0 if line.stated else account_flow(state.asset_class, line)[0]


async def _write_items(db: asyncpg.Connection, states: dict[Key, _State]) -> None:
    rows = []
    for (user_id, name), state in states.items():
        item, latest, last_day = state.item, state.latest, state.last_day
        value = state.value_minor + state.late_minor
        stated = (latest.at, latest.position, latest.quantity, latest.price, latest.cost) if latest else (None,) * 5
        rows.append(
            (user_id, name, item.asset_class, item.currency, item.label, item.underlying, value, last_day, *stated)
        )
    await db.execute(
        "INSERT INTO item (user_id, item, asset_class, currency, label, underlying, value_minor, last_day, "
        "stated_at, stated_position, quantity, price, cost) SELECT * FROM "
        "unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::date[], "
        "$9::timestamptz[], $10::bigint[], $11::numeric[], $12::numeric[], $13::numeric[]) "
        "ON CONFLICT (user_id, item) DO UPDATE SET value_minor = excluded.value_minor, last_day = excluded.last_day, "
        "stated_at = excluded.stated_at, stated_position = excluded.stated_position, quantity = excluded.quantity, "
        "price = excluded.price, cost = excluded.cost",
        *_columns(rows),
    )


async def _write_late(
    db: asyncpg.Connection, user_id: UUID, item: str, day: date, amount: int, flow: int, emi: int
) -> None:
    """A posting of a day that was over: its row, and the value of every later row of the account."""
    await db.execute(
        "INSERT INTO daily (user_id, item, day, value_minor, flow_minor, emi_minor) VALUES ($1, $2, $3, "
        "$4 + coalesce((SELECT value_minor FROM daily WHERE user_id = $1 AND item = $2 AND day < $3 "
        "ORDER BY day DESC LIMIT 1), 0), $5, $6) ON CONFLICT (user_id, item, day) DO UPDATE SET "
        "value_minor = daily.value_minor + $4, flow_minor = daily.flow_minor + $5, "
        "emi_minor = daily.emi_minor + $6",
        user_id,
        item,
        day,
        amount,
        flow,
        emi,
    )
    await db.execute(
        "UPDATE daily SET value_minor = value_minor + $4 WHERE user_id = $1 AND item = $2 AND day > $3",
        user_id,
        item,
        day,
        amount,
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
    lines = [
        Line(name, row["at"], row["position"], 0, UUID(int=0), "", "stated", row["amount_minor"], True,
             row["quantity"], row["price"], row["cost"])
        for row in rows
    ]  # fmt: skip
    first_day = local_day(since) if since.year > 1 else date.min
    before = next((line for line in reversed(lines) if line.day < first_day), None)
    again = [line for line in lines if line.day >= first_day]
    traded = await db.fetchval(
        "SELECT EXISTS (SELECT FROM trade WHERE user_id = $1 AND symbol = $2 AND at <= $3)",
        user_id,
        item["label"],
        lines[0].at,
    )
    days = fold_statements(item["asset_class"], before, again, traded)
    await db.execute("DELETE FROM daily WHERE user_id = $1 AND item = $2 AND day >= $3", user_id, name, first_day)
    await db.execute(
        "INSERT INTO daily SELECT $1, $2, * FROM unnest($3::date[], $4::bigint[], $5::bigint[], $6::bigint[])",
        user_id,
        name,
        *_columns([(day, row.value_minor, row.flow_minor, 0) for day, row in days.items()]),
    )


async def _write_trades_and_deposits(db: asyncpg.Connection, batch: _Batch) -> None:
    if batch.trades:
        await db.copy_records_to_table(
            "trade",
            records=[
                (user_id, trade.occurred_at, event.position, event.event_id, trade.symbol, trade.instrument,
                 trade.quantity if trade.side == "buy" else -trade.quantity, trade.price_minor,
                 trade.charges_minor, trade.realized_pnl_minor, trade.currency)
                for user_id, event, trade in batch.trades
            ],
        )  # fmt: skip
    if batch.deposits:
        await db.execute(
            "INSERT INTO deposit SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], "
            "$5::numeric[], $6::date[]) ON CONFLICT DO NOTHING",
            *_columns(
                [
                    (user_id, d.deposit_id, d.principal_minor, d.currency, Decimal(d.rate_percent), d.matures_on)
                    for user_id, d in batch.deposits
                ]
            ),
        )


async def _link(db: asyncpg.Connection, events: Sequence[RecordedEvent], gone: set[UUID]) -> None:
    links = {
        (UUID(event.stream_id), event.payload.platform, event.position)
        for event in events
        if isinstance(event.payload, identity.LinkConfirmed) and UUID(event.stream_id) not in gone
    }
    if links:
        await db.execute(
            "INSERT INTO linked_platform (user_id, platform) SELECT * FROM unnest($1::uuid[], $2::text[]) "
            "ON CONFLICT DO NOTHING",  # a platform may be linked again
            *_columns(sorted({link[:2] for link in links})),
        )
        await db.execute(
            "INSERT INTO changed (user_id, position) SELECT DISTINCT ON (1) * FROM unnest($1::uuid[], $2::bigint[]) "
            "ORDER BY 1, 2 DESC "
            "ON CONFLICT (user_id) DO UPDATE SET position = greatest(changed.position, excluded.position)",
            *_columns(sorted((link[0], link[2]) for link in links)),
        )


async def _erase(db: asyncpg.Connection, user_id: UUID) -> None:
    for table in TABLES:
        await db.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
    await db.execute("INSERT INTO erased (user_id) VALUES ($1) ON CONFLICT DO NOTHING", user_id)


def start_of_day(at: datetime) -> datetime:
    """Midnight (IST) of the day that `at` is in."""
    if at.year == 1:
        return at
    local = at + IST
    return at - timedelta(hours=local.hour, minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
