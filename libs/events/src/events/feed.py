"""What a consumer reads from: RabbitMQ for speed, the log for truth.

Positions are dense, so the position a consumer has applied tells what of a received batch is old, what is new, and
what is missing. `LogFeed.next(position)` always gives exactly what follows that position, whatever the broker lost,
repeated or reordered.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from uuid import UUID

import aiormq
import structlog

from events import metrics, wire
from events.envelope import RecordedEvent
from events.outage import BROKER_ERRORS, close_broker
from events.passwords import connect_broker
from events.store import EventStore

log = structlog.get_logger(__name__)

MAX_EVENTS = 2_000
_PREFETCH_BATCHES = 100
_WITHOUT_A_BREAK = 256
"""Events decoded in one go. Not each batch has its turn: on a busy loop turns are long, and batches may be small."""
_SILENCE_S = 3.0
"""The relay speaks every second. After this long without a word, look into the log itself."""

_FLOW_PAUSE_S = 0.05
"""What a queue has comes without a longer pause than this."""

_LOOK_FOR_READERS_S = 5.0
"""How often the broker is asked whether our queue has a reader. After a restart it can be left without one."""

WORK_QUEUE_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    # A delivery counts when a consumer is killed while holding it; a low limit would drop healthy messages.
    "x-delivery-limit": 1_000,
    # What overflows is fetched from the log.
    "x-max-length-bytes": 256 * 1024 * 1024,
    "x-overflow": "drop-head",
}


class EpochChanged(Exception):
    """The log is not the one this consumer's position belongs to: the store was restored."""

    def __init__(self, consumer: str, known: UUID, actual: UUID) -> None:
        super().__init__(
            f"{consumer} has applied positions of log epoch {known}, but the store is now at epoch {actual}:"
            " it was restored. `sangam restored` says what to do (docs/runbook.md, 'A restored store')."
        )
        self.known = known
        self.actual = actual


class Chunk(NamedTuple):
    """Contiguous events, and the delivery up to which they settle the queue (None: they came from the log)."""

    events: list[RecordedEvent]
    delivery_tag: int | None
    channel: aiormq.abc.AbstractChannel | None


class _Delivery(NamedTuple):
    headers: wire.BatchHeaders
    body: bytes
    tag: int
    channel: aiormq.abc.AbstractChannel
    requeued: int
    """How often an operator sent it back from the dead letters."""


class _Told(NamedTuple):
    last: int
    heard_before_s: float
    """When the relay was heard before it told of this, on the monotonic clock."""


class LogFeed:
    """The log from any position on, as one consumer gets it.

    Args:
        queue: the queue's name. A work queue is durable, shared by the replicas of a service and processed by one
            of them at a time; a replica queue belongs to this process and goes with its connection.
        moved_beyond: whether another replica has applied more than a position.
    """

    def __init__(
        self,
        *,
        queue: str,
        replica: bool,
        store: EventStore,
        amqp_url: str,
        moved_beyond: Callable[[int], Awaitable[bool]] | None = None,
    ) -> None:
        self._moved_beyond = moved_beyond
        self._queue = queue
        self._label = queue.split(".replica.")[0] + ".replica" if replica else queue
        self._replica = replica
        self._store = store
        self._amqp_url = amqp_url
        self._inbox: deque[_Delivery] = deque()
        self._arrived = asyncio.Event()
        self._must_look = True
        """Whether the log may hold what this queue never got: at the start, and after each reconnect."""
        self.epoch: UUID | None = None
        self.head = 0
        """The log's last position, as far as known here."""
        self.heard_at_s = 0.0
        """When the relay was last heard, on the monotonic clock; 0 before the first time."""
        self._told: deque[_Told] = deque()
        """What the relay told of and may not be applied yet, in order: of a replica only, whose follower asks."""
        self.connected = False
        self._fed_at_s = 0.0
        """When the queue was opened, or gave events, on the monotonic clock."""

    async def receive(self) -> None:
        """Keeps the queue declared, bound and consumed, until cancelled."""
        backoff_s = 0.1
        while True:
            try:
                await self._receive_on_one_connection()
            except BROKER_ERRORS as error:
                log.warning("feed.broker_away", queue=self._queue, error=repr(error))
            self.connected = False
            if time.monotonic() - self.heard_at_s < 2:
                backoff_s = 0.1
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, 2)

    async def _receive_on_one_connection(self) -> None:
        connection = await connect_broker(self._amqp_url, self._queue)
        try:
            channel = await connection.channel(publisher_confirms=True)
            await channel.set_qos(prefetch_count=_PREFETCH_BATCHES)
            queue = await channel.declare_queue(
                self._queue,
                durable=not self._replica,
                exclusive=self._replica,
                auto_delete=self._replica,
                arguments=None if self._replica else WORK_QUEUE_ARGUMENTS,
            )
            await queue.bind(wire.LOG_EXCHANGE)
            underlay = await channel.get_underlay_channel()
            assert isinstance(underlay, aiormq.Channel)
            self._inbox.clear()
            gone = asyncio.Event()
            channel.close_callbacks.add(lambda *_: gone.set())

            async def on_message(message: aiormq.abc.DeliveredMessage) -> None:
                # Only enqueue: each delivery runs as a task of its own, and order is kept only without awaits.
                await self._enqueue(message, underlay)

            await underlay.basic_consume(self._queue, on_message)
            self._must_look = True
            self.connected = True
            self._fed_at_s = time.monotonic()
            self._arrived.set()
            # The queue may be deleted, or rebound to nothing, under a healthy connection. The first shows as a
            # cancelled consumer, the second as silence.
            looked_at_s = time.monotonic()
            while not gone.is_set():
                with contextlib.suppress(TimeoutError):
                    # Not asyncio.wait_for: on Python 3.11 a cancellation that meets its timeout is lost.
                    async with asyncio.timeout(1.0):
                        await gone.wait()
                if not underlay.consumers:
                    raise ConnectionError("the consumer was cancelled by the broker")
                if time.monotonic() - looked_at_s > _LOOK_FOR_READERS_S and not gone.is_set():
                    looked_at_s = time.monotonic()
                    await self._look_for_readers(underlay)
                if self._silent() and not self._replica:
                    await queue.bind(wire.LOG_EXCHANGE)
        finally:
            self.connected = False
            await close_broker(connection)

    async def _look_for_readers(self, channel: aiormq.Channel) -> None:
        """The watchdog.

        Raises:
            ConnectionError: the broker knows no reader of our queue, although this is one: connect anew.
        """
        async with asyncio.timeout(_LOOK_FOR_READERS_S):
            readers = (await channel.queue_declare(self._queue, passive=True)).consumer_count
        metrics.queue_readers.labels(self._label).set(readers or 0)
        if not readers:
            metrics.readers_lost.labels(self._label).inc()
            raise ConnectionError("the broker has lost the consumer of this queue")

    async def _enqueue(self, message: aiormq.abc.DeliveredMessage, channel: aiormq.abc.AbstractChannel) -> None:
        assert message.delivery_tag is not None
        raw = message.header.properties.headers or {}
        requeued = raw.get("x-requeued")
        requeued = requeued if isinstance(requeued, int) else 0
        try:
            headers = wire.read_headers(raw)
        except wire.MalformedBatch as error:
            await self._bury(message.body, message.delivery_tag, channel, str(error), requeued)
            return
        self.hear(headers.last, time.monotonic())
        if not headers.is_heartbeat:
            self._fed_at_s = self.heard_at_s
        self._inbox.append(_Delivery(headers, message.body, message.delivery_tag, channel, requeued))
        self._arrived.set()

    def hear(self, last: int, at_s: float) -> None:
        """Notes that the relay has told of events up to a position."""
        if self._replica and (not self._told or last != self._told[-1].last):
            self._told.append(_Told(last, self.heard_at_s))
        self.heard_at_s = at_s
        self.head = max(self.head, last)

    def current_at_s(self, position: int) -> float:
        """The last time the relay was heard without telling of anything above `position`, on the monotonic clock; 0
        before the first time."""
        self._forget(position)
        return self._told[0].heard_before_s if self._told else self.heard_at_s

    async def _bury_untrue(self, delivery: _Delivery, reason: str) -> None:
        """Buries a batch that tells of events which the log does not have: nobody waits for them either."""
        self._told = deque(told for told in self._told if told.last != delivery.headers.last)
        await self._bury(delivery.body, delivery.tag, delivery.channel, reason, delivery.requeued)

    def _forget(self, position: int) -> None:
        while self._told and self._told[0].last <= position:
            self._told.popleft()

    async def _bury(
        self, body: bytes, tag: int, channel: aiormq.abc.AbstractChannel, reason: str, requeued: int
    ) -> None:
        """Moves a message that is no batch of ours to the dead letters."""
        log.error("feed.malformed_message", queue=self._queue, reason=reason)
        properties = aiormq.spec.Basic.Properties(
            delivery_mode=2, headers={"x-queue": self._queue, "x-reason": reason[:500], "x-requeued": requeued}
        )
        await channel.basic_publish(body, exchange=wire.DEAD_EXCHANGE, properties=properties)
        await channel.basic_ack(tag)

    async def next(self, position: int) -> Chunk:
        """What follows `position`, waiting for it. Without events: another replica has moved beyond it.

        Raises:
            EpochChanged: the store was restored since `epoch` was set.
            OSError, asyncpg.PostgresError: the log is needed and not to be had.
        """
        while True:
            chunk = await self._from_inbox(position)
            if chunk is None and self._must_look and not self._flows():
                chunk = await self._from_log(position)
            if chunk is not None:
                return chunk
            self._arrived.clear()
            try:
                async with asyncio.timeout(_FLOW_PAUSE_S if self._must_look and self._flows() else 1.0):
                    await self._arrived.wait()
            except TimeoutError:
                if self._silent():
                    # The broker or the relay is down, or this is the standby of a queue that another replica
                    # processes: then that one moves the position, and there is nothing to do here.
                    if self._moved_beyond is not None and await self._moved_beyond(position):
                        return Chunk([], None, None)
                    self._must_look = True

    async def settle(self, chunk: Chunk) -> None:
        """Acknowledges a chunk whose effects are committed, and all before it."""
        if chunk.events:
            self._forget(chunk.events[-1].position)
        if chunk.delivery_tag is not None and chunk.channel is not None:
            await self._ack(chunk.delivery_tag, chunk.channel)

    def _flows(self) -> bool:
        """Whether the queue is giving what it has: the log is not asked for that as well."""
        return self.connected and time.monotonic() - self._fed_at_s < _FLOW_PAUSE_S

    def _silent(self) -> bool:
        return time.monotonic() - self.heard_at_s > _SILENCE_S

    async def _from_inbox(self, position: int) -> Chunk | None:
        events: list[RecordedEvent] = []
        last: _Delivery | None = None
        yielded_at = 0
        while self._inbox:
            delivery = self._inbox[0]
            headers = delivery.headers
            if not await self._is_of_this_log(delivery):
                continue
            next_position = position + len(events) + 1
            if headers.last < next_position:
                # A heartbeat that has nothing new to say, or a batch that was applied before.
                self._inbox.popleft()
                metrics.duplicates.labels(self._label).inc(headers.last - headers.first + 1)
                if not events:
                    # It alone: what came before it may still be on its way into the database.
                    await self._ack(delivery.tag, delivery.channel, multiple=False)
                else:
                    last = delivery
            elif events and len(events) + headers.last - headers.first >= MAX_EVENTS:
                break
            elif headers.first > next_position or headers.is_heartbeat:
                # Something before it never came. What did come is applied first.
                if events:
                    break
                if chunk := await self._heal(position, min(headers.first - 1, headers.last)):
                    return chunk
                # The relay publishes only what the store holds: this is not from the relay.
                self._inbox.popleft()
                await self._bury_untrue(delivery, "beyond the end of the log")
            else:
                self._inbox.popleft()
                try:
                    batch = await self._store.batches.events(delivery.body, headers)
                except wire.MalformedBatch as error:
                    await self._bury(delivery.body, delivery.tag, delivery.channel, str(error), delivery.requeued)
                    continue
                except BaseException:
                    self._must_look = True  # the inbox has given it up: next time it comes from the log
                    raise
                events += batch[next_position - headers.first :]
                last = delivery
                if len(events) - yielded_at >= _WITHOUT_A_BREAK:
                    # Whoever waits for the database meanwhile gets its answer in between.
                    yielded_at = len(events)
                    await asyncio.sleep(0)
        if not events:
            return None
        assert last is not None
        return Chunk(events, last.tag, last.channel)

    async def _heal(self, position: int, up_to: int) -> Chunk | None:
        """What the queue does not have, from the log; None if the log does not have it either."""
        events = await self._store.read_log(position, min(up_to - position, MAX_EVENTS))
        if not events:
            return None
        metrics.healed.labels(self._label).inc(len(events))
        return Chunk(events, None, None)

    async def _from_log(self, position: int) -> Chunk | None:
        head = await self._store.head()
        self._check_epoch(head.epoch)
        self.head = max(self.head, head.position)
        if head.position > position:
            return await self._heal(position, head.position)
        # Only now: whatever is appended from here on comes by the queue, which has been bound before.
        if self.connected:
            self._must_look = False
        return None

    async def _is_of_this_log(self, delivery: _Delivery) -> bool:
        """Buries a batch of another epoch: one that was queued before the store was restored.

        Raises:
            EpochChanged: it is the store that has another epoch than this consumer.
        """
        if delivery.headers.epoch == self.epoch:
            return True
        self._check_epoch((await self._store.head()).epoch)
        if delivery.headers.epoch == self.epoch:
            return True
        self._inbox.popleft()
        await self._bury_untrue(delivery, f"of log epoch {delivery.headers.epoch}")
        return False

    def _check_epoch(self, actual: UUID) -> None:
        if self.epoch is None:
            self.epoch = actual
        elif self.epoch != actual:
            raise EpochChanged(self._queue, self.epoch, actual)

    async def _ack(self, tag: int, channel: aiormq.abc.AbstractChannel, *, multiple: bool = True) -> None:
        # A channel that is gone redelivers, and the position tells what is old.
        with contextlib.suppress(*BROKER_ERRORS):
            await channel.basic_ack(tag, multiple=multiple)
