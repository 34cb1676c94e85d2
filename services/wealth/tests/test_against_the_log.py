"""Every figure of a year of the seeded scenario, against a second implementation that reads the log itself.

100 customers by default; `WEALTH_ORACLE_LIVES=10` judges ten lives of 100: 1,000 customers.
"""

import os
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
import slow_oracle as oracle
from events.envelope import RecordedEvent
from events.projections import Projections
from life_log import a_life, life_log, life_user
from wealth import queries
from wealth.computing import compute
from wealth.insights import Thresholds
from wealth.performance import PERIODS
from wealth.projections import PROJECTIONS

pytestmark = pytest.mark.integration

NOW = datetime(2026, 10, 31, 18, 20, tzinfo=UTC)
CUSTOMERS = 100
LIVES = int(os.environ.get("WEALTH_ORACLE_LIVES", "1"))


async def fill(connection: asyncpg.Connection, log: list[RecordedEvent], batch: int = 1000) -> None:
    """Applies the log as the consumer does."""
    projections = Projections(PROJECTIONS)
    for start in range(0, len(log), batch):
        events = [event for event in log[start : start + batch] if event.type in projections.types]
        async with connection.transaction():
            await projections.apply(connection, events)


async def judge(database: asyncpg.Pool, user_id: UUID, events: list[RecordedEvent], chance: random.Random) -> int:
    """Compares one customer's figures with the log's. Gives 1 where an XIRR was compared."""
    _, picture = await queries.picture(database, user_id, NOW)
    computed = compute(picture, Thresholds())
    assert computed.worth.total == oracle.net_worth(events, NOW)
    for _ in range(4):
        instant = NOW - timedelta(seconds=chance.randrange(390 * 86_400))
        past = await queries.past_worth(database, user_id, instant)
        assert (past.figures.total or 0) == oracle.net_worth(events, instant), instant
    by_day = oracle.flows(events)
    for period in PERIODS:
        ours = computed.performance[period]
        end_of_first = datetime.combine(ours.first_day + timedelta(days=1), datetime.min.time(), UTC)
        start = oracle.net_worth(events, end_of_first - timedelta(hours=5.5, microseconds=1))
        flows = {day: amount for day, amount in by_day.items() if day > ours.first_day and amount}
        assert (ours.start_minor, ours.end_minor) == (start, computed.worth.total)
        assert ours.net_flows_minor == sum(flows.values())
        assert ours.gain_minor == ours.end_minor - ours.start_minor - ours.net_flows_minor
        for day in chance.sample(range(period + 1), 3):
            on = datetime.combine(ours.first_day + timedelta(days=day + 1), datetime.min.time(), UTC)
            at = min(on - timedelta(hours=5.5, microseconds=1), NOW)
            assert ours.series[day] == oracle.net_worth(events, at)
    dated = [(ours.first_day, -start), *((day, -amount) for day, amount in sorted(flows.items()))]
    dated.append((ours.last_day, ours.end_minor))
    if len(ours.xirr.roots) != 1:
        return 0
    theirs = oracle.irr(dated)
    if theirs is None:
        return 0
    assert ours.xirr.rate == pytest.approx(theirs, abs=1e-7)
    return 1


@pytest.mark.parametrize("seed", range(7, 7 + LIVES))
async def test_a_year_of_everybody_agrees_with_the_log(world: Any, seed: int) -> None:
    life = a_life(CUSTOMERS, seed=seed)
    log = list(life_log(life))
    async with world.db.acquire() as connection:
        await fill(connection, log)
    customers = oracle.by_customer(log)
    assert len(customers) == CUSTOMERS
    chance = random.Random(1)
    rates = sum([await judge(world.db, user, events, chance) for user, events in customers.items()])
    assert rates > CUSTOMERS * 0.6, "who owes less than they own mostly has one rate of return"
    for truth in life.truth():
        _, picture = await queries.picture(world.db, life_user(truth.bfc_customer_id), NOW)
        worth = compute(picture, Thresholds()).worth
        assert (worth.total, worth.loans, worth.open_positions) == (truth.net_worth, truth.loans, truth.positions)
        assert (worth.mutual_funds, worth.realized_pnl) == (truth.funds, truth.realized_pnl)


async def days(database: Any) -> list[Any]:
    found = await database.fetch("SELECT * FROM daily ORDER BY user_id, item, day")
    items = await database.fetch(
        "SELECT user_id, item, value_minor, last_day, stated_at, quantity, price, cost FROM item ORDER BY 1, 2"
    )
    flows = await database.fetch("SELECT * FROM cashflow ORDER BY 1, 2, 3")
    return [*found, *items, *flows]


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_the_order_of_events_the_days_are_the_same(world: Any, seed: int) -> None:
    """Back-dated postings and statements mend their own days and the later ones, and nothing else."""
    log = list(life_log(a_life(3, months=5, seed=seed)))
    async with world.db.acquire() as connection:
        await fill(connection, log)
        in_order = await days(connection)
        for table in ("item", "fact", "daily", "cashflow", "trade", "deposit", "linked_platform", "changed"):
            await connection.execute(f"TRUNCATE {table}")
        opened = [event for event in log if event.type.startswith(("identity.", "ledger.account.opened"))]
        others = [event for event in log if event not in opened]
        chance = random.Random(seed)
        # Late by up to a third of the whole: both within a batch and across batches.
        keys = {id(event): index + chance.random() * len(others) / 3 for index, event in enumerate(others)}
        late = [*opened, *sorted(others, key=lambda event: keys[id(event)])]
        late = [msgspec.structs.replace(event, position=position) for position, event in enumerate(late, start=1)]
        await fill(connection, late, batch=97)
        assert await days(connection) == in_order
