"""Money changes, and what is worth telling becomes an event: once, whoever looks, and never again by a rebuild."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from events.contracts.wealth import HealthChanged, InsightCleared, InsightRaised
from events.decisions import Streams
from events.envelope import new_id
from events.store import EventStore
from life_log import Log, a_life, life_log, life_user
from test_against_the_log import NOW, fill
from test_net_worth_route import opened
from wealth.assessing import Assessor, Changes
from wealth.desk import Desk
from wealth.insights import Insight, Thresholds
from wealth.noticed import WealthState, evolve

pytestmark = pytest.mark.integration


class Worder:
    """Prose that marks what it worded."""

    async def reword(self, insight: Insight) -> tuple[str, str] | None:
        return (f"In other words: {insight.title}", insight.body) if insight.kind == "achievement" else None


class Scene:
    """The assessor over real databases, its clock in the test's hands."""

    def __init__(self, world: Any, streams: Any) -> None:
        self.world = world
        self.now = NOW
        self.desk = Desk(world.db, Thresholds(), clock=lambda: self.now)
        self.changes = Changes(self.desk, after_s=0)
        self.streams = streams
        self.assessor = self.another()

    def another(self, streams: Any = None) -> Assessor:
        runtime: Any = SimpleNamespace(
            database=self.world.db,
            consumer=lambda name: SimpleNamespace(wait_for=self._always),
            settings=SimpleNamespace(assess_duty_percent=100),
        )
        return Assessor(runtime, self.desk, streams or self.streams, Worder())

    async def _always(self, position: int, timeout_s: float) -> bool:
        return True

    async def told(self, user: UUID) -> list[Any]:
        _, version = await self.streams.load(user)
        events = await self.world._stores["wealth"].read_stream(f"wealth-{user}")
        assert len(events) == version
        return [event.payload for event in events]


@pytest.fixture
async def scene(world: Any, streams: Any, cell: Any) -> Scene:
    world._stores["wealth"] = await EventStore.connect(cell.store_url("wealth"))
    await world.db.execute(Changes.ddl)
    return Scene(world, streams)


async def live(scene: Scene, customers: int = 2) -> list[UUID]:
    life = a_life(customers)
    log = list(life_log(life))
    async with scene.world.db.acquire() as connection:
        await fill(connection, log)
        mine = [event for event in log if event.type in scene.changes.types]
        async with connection.transaction():
            await scene.changes.apply(connection, mine)
    return [life_user(person.who.bfc_customer_id) for person in life.people]


async def test_what_is_found_is_told_once(scene: Scene) -> None:
    users = await live(scene)
    while await scene.assessor.turn():
        pass
    for user in users:
        told = await scene.told(user)
        kinds = [type(event) for event in told]
        assert kinds.count(HealthChanged) == 1
        assert kinds.count(InsightRaised) >= 3
        shown = (await scene.desk.look(user)).computed.shown
        raised = [event for event in told if isinstance(event, InsightRaised)]
        assert {event.insight_id for event in raised} == {entry.insight_id for entry in shown}
        worded = [event.title for event in raised if event.kind == "achievement"]
        assert worded
        assert all(title.startswith("In other words: ") for title in worded)
        await scene.assessor.assess(user)
        assert await scene.told(user) == told, "looking again tells nothing"
    assert await scene.world.db.fetchval("SELECT count(*) FROM assessment_due") == 0


async def test_two_replicas_tell_it_once(scene: Scene) -> None:
    (user, _) = await live(scene)
    others = [scene.another(Streams(scene.world._stores["wealth"], "wealth", WealthState(), evolve)) for _ in range(3)]
    await asyncio.gather(*(one.assess(user) for one in (scene.assessor, *others)))
    told = [event for event in await scene.told(user) if isinstance(event, InsightRaised)]
    assert len({event.insight_id for event in told}) == len(told) > 0


async def test_dates_pass_without_events(scene: Scene) -> None:
    """A day later everybody is looked at again: what has expired is cleared."""
    users = await live(scene)
    while await scene.assessor.turn():
        pass
    scene.now = NOW + timedelta(days=400)
    assert await scene.assessor.turn() == len(users)
    cleared = [event for event in await scene.told(users[0]) if isinstance(event, InsightCleared)]
    assert cleared
    assert await scene.assessor.turn() == 0, "once a day"


async def test_a_customer_nobody_can_compute_does_not_stop_the_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = await live(scene)
    real = scene.desk.look

    async def look(user_id: UUID) -> Any:
        if user_id == users[0]:
            raise ValueError("odd figures")
        return await real(user_id)

    monkeypatch.setattr(scene.desk, "look", look)
    while await scene.assessor.turn():
        pass
    assert await scene.told(users[1])
    left = await scene.world.db.fetch("SELECT user_id FROM assessment_due")
    assert [UUID(int=row["user_id"].int) for row in left] == users[:1], "put off, not forgotten"


async def test_who_is_not_linked_is_told_nothing(scene: Scene) -> None:
    """Even of an account that the ledger opened before the link came by: of it too their figures say nothing yet."""
    user = new_id()
    log = Log()
    events = [log.record(f"ledger-{user}", opened(new_id(), "savings", 9_00_000_00), user)]
    async with scene.world.db.acquire() as connection:
        await fill(connection, events)
    await scene.assessor.assess(user)
    await scene.world.sequence()
    assert await scene.world.store.read_log(0, 10) == []


async def test_a_change_while_looking_is_looked_at_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (user, _) = await live(scene)
    real = scene.assessor.assess
    seen = []

    async def assess(user_id: UUID) -> None:
        seen.append(user_id)
        await real(user_id)
        if user_id == user and seen.count(user) == 1:
            await scene.world.db.execute("UPDATE assessment_due SET position = position + 1 WHERE user_id = $1", user)

    monkeypatch.setattr(scene.assessor, "assess", assess)
    while await scene.assessor.turn():
        pass
    assert seen.count(user) == 2


async def test_erasure_forgets_who_waits(scene: Scene) -> None:
    users = await live(scene)
    await scene.desk.look(users[0])
    erased = SimpleNamespace(type="identity.user.erased", subject=users[0], position=10**6)
    async with scene.world.db.acquire() as connection:
        await scene.changes.apply(connection, [erased])  # type: ignore[list-item]
    assert await scene.world.db.fetchval("SELECT count(*) FROM assessment_due WHERE user_id = $1", users[0]) == 0
    assert await scene.world.db.fetchval("SELECT count(*) FROM assessment_link WHERE user_id = $1", users[0]) == 0
    assert users[0] not in scene.desk._kept
