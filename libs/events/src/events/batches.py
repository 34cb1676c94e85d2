"""Batches of the log as a process gets them: each of its consumers receives the same ones, from a queue of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from events import wire
from events.envelope import RecordedEvent

_EVENTS_MAX = 4_000
"""Consumers of a process are rarely further apart; one that is decodes for itself."""


class _Key(NamedTuple):
    headers: wire.BatchHeaders
    body: bytes
    """Not only what the headers announce: what is damaged or forged has the same ones."""


class Batches:
    """Decodes and opens a batch once for all consumers of the process: with many of them this is most of their work.

    Args:
        opened: opens sealed texts (`EventStore.opened`).
    """

    def __init__(self, opened: Callable[[list[RecordedEvent]], Awaitable[list[RecordedEvent]]]) -> None:
        self._opened = opened
        self._kept: dict[_Key, asyncio.Future[list[RecordedEvent]]] = {}
        """The oldest first."""
        self._events = 0

    async def events(self, body: bytes, headers: wire.BatchHeaders) -> list[RecordedEvent]:
        """The batch's events. They and the list are shared: not to be changed.

        Raises:
            wire.MalformedBatch: the body is not what the headers announce.
            OSError, asyncpg.PostgresError: the keys cannot be asked for.
        """
        key = _Key(headers, body)
        while (opening := self._kept.get(key)) is not None:
            if not opening.done():
                await asyncio.wait({opening})
            if not opening.cancelled():
                return opening.result()
            # Whoever was at it has failed, or was stopped: now it is for us to try.
        opening = self._kept[key] = asyncio.get_running_loop().create_future()
        self._events += headers.last - headers.first + 1
        try:
            events = await self._opened(wire.decode_batch(body, headers))
        except BaseException:
            opening.cancel()
            if self._kept.get(key) is opening:
                self._drop(key)
            raise
        opening.set_result(events)
        while self._events > _EVENTS_MAX and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        return events

    def _drop(self, key: _Key) -> None:
        del self._kept[key]
        self._events -= key.headers.last - key.headers.first + 1
