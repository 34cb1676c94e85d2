"""Feed batches in: each item translated, appended on its customer's stream, and answered for itself.

What an item says of a person (a profile, the texts of a transaction) is sealed for the platform's customer before it
is appended.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec
from events.envelope import Metadata, platform_stream
from events.pg import is_outage
from events.sealing import SubjectErased
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


class Sealer(Protocol):
    """What personal items need (`profiles.Profiles` and who is linked to whom)."""

    async def expect(self, platform: Platform, customer_ids: Sequence[str]) -> None:
        """Items of these customers are about to be sealed."""
        ...

    async def seal(self, platform: Platform, item: Translated) -> Translated:
        """The item as it may be stored.

        Raises:
            SubjectErased: nothing of it may be kept.
        """
        ...

    async def conflicts(self, platform: Platform, item: Translated) -> bool:
        """Whether the item, now durable, meets a change of the other platform."""
        ...


Counted = Callable[[str, int], None]


class FeedIntake:
    """Takes batches, a bounded number at a time for each platform, so that neither starves the other."""

    def __init__(
        self,
        store: EventStore,
        sealer: Sealer,
        *,
        counted: Counted = lambda name, by: None,
        batches_max: int = BATCHES_MAX,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._counted = counted
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
        prepared = await self._prepare(platform, items)
        # gather starts its coroutines in order and the store keeps the order of calls, so a customer's
        # items stay in the order they came, while all of the batch shares a few transactions.
        results = await asyncio.gather(
            *(self._take_item(platform, item, metadata) for item in prepared), return_exceptions=True
        )
        settled: list[ItemResult] = []
        for result in results:
            if isinstance(result, BaseException):
                if is_outage(result):
                    raise Unavailable from result
                raise result
            settled.append(result)
        for place, item in enumerate(prepared):
            if isinstance(item, Translated) and item.profile and settled[place].status == "accepted":
                settled[place] = await self._foresee(platform, item, settled[place])
        self._counted(f"feed.{platform}.received", len(settled))
        for result in settled:
            _ITEMS.labels(platform, result.status).inc()
            self._counted(f"feed.{platform}.{result.status}", 1)
        return settled

    async def _prepare(self, platform: Platform, items: Sequence[Any]) -> list[Translated | ItemResult]:
        """Translates, and seals what is personal: before the appends, so that none overtakes another."""
        translated = [self._translate(platform, item) for item in items]
        try:
            personal = [item.customer_id for item in translated if isinstance(item, Translated) and item.personal]
            await self._sealer.expect(platform, personal)
            return [await self._seal(platform, item) for item in translated]
        except Exception as error:
            if is_outage(error):
                raise Unavailable from error
            raise

    def _translate(self, platform: Platform, item: Any) -> Translated | ItemResult:
        try:
            return translate(platform, item)
        except Rejected as rejected:
            return ItemResult(id=reported_id(item), status="rejected", reason=rejected.reason)

    async def _seal(self, platform: Platform, item: Translated | ItemResult) -> Translated | ItemResult:
        if isinstance(item, ItemResult) or not item.personal:
            return item
        try:
            return await self._sealer.seal(platform, item)
        except SubjectErased:
            return ItemResult(id=item.item_id, status="rejected", reason="customer_erased")

    async def _take_item(self, platform: Platform, item: Translated | ItemResult, metadata: Metadata) -> ItemResult:
        return item if isinstance(item, ItemResult) else await self._append(platform, item, metadata)

    async def _foresee(self, platform: Platform, item: Translated, accepted: ItemResult) -> ItemResult:
        """`conflict` where both platforms changed the same: a hint, the item is durable in any case."""
        try:
            conflicts = await self._sealer.conflicts(platform, item)
        except Exception as error:
            if not is_outage(error):
                raise
            return accepted
        return msgspec.structs.replace(accepted, status="conflict") if conflicts else accepted

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
