"""Rules: a salary day on which everybody has a rule, beside the same postings without one; and the timer's rate."""

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
from events.contracts import banking
from events.contracts.ledger import AccountOpened, Leg
from events.contracts.ledger_rules import (
    FixedAmount,
    Percentage,
    PercentOfTrigger,
    RuleCreated,
    RuleFired,
    RuleTerms,
    Scheduled,
    Trigger,
)
from events.contracts.registry import Event
from events.envelope import RecordedEvent, new_id
from events.projections import Projections
from events.sealing import SubjectKeys
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from events.texts import Texts
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.rule_terms import with_default_caps, worst_case
from ledger_transfer.state import account_id_of, balanced, clearing
from ledger_transfer.timer import Timer
from recording import recorded
from report import Figure, Line, rate

if TYPE_CHECKING:
    from provision import Cell

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
CUSTOMERS = 10_000
ROUND = 2_000
"""Customers per round: so that every round's streams are as cold as a salary day's."""
AT = datetime(2026, 1, 31, 3, tzinfo=UTC)


def _opened(account_id: UUID, platform: str, number: str, kind: str) -> AccountOpened:
    leg = Leg(
        account_id=str(account_id),
        amount_minor=10_00_000,
        currency="INR",
        balance_after_minor=10_00_000,
        platform=platform,  # type: ignore[arg-type]
    )
    return AccountOpened(
        account_id=account_id,
        platform=platform,  # type: ignore[arg-type]
        platform_account_id=number,
        kind=kind,  # type: ignore[arg-type]
        currency="INR",
        legs=balanced(leg, clearing(platform, -10_00_000, "INR")),  # type: ignore[arg-type]
        occurred_at=AT,
    )


async def _customers(store: EventStore, count: int, trigger: Trigger | None) -> list[UUID]:
    """Customers with a savings account, a wallet and, if there is a trigger, a rule."""
    users = [new_id() for _ in range(count)]

    async def make(user_id: UUID) -> None:
        savings, wallet = account_id_of(user_id, "bfc", "SB1"), account_id_of(user_id, "vyomo", "W1")
        events: list[Event] = [
            _opened(savings, "bfc", "SB1", "savings"),
            _opened(wallet, "vyomo", "W1", "trading_wallet"),
        ]
        if trigger is not None:
            percentage = isinstance(trigger, Percentage)
            terms = with_default_caps(
                RuleTerms(
                    name="bench",
                    source_account_id=savings,
                    target_account_id=wallet,
                    currency="INR",
                    trigger=trigger,
                    amount=PercentOfTrigger() if percentage else FixedAmount(amount_minor=1_00),
                ),
                2_00_000_00,
            )
            events.append(RuleCreated(rule_id=new_id(), terms=terms, worst_case=worst_case(terms), created_at=AT))
        await store.append([StreamAppend(f"ledger-{user_id}", tuple(events), 0)], event_id=new_id(), subject=user_id)

    for first in range(0, count, 1_000):
        await asyncio.gather(*(make(user_id) for user_id in users[first : first + 1_000]))
    return users


def _salary(user_id: UUID) -> RecordedEvent:
    item = banking.TransactionPosted(
        item_id=str(new_id()),
        customer_id=str(user_id),
        occurred_at=AT,
        transaction_id="T",
        account_id="SB1",
        direction="credit",
        amount_minor=85_000_00,
        currency="INR",
        category="salary",
    )
    return recorded(item, stream=f"bank_customer-{user_id}", at=AT)


async def measure(cell: "Cell") -> list[Line]:
    """The lines of the report. Every firing is counted: exactly one for each rule."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=4)
    relay = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    projections = Projections(PROJECTIONS)
    await database.execute(projections.ddl)

    keys = await SubjectKeys.connect(cell.keys_url("ledger_transfer"), MASTER_KEY)
    texts = Texts(keys)

    async def salaries(users: list[UUID]) -> None:
        ledger = Ledger(store, texts)
        for first in range(0, len(users), 500):
            await asyncio.gather(*(ledger.record(user_id, _salary(user_id)) for user_id in users[first : first + 500]))

    async def day(users: list[UUID], rounds: int) -> Figure:
        batches = iter([users[n * ROUND : (n + 1) * ROUND] for n in range(rounds)])
        return await rate(ROUND, lambda: salaries(next(batches)), rounds)

    plain = await day(await _customers(store, 3 * ROUND, None), 3)
    ruled = await day(await _customers(store, CUSTOMERS, Percentage(percent_hundredths=20_00)), CUSTOMERS // ROUND)
    await _customers(store, ROUND, Scheduled(every="day", at="09:00"))
    position, fired = 0, 0
    while await sequencer.sequence():
        pass
    while page := await store.read_log(position, 5_000):
        async with database.acquire() as connection, connection.transaction():
            await projections.apply(connection, [event for event in page if event.type in projections.types])  # type: ignore[arg-type]
        fired += sum(isinstance(event.payload, RuleFired) for event in page)
        position = page[-1].position
    assert fired == CUSTOMERS, f"{fired} firings of {CUSTOMERS} rules"
    timer = Timer(Ledger(store, texts), database, clock=lambda: AT + timedelta(days=1, hours=1))

    async def calendar() -> None:
        while await timer.tick():
            pass

    runs = await rate(ROUND, calendar, 1)
    await store.close()
    await keys.close()
    await database.close()
    await relay.close()
    return [
        Line(
            f"salaries with a rule, {CUSTOMERS} customers: posting + transfer + firing in one append",
            ruled,
            "firings/s",
            "the same postings without a rule",
            plain,
            "each rule exactly once",
        ),
        Line(f"runs of the calendar, {ROUND} due at once", runs, "firings/s", "postings without a rule", plain, ""),
    ]
