"""Refresh against revoke and against itself, 1,000 rounds on the real store, with replicas that restart in between."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from events.contracts.identity import RefreshReuseDetected, SessionRefreshed, SessionRevoked
from events.decisions import Decided, Streams
from events.envelope import new_id
from events.store import EventStore
from identity import sessions
from identity.sessions import Session, SessionEnded

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

ROUNDS = 1_000
AT_ONCE = 50


@pytest.fixture
async def stores(cell: "Cell") -> AsyncIterator[list[EventStore]]:
    """Two replicas' connections."""
    stores = [await EventStore.connect(cell.store_url("identity")) for _ in range(2)]
    yield stores
    for store in stores:
        await store.close()


def replicas(stores: list[EventStore]) -> list[Streams[Session]]:
    """Replicas as they are after a (re)start: nothing cached."""
    return [Streams(store, "session", Session(), sessions.evolve) for store in stores]


async def refreshed(replica: Streams[Session], session_id: UUID, generation: int) -> Decided | None:
    """None: refused."""
    try:
        return await replica.execute(
            session_id,
            lambda session: sessions.refresh(session, session_id, generation, datetime.now(UTC)),
            event_id=new_id(),
        )
    except SessionEnded:
        return None


async def revoked(replica: Streams[Session], session_id: UUID) -> None:
    await replica.execute(
        session_id,
        lambda session: sessions.revoke(session, session_id, "logout", datetime.now(UTC)),
        event_id=new_id(),
    )


async def started(replica: Streams[Session]) -> UUID:
    session_id = new_id()
    await replica.execute(
        session_id,
        lambda _: sessions.start(session_id, new_id(), "bfc", acr=1, now=datetime.now(UTC)),
        event_id=new_id(),
    )
    return session_id


async def test_refresh_racing_revoke(stores: list[EventStore]) -> None:
    """Whatever the order: once revoked, nothing follows, and no round ends with a live family."""
    for n in range(ROUNDS // AT_ONCE):
        both = replicas(stores)  # restarted between the rounds

        async def one_round(number: int, both: list[Streams[Session]] = both) -> bool:
            session_id = await started(both[number % 2])
            outcome, _ = await asyncio.gather(refreshed(both[0], session_id, 0), revoked(both[1], session_id))
            after = replicas(stores)
            assert await refreshed(after[0], session_id, 1 if outcome else 0) is None
            events = [event.payload for event in await stores[0].read_stream(f"session-{session_id}")]
            assert [type(event) for event in events[1:]] == (
                [SessionRefreshed, SessionRevoked] if outcome else [SessionRevoked]
            )
            return outcome is not None

        won = await asyncio.gather(*(one_round(n * AT_ONCE + number) for number in range(AT_ONCE)))
        assert len(won) == AT_ONCE


async def test_20_parallel_uses_over_a_restart(stores: list[EventStore]) -> None:
    """Half of them before the replicas restart: one successor in all, no session lost without a cause."""
    for _ in range(10):
        before = replicas(stores)
        session_id = await started(before[0])
        first = await asyncio.gather(*(refreshed(random.choice(before), session_id, 0) for _ in range(10)))
        after = replicas(stores)
        second = await asyncio.gather(*(refreshed(random.choice(after), session_id, 0) for _ in range(10)))
        assert None not in [*first, *second], "within the grace every use is answered"
        assert sum(len(each.events) for each in [*first, *second] if each) == 1, "and rotates once"
        session, version = await after[0].load(session_id)
        assert (session.generation, session.revoked, version) == (1, False, 2)


async def test_reuse_after_a_restart_is_still_reuse(stores: list[EventStore]) -> None:
    before = replicas(stores)
    session_id = await started(before[0])
    for generation in range(2):
        assert await refreshed(before[0], session_id, generation) is not None
    stolen = await refreshed(replicas(stores)[1], session_id, 0)
    assert stolen is not None
    assert [type(event) for event in stolen.events] == [RefreshReuseDetected, SessionRevoked]
    assert await refreshed(before[0], session_id, 2) is None, "the honest holder's cache does not revive it"
