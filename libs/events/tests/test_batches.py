"""A batch that several consumers of a process receive is decoded and opened once."""

import asyncio

import msgspec
import pytest
from backbone import recorded
from events import wire
from events.batches import _EVENTS_MAX, Batches
from events.envelope import RecordedEvent, new_id

EPOCH = new_id()


def message(first: int, last: int) -> tuple[bytes, wire.BatchHeaders]:
    events = [recorded(position) for position in range(first, last + 1)]
    return msgspec.json.encode([event.cloud_event() for event in events]), wire.BatchHeaders(first, last, EPOCH)


class Opener:
    def __init__(self) -> None:
        self.opened: list[int] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.error: Exception | None = None

    async def __call__(self, events: list[RecordedEvent]) -> list[RecordedEvent]:
        self.opened.append(events[0].position)
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        return events


async def test_all_consumers_get_the_same_events() -> None:
    opener = Opener()
    opener.may_go_on.clear()
    batches, (body, headers) = Batches(opener), message(1, 3)
    asking = [asyncio.create_task(batches.events(bytes(bytearray(body)), headers)) for _ in range(3)]
    await asyncio.sleep(0)
    opener.may_go_on.set()
    first, *others = await asyncio.gather(*asking)
    assert [event.position for event in first] == [1, 2, 3]
    assert all(each is first for each in [*others, await batches.events(body, headers)])
    assert opener.opened == [1]


async def test_a_failure_is_that_of_whoever_met_it() -> None:
    opener = Opener()
    batches, (body, headers) = Batches(opener), message(1, 3)
    opener.error = ConnectionError("no keys")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await batches.events(body, headers)
    opener.error = None
    assert len(await batches.events(body, headers)) == 3


async def test_whoever_is_stopped_takes_nothing_from_the_others() -> None:
    opener = Opener()
    opener.may_go_on.clear()
    batches, (body, headers) = Batches(opener), message(1, 3)
    first, second = (asyncio.create_task(batches.events(body, headers)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    opener.may_go_on.set()
    assert len(await second) == 3
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_what_only_claims_to_be_the_batch_is_not_taken_for_it() -> None:
    batches, (body, headers) = Batches(Opener()), message(1, 3)
    await batches.events(body, headers)
    for damaged in (body[:-1], b"[]", message(2, 4)[0]):
        with pytest.raises(wire.MalformedBatch):
            await batches.events(damaged, headers)
    forged, _ = message(1, 3)
    assert (await batches.events(forged, headers))[0].stream != (await batches.events(body, headers))[0].stream


async def test_what_is_kept_is_bounded() -> None:
    opener = Opener()
    batches = Batches(opener)
    messages = [message(first, first + 999) for first in range(1, _EVENTS_MAX + 2_000, 1_000)]
    for body, headers in messages:
        await batches.events(body, headers)
    opener.opened.clear()
    for body, headers in messages[::-1]:
        await batches.events(body, headers)
    assert sorted(opener.opened) == [1, 1_001], "the oldest are decoded again"
