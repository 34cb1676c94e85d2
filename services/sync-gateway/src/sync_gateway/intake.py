"""Feed batches in: each item translated, appended on its customer's stream, and answered for itself."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from events.envelope import Metadata, platform_stream
from events.pg import is_outage
from events.store import EventIdReused, EventStore, StreamAppend
from prometheus_client import Counter

from sync_gateway.feeds import PLATFORMS, Platform, Rejected, Translated, reported_id, translate

BATCHES_MAX = 4
"""Batches of one platform that may be under way in this process."""

_ITEMS = Counter("feed_items_total", "Feed items by platform and what became of them", ["platform", "status"])


class Busy(Exception):
    """The platform has too many batches under way."""


class Unavailable(Exception):
    """The event store is away. Some items may have been appended; sending the batch again is safe."""


class ItemResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item. `accepted` and `duplicate` are durable."""

    id: str | None
    """The platform's id; null where the item had none."""
    status: Literal["accepted", "duplicate", "conflict", "rejected"]
    reason: str | None = None
    """For a rejected item: a stable code, then after a colon what is wrong."""


class FeedIntake:
    """Takes batches, a bounded number at a time for each platform, so that neither starves the other."""

    def __init__(self, store: EventStore, *, batches_max: int = BATCHES_MAX) -> None:
        self._store = store
        self._batches_max = batches_max
        self._under_way: dict[Platform, int] = dict.fromkeys(PLATFORMS, 0)

    async def take(self, platform: Platform, items: Sequence[Any], metadata: Metadata) -> list[ItemResult]:
        """One result per item, in their order; by then everything accepted is durable.

        Raises:
            Busy: too many batches of this platform are under way.
            Unavailable: the event store is away.
        """
        if self._under_way[platform] >= self._batches_max:
            raise Busy
        self._under_way[platform] += 1
        try:
            return await self._take(platform, items, metadata)
        finally:
            self._under_way[platform] -= 1

    async def _take(self, platform: Platform, items: Sequence[Any], metadata: Metadata) -> list[ItemResult]:
        # gather starts its coroutines in order and the store keeps the order of calls, so a customer's
        # items stay in the order they came, while all of the batch shares a few transactions.
        results = await asyncio.gather(
            *(self._take_item(platform, item, metadata) for item in items), return_exceptions=True
        )
        settled: list[ItemResult] = []
        for result in results:
            if isinstance(result, BaseException):
                if is_outage(result):
                    raise Unavailable from result
                raise result
            settled.append(result)
            _ITEMS.labels(platform, result.status).inc()
        return settled

    async def _take_item(self, platform: Platform, item: Any, metadata: Metadata) -> ItemResult:
        try:
            translated = translate(platform, item)
        except Rejected as rejected:
            return ItemResult(id=reported_id(item), status="rejected", reason=rejected.reason)
        return await self._append(platform, translated, metadata)

    async def _append(self, platform: Platform, item: Translated, metadata: Metadata) -> ItemResult:
        try:
            appended = await self._store.append(
                [StreamAppend(platform_stream(platform, item.customer_id), (item.event,))],
                event_id=item.event_id,
                request_hash=item.request_hash,
                metadata=metadata,
            )
        except EventIdReused:
            return ItemResult(id=item.item_id, status="rejected", reason="id_reused")
        return ItemResult(id=item.item_id, status="duplicate" if appended.duplicate else "accepted")
