"""The live feed: every few seconds something small happens to each customer a platform knows."""

import asyncio
import random
import uuid
from datetime import UTC, datetime

import msgspec

from simulators import scenario
from simulators.feed import Feed
from simulators.journal import FeedItem, Journal


class Live:
    """Emits a UPI payment (BFC) or a position's new price (Vyomo) per customer and period."""

    def __init__(self, platform: str, journal: Journal, feed: Feed) -> None:
        self._platform = platform
        self._journal = journal
        self._feed = feed
        self._changed = asyncio.Event()
        self._random = random.Random()  # noqa: S311 — prices, not secrets

    def set_every(self, every_s: float) -> None:
        """Seconds between items of a customer; 0 ends the live feed."""
        self._journal.set_live(every_s)
        self._changed.set()

    async def run(self) -> None:
        """Emits for ever, at the pace set last."""
        while True:
            every_s = self._journal.live_every_s()
            try:
                async with asyncio.timeout(every_s or None):
                    await self._changed.wait()
                self._changed.clear()
            except TimeoutError:
                self.emit_once()

    def emit_once(self) -> None:
        """One item for every customer something can happen to."""
        for customer in self._journal.customers():
            source = self._journal.latest(customer.customer_id, self._source_type)
            if source is None:
                continue
            data = self._happening(source, customer.last_sequence)
            self._journal.emit(
                event_id=f"{self._platform}-{uuid.uuid4()}",
                customer_id=customer.customer_id,
                type_="transaction.posted" if self._platform == "bfc" else "position.changed",
                occurred_at=msgspec.to_builtins(datetime.now(UTC)),
                data=msgspec.json.encode(data),
            )
        self._feed.wake()

    @property
    def _source_type(self) -> str:
        return "account.opened" if self._platform == "bfc" else "position.changed"

    def _happening(self, source: FeedItem, number: int) -> dict[str, object]:
        data = msgspec.json.decode(source.data)
        if self._platform == "bfc":
            return scenario.live_transaction(data, self._random, number)
        return scenario.live_mark(data, self._random)
