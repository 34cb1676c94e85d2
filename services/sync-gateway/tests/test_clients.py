"""A client's queue: bounded, in order, and without gap or repetition where a replay meets what happens now."""

import asyncio
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st
from sync_gateway.clients import Client, Closing
from sync_gateway.topics import topics

ALL = topics(["#"])


def client(frames_max: int = 10) -> Client:
    return Client(uuid4(), uuid4(), frames_max=frames_max)


async def waiting(of: Client, count: int) -> list[str]:
    frames = []
    for _ in range(count):
        frame = await asyncio.wait_for(of.next_frame(), 1)
        assert frame is not None
        frames.append(frame)
    return frames


async def test_frames_come_out_in_order() -> None:
    one = client()
    for n in range(3):
        one.put(str(n))
    assert await waiting(one, 3) == ["0", "1", "2"]


async def test_a_waiting_reader_is_woken() -> None:
    one = client()
    reader = asyncio.create_task(one.next_frame())
    await asyncio.sleep(0)
    one.put("x")
    assert await asyncio.wait_for(reader, 1) == "x"


async def test_the_frame_too_many_closes_and_drops_the_queue() -> None:
    closed = []
    one = Client(uuid4(), uuid4(), frames_max=10, on_close=lambda: closed.append(True))
    for n in range(10):
        one.put(str(n))
    assert one.closing is None
    one.put("too many")
    assert one.closing == Closing(4008, "too_slow")
    assert await one.next_frame() is None
    one.put("later")
    assert await one.next_frame() is None
    one.close(1012, "service_restart")
    assert one.closing == Closing(4008, "too_slow"), "the first close counts"
    assert closed == [True]


async def test_the_queue_is_bounded_in_size_too() -> None:
    one = client(frames_max=1000)
    for _ in range(5):
        one.put("x" * 1024 * 1024)
    assert one.closing is None
    one.put("x")
    assert one.closing == Closing(4008, "too_slow")


async def test_a_reader_waiting_for_nothing_hears_of_the_close() -> None:
    one = client()
    reader = asyncio.create_task(one.next_frame())
    await asyncio.sleep(0)
    one.close(4401, "token_expired")
    assert await asyncio.wait_for(reader, 1) is None


async def test_nothing_is_wanted_before_the_first_subscription() -> None:
    one = client()
    assert not one.wants("ledger.transfer.completed")
    one.go_live(topics(["ledger.#"]))
    assert one.wants("ledger.transfer.completed")
    assert not one.wants("identity.session.started")


async def test_room_is_there_again_when_half_of_the_queue_is_read() -> None:
    one = client(frames_max=10)
    for n in range(9):
        one.put(str(n))
    room = asyncio.create_task(one.room())
    await asyncio.sleep(0)
    await waiting(one, 3)
    await asyncio.sleep(0)
    assert not room.done()
    await waiting(one, 1)
    await asyncio.wait_for(room, 1)


async def test_too_many_held_events_close_the_client() -> None:
    one = client(frames_max=10)
    one.begin_replay(ALL, after=0)
    one.hold()
    for position in range(1, 12):
        one.offer(position, str(position))
    assert one.closing == Closing(4008, "too_slow")


@given(
    cursor=st.integers(0, 20),
    first_pass=st.integers(0, 5),
    second_pass=st.integers(0, 5),
    while_held=st.integers(0, 5),
    afterwards=st.integers(0, 5),
)
async def test_replay_and_live_meet_without_gap_or_repetition(
    cursor: int, first_pass: int, second_pass: int, while_held: int, afterwards: int
) -> None:
    """Events 1, 2, 3, … happen all the time; the client resumes after `cursor`, wherever the log is by then."""
    one = client(frames_max=1000)
    position = 10  # the hub's; a cursor may be of another replica that is ahead

    def happen(count: int) -> None:
        nonlocal position
        for _ in range(count):
            position += 1
            if one.wants("ledger.transfer.completed"):
                one.offer(position, str(position))

    def replay(upto: int) -> None:
        for missed in range(one.delivered + 1, upto + 1):
            one.replay(missed, str(missed))

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
    expected = [str(n) for n in range(cursor + 1, position + 1)]
    assert await waiting(one, len(expected)) == expected
    one.close(1000, "done")
