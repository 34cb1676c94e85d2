"""How current a follower says it is: what the relay told of, and this process has."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest
from backbone import recorded
from events.envelope import RecordedEvent, new_id
from events.feed import Chunk, LogFeed, _Delivery
from events.follower import Follower
from events.store import Head
from events.wire import BatchHeaders

EPOCH = new_id()


class Store:
    async def head(self) -> Head:
        return Head(EPOCH, 5)

    async def read_log(self, after: int, limit: int) -> list[RecordedEvent]:
        return []


class Channel:
    async def basic_publish(self, body: bytes, **_: Any) -> None: ...

    async def basic_ack(self, tag: int, **_: Any) -> None: ...


class Feed(LogFeed):
    """The log's feed, which hears and gives what a test says."""

    def __init__(self) -> None:
        super().__init__(queue="test", replica=True, store=cast(Any, Store()), amqp_url="amqp://nowhere")
        self.chunks: asyncio.Queue[Chunk] = asyncio.Queue()

    async def next(self, position: int) -> Chunk:
        return await self.chunks.get()

    async def receive(self) -> None:
        await asyncio.Event().wait()


async def test_a_follower_is_as_current_as_what_it_has_of_what_was_told() -> None:
    may_go_on = asyncio.Semaphore(0)

    async def on_events(events: Sequence[RecordedEvent]) -> None:
        await may_go_on.acquire()

    follower = Follower(service="test", on_events=on_events, store=cast(Any, Store()), amqp_url="amqp://nowhere")
    follower._feed = feed = Feed()
    running = asyncio.create_task(follower.run())
    await follower.started.wait()
    assert follower.current_at_s == 0.0, "the relay was not heard yet"
    feed.hear(5, 99.0)
    feed.hear(5, 100.0)
    assert follower.current_at_s == 100.0, "at the head: whenever the relay was heard last"

    feed.hear(6, 101.0)
    feed.hear(7, 103.0)
    feed.hear(7, 104.0)
    assert follower.current_at_s == 100.0, "hearing of events is not knowing them, but makes nothing older"
    feed.chunks.put_nowait(Chunk([recorded(6)], None, None))
    feed.chunks.put_nowait(Chunk([recorded(7)], None, None))
    await asyncio.sleep(0.01)
    assert follower.current_at_s == 100.0, "nor is having been given them"
    may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.position == 6
    assert follower.current_at_s == 101.0, "behind, but by no more than what came after"
    may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.current_at_s == 104.0

    feed.hear(9, 200.0)
    feed.hear(9, 201.0)
    assert follower.current_at_s == 104.0, "it was silent, and what it announces now may be old"
    feed.chunks.put_nowait(Chunk([recorded(8), recorded(9)], None, None))
    may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.current_at_s == 201.0, "at the head again, from the log"
    for position in range(10, 20):
        feed.hear(position, 200.0 + position)
        feed.chunks.put_nowait(Chunk([recorded(position)], None, None))
        may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.position == 19
    assert not feed._told, "what is applied is not kept, even where nobody asks"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("epoch", [EPOCH, new_id()], ids=["beyond the end", "of another epoch"])
async def test_what_is_not_true_makes_nobody_wait(epoch: UUID) -> None:
    feed = LogFeed(queue="test", replica=True, store=cast(Any, Store()), amqp_url="amqp://nowhere")
    feed.epoch = EPOCH
    feed.hear(5, 99.0)
    untrue = BatchHeaders(first=10**9, last=10**9, epoch=epoch)
    feed.hear(untrue.last, 100.0)
    feed._inbox.append(_Delivery(untrue, b"", 1, cast(Any, Channel()), 0))
    feed.hear(6, 101.0)
    assert feed.current_at_s(5) == 99.0
    assert await feed._from_inbox(5) is None
    assert feed.current_at_s(5) == 100.0, "what was told after it is still waited for"
    assert feed.current_at_s(6) == 101.0
