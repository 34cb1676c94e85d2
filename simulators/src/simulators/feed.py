"""Pushes a platform's events to Sangam as signed batches (Standard Webhooks), in order, until they are taken.

One batch is in flight at a time, oldest events first, so each customer's events arrive in sequence.
A batch that fails is sent again, unchanged and under its own `webhook-id`, with growing pauses: a
gateway that is down loses nothing, and one that committed but could not answer can tell the repetition.
"""

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

import aiohttp
import msgspec
from standardwebhooks import Webhook

from simulators.faults import Faults
from simulators.journal import FeedItem, Journal

BATCH_ITEMS_MAX = 500
BATCH_BYTES_MAX = 900_000
"""Below the gateway's limit of 1 MiB, envelope included."""
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0
RETRY_AFTER_MAX_S = 300.0
SHUFFLE_WINDOW_S = 0.3
"""How long a shuffling feed gathers items: a batch of one cannot be out of order."""
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_SPLITTABLE = frozenset({400, 413, 422})
"""The receiver refuses the batch as such: one of its items may be at fault."""

log = logging.getLogger(__name__)


class _ItemResult(msgspec.Struct, frozen=True):
    id: str
    status: Literal["accepted", "duplicate", "conflict", "rejected"]
    reason: str | None = None


class _BatchResult(msgspec.Struct, frozen=True):
    items: list[_ItemResult]


class _Answer(NamedTuple):
    status: int
    retry_after_s: float
    body: bytes


def retry_after_s(header: str | None, now: datetime) -> float:
    """Seconds to wait by a `Retry-After` header (seconds or an HTTP date); 0 when it says nothing usable."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return min(float(header), RETRY_AFTER_MAX_S)
    with contextlib.suppress(ValueError):
        until = parsedate_to_datetime(header)
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        return min(max(0.0, (until - now).total_seconds()), RETRY_AFTER_MAX_S)
    return 0.0


def fitting(items: Sequence[FeedItem]) -> list[FeedItem]:
    """As many of `items`, from the first, as one batch may hold; at least one."""
    size, taken = 0, 0
    for item in items[:BATCH_ITEMS_MAX]:
        size += len(msgspec.json.encode(item)) + 1
        if size > BATCH_BYTES_MAX and taken:
            break
        taken += 1
    return list(items[:taken])


class Feed:
    """The push side of one platform."""

    def __init__(self, url: str, secret: str, journal: Journal, faults: Faults, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._webhook = Webhook(secret)
        self._journal = journal
        self._faults = faults
        self._session = session
        self._emitted = asyncio.Event()
        self._random = random.Random()  # noqa: S311 — jitter and disorder, not secrets

    def wake(self) -> None:
        """Something was emitted."""
        self._emitted.set()

    async def run(self) -> None:
        """Pushes for ever."""
        while True:
            self._emitted.clear()
            if not self._journal.pending(1):
                await self._emitted.wait()
                continue
            if self._faults.shuffle:
                await asyncio.sleep(SHUFFLE_WINDOW_S)
            await self._deliver(fitting(self._journal.pending(BATCH_ITEMS_MAX)))

    async def _deliver(self, items: list[FeedItem]) -> None:
        """Sends one batch until the receiver has decided on each of its items."""
        delivery_id = f"msg_{uuid.uuid4().hex}"
        backoff_s = BACKOFF_FIRST_S
        if self._faults.shuffle:
            items = self._shuffled(items)
        while True:
            await self._faults.before_push()
            answer = await self._post(delivery_id, items)
            if answer.status == 200 and self._settle(items, answer.body):
                if self._faults.duplicate:
                    await self._post(delivery_id, items)
                    await self._post(f"msg_{uuid.uuid4().hex}", items)
                return
            if answer.status in _SPLITTABLE:
                await self._deliver_parts(items, answer)
                return
            pause_s = max(backoff_s * self._random.uniform(0.5, 1.0), answer.retry_after_s)
            log.warning("feed batch not taken: status %d, again in %.1f s", answer.status, pause_s)
            await asyncio.sleep(pause_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _deliver_parts(self, items: list[FeedItem], answer: _Answer) -> None:
        if len(items) == 1:
            reason = f"{answer.status}: {answer.body[:200].decode(errors='replace')}"
            log.error("feed item %s refused for ever: %s", items[0].id, reason)
            self._journal.settle((), [(items[0].id, reason)])
            return
        middle = len(items) // 2
        await self._deliver(items[:middle])
        await self._deliver(items[middle:])

    def _shuffled(self, items: list[FeedItem]) -> list[FeedItem]:
        shuffled = list(items)
        self._random.shuffle(shuffled)
        # Chance may leave the order as it was; whoever asked for disorder gets it.
        return shuffled if shuffled != items else shuffled[::-1]

    async def _post(self, delivery_id: str, items: list[FeedItem]) -> _Answer:
        """The receiver's answer; status 0 when there was none."""
        body = msgspec.json.encode({"items": items})
        now = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(delivery_id, now, body.decode()),
        }
        started = time.monotonic()
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, timeout=_TIMEOUT, allow_redirects=False
            ) as response:
                wait_s = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
                return _Answer(response.status, wait_s, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            waited_s = time.monotonic() - started
            log.warning("feed unreachable after %.1f s: %s", waited_s, str(error) or type(error).__name__)
            return _Answer(0, 0.0, b"")

    def _settle(self, items: list[FeedItem], body: bytes) -> bool:
        """Records the receiver's verdicts; False when it did not decide on every item."""
        try:
            results = {result.id: result for result in msgspec.json.decode(body, type=_BatchResult).items}
        except msgspec.MsgspecError as error:
            log.warning("feed answer unreadable: %s", error)
            return False
        decided = [results[item.id] for item in items if item.id in results]
        rejected = [(result.id, result.reason or "rejected") for result in decided if result.status == "rejected"]
        for item_id, reason in rejected:
            log.error("feed item %s rejected: %s", item_id, reason)
        self._journal.settle([result.id for result in decided if result.status != "rejected"], rejected)
        return len(decided) == len(items)
