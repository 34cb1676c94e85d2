"""What a client that comes back is sent, whatever happens meanwhile: the read model may be slow, or have forgotten."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from chassis.clients import Client, Clients
from chassis.cursors import CursorCodec
from chassis.problems import Problem
from chassis.topics import topics
from events.contracts import identity
from events.envelope import Metadata, RecordedEvent
from gateway_harness import transfer
from recording import recorded
from sync_gateway.hub import Cursors, Hub
from sync_gateway.projections.feed import FeedPage, FeedRow

USER = uuid4()
ALL = topics(["#"])


class Wire:
    def __init__(self) -> None:
        self.positions: list[int] = []

    def write(self, frame: bytes) -> bool:
        body = msgspec.json.decode(frame[frame.index(b"{") :])
        self.positions.append(body["event"]["position"])
        return True


class Past:
    """A follower at `position`, the read model and the feed; every event is the user's."""

    def __init__(self, position: int) -> None:
        self.started = asyncio.Event()
        self.started.set()
        self.position = position
        self.floor = 0
        self.caught_up = True
        self.happens: list[Any] = []
        """Called one by one, before each page."""

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        return self.caught_up

    async def page(self, user_id: UUID, *, after: int, upto: int, types: Sequence[str], limit: int) -> FeedPage:
        if self.happens:
            await self.happens.pop(0)()
        positions = range(after + 1, min(after + limit, upto) + 1)
        return FeedPage(self.floor, [FeedRow(position, b'{"position":%d}' % position) for position in positions])


class Gate:
    """A hub with one client."""

    def __init__(self, position: int) -> None:
        past: Any = Past(position)
        self.past = past
        self.cursors = Cursors(CursorCodec("a secret of the tests"))
        self.clients = Clients()
        self.hub = Hub(self.clients, self.cursors, past, past)
        self.wire = Wire()
        self.client = Client(USER, uuid4(), self.wire)

    async def start(self) -> "Gate":
        await self.hub.start(self.past)
        self.clients.add(self.client)
        return self

    async def happen(self, *positions: int) -> None:
        await self.hub.on_events([event(position) for position in positions])

    async def resume(self, after: int) -> str | None:
        reason = await self.hub.resume(self.client, ALL, self.cursors.encode(after, USER))
        if self.client.closing is None:
            self.client.go_live(ALL)
        return reason


def event(position: int, contract: Any = None, subject: UUID | None = USER) -> RecordedEvent:
    return recorded(
        contract or transfer(position),
        position=position,
        stream=f"ledger-{USER}",
        version=position,
        subject=subject,
        metadata=Metadata(actor="test"),
        at=datetime.now(UTC),
    )


async def test_everything_once_whatever_happens_during_the_replay() -> None:
    gate = await Gate(500).start()
    gate.past.happens = [lambda: gate.happen(501, 502), lambda: gate.happen(503), lambda: gate.happen(504)]
    assert await gate.resume(10) is None
    await gate.happen(505)
    assert gate.wire.positions == list(range(11, 506))


async def test_what_happens_during_the_second_pass_is_held() -> None:
    gate = await Gate(20).start()
    gate.past.happens = [lambda: gate.happen(21), lambda: gate.happen(22, 23)]
    assert await gate.resume(10) is None
    assert gate.wire.positions == list(range(11, 24))


async def test_a_cursor_of_a_replica_that_is_ahead_repeats_nothing() -> None:
    gate = await Gate(20).start()
    assert await gate.resume(22) is None
    await gate.happen(21, 22, 23)
    assert gate.wire.positions == [23]


async def test_a_read_model_that_does_not_catch_up_sends_the_client_away() -> None:
    gate = await Gate(20).start()
    gate.past.caught_up = False
    assert await gate.resume(10) is None
    assert gate.client.closing is not None
    code, reason, wait_ms = gate.client.closing
    assert (code, reason) == (1013, "not_caught_up")
    # Thousands wait for the same read model: not all of them come back at once, and none at once.
    assert wait_ms is not None
    assert 2_000 <= wait_ms <= 10_000


async def test_what_was_forgotten_meanwhile_is_a_resync_and_live_events_go_on() -> None:
    gate = await Gate(20).start()
    gate.past.floor = 11
    assert await gate.resume(10) == "cursor_expired"
    await gate.happen(21)
    assert gate.wire.positions == [21]


async def test_a_cursor_of_somebody_else_is_refused() -> None:
    gate = await Gate(20).start()
    with pytest.raises(Problem) as refused:
        await gate.hub.resume(gate.client, ALL, gate.cursors.encode(10, uuid4()))
    assert refused.value.code == "invalid_cursor"


async def test_only_public_events_of_the_customer_are_offered() -> None:
    gate = await Gate(20).start()
    gate.client.go_live(ALL)
    secret = identity.SigningKeyPublished(kid="k", public_jwk={}, sealed_private_key="sealed")
    await gate.hub.on_events([event(21, secret), event(22, subject=uuid4()), event(23, subject=None), event(24)])
    assert gate.wire.positions == [24]
    assert gate.hub.position == 24


async def test_a_burst_lets_others_have_their_turn() -> None:
    """Sockets write when the loop runs: a long batch must not fill queues that only wait for that."""
    gate = await Gate(0).start()
    gate.client.go_live(ALL)
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(len(gate.wire.positions))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    await gate.happen(*range(1, 201))
    watching.cancel()
    assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= 50
