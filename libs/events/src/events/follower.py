"""Replica consumers: every process sees every event, in memory."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from events.envelope import RecordedEvent
from events.feed import LogFeed
from events.outage import until_it_works
from events.store import EventStore


class Follower:
    """A replica consumer: this process sees every event from its start on, in order, and keeps nothing.

    For what lives in memory: sockets to feed, keys and denials to know.
    """

    def __init__(
        self,
        *,
        service: str,
        on_events: Callable[[Sequence[RecordedEvent]], Awaitable[None]],
        store: EventStore,
        amqp_url: str,
    ) -> None:
        self.name = f"{service}.replica.{uuid4()}"
        self.position = 0
        """The last position given to `on_events`; starts at the head of the log."""
        self.started = asyncio.Event()
        self._on_events = on_events
        self._store = store
        self._feed = LogFeed(queue=self.name, replica=True, store=store, amqp_url=amqp_url)

    @property
    def current_at_s(self) -> float:
        """A moment, on the monotonic clock, up to which everything that the relay told of has been given to
        `on_events`; 0 before the first time. It falls behind while the relay is silent, and while this process is."""
        return self._feed.current_at_s(self.position)

    async def run(self) -> None:
        """Follows the log until cancelled. An exception of `on_events` ends it."""
        tasks = [asyncio.create_task(run(), name=self.name) for run in (self._feed.receive, self._follow)]
        try:
            # Neither ends by itself: the first one done brings its error.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        head = await until_it_works(self.name, self._store.head)
        self.position = head.position
        self._feed.epoch = head.epoch
        self.started.set()
        while True:
            chunk = await until_it_works(self.name, lambda: self._feed.next(self.position))
            await self._on_events(chunk.events)
            self.position = chunk.events[-1].position
            await self._feed.settle(chunk)
