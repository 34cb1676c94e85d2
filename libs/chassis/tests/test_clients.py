"""A client's frames: in order, bounded, and without gap or repetition where a replay meets what happens now."""

import asyncio
from uuid import uuid4

from chassis.clients import Client, Clients, Closing, reconnect_turn_ms
from chassis.topics import topics
from hypothesis import given
from hypothesis import strategies as st

ALL = topics(["#"])


class Wire:
    """Takes frames while the client reads."""

    def __init__(self) -> None:
        self.reading = True
        self.taken: list[bytes] = []

    def write(self, frame: bytes) -> bool:
        if self.reading:
            self.taken.append(frame)
        return self.reading


def client(wire: Wire, frames_max: int = 10) -> Client:
    return Client(uuid4(), uuid4(), wire, frames_max=frames_max)


def numbered(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def test_frames_go_out_in_order_whether_the_client_reads_or_not() -> None:
    wire = Wire()
    one = client(wire)
    one.put(b"0")
    wire.reading = False
    one.put(b"1")
    one.put(b"2")
    assert wire.taken == numbered(0)
    wire.reading = True
    one.put(b"3")
    assert wire.taken == numbered(0), "what waits goes first"
    one.flush()
    one.put(b"4")
    assert wire.taken == numbered(0, 1, 2, 3, 4)


def test_a_client_that_stops_reading_amid_a_flush_loses_nothing() -> None:
    wire = Wire()
    one = client(wire)
    wire.reading = False
    for n in range(3):
        one.put(b"%d" % n)

    class Once(Wire):
        def write(self, frame: bytes) -> bool:
            self.reading = not self.taken
            return super().write(frame)

    once = Once()
    one._wire = once
    one.flush()
    assert once.taken == numbered(0)
    one._wire = wire
    wire.reading = True
    one.flush()
    assert wire.taken == numbered(1, 2)


def test_the_frame_too_many_closes_and_drops_the_queue() -> None:
    closed: list[bool] = []
    wire = Wire()
    wire.reading = False
    one = Client(uuid4(), uuid4(), wire, frames_max=10, on_close=lambda: closed.append(True))
    for n in range(10):
        one.put(b"%d" % n)
    assert one.closing is None
    one.put(b"too many")
    assert one.closing == Closing(4008, "too_slow")
    wire.reading = True
    one.flush()
    one.put(b"later")
    assert wire.taken == []
    one.close(1012, "service_restart")
    assert one.closing == Closing(4008, "too_slow"), "the first close counts"
    assert closed == [True]


def test_the_queue_is_bounded_in_size_too() -> None:
    wire = Wire()
    wire.reading = False
    one = client(wire, frames_max=1000)
    for _ in range(5):
        one.put(b"x" * 1024 * 1024)
    assert one.closing is None
    one.put(b"x")
    assert one.closing == Closing(4008, "too_slow")


def test_nothing_is_wanted_before_the_first_subscription() -> None:
    one = client(Wire())
    assert not one.wants("ledger.transfer.completed")
    one.go_live(topics(["ledger.#"]))
    assert one.wants("ledger.transfer.completed")
    assert not one.wants("identity.session.started")


async def test_room_is_there_again_when_half_of_the_queue_is_read() -> None:
    wire = Wire()
    wire.reading = False
    one = client(wire, frames_max=10)
    await asyncio.wait_for(one.room(), 1)
    for n in range(9):
        one.put(b"%d" % n)
    room = asyncio.create_task(one.room())
    await asyncio.sleep(0)

    class Some(Wire):
        def __init__(self, frames: int) -> None:
            super().__init__()
            self._left = frames

        def write(self, frame: bytes) -> bool:
            self._left -= 1
            return self._left >= 0

    one._wire = Some(3)
    one.flush()
    await asyncio.sleep(0)
    assert not room.done()
    one._wire = Some(1)
    one.flush()
    await asyncio.wait_for(room, 1)


async def test_who_waits_for_room_hears_of_the_close() -> None:
    wire = Wire()
    wire.reading = False
    one = client(wire, frames_max=10)
    for n in range(9):
        one.put(b"%d" % n)
    room = asyncio.create_task(one.room())
    await asyncio.sleep(0)
    one.close(4401, "token_expired")
    await asyncio.wait_for(room, 1)


def test_too_many_held_events_close_the_client() -> None:
    one = client(Wire())
    one.begin_replay(ALL, after=0)
    one.hold()
    for position in range(1, 12):
        one.offer(position, b"%d" % position)
    assert one.closing == Closing(4008, "too_slow")


@given(
    cursor=st.integers(0, 20),
    first_pass=st.integers(0, 5),
    second_pass=st.integers(0, 5),
    while_held=st.integers(0, 5),
    afterwards=st.integers(0, 5),
)
def test_replay_and_live_meet_without_gap_or_repetition(
    cursor: int, first_pass: int, second_pass: int, while_held: int, afterwards: int
) -> None:
    """Events 1, 2, 3, … happen all the time; the client resumes after `cursor`, wherever the log is by then."""
    wire = Wire()
    one = client(wire, frames_max=1000)
    position = 10  # the hub's; a cursor may be of another replica that is ahead

    def happen(count: int) -> None:
        nonlocal position
        for _ in range(count):
            position += 1
            if one.wants("ledger.transfer.completed"):
                one.offer(position, b"%d" % position)

    def replay(upto: int) -> None:
        for missed in range(one.delivered + 1, upto + 1):
            one.replay(missed, b"%d" % missed)

    one.begin_replay(ALL, after=cursor)
    target = position
    happen(first_pass)
    replay(target)
    happen(second_pass)
    one.hold()
    target = position
    happen(while_held)
    replay(target)
    one.go_live(ALL)
    happen(afterwards)
    assert wire.taken == numbered(*range(cursor + 1, position + 1))


async def test_a_client_that_arrives_while_the_service_stops_is_told_so() -> None:
    """Its handshake was under way when the drain began."""
    clients = Clients()
    await clients.drain()
    late = client(Wire())
    clients.add(late)
    assert late.closing == Closing(1012, "service_restart")
    assert len(clients) == 1


async def test_everyone_gets_a_turn_of_their_own_to_come_back() -> None:
    clients = Clients()
    everyone = [client(Wire()) for _ in range(1000)]
    for each in everyone:
        clients.add(each)
    await clients.drain(timeout_s=0.01)
    turns = sorted(each.closing.reconnect_in_ms or 0 for each in everyone if each.closing is not None)
    assert len(turns) == 1000
    assert turns[0] >= 500
    assert 2300 < turns[-1] <= 2500, "two seconds for a thousand"
    assert max(turns.count(turn) for turn in turns) <= 6, "spread within each second"
    assert 500 <= reconnect_turn_ms(0) <= 502


async def test_a_session_that_ends_closes_its_clients_only() -> None:
    clients = Clients()
    here, there = client(Wire()), client(Wire())
    clients.add(here)
    clients.add(there)
    clients.sessions_ended([here.session_id])
    assert here.closing == Closing(4401, "session_revoked")
    assert there.closing is None
