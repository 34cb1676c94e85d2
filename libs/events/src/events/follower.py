"""Replica consumers: every process sees every event, in memory."""

import asyncio
import time
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
    def silent_for_s(self) -> float:
        """Seconds since the relay was last heard."""
        return time.monotonic() - self._feed.heard_at_s

    async def run(self) -> None:
        """Follows the log until cancelled. An exception of `on_events` ends it."""
        receiving = asyncio.create_task(self._feed.receive(), name=f"{self.name}.receive")
        try:
            head = await until_it_works(self.name, self._store.head)
            self.position = head.position
            self._feed.epoch = head.epoch
            self.started.set()
            while True:
                chunk = await until_it_works(self.name, lambda: self._feed.next(self.position))
                await self._on_events(chunk.events)
                self.position = chunk.events[-1].position
                await self._feed.settle(chunk)
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
