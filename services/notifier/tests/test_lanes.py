"""What a process remembers of its customers, and the outbox: other replicas, transactions that do not commit, order."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import asyncpg
import pytest
from events.consumer import Consumer
from events.contracts import identity
from events.contracts.notification import (
    CategoryPreference,
    NotificationRaised,
    NotificationRevised,
    NotificationSnoozed,
    PreferenceChanged,
    QuietHours,
)
from events.envelope import new_id
from notifier import lanes, outbox, reactions
from notifier.lanes import Lanes
from notifier.reactions import Grouping
from notifier.telling import Chapter, Entry

sys.path.insert(0, str(Path(__file__).parent))

from samples import leg, posting, transfer
from tellers import example_of

if TYPE_CHECKING:
    from conftest import Desk

pytestmark = pytest.mark.integration


def later(seconds: float = 6) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def paid(amount_minor: int, account: UUID, **changes: Any) -> Any:
    legs = (leg(account, amount_minor, 85_000_00), leg("clearing:bfc", -amount_minor))
    return posting(amount_minor, account_id=account, legs=legs, **changes)


async def counts(desk: "Desk", user: UUID) -> list[int]:
    return [event.count for event in await desk.told(user) if event.category == "transaction"]


async def test_what_another_replica_has_closed_is_not_gone_on_with(desk: "Desk") -> None:
    user, account = new_id(), new_id()
    await desk.append(f"ledger-{user}", paid(1_00, account))
    await desk.run()
    other = Grouping(desk.world.db, desk.store, desk.keys)
    assert await other.close_due(later(), later()) == 1
    await desk.append(f"ledger-{user}", paid(2_00, account))
    await desk.run()
    await desk.tick(later(20))
    raised, revised = await desk.told(user)
    # The window is of recorded time: the second one was in it, and comes too late to be told with the first.
    assert (raised.count, revised.count, revised.reason) == (1, 2, "late_member")


async def test_preferences_count_from_the_event_that_changes_them_on(desk: "Desk") -> None:
    user = new_id()
    await desk.append(f"ledger-{user}", transfer())
    await desk.run()
    muted = PreferenceChanged(categories={"transaction": CategoryPreference(muted=True)})
    await desk.append(f"inbox-{user}", muted)
    await desk.run()
    await desk.append(f"ledger-{user}", paid(2_00, new_id()))
    await desk.run()
    await desk.tick(later())
    preference, told = await desk.told(user)
    assert (preference, told.category) == (muted, "transfer")


async def test_many_customers_of_one_chunk(desk: "Desk", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactions, "_CUSTOMERS_AT_ONCE", 2)
    users = [new_id() for _ in range(5)]
    for n, user in enumerate(users):
        account = new_id()
        await desk.append(f"ledger-{user}", *(paid(-(n + 1) * 100, account) for _ in range(n + 1)))
        await desk.append(f"ledger-{user}", paid(-500, account, reference="R1"))
        await desk.append(f"ledger-{user}", paid(500, account, reference="R1", platform="vyomo"))
    await desk.run()
    await desk.tick(later())
    assert [await counts(desk, user) for user in users] == [[2], [3], [4], [5], [6]]
    assert await desk.world.db.fetchval("SELECT count(*) FROM sighting") == 0, "each report has met the other"


async def test_a_chunk_that_cannot_be_saved_leaves_nothing(desk: "Desk", monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving goes on beside deciding. What fails there is the failure of the whole, and the connection is free."""
    monkeypatch.setattr(reactions, "_CUSTOMERS_AT_ONCE", 1)
    users = [new_id() for _ in range(4)]
    for user in users:
        await desk.append(f"ledger-{user}", paid(-100, new_id()))
    await desk.world.sequence()
    events = await desk.store.read_log(desk.position)
    real, calls = Lanes.save, []

    async def failing(self: Lanes, db: asyncpg.Connection, lanes: Any) -> None:
        calls.append(lanes)
        await real(self, db, lanes)
        if len(calls) == 2:
            raise OSError("the disk")

    with monkeypatch.context() as patched:
        patched.setattr(Lanes, "save", failing)
        async with desk.world.db.acquire() as proxy:
            db = cast(asyncpg.Connection, proxy)
            with pytest.raises(OSError, match="the disk"):
                async with db.transaction():
                    await desk.grouping.apply(db, events)
            assert await db.fetchval("SELECT count(*) FROM lane") == 0
    await desk.run()
    await desk.tick(later())
    assert [await counts(desk, user) for user in users] == [[1]] * 4


async def test_a_decision_that_fails_waits_for_what_is_being_saved(
    desk: "Desk", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the transaction could not be rolled back: its connection is busy."""
    monkeypatch.setattr(reactions, "_CUSTOMERS_AT_ONCE", 1)
    for _ in range(2):
        await desk.append(f"ledger-{new_id()}", paid(-100, new_id()))
    await desk.world.sequence()
    events = await desk.store.read_log(desk.position)
    real, taken = Chapter.take, []

    async def slow(self: Lanes, db: asyncpg.Connection, lanes: Any) -> None:
        await db.execute("SELECT pg_sleep(0.2)")

    def failing(self: Chapter, *arguments: Any) -> None:
        taken.append(arguments)
        if len(taken) == 2:
            raise ValueError("a fault")
        real(self, *arguments)

    monkeypatch.setattr(Lanes, "save", slow)
    monkeypatch.setattr(Chapter, "take", failing)
    async with desk.world.db.acquire() as proxy:
        db = cast(asyncpg.Connection, proxy)
        with pytest.raises(ValueError, match="a fault"):
            async with db.transaction():
                await desk.grouping.apply(db, events)
        assert await db.fetchval("SELECT count(*) FROM lane_writer") == 0


async def test_the_clock_waits_for_a_log_that_is_behind(desk: "Desk") -> None:
    """What is yet to be read may belong to a group whose time is over."""
    user, consumer = new_id(), SimpleNamespace(lag=1_000)
    await desk.append(f"ledger-{user}", paid(-100, new_id()))
    await desk.run()
    await desk.world.db.execute("UPDATE lane SET deadline = now() + interval '50 ms'")
    clock = asyncio.create_task(desk.grouping.close_forever(cast(Consumer, consumer)))
    waiting = "SELECT count(*) FROM lane WHERE deadline IS NOT NULL"
    await asyncio.sleep(1.2)
    assert await desk.world.db.fetchval(waiting) == 1
    consumer.lag = 0
    async with asyncio.timeout(10):
        while await desk.world.db.fetchval(waiting):
            await asyncio.sleep(0.05)
    clock.cancel()
    await asyncio.gather(clock, return_exceptions=True)


async def test_the_clock_closes_more_than_one_batch(desk: "Desk", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactions, "_BATCH", 2)
    users = [new_id() for _ in range(5)]
    for user in users:
        await desk.append(f"ledger-{user}", paid(-100, new_id()))
    await desk.run()
    await desk.tick(later())
    assert [await counts(desk, user) for user in users] == [[1]] * 5


async def test_what_is_critical_overtakes_what_is_not(desk: "Desk", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_BATCH", 3)
    users = [new_id() for _ in range(6)]
    for user in users:
        await desk.append(f"ledger-{user}", paid(-100, new_id()))
    await desk.run()
    await desk.grouping.close_due(later(), later())
    alarmed = new_id()
    session = identity.SessionStarted(session_id=new_id(), user_id=alarmed, platform="bfc", acr=1, expires_at=later())
    await desk.append(f"session-{session.session_id}", session)
    await desk.world.sequence()
    async with desk.world.db.acquire() as proxy, proxy.transaction():
        events = [event for event in await desk.store.read_log(desk.position) if event.type in desk.grouping.types]
        await desk.grouping.apply(cast(asyncpg.Connection, proxy), events)
    assert await desk.grouping.outbox.send() == 3
    assert len(await desk.told(alarmed)) == 1
    assert sum([len(await desk.told(user)) for user in users]) == 2


async def test_the_outbox_goes_on_when_the_database_goes_while_it_waits(desk: "Desk") -> None:
    waited = asyncio.Queue[int]()

    async def wait_for(position: int, _: float) -> bool:
        await waited.put(position)
        if waited.qsize() == 1:
            raise asyncpg.AdminShutdownError("terminating connection due to administrator command")
        return True

    sending = asyncio.create_task(desk.grouping.outbox.send_forever(cast(Consumer, SimpleNamespace(wait_for=wait_for))))
    desk.grouping.outbox.wake(7)
    async with asyncio.timeout(10):
        while waited.qsize() < 2 and not sending.done():
            await asyncio.sleep(0.01)
    assert not sending.done()
    sending.cancel()
    assert [waited.get_nowait() for _ in range(2)] == [7, 7]


async def test_a_decision_waits_for_the_disk(desk: "Desk") -> None:
    """The consumer's transaction does not; with a decision in it, it must: else a crash would decide anew."""
    async with desk.world.db.acquire() as proxy, proxy.transaction():
        db = cast(asyncpg.Connection, proxy)
        await db.execute("SET LOCAL synchronous_commit = off")
        await outbox.enqueue(db, [])
        assert await db.fetchval("SHOW synchronous_commit") == "off"
        raised = example_of(NotificationRaised)
        assert isinstance(raised, NotificationRaised)
        await outbox.enqueue(db, [Entry(new_id(), new_id(), raised, None)])
        assert await db.fetchval("SHOW synchronous_commit") == "on"


async def test_a_clock_that_finds_nothing_due_costs_nobody_their_memory(
    desk: "Desk", monkeypatch: pytest.MonkeyPatch
) -> None:
    user, account = new_id(), new_id()
    await desk.append(f"ledger-{user}", paid(1_00, account))
    await desk.run()
    other = Grouping(desk.world.db, desk.store, desk.keys)
    assert await other.close_due(datetime.now(UTC)) == 0
    real, asked = lanes._load, []

    async def load(db: asyncpg.Connection, customers: Any) -> None:
        asked.append(customers)
        await real(db, customers)

    monkeypatch.setattr(lanes, "_load", load)
    await desk.append(f"ledger-{user}", paid(2_00, account))
    await desk.run()
    assert asked == []
    assert (await desk.grouping._lanes.upcoming(desk.world.db)).ours
    assert not (await other._lanes.upcoming(desk.world.db)).ours


async def test_a_snooze_that_has_to_wait_holds_up_no_other(desk: "Desk", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactions, "_BATCH", 1)
    resting, awake = new_id(), new_id()
    always = QuietHours(days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"), start="00:00", end="00:00")
    for user in (resting, awake):
        await desk.append(f"ledger-{user}", paid(-100, new_id()))
    await desk.run()
    await desk.tick(later())
    for user, seconds in ((resting, 10), (awake, 20)):
        (told,) = await desk.told(user)
        snoozed = NotificationSnoozed(notification_id=told.notification_id, until=later(seconds))
        await desk.append(f"inbox-{user}", snoozed)
    await desk.append(f"inbox-{resting}", PreferenceChanged(quiet_hours=(always,)))
    await desk.run()
    await desk.tick(later(30))
    assert [event.reason for event in await desk.told(awake) if isinstance(event, NotificationRevised)] == [
        "snooze_over"
    ]
    assert not [event for event in await desk.told(resting) if isinstance(event, NotificationRevised)]
