"""One webhook while it is leased: its chains, what of them may be sent now, and how it has been doing."""

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

import asyncpg
import structlog
from chassis.egress import Egress, signed_headers
from events.outage import until_it_works
from prometheus_client import Counter, Histogram

from sync_gateway.delivery import with_sequence
from sync_gateway.ledger import WINDOW, Delivery, Ledger, Result, Streak
from sync_gateway.meter import Meter
from sync_gateway.retries import Answer, retry_after_s, verdict
from sync_gateway.secret_box import SecretBox

log = structlog.get_logger(__name__)

_ATTEMPTS = Counter("webhook_attempts_total", "Attempts to deliver, by outcome", ["outcome"])
_LATENCY = Histogram("webhook_attempt_seconds", "How long receivers take to answer")

PROBE_PAUSE_S_MAX = 3600.0
PLATFORM_PROBE_PAUSE_S_MAX = 60.0
"""There are two of them, and what their books lack is money: they are told within a minute of coming back."""
UNREACHABLE_AFTER = timedelta(days=5)
_OPEN_PER_ATTEMPT = 2
"""Attempts whose result is not durable yet, by how many may be under way: a crash repeats no more than that."""

Ending = Literal["gone", "unreachable"]


class Owner(NamedTuple):
    """What the dispatcher asks of the rest of the service. Each is safe to repeat."""

    quarantine: Callable[[UUID, str, int], Awaitable[None]]
    restore: Callable[[UUID], Awaitable[None]]
    disable: Callable[[UUID, Ending], Awaitable[None]]
    compose: Callable[[str, bytes], Awaitable[bytes | None]]
    """The body of a platform's announcement as of now; None: there is nothing to say."""


class Limits(NamedTuple):
    quarantine_after: int
    """Failed attempts in a row."""
    probe_s: float
    """Pause before the first probe; doubles up to an hour."""


class Sender(Protocol):
    """What an endpoint needs of the dispatcher."""

    ledger: Ledger
    egress: Egress
    box: SecretBox
    owner: Owner
    limits: Limits
    meter: Meter

    @property
    def may_start(self) -> bool:
        """Whether an attempt that starts now ends under the lease."""
        ...


class Endpoint:
    """One webhook: its chains, what of them may be sent now, and how it has been doing."""

    def __init__(self, dispatcher: Sender, webhook_id: UUID, row: asyncpg.Record) -> None:
        self._dispatcher = dispatcher
        self._webhook_id = webhook_id
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None]
        self._loaded = 0
        self._more = True
        self._held = 0
        self._chains: dict[str, deque[Delivery]] = {}
        self._ready: deque[str] = deque()
        self._later: list[tuple[float, str]] = []
        self.sending: set[asyncio.Task[None]] = set()
        self._attempting = 0
        self._tokens = 1.0
        self._tokens_at_s = time.monotonic()
        self._not_before_s = 0.0
        self._stopped = False
        self.failed = False
        """Something went wrong that is no answer of the receiver's."""
        self._revision = -1
        self._streak = Streak(row)
        self.configure(row)

    def configure(self, row: asyncpg.Record) -> None:
        """Takes over what the ledger says of the webhook now."""
        asked: datetime | None = row["next_probe_at"]
        if asked is not None and self._streak.next_probe_at is not None and asked < self._streak.next_probe_at:
            self._streak.next_probe_at = asked
            self.wake.set()
        if row["revision"] == self._revision:
            return
        self._revision = row["revision"]
        self._not_before_s = 0.0
        self._url: str = row["url"]
        self._platform: str | None = row["platform"]
        self._delays_s: Sequence[int] = row["retry_delays_s"]
        self._concurrency_max: int = row["concurrency_max"]
        self._rate_per_s: int = row["rate_per_s"]
        self._quarantined = row["state"] == "quarantined"
        place = str(self._webhook_id)
        box = self._dispatcher.box
        self._secret = box.open(row["sealed_secret"], place)
        self._previous: tuple[str, datetime] | None = None
        if row["previous_sealed_secret"] is not None:
            self._previous = (box.open(row["previous_sealed_secret"], place), row["previous_until"])
        self.wake.set()

    def more(self) -> None:
        """There may be more in the ledger."""
        self._more = True
        self.wake.set()

    def stop(self) -> None:
        self._stopped = True
        self.wake.set()

    async def run(self) -> None:
        """Sends until stopped."""
        try:
            while not self._stopped:
                self.wake.clear()
                pause_s: float | None
                if self._quarantined:
                    pause_s = await self._probe_when_due()
                else:
                    await self._load()
                    pause_s = self._start()
                try:
                    async with asyncio.timeout(pause_s):
                        await self.wake.wait()
                except TimeoutError:
                    continue
        finally:
            if self._stopped:
                await asyncio.gather(*self.sending, return_exceptions=True)
            for sending in self.sending:
                sending.cancel()

    async def _load(self) -> None:
        if not self._more or self._held > WINDOW // 2:
            return
        self._more = False
        loaded = await until_it_works(
            "webhook deliveries", lambda: self._dispatcher.ledger.load(self._webhook_id, self._loaded)
        )
        for delivery in loaded:
            self._loaded = delivery.n
            self._held += 1
            chain = self._chains.get(delivery.chain)
            if chain is None:
                self._chains[delivery.chain] = deque((delivery,))
                self._schedule(delivery)
            else:
                chain.append(delivery)
        if len(loaded) == WINDOW:
            self._more = True

    def _schedule(self, head: Delivery) -> None:
        if head.due_s <= time.monotonic():
            self._ready.append(head.chain)
        else:
            heapq.heappush(self._later, (head.due_s, head.chain))

    def _start(self) -> float | None:
        """Starts what may be; returns how long there is nothing more to start (None: until woken)."""
        now_s = time.monotonic()
        while self._later and self._later[0][0] <= now_s:
            self._ready.append(heapq.heappop(self._later)[1])
        burst = max(1.0, self._rate_per_s / 10)
        self._tokens = min(burst, self._tokens + (now_s - self._tokens_at_s) * self._rate_per_s)
        self._tokens_at_s = now_s
        if now_s < self._not_before_s:
            return self._not_before_s - now_s
        open_max = _OPEN_PER_ATTEMPT * self._concurrency_max
        while self._ready and self._attempting < self._concurrency_max and len(self.sending) < open_max:
            if not self._dispatcher.may_start:
                return 0.2
            if self._tokens < 1:
                return (1 - self._tokens) / self._rate_per_s
            self._tokens -= 1
            head = self._chains[self._ready.popleft()][0]
            self._attempting += 1
            task = asyncio.create_task(self._send(head))
            self.sending.add(task)
            task.add_done_callback(self._sent)
        if self._later and self._attempting < self._concurrency_max:
            return max(0.001, self._later[0][0] - now_s)
        return None

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self.sending.discard(task)
        self.wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook_send_failed", webhook_id=str(self._webhook_id), exc_info=error)
            self.failed = True
            self.stop()

    async def _send(self, delivery: Delivery) -> None:
        """One attempt, its result, and what follows from it."""
        try:
            now, answer = await self._attempt(delivery)
        finally:
            # Other chains need not wait until this result is durable.
            self._attempting -= 1
            if self._ready:
                self.wake.set()
        if answer is None:
            status, next_attempt_at = "delivered", None
        else:
            delivery.tries += 1
            delivery.attempts += 1
            status, next_attempt_at = verdict(
                answer,
                delivery.tries,
                self._delays_s,
                now,
                random.random(),  # noqa: S311
                gone_ends=self._platform is None,
            )
            if answer.too_much:
                self._not_before_s = max(self._not_before_s, time.monotonic() + answer.retry_after_s)
        ledger = self._dispatcher.ledger
        await ledger.record(Result(self._webhook_id, delivery, now, answer, status, next_attempt_at))
        if status == "exhausted":
            self._dispatcher.meter.count("webhook.exhausted")
        chain = self._chains[delivery.chain]
        if next_attempt_at is not None:
            delivery.due_s = time.monotonic() + (next_attempt_at - now).total_seconds()
            self._schedule(delivery)
        else:
            chain.popleft()
            self._held -= 1
            if chain:
                self._schedule(chain[0])
            else:
                del self._chains[delivery.chain]
        if answer is not None:
            await self._judge(answer, now)

    async def _attempt(self, delivery: Delivery) -> tuple[datetime, Answer | None]:
        dispatcher = self._dispatcher
        now = datetime.now(UTC)
        body = with_sequence(delivery.sequence, delivery.body)
        if self._platform is not None:
            composed = await until_it_works("announcement", lambda: dispatcher.owner.compose(delivery.event_type, body))
            if composed is None:
                return now, None
            body = composed
        secrets = [self._secret]
        if self._previous is not None and self._previous[1] > now:
            secrets.append(self._previous[0])
        headers = signed_headers(secrets, str(delivery.event_id), now, body)
        started_s = time.perf_counter()
        reply = await dispatcher.egress.post(self._url, headers, body, trusted=self._platform is not None)
        latency_ms = (time.perf_counter() - started_s) * 1000
        answer = Answer(reply.status, reply.error, latency_ms, retry_after_s(reply.retry_after, datetime.now(UTC)))
        _ATTEMPTS.labels("delivered" if answer.ok else "failed").inc()
        _LATENCY.observe(answer.latency_ms / 1000)
        dispatcher.meter.count("webhook.delivered" if answer.ok else "webhook.failed")
        dispatcher.meter.latency("webhook.latency", [answer.latency_ms])
        return now, answer

    async def _judge(self, answer: Answer, now: datetime) -> None:
        """Follows the endpoint's health; quarantines it, or disables it when it is gone for good."""
        dispatcher, streak = self._dispatcher, self._streak
        if answer.ok:
            if streak.succeeded():
                await self._save()
            return
        if answer.gone and self._platform is None:
            self.stop()
            await until_it_works("disable webhook", lambda: dispatcher.owner.disable(self._webhook_id, "gone"))
            return
        streak.failed(now)
        await self._save()
        if self._quarantined or streak.failures < dispatcher.limits.quarantine_after:
            return
        self._quarantined = True
        streak.next_probe_at = now + timedelta(seconds=max(dispatcher.limits.probe_s, answer.retry_after_s))
        await self._save()
        if self._platform is None:
            await until_it_works(
                "quarantine webhook",
                lambda: dispatcher.owner.quarantine(self._webhook_id, answer.reason, streak.failures),
            )
        else:
            log.warning("platform_quarantined", platform=self._platform, reason=answer.reason)

    async def _save(self) -> None:
        ledger = self._dispatcher.ledger
        await until_it_works("webhook health", lambda: ledger.save_health(self._webhook_id, self._streak))

    # Quarantine.

    async def _probe_when_due(self) -> float:
        """Sends one delivery when it is time for it; returns the pause until then."""
        dispatcher, streak = self._dispatcher, self._streak
        if self.sending:
            return 0.1
        # Whatever is in memory is loaded anew once the webhook works again.
        self._forget()
        now = datetime.now(UTC)
        if streak.next_probe_at is None:
            streak.next_probe_at = now + timedelta(seconds=dispatcher.limits.probe_s)
            await self._save()
        wait_s = (streak.next_probe_at - now).total_seconds()
        if wait_s > 0:
            return float(wait_s)
        if not dispatcher.may_start:
            return 0.2
        delivery = await until_it_works(
            "webhook probe", lambda: dispatcher.ledger.oldest_unsent(self._webhook_id, streak.since)
        )
        if delivery is None:
            # Everything was resent or erased meanwhile: nothing is known to fail any more.
            await self._restore()
            return 0.0
        at, answer = await self._attempt(delivery)
        if answer is not None:
            delivery.attempts += 1
        if answer is None or answer.ok:
            await dispatcher.ledger.record(Result(self._webhook_id, delivery, at, answer, "delivered", None))
            await self._restore()
            return 0.0
        # A probe is a try: an event that alone is at fault must not keep the others waiting for ever.
        delivery.tries += 1
        status = "exhausted" if delivery.tries > len(self._delays_s) else "failed"
        await dispatcher.ledger.record(Result(self._webhook_id, delivery, at, answer, status, None))
        if answer.gone and self._platform is None:
            self.stop()
            await until_it_works("disable webhook", lambda: dispatcher.owner.disable(self._webhook_id, "gone"))
            return 0.0
        streak.failed(at)
        streak.probes += 1
        longest_s = PROBE_PAUSE_S_MAX if self._platform is None else PLATFORM_PROBE_PAUSE_S_MAX
        pause_s = min(dispatcher.limits.probe_s * 2**streak.probes, longest_s)
        pause_s = max(pause_s * random.uniform(0.8, 1.2), answer.retry_after_s)  # noqa: S311
        streak.next_probe_at = at + timedelta(seconds=pause_s)
        await self._save()
        if self._platform is None and streak.since is not None and at - streak.since > UNREACHABLE_AFTER:
            self.stop()
            await until_it_works("disable webhook", lambda: dispatcher.owner.disable(self._webhook_id, "unreachable"))
        return float(pause_s)

    async def _restore(self) -> None:
        """Back to normal: what was given up meanwhile is sent first."""
        ledger, streak = self._dispatcher.ledger, self._streak
        since = streak.since
        if since is not None:
            await until_it_works("webhook requeue", lambda: ledger.requeue_exhausted(self._webhook_id, since))
        if self._platform is None:
            await until_it_works("restore webhook", lambda: self._dispatcher.owner.restore(self._webhook_id))
        streak.succeeded()
        await self._save()
        self._quarantined = False
        self.more()

    def _forget(self) -> None:
        self._chains.clear()
        self._ready.clear()
        self._later.clear()
        self._held = 0
        self._loaded = 0
        self._more = True
