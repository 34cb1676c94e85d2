"""The notifier: durable grouping fed from the log, the way of what is critical to the inbox, the clock, the noise."""

import asyncio
import base64
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID

import asyncpg
from events.contracts import identity, ledger
from events.contracts.notification import NotificationRaised
from events.envelope import new_id
from events.sealing import SubjectKeys
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from events.texts import Texts
from notifier.grouping import WINDOW
from notifier.projections import PROJECTIONS
from notifier.reactions import Grouping
from report import ROUNDS, Figure, Line, quantile

sys.path.insert(0, str(Path(__file__).parents[1] / "services" / "notifier" / "tests"))

from noise import SCENARIOS, measured

if TYPE_CHECKING:
    from provision import Cell
    from stack import Stack

BURST, SPREAD = (200, 100), (2_000, 10)
"""Customers and events of each. In a burst a chunk of the log has several events of one customer; spread out, as on an
ordinary day, none: every event has a row of its own to be read and written."""
CHUNK = 2_000
CRITICALS = 300
"""From a fresh start on: with these, p99 is the third worst."""
GROUPS = 40
UPSERTS = 3_000


def _posted(account: UUID, amount_minor: int) -> ledger.AccountPosted:
    def leg(name: str, signed: int) -> ledger.Leg:
        return ledger.Leg(account_id=name, amount_minor=signed, currency="INR", balance_after_minor=100_000_00)

    return ledger.AccountPosted(
        account_id=account,
        platform="bfc",
        legs=(leg(str(account), amount_minor), leg("clearing:bfc", -amount_minor)),
        type="transaction",
        category="groceries",
        counterparty="A shop",
        item_id=str(account),
        occurred_at=datetime.now(UTC),
    )


async def _register(keys: SubjectKeys, users: list[UUID]) -> None:
    """Everybody who is registered has a key, which what they are told is sealed with."""
    for user in users:
        await keys.seal(user, "profile", "profile")
        keys.forget(user)


async def _fill(store: EventStore, sequencer: Sequencer, texts: Texts, users: list[UUID], each: int) -> None:
    """One sealed posting per customer after the other, so that neighbours in the log are never of one customer."""
    for round_ in range(each):
        for start in range(0, len(users), 500):
            sealed = [
                (user, await texts.sealed(user, _posted(user, -(100 + round_)))) for user in users[start : start + 500]
            ]
            await asyncio.gather(
                *(
                    store.append([StreamAppend(f"ledger-{user}", (event,))], event_id=new_id(), subject=user)
                    for user, event in sealed
                )
            )
    while await sequencer.sequence():
        pass


async def _upsert_row_by_row(database: asyncpg.Pool, users: list[UUID]) -> float:
    """What a group costs where each event updates its row: count and total alone, in one transaction per chunk."""
    started_s = time.perf_counter()
    async with database.acquire() as db:
        for start in range(0, UPSERTS, CHUNK):
            async with db.transaction():
                await db.execute("SET LOCAL synchronous_commit = off")
                for n in range(start, min(start + CHUNK, UPSERTS)):
                    await db.execute(
                        "INSERT INTO bench_group (user_id, key, count, total) VALUES ($1, 'transaction:INR', 1, $2)"
                        " ON CONFLICT (user_id, key) DO UPDATE SET count = bench_group.count + 1,"
                        " total = bench_group.total + excluded.total",
                        users[n % len(users)],
                        100,
                    )
    return UPSERTS / (time.perf_counter() - started_s)


async def measure_noise() -> list[Line]:
    """What a customer is told, beside one notification per event; by what makes it less."""
    lines = []
    for name, scenario in SCENARIOS.items():
        row = measured(scenario)
        steps = f"de-duplicated {row.deduplicated}, grouped {row.grouped}, throttled {row.throttled}"
        why = f"; not reached: {scenario.why}" if scenario.why else ""
        lines.append(
            Line(
                f"noise, {name}: {steps}, deferred {row.deferred}{why}",
                Figure([row.deferred]),
                "told",
                "one per event",
                Figure([row.raw]),
                "≤ 0.20×",
            )
        )
    return lines


async def measure(cell: "Cell") -> list[Line]:
    """Grouping, and telling what was grouped."""
    ledger_store = await EventStore.connect(cell.store_url("ledger_transfer"))
    store = await EventStore.connect(cell.store_url("notifier"))
    relay = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    database = await asyncpg.create_pool(
        cell.database_url("notifier"), min_size=2, max_size=4, server_settings={"jit": "off"}
    )
    keys = await SubjectKeys.connect(cell.keys_url("notifier"), base64.b64encode(os.urandom(32)).decode())
    grouping = Grouping(database, store, keys)
    # As in the service: what counterparties are called is sealed in the log, and opened for whoever reads it.
    texts = Texts(keys)
    store.opens_with(texts.open_events)
    await database.execute(
        grouping.ddl
        + "".join(projection.ddl for projection in PROJECTIONS)
        + "CREATE TABLE bench_group (user_id uuid, key text, count int, total bigint, PRIMARY KEY (user_id, key))"
    )
    lines: list[Line] = []
    position = 0
    for shape, (customers, per_customer) in (("in bursts", BURST), ("spread out", SPREAD)):
        grouped: list[float] = []
        told: list[float] = []
        raw: list[float] = []
        events = customers * per_customer
        for _ in range(ROUNDS):
            users = [new_id() for _ in range(customers)]
            await _register(keys, users)
            await _fill(ledger_store, sequencer, texts, users, per_customer)
            raw.append(await _upsert_row_by_row(database, users))
            started_s = time.perf_counter()
            # The next chunk is read meanwhile, as in a rebuild.
            ahead = asyncio.create_task(store.read_log(position, CHUNK))
            while chunk := await ahead:
                position = chunk[-1].position
                ahead = asyncio.create_task(store.read_log(position, CHUNK))
                if mine := [event for event in chunk if event.type in grouping.types]:
                    async with database.acquire() as proxy, proxy.transaction():
                        # As the consumer commits (docs/decisions/0004); what is told waits for the disk.
                        await proxy.execute("SET LOCAL synchronous_commit = off")
                        await grouping.apply(cast(asyncpg.Connection, proxy), mine)
            grouped.append(events / (time.perf_counter() - started_s))
            later = datetime.now(UTC) + timedelta(seconds=10)
            while await grouping.close_due(later, later):
                pass
            while await grouping.outbox.send():
                pass
            told.append(events / (time.perf_counter() - started_s))
            position = await _skip(store, sequencer, position)
        what = f"{shape}: {per_customer} events of {customers:,} customers"
        bar = "≥ 20,000/s" if shape == "in bursts" else ""
        upsert = "row-by-row upsert of count and total"
        lines += [
            Line(f"notifier, log → groups, {what}", Figure(grouped), "events/s", upsert, Figure(raw), bar),
            Line(f"notifier, log → told, {what}", Figure(told), "events/s", upsert, Figure(raw), ""),
        ]
    for opened in (database, relay):
        await opened.close()
    for each in (ledger_store, store, keys):
        await each.close()
    return lines


async def _skip(store: EventStore, sequencer: Sequencer, position: int) -> int:
    """The end of the log: what was told is none of the grouping's business."""
    while await sequencer.sequence():
        pass
    return max(position, (await store.head()).position)


async def measure_product(stack: "Stack") -> list[Line]:
    """Over the running product: critical → inbox, and how late the clock is."""
    identity_store = await EventStore.connect(stack.cell.store_url("identity"))
    ledger_store = await EventStore.connect(stack.cell.store_url("ledger_transfer"))
    store = await EventStore.connect(stack.cell.store_url("notifier"))
    database = await asyncpg.connect(stack.cell.database_url("notifier"))
    keys = await SubjectKeys.connect(stack.cell.keys_url("identity"), stack.credentials.subject_master_key)
    latencies_ms: list[float] = []
    for _ in range(CRITICALS):
        user, session_id = new_id(), new_id()
        await _register(keys, [user])
        session = identity.SessionStarted(
            session_id=session_id, user_id=user, platform="bfc", acr=1, expires_at=datetime.now(UTC)
        )
        await identity_store.append(
            [StreamAppend(f"session-{session_id}", (session,))], event_id=new_id(), subject=user
        )
        accepted_s = time.perf_counter()
        while not await database.fetchval("SELECT count(*) FROM notification WHERE user_id = $1", user):
            # What this adds to the figure is less than what asking all the time takes from two cores.
            await asyncio.sleep(0.003)
        latencies_ms.append((time.perf_counter() - accepted_s) * 1000)
    users = [new_id() for _ in range(GROUPS)]
    await _register(keys, users)
    for user in users:
        await ledger_store.append(
            [StreamAppend(f"ledger-{user}", (_posted(user, -100),))], event_id=new_id(), subject=user
        )
        await asyncio.sleep(0.02)
    await asyncio.sleep(WINDOW.total_seconds() + 1)
    late_ms: list[float] = []
    for user in users:
        for event in await store.read_stream(f"inbox-{user}"):
            if isinstance(event.payload, NotificationRaised):
                due = event.payload.opened_at + WINDOW
                late_ms.append((event.recorded_at - due).total_seconds() * 1000)
    assert len(late_ms) == GROUPS
    await database.close()
    for each in (identity_store, ledger_store, store, keys):
        await each.close()
    lines: list[Line] = []
    for what, unit, values, bar in (
        ("critical: accepted → in the inbox", "ms", latencies_ms, "≤ 100 ms"),
        ("group recorded after its 5 s", "ms late", late_ms, ""),
    ):
        lines.append(Line(f"{what}, p50", Figure([quantile(values, 0.5)]), unit, "", None, ""))
        lines.append(Line(f"{what}, p99", Figure([quantile(values, 0.99)]), unit, "", None, bar))
    return lines
