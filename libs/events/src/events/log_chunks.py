"""The log's events of some types, chunk by chunk."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from events.envelope import RecordedEvent
from events.store import EventStore

CHUNK_EVENTS = 4_000
_RANGE_MAX = 200_000
_TURN_EVENTS = 200


async def log_chunks(
    store: EventStore, types: Sequence[str], after: int, up_to: int
) -> AsyncIterator[tuple[int, list[RecordedEvent]]]:
    """Each chunk with the position it reaches, the last one `up_to`. While one is used the next one is read."""
    width = CHUNK_EVENTS
    start = after

    if start >= up_to:
        return
    last = min(start + width, up_to)
    ahead = asyncio.create_task(_read(store, types, start, last))
    try:
        while start < up_to:
            events = await ahead
            reached = last
            # As many events a chunk as it takes, however rare they are in the log.
            share = max(len(events), 1) / (reached - start)
            width = int(min(max(CHUNK_EVENTS / share, CHUNK_EVENTS), _RANGE_MAX))
            start, last = reached, min(reached + width, up_to)
            if start < up_to:
                ahead = asyncio.create_task(_read(store, types, start, last))
            yield reached, events
    finally:
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)


async def _read(store: EventStore, types: Sequence[str], after: int, last: int) -> list[RecordedEvent]:
    """With the payloads decoded: while the database writes the chunk before."""
    events = await store.read_types(after, last, types)
    for start in range(0, len(events), _TURN_EVENTS):
        await asyncio.sleep(0)
        with contextlib.suppress(LookupError, ValueError):  # whoever applies it meets it again
            for event in events[start : start + _TURN_EVENTS]:
                _ = event.payload
    return events
