"""Commands: exactly once per id, never on a stale state, and a refusal only on a confirmed version."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest
from backbone import event
from events.contracts import Event
from events.contracts.ledger import TransferSettled
from events.decisions import Refusal, Streams
from events.envelope import derived_id, new_id
from events.store import EventIdReused, EventStore, StreamAppend, VersionConflict

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

LIMIT = 10


class TooMany(Refusal):
    code = "too_many"


def take(count: int):  # type: ignore[no-untyped-def]
    """A decider over a number: takes `count` more, up to LIMIT."""

    def decide(taken: int) -> Sequence[Event]:
        if taken + count > LIMIT:
            raise TooMany(f"{taken} + {count} > {LIMIT}")
        return [event() for _ in range(count)]

    return decide


def evolve(taken: int, _: Event) -> int:
    return taken + 1


@pytest.fixture
async def stores(cell: "Cell"):  # type: ignore[no-untyped-def]
    both = [await EventStore.connect(cell.store_url("ledger_transfer")) for _ in range(2)]
    yield both
    for store in both:
        await store.close()


def counter(store: EventStore) -> Streams[int]:
    return Streams(store, "ledger", 0, evolve)


async def test_two_stale_caches_never_exceed_the_limit(stores: list[EventStore]) -> None:
    stream_id = new_id()
    replicas = [counter(store) for store in stores]
    outcomes = await asyncio.gather(
        *(replicas[n % 2].execute(stream_id, take(1), event_id=new_id()) for n in range(50)), return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, TooMany)]
    assert len(refused) == 50 - LIMIT
    assert len(await stores[0].read_stream(f"ledger-{stream_id}")) == LIMIT
    assert await replicas[0].load(stream_id) == await replicas[1].load(stream_id) == (LIMIT, LIMIT)


async def test_one_id_fifty_times_in_parallel_is_one_append(stores: list[EventStore]) -> None:
    stream_id, event_id = new_id(), new_id()
    replicas = [counter(store) for store in stores]
    outcomes = await asyncio.gather(
        *(replicas[n % 2].execute(stream_id, take(2), event_id=event_id, request_hash=b"r") for n in range(50))
    )
    assert sum(not outcome.duplicate for outcome in outcomes) == 1
    assert {outcome.events for outcome in outcomes} == {outcomes[0].events}
    assert {outcome.version for outcome in outcomes} == {2}
    assert len(await stores[0].read_stream(f"ledger-{stream_id}")) == 2


async def test_a_retry_gets_the_first_outcome_even_if_it_would_be_refused_now(stores: list[EventStore]) -> None:
    stream_id, event_id = new_id(), new_id()
    here, there = counter(stores[0]), counter(stores[1])
    first = await here.execute(stream_id, take(6), event_id=event_id, request_hash=b"r")
    retried = await there.execute(stream_id, take(6), event_id=event_id, request_hash=b"r")
    assert (retried.duplicate, retried.events) == (True, first.events)
    with pytest.raises(EventIdReused):
        await there.execute(stream_id, take(6), event_id=event_id, request_hash=b"other")
    with pytest.raises(TooMany):
        await there.execute(stream_id, take(6), event_id=new_id())


async def test_a_stale_replica_does_not_refuse(stores: list[EventStore]) -> None:
    """The stale state says no, the store would say yes: the decision is made again on what is there."""
    stream_id = new_id()

    def only_after_three(taken: int) -> Sequence[Event]:
        if taken < 3:
            raise TooMany("not yet")
        return [event()]

    here, there = counter(stores[0]), counter(stores[1])
    await there.execute(stream_id, take(1), event_id=new_id())
    await here.execute(stream_id, take(2), event_id=new_id())
    assert (await there.execute(stream_id, only_after_three, event_id=new_id())).version == 4


async def test_nothing_decided_appends_nothing(stores: list[EventStore]) -> None:
    outcome = await counter(stores[0]).execute(new_id(), lambda _: [], event_id=new_id())
    assert (outcome.events, outcome.version) == ((), 0)


async def test_parts_on_other_streams_go_with_it_or_not_at_all(stores: list[EventStore]) -> None:
    streams = counter(stores[0])
    claim = f"ledger-{new_id()}"

    async def claim_it(user: UUID) -> None:
        await streams.execute(user, take(1), event_id=new_id(), also=[StreamAppend(claim, (event(),), 0)])

    users = [new_id() for _ in range(20)]
    outcomes = await asyncio.gather(*map(claim_it, users), return_exceptions=True)
    assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 19
    assert len(await stores[0].read_stream(claim)) == 1
    assert sum([len(await stores[0].read_stream(f"ledger-{user}")) for user in users]) == 1


def test_ids_are_derived_from_their_cause() -> None:
    cause = new_id()
    assert derived_id(cause, "consumer", 1) == derived_id(cause, "consumer", 1)
    assert derived_id(cause, "consumer", 1) != derived_id(cause, "consumer", 2) != derived_id(new_id(), "consumer", 2)


class Full(Refusal):
    code = "full"


async def test_what_was_decided_on_an_append_that_failed_is_not_appended_either(stores: list[EventStore]) -> None:
    """Another replica's event brings the stream to the very version that the second command expects. It was decided
    on the first command's event, not on that one: taken for it, it would overfill."""

    def put(amount: int):  # type: ignore[no-untyped-def]
        def decide(total: int) -> Sequence[Event]:
            if total + amount > LIMIT:
                raise Full(f"{total} + {amount} > {LIMIT}")
            return [event(amount)]

        return decide

    def total_of(total: int, added: Event) -> int:
        assert isinstance(added, TransferSettled)
        return total + int(added.item_id)

    for attempt in range(5):
        stream_id = new_id()
        here, there = (Streams(store, "ledger", 0, total_of) for store in stores)
        await here.execute(stream_id, put(1), event_id=new_id())
        await there.execute(stream_id, put(8), event_id=new_id())
        outcomes = await asyncio.gather(
            *(here.execute(stream_id, put(1), event_id=new_id()) for _ in range(2 + attempt)), return_exceptions=True
        )
        assert [type(outcome).__name__ for outcome in outcomes] == ["Decided"] + ["Full"] * (1 + attempt)
        assert await there.load(stream_id) == (LIMIT, 3)


async def test_commands_on_one_stream_share_transactions(stores: list[EventStore], cell: "Cell") -> None:
    """From the first one on, which nobody has read yet."""
    stream_id = new_id()
    streams: Streams[int] = Streams(stores[0], "ledger", 0, evolve)

    def one(taken: int) -> Sequence[Event]:
        return [event()]

    outcomes = await asyncio.gather(*(streams.execute(stream_id, one, event_id=new_id()) for _ in range(200)))
    assert [outcome.version for outcome in outcomes] == list(range(1, 201))
    admin = await asyncpg.connect(cell.admin_url())
    commits = await admin.fetchval(
        "SELECT count(DISTINCT xmin::text) FROM store.events WHERE stream = $1", f"ledger-{stream_id}"
    )
    await admin.close()
    # One by one, each would wait for the disk of the one before it.
    assert commits <= 4


async def test_a_caller_that_goes_away_leaves_the_stream_as_it_should_be(stores: list[EventStore]) -> None:
    stream_id = new_id()
    streams = counter(stores[0])
    await streams.execute(stream_id, take(1), event_id=new_id())
    gone = asyncio.create_task(streams.execute(stream_id, take(1), event_id=new_id()))
    following = [asyncio.create_task(streams.execute(stream_id, take(1), event_id=new_id())) for _ in range(3)]
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(*following)
    stored = len(await stores[0].read_stream(f"ledger-{stream_id}"))
    assert stored == 5, "its append goes on without it, and so do those that were decided on it"
    assert await streams.load(stream_id) == (stored, stored)
