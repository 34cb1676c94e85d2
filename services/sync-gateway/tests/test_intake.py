"""The bounds of the intake, against event stores that do not answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio
from events.envelope import Metadata
from events.store import EventStore
from sync_gateway.feeds import Platform, Translated
from sync_gateway.intake import Busy, FeedIntake, Unavailable

ITEM = {
    "id": "ev-1",
    "type": "kyc.completed",
    "occurred_at": "2026-02-12T09:00:00Z",
    "customer_id": "BFC-1",
    "data": {"level": "full"},
}


class NoProfiles:
    """For batches without personal items."""

    async def expect(self, platform: Platform, customer_ids: Sequence[str]) -> None:
        assert not customer_ids

    async def seal(self, platform: Platform, item: Translated) -> Translated:
        raise NotImplementedError

    async def conflicts(self, platform: Platform, item: Translated) -> bool:
        raise NotImplementedError


@pytest_asyncio.fixture
async def silent_store() -> AsyncIterator[str]:
    """The URL of a server that accepts connections and never says a word."""

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(keep, "127.0.0.1", 0)
    yield f"postgresql://nobody:unused@127.0.0.1:{server.sockets[0].getsockname()[1]}/event_store"
    server.close()


async def test_a_store_that_is_away_is_unavailable_even_for_good_items() -> None:
    listener = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    store = await EventStore.connect(f"postgresql://nobody:unused@127.0.0.1:{port}/event_store")
    intake = FeedIntake(store, NoProfiles())
    with pytest.raises(Unavailable):
        await intake.take("bfc", [ITEM, "no item"], Metadata())
    assert [result.status for result in await intake.take("bfc", ["no item"], Metadata())] == ["rejected"]
    await store.close()


async def test_one_platform_s_batches_are_bounded_and_do_not_block_the_other(silent_store: str) -> None:
    store = await EventStore.connect(silent_store)
    intake = FeedIntake(store, NoProfiles(), batches_max=1)
    under_way = asyncio.create_task(intake.take("bfc", [ITEM], Metadata()))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await intake.take("bfc", [], Metadata())
    assert await intake.take("vyomo", [], Metadata()) == []
    with pytest.raises(Unavailable):
        await under_way
    assert await intake.take("bfc", [], Metadata()) == [], "the place is free again after a failure"
    await store.close()
