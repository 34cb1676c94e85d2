"""How current a follower says it is: what the relay told of, and this process has."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from backbone import recorded
from events.envelope import RecordedEvent, new_id
from events.feed import Chunk
from events.follower import Follower
from events.store import Head


class Feed:
    """The log's feed, as a test says."""

    def __init__(self) -> None:
        self.epoch = None
        self.head, self.heard_at_s = 5, 100.0
        self.chunks: asyncio.Queue[Chunk] = asyncio.Queue()

    async def next(self, position: int) -> Chunk:
        return await self.chunks.get()

    async def settle(self, chunk: Chunk) -> None: ...

    async def receive(self) -> None:
        await asyncio.Event().wait()


class Store:
    async def head(self) -> Head:
        return Head(new_id(), 5)


async def test_a_follower_is_as_current_as_what_it_has_of_what_was_told() -> None:
    may_go_on, feed = asyncio.Semaphore(0), Feed()

    async def on_events(events: Sequence[RecordedEvent]) -> None:
        await may_go_on.acquire()

    follower = Follower(service="test", on_events=on_events, store=cast(Any, Store()), amqp_url="amqp://nowhere")
    follower._feed = cast(Any, feed)
    running = asyncio.create_task(follower.run())
    await follower.started.wait()
    assert follower.current_at_s == 100.0, "at the head: whenever the relay was heard last"

    feed.head, feed.heard_at_s = 7, 103.0
    feed.chunks.put_nowait(Chunk([recorded(6)], None, None, 101.0))
    feed.chunks.put_nowait(Chunk([recorded(7)], None, None, 103.0))
    await asyncio.sleep(0.01)
    assert follower.current_at_s == 0.0, "hearing of events is not knowing them"
    may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.position == 6
    assert follower.current_at_s == 101.0, "behind, but by no more than what came after"
    may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.current_at_s == 103.0

    feed.head, feed.heard_at_s = 9, 200.0
    assert follower.current_at_s == 103.0, "the relay is alive, but what it announced has not arrived"
    feed.chunks.put_nowait(Chunk([recorded(8), recorded(9)], None, None, 0.0))
    may_go_on.release()
    await asyncio.sleep(0.01)
    assert follower.current_at_s == 200.0, "at the head again, from the log"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
