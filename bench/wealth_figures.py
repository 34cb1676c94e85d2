"""wealth: a customer of 12 years, 14,400 activities and 250 instruments: rebuild, append, a back-dated event, summary.

Activities are events of the log; the raw ceiling of the rebuild is COPY of the same rows, that of an append one
committed row. Latencies are of the whole way: applied in a transaction, then the figures computed and encoded.
"""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid5

import asyncpg
import msgspec
from report import ROUNDS, Figure, Line, quantile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))

from events.contracts import banking, ledger, trading
from events.envelope import RecordedEvent, platform_stream
from events.projections import Projections
from life_log import Log, life_user, linked
from wealth.answers import summary_answer
from wealth.desk import Desk
from wealth.insights import Thresholds
from wealth.performance import PERIODS
from wealth.projections import PROJECTIONS

if TYPE_CHECKING:
    from provision import Cell

YEARS, ACTIVITIES, SHARES, FUNDS = 12, 14_400, 220, 28  # with a savings account and a wallet: 250 instruments
NOW = datetime(2026, 10, 31, 12, tzinfo=UTC)
USER = life_user("BFC-1")
SAVINGS, WALLET = uuid5(USER, "savings"), uuid5(USER, "wallet")
BATCH = 1_000


class _History:
    """The events of that customer, spread evenly over the years."""

    def __init__(self) -> None:
        self.log = Log()
        self.chance = random.Random(5)
        self.balances = {SAVINGS: 0, WALLET: 0}
        self.held = [0] * SHARES
        self.units = [0] * FUNDS
        self.number = 0

    def events(self) -> list[RecordedEvent]:
        found = [
            self.log.record(f"user-{USER}", linked(platform, customer), USER)
            for platform, customer in (("bfc", "BFC-1"), ("vyomo", "VY-1"))
        ]
        start = NOW - timedelta(days=365 * YEARS)
        found += [self._open(SAVINGS, "savings", start), self._open(WALLET, "trading_wallet", start)]
        step = timedelta(days=365 * YEARS) / ACTIVITIES
        while len(found) < ACTIVITIES:
            found += self._activity(start + step * len(found))
        return found[:ACTIVITIES]

    def _open(self, account_id: Any, kind: Any, at: datetime) -> RecordedEvent:
        platform: Any = "bfc" if kind == "savings" else "vyomo"
        self.balances[account_id] = 50_00_000_00
        legs = (ledger.Leg(account_id=str(account_id), amount_minor=50_00_000_00, currency="INR",
                           balance_after_minor=50_00_000_00),)  # fmt: skip
        opened = ledger.AccountOpened(account_id=account_id, platform=platform, platform_account_id=kind, kind=kind,
                                      currency="INR", legs=legs, occurred_at=at)  # fmt: skip
        return self.log.record(f"ledger-{USER}", opened, USER)

    def post(self, account_id: Any, amount: int, category: str, at: datetime) -> RecordedEvent:
        self.balances[account_id] += amount
        leg = ledger.Leg(account_id=str(account_id), amount_minor=amount, currency="INR",
                         balance_after_minor=self.balances[account_id])  # fmt: skip
        posted = ledger.AccountPosted(
            account_id=account_id, platform="bfc", legs=(leg,), type="transaction", category=category,
            item_id=str(self.log.position), occurred_at=at,
        )  # fmt: skip
        return self.log.record(f"ledger-{USER}", posted, USER)

    def _activity(self, at: datetime) -> list[RecordedEvent]:
        self.number += 1
        chance = self.chance
        if self.number % 10 < 4:
            if self.number % 40 == 1:
                return [self.post(SAVINGS, 2_00_000_00, "salary", at)]
            category = chance.choice(("groceries", "shopping", "utilities", "other", "rent"))
            return [self.post(SAVINGS, -chance.randrange(100_00, 9_000_00), category, at)]
        if self.number % 10 < 5:
            return self._trade(at)
        if self.number % 10 == 9:
            return [self._fund(self.number // 10 % FUNDS, at)]
        return [self.mark(self.number % SHARES, at)]

    def _trade(self, at: datetime) -> list[RecordedEvent]:
        which = self.number // 10 % SHARES
        price = 100_00 + which * 10_00 + self.chance.randrange(20_00)
        sells = self.held[which] > 20
        self.held[which] += -10 if sells else 10
        trade = trading.TradeExecuted(
            item_id=str(self.log.position), customer_id="VY-1", occurred_at=at, trade_id=f"T{self.log.position}",
            wallet_id="W", symbol=f"S{which}", underlying=f"S{which}", instrument="equity",
            side="sell" if sells else "buy", quantity=10, price_minor=price, charges_minor=20_00, currency="INR",
            realized_pnl_minor=500_00 if sells else None,
        )  # fmt: skip
        cash = 10 * price * (1 if sells else -1) - 20_00
        return [
            self.log.record(platform_stream("vyomo", "VY-1"), trade, None),
            self.post(WALLET, cash, "trade", at),
            self.mark(which, at + timedelta(seconds=1)),
        ]

    def mark(self, which: int, at: datetime) -> RecordedEvent:
        mark = 100_00 + which * 10_00 + self.chance.randrange(60_00)
        average = 105_00 + which * 10_00
        stated = trading.PositionChanged(
            item_id=str(self.log.position), customer_id="VY-1", occurred_at=at, position_id=f"P{which}",
            symbol=f"S{which}", underlying=f"S{which}", instrument="equity", quantity=max(self.held[which], 1),
            average_price_minor=average, mark_price_minor=mark,
            unrealized_pnl_minor=max(self.held[which], 1) * (mark - average), currency="INR",
        )  # fmt: skip
        return self.log.record(platform_stream("vyomo", "VY-1"), stated, None)

    def _fund(self, which: int, at: datetime) -> RecordedEvent:
        self.units[which] += 100
        stated = banking.FundChanged(
            item_id=str(self.log.position), customer_id="BFC-1", occurred_at=at, scheme_code=f"F{which}",
            scheme_name=f"Scheme {which}", units=str(self.units[which]), nav=f"{20 + self.chance.random() * 9:.4f}",
            cost_minor=self.units[which] * 22_00, currency="INR", as_of=at.date(),
        )  # fmt: skip
        return self.log.record(platform_stream("bfc", "BFC-1"), stated, None)


async def _apply(connection: asyncpg.Connection, projections: Projections, events: Sequence[RecordedEvent]) -> None:
    for first in range(0, len(events), BATCH):
        async with connection.transaction():
            await connection.execute("SET LOCAL synchronous_commit = off")  # as the consumer does
            await projections.apply(connection, events[first : first + BATCH])


async def _summary(desk: Desk) -> bytes:
    look = await desk.look(USER)
    return msgspec.json.encode(summary_answer(look.position, look.as_of, look.computed, PERIODS))


async def _timed_ms(action: Any) -> float:
    started_s = time.perf_counter()
    await action
    return (time.perf_counter() - started_s) * 1000


async def _loop_lag(stop: asyncio.Event) -> list[float]:
    """How late a 2 ms sleep wakes up: what a request meanwhile would wait for the loop at least."""
    lags = []
    while not stop.is_set():
        started_s = time.perf_counter()
        await asyncio.sleep(0.002)
        lags.append((time.perf_counter() - started_s) * 1000 - 2)
    return lags


async def _raw_copy(connection: asyncpg.Connection) -> float:
    """Rows of facts and days, copied into empty tables of the same shape; gives seconds."""
    taken = 0.0
    for table in ("fact", "daily", "trade"):
        rows = [tuple(row) for row in await connection.fetch(f"SELECT * FROM {table}")]
        await connection.execute(f"CREATE TEMP TABLE raw_{table} (LIKE {table} INCLUDING ALL)")
        started_s = time.perf_counter()
        await connection.copy_records_to_table(f"raw_{table}", records=rows)
        taken += time.perf_counter() - started_s
        await connection.execute(f"DROP TABLE raw_{table}")
    return taken


async def measure(cell: "Cell") -> list[Line]:
    """The lines of the report."""
    url = cell.database_url("wealth")
    database = await asyncpg.create_pool(url, min_size=1, max_size=4, server_settings={"jit": "off"})
    connection = await asyncpg.connect(url)
    projections = Projections(PROJECTIONS)
    await connection.execute(projections.ddl)
    await connection.execute("CREATE TABLE raw_row (id bigserial PRIMARY KEY, day date, amount bigint)")
    rebuild, raw, lag = [], [], []
    history = _History()
    events = history.events()
    for event in events:
        event.__dict__.pop("payload", None)  # a rebuild decodes
    for _ in range(ROUNDS):
        for table in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            await connection.execute(f"TRUNCATE {table['tablename']}")
        for event in events:
            event.__dict__.pop("payload", None)
        stop = asyncio.Event()
        lagging = asyncio.create_task(_loop_lag(stop))
        started_s = time.perf_counter()
        await _apply(connection, projections, events)
        rebuild.append(len(events) / (time.perf_counter() - started_s))
        stop.set()
        lag.append(quantile(await lagging, 0.99))
        raw.append(len(events) / await _raw_copy(connection))
    await connection.execute("ANALYZE")
    instruments = await connection.fetchval("SELECT count(*) FROM item")
    desk = Desk(database, Thresholds(), clock=lambda: NOW)

    cold, warm, today, back_posting, back_stated, single = [], [], [], [], [], []
    for round_number in range(ROUNDS):
        times = [await _timed_ms(_summary(Desk(database, Thresholds(), clock=lambda: NOW))) for _ in range(15)]
        cold.append(quantile(times, 0.99))
        await _summary(desk)
        warm.append(quantile([await _timed_ms(_summary(desk)) for _ in range(300)], 0.99))

        async def append(event: RecordedEvent) -> None:
            await _apply(connection, projections, [event])

        ago = NOW - timedelta(days=400 + round_number)
        times = []
        for _ in range(20):
            single.append(await _timed_ms(connection.execute("INSERT INTO raw_row (day, amount) VALUES (now(), 1)")))
            times.append(await _timed_ms(append(history.post(SAVINGS, -1_00, "other", NOW))))
        today.append(quantile(times, 0.5))
        times = [await _timed_ms(append(history.post(SAVINGS, -1_00, "other", ago))) for _ in range(10)]
        back_posting.append(quantile(times, 0.5))
        times = [await _timed_ms(append(history.mark(n, ago))) for n in range(10)]
        back_stated.append(quantile(times, 0.5))
    whole_ms = len(events) / Figure(rebuild).median * 1000
    await connection.close()
    await database.close()
    what = f"{len(events):,} activities, {instruments} instruments"
    raw_one = Figure([quantile(single, 0.5)])
    share = Figure([whole_ms / value for value in back_posting])
    return [
        Line(f"wealth: cold rebuild, {what}", Figure(rebuild), "events/s", "COPY of the same rows", Figure(raw),
             "a fraction of it is one event"),
        Line("wealth: event loop's lag p99 during it", Figure(lag), "ms", "", None, "ready p99 ≤ 20 ms"),
        Line("wealth: summary cold p99", Figure(cold), "ms", "", None, "—"),
        Line("wealth: summary warm p99", Figure(warm), "ms", "", None, "≤ 25 ms"),
        Line("wealth: today's event applied", Figure(today), "ms", "one row committed", raw_one, "—"),
        Line("wealth: posting back-dated by 400 days", Figure(back_posting), "ms", "one row committed", raw_one, "—"),
        Line("wealth: statement back-dated by 400 days", Figure(back_stated), "ms", "one row committed", raw_one, "—"),
        Line("wealth: rebuild / back-dated posting", share, "times cheaper", "", None, "≥ 50"),
    ]  # fmt: skip
