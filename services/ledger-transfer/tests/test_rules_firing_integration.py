"""Firings over a real event store: exactly once, on the day, whatever crashes, lags or is there twice."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
from events.contracts import trading
from events.contracts.ledger import TransferSettled
from events.contracts.ledger_rules import FixedAmount, RuleFired, RuleRefused, RuleTerms, Scheduled
from events.envelope import derived_id
from events.store import EventStore
from ledger_transfer import replenish
from ledger_transfer import timer as timer_module
from ledger_transfer.ledger import Ledger
from recording import recorded

sys.path.insert(0, str(Path(__file__).parent))

from keys_in_memory import texts
from rule_stories import below, india, share, terms
from rule_world import CrashError, Customer, RuleWorld, once_each, rule_world

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(cell: "Cell") -> AsyncIterator[RuleWorld]:
    async with rule_world(cell) as found:
        yield found


def of(customer: Customer, agreed: RuleTerms) -> RuleTerms:
    """The terms between the customer's own accounts."""
    return msgspec.structs.replace(agreed, source_account_id=customer.savings, target_account_id=customer.wallet)


def every(day: str, at: str, amount_minor: int, on: int | None = None) -> RuleTerms:
    schedule: Any = Scheduled(every=day, on=on, at=at)  # type: ignore[arg-type]
    return terms(schedule, FixedAmount(amount_minor=amount_minor))


async def scheduled(world: RuleWorld, agreed: RuleTerms, savings: int = 10_000_00) -> Customer:
    customer = Customer()
    await world.customer(of(customer, agreed), savings=savings, customer=customer)
    await world.project()
    return customer


async def live(world: RuleWorld, until: datetime) -> None:
    """The timer looks whenever a rule is due, and the read model follows."""
    while True:
        due = await world.db.fetchval("SELECT min(next_at) FROM rule")
        if due is None or due > until:
            world.now = until
            return
        world.now = max(due, world.now)
        world.restart()  # nothing of what it remembers is needed
        assert await world.timer.tick() > 0
        await world.project()


async def test_a_year_of_month_ends_with_a_leap_day(world: RuleWorld) -> None:
    world.now = india("2027-12-31T12:00")
    customer = await scheduled(world, every("month", "00:00", 100_00, on=31))
    await live(world, india("2029-01-01T00:00"))
    runs = [event.due_at for event in await world.firings(customer)]
    lasts = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    assert runs == [india(f"2028-{month + 1:02}-{day}T00:00") for month, day in enumerate(lasts)]
    # Midnight in India is the evening before in UTC: the leap day's run is made on the 28th of February there.
    assert runs[1] == datetime(2028, 2, 28, 18, 30, tzinfo=UTC)


async def test_two_days_away_are_made_up_for_once(world: RuleWorld) -> None:
    world.now = india("2026-03-01T10:00")
    customer = await scheduled(world, every("day", "09:00", 100_00))
    await live(world, india("2026-03-03T12:00"))
    world.now = india("2026-03-05T21:00")
    world.restart()
    for _ in range(3):
        await world.timer.tick()
        await world.project()
    await live(world, india("2026-03-06T12:00"))
    assert [(event.due_at, event.missed) for event in await world.firings(customer)] == [
        (india("2026-03-02T09:00"), 0),
        (india("2026-03-03T09:00"), 0),
        (india("2026-03-05T09:00"), 1),
        (india("2026-03-06T09:00"), 0),
    ]


async def test_a_refusal_is_looked_at_again_by_the_timer_and_backs_off(world: RuleWorld) -> None:
    customer = Customer()
    await world.customer(of(customer, below(1_000_00)), savings=100_00, customer=customer)
    await world.linked(customer)
    await world.bank_says(customer.salary(-1, "spent"))  # money moves: the rule is looked at, and refused
    await world.react()
    await world.project()
    [first] = [event for event in await world.events(customer) if isinstance(event, RuleRefused)]
    assert first.retry_at is not None
    await live(world, first.refused_at + timedelta(days=2))
    refusals = [event for event in await world.events(customer) if isinstance(event, RuleRefused)]
    assert 6 <= len(refusals) <= 9, "back-off doubles from a quarter of an hour to a day"
    await world.bank_says(customer.salary(5_000_00))
    await world.react()
    assert [event.amount_minor for event in await world.firings(customer)] == [1_000_00]


async def test_two_replicas_and_a_read_model_that_lags(world: RuleWorld, cell: "Cell") -> None:
    world.now = india("2026-03-01T10:00")
    customers = [await scheduled(world, every("day", "09:00", 100_00)) for _ in range(30)]
    world.now = india("2026-03-02T09:00")
    second = await EventStore.connect(cell.store_url("ledger_transfer"))
    for _ in range(3):  # the table still says that all are due
        others = [world.another_timer(Ledger(second, texts())) for _ in range(2)]
        timers = [world.another_timer(), *others]
        await asyncio.gather(*(timer.tick() for timer in timers))
    await second.close()
    for customer in customers:
        assert len(await world.firings(customer)) == 1
    await world.project()
    assert await world.timer.tick() == 0


@pytest.mark.parametrize("agreed", [share(20), every("day", "09:00", 200_00)], ids=["in_an_append", "on_its_own"])
async def test_a_rules_transfer_reported_back_settles_and_posts_nothing(world: RuleWorld, agreed: RuleTerms) -> None:
    """Its id is the id of an event within another's append, or of an append of its own."""
    world.now = india("2026-03-01T10:00")
    customer = await scheduled(world, agreed)
    await world.linked(customer)
    await world.bank_says(customer.salary(1_000_00))
    await world.react()
    await live(world, india("2026-03-02T09:30"))
    [firing] = await world.firings(customer)
    assert firing.amount_minor == 200_00
    before, state = await world.events(customer), await world.ledger.state(customer.user_id)
    reference = str(firing.transfer_id)
    await world.bank_says(msgspec.structs.replace(customer.salary(-200_00, "echo"), reference=reference))
    await world.react()
    payin = trading.WalletPosted(
        item_id="echo",
        customer_id="VY-1",
        occurred_at=world.now,
        movement_id="M1",
        wallet_id="W1",
        direction="credit",
        amount_minor=200_00,
        currency="INR",
        reason="payin",
        reference=reference,
    )
    await world.ledger.record(customer.user_id, recorded(payin, at=world.now))
    settled = (await world.events(customer))[len(before) :]
    assert [type(event).__name__ for event in settled] == ["TransferSettled"] * 2
    assert {(event.transfer_id, event.platform) for event in settled if isinstance(event, TransferSettled)} == {
        (firing.transfer_id, "bfc"),
        (firing.transfer_id, "vyomo"),
    }
    assert await world.ledger.state(customer.user_id) == state


async def test_one_rule_at_fault_does_not_hold_up_the_others(world: RuleWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.now = india("2026-03-01T10:00")
    faulty, sound = [await scheduled(world, every("day", "09:00", 100_00)) for _ in range(2)]
    world.now = india("2026-03-02T09:00")
    come_due = replenish.come_due

    def poisoned(decision: Any, rule_id: UUID, *more: Any) -> None:
        if rule_id == faulty.rule_id:
            raise ValueError("a rule that nobody understands")
        come_due(decision, rule_id, *more)

    monkeypatch.setattr(timer_module, "come_due", poisoned)
    await world.timer.tick()
    assert len(await world.firings(sound)) == 1
    assert await world.firings(faulty) == []
    monkeypatch.undo()
    world.restart()
    await world.timer.tick()
    assert len(await world.firings(faulty)) == 1


# Crashes between any two steps


def crash(_: Any = None, *__: Any, **___: Any) -> None:
    raise CrashError


async def after(call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """The process ends when the call has done its work and nobody has been told."""
    await call(*arguments, **more)
    raise CrashError


STEPS = (
    "the rule is seen to be due",
    "decided, not appended",
    "appended, nobody told",
    "in the log, not projected",
    "projected, position not saved",
    "all done",
)


@pytest.mark.parametrize("step", STEPS)
async def test_a_run_of_the_calendar_survives_a_crash_after_each_step(
    world: RuleWorld, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.now = india("2026-03-01T10:00")
    customer = await scheduled(world, every("day", "09:00", 100_00))
    world.now = india("2026-03-02T09:00")
    with monkeypatch.context() as patched:
        match step:
            case "the rule is seen to be due":
                patched.setattr(timer_module.Timer, "_wake", crash)
            case "decided, not appended":
                come_due = replenish.come_due
                patched.setattr(timer_module, "come_due", lambda *given: crash(come_due(*given)))
            case "appended, nobody told":
                execute = world.ledger.execute
                patched.setattr(world.ledger, "execute", lambda *given, **more: after(execute, *given, **more))
        await world.timer.tick()
    if step == "projected, position not saved":
        with pytest.raises(CrashError):
            await world.project(crash=True)
    elif step == "all done":
        await world.project()
    for _ in range(2):
        world.restart()
        await world.timer.tick()
        await world.project()
    [firing] = await world.firings(customer)
    assert firing.occurrence == "2026-03-02T03:30:00Z"
    assert (await world.ledger.state(customer.user_id)).accounts[customer.wallet].balance_minor == 100_00


@pytest.mark.parametrize(
    "step", ["decided, not appended", "appended, nobody told", "reacted, position not saved", "all done"]
)
async def test_a_firing_on_a_salary_survives_a_crash_after_each_step(
    world: RuleWorld, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = Customer()
    await world.customer(of(customer, share(20)), customer=customer)
    await world.linked(customer)
    await world.bank_says(customer.salary(85_000_00))
    with monkeypatch.context() as patched:
        match step:
            case "decided, not appended":
                consequences = replenish.consequences
                patched.setattr(replenish, "consequences", lambda decision: crash(consequences(decision)))
            case "appended, nobody told":
                execute = world.ledger.execute
                patched.setattr(world.ledger, "execute", lambda *given, **more: after(execute, *given, **more))
        if step == "all done":
            await world.react()
        else:
            with pytest.raises(CrashError):
                await world.react(crash=step == "reacted, position not saved")
    for _ in range(2):
        world.restart()
        await world.react()
    assert [event.amount_minor for event in await world.firings(customer)] == [17_000_00]
    state = await world.ledger.state(customer.user_id)
    assert (state.accounts[customer.savings].balance_minor, state.accounts[customer.wallet].balance_minor) == (
        68_000_00,
        17_000_00,
    )


TIMER = """
import asyncio, sys
from datetime import datetime
import asyncpg
from events.store import EventStore
from ledger_transfer.ledger import Ledger
from ledger_transfer.timer import Timer
from keys_in_memory import texts

async def main(store_url, database_url, now):
    store = await EventStore.connect(store_url)
    database = await asyncpg.create_pool(database_url, min_size=1, max_size=2)
    print("ready", flush=True)
    await Timer(Ledger(store, texts()), database, clock=lambda: datetime.fromisoformat(now)).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_timer_killed_again_and_again_makes_every_run_once(world: RuleWorld, cell: "Cell") -> None:
    """Real processes, real SIGKILL, at moments that nobody chose; the read model follows, late and now and then."""
    world.now = india("2026-03-01T10:00")
    customers = await _many(world, every("day", "09:00", 1_00), 1_500)
    await world.project(2_000)
    now = india("2026-03-02T09:00")
    chance = random.Random(5)
    arguments = [sys.executable, "-c", TIMER, cell.store_url("ledger_transfer"), cell.database_url("ledger_transfer")]
    kills = 0
    for _ in range(100):  # as many as it takes: a busy machine does little between two kills
        process = subprocess.Popen([*arguments, now.isoformat()], stdout=subprocess.PIPE, cwd=Path(__file__).parent)  # noqa: ASYNC220
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        await asyncio.sleep(chance.uniform(0.02, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += 1
        if kills % 2 == 0:
            await world.project(2_000)
            if await world.db.fetchval("SELECT count(*) FROM rule WHERE next_at <= $1", now) == 0:
                break
    firings = [event.payload for event in await world.log() if isinstance(event.payload, RuleFired)]
    assert kills >= 4, "it was killed while there was work"
    assert len(firings) == len(customers)
    assert once_each(firings)
    assert {event.rule_id for event in firings} == {customer.rule_id for customer in customers}


async def test_a_storm_of_ten_thousand_rules_on_one_salary_day(world: RuleWorld) -> None:
    """Ten thousand salaries in one batch after the other, some delivered twice: each rule fires exactly once."""
    customers = await _many(world, share(20), 10_000)
    salaries = []
    for number, customer in enumerate(customers):
        item = customer.salary(50_000_00 + number)
        salaries.append(recorded(item, event_id=derived_id(customer.user_id, "salary"), at=world.now))
    batch = 500
    for first in range(0, len(salaries), batch):
        await asyncio.gather(
            *(
                world.ledger.record(customer.user_id, item)
                for customer, item in zip(
                    customers[first : first + batch], salaries[first : first + batch], strict=True
                )
            )
        )
    world.restart()
    again = random.Random(3).sample(list(zip(customers, salaries, strict=True)), 500)
    await asyncio.gather(*(world.ledger.record(customer.user_id, item) for customer, item in again))
    firings = [event.payload for event in await world.log() if isinstance(event.payload, RuleFired)]
    assert len(firings) == len(customers)
    assert once_each(firings)
    by_rule = {event.rule_id: event.amount_minor for event in firings}
    assert by_rule == {customer.rule_id: (50_000_00 + number) // 5 for number, customer in enumerate(customers)}


async def _many(world: RuleWorld, agreed: RuleTerms, count: int) -> list[Customer]:
    customers = [Customer() for _ in range(count)]
    for first in range(0, count, 500):
        await asyncio.gather(
            *(
                world.customer(of(customer, agreed), savings=10_000_00, customer=customer)
                for customer in customers[first : first + 500]
            )
        )
    return customers
