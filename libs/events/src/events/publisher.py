"""Publishing the log to RabbitMQ, in order, with pipelined confirms."""

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import aio_pika
import aiormq
import msgspec
import structlog
from aiormq import spec
from opentelemetry import trace

from events import metrics, pg, wire
from events.contracts import registry
from events.envelope import CloudEvent
from events.outage import BROKER_ERRORS, close_broker
from events.passwords import connect_broker
from events.pipelining import Message, publish_all
from events.tracing import link
from events.wire import LogSlice

log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("events.relay")

MAX_BATCH = 256
MAX_OPEN_CONFIRMS = 1_000
_BATCHES_IN_FLIGHT = 32
_PARTIAL_BATCHES_IN_FLIGHT = 2
"""A batch that is not full waits for those before it: the busier the broker, the larger the batches."""
_HEARTBEAT_S = 1.0
_CONFIRM_WITHIN_S = 30.0
"""After this long without a confirm it is not awaited any longer: a queue that had no leader when it got a message
never confirms it, on a connection that stays healthy."""
_CHECKPOINT_EVERY_S = 0.2
_RECENT_EVENTS = 20_000
_AGE_EVERY_S = 0.5
_PAGE = 4 * MAX_BATCH
"""Events read from the store at once."""
_READ = "SELECT first, last, events FROM store.read_unpublished($1, $2)"


class LogTail:
    """The end of the log: what was just sequenced from memory, what is older from the store."""

    def __init__(self, reader: pg.Session, head: int) -> None:
        self._reader = reader
        self._recent: OrderedDict[int, LogSlice] = OrderedDict()
        """By the first position; without a gap, up to the head."""
        self.head = head
        self.grown: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the log grows; a new one then takes its place."""

    def extend(self, slices: Sequence[LogSlice]) -> None:
        """Adds what was sequenced just now."""
        self._recent.update((each.first, each) for each in slices)
        self.head = slices[-1].last
        while self.head - next(iter(self._recent.values())).last >= _RECENT_EVENTS:
            self._recent.popitem(last=False)
        grown, self.grown = self.grown, asyncio.get_running_loop().create_future()
        grown.set_result(None)

    def recent(self, position: int) -> LogSlice | None:
        """The slice after `position`, if it is in memory."""
        return self._recent.get(position + 1)

    async def read(self, position: int, limit: int) -> list[LogSlice]:
        """Slices that hold about `limit` events after `position`, from the store: not beyond where memory begins."""
        up_to = min(position + limit, self.head)
        if self._recent and (oldest := next(iter(self._recent))) > position + 1:
            up_to = min(up_to, oldest - 1)
        rows = await self._reader.fetch(
            "SELECT first, last, events FROM store.read_unpublished($1, $2)", position, up_to
        )
        return [LogSlice(*row) for row in rows]

    async def read_one_by_one(self, position: int, up_to: int) -> list[LogSlice]:
        """A slice for each of the events after `position` up to `up_to`, made anew from the log."""
        rows = await self._reader.fetch(
            "SELECT first, last, events FROM store.read_cloud_events($1, $2, NULL, 1)", position, up_to
        )
        return [LogSlice(*row) for row in rows]


class _Backlog:
    """The log as one publisher goes through it. The store reads its next page while this one is published."""

    def __init__(self, tail: LogTail) -> None:
        self._tail = tail
        self._page: deque[LogSlice] = deque()
        self._next: tuple[int, asyncio.Task[list[LogSlice]]] | None = None

    async def after(self, position: int) -> list[LogSlice]:
        """Slices of up to `MAX_BATCH` events after `position`; at least one, where there is one."""
        batch = [await self._slice(position)]
        while batch[-1].last < self._tail.head:
            following = self._at_hand(batch[-1].last)
            if following is None or following.last > position + MAX_BATCH:
                break
            batch.append(following)
        return batch

    async def _slice(self, position: int) -> LogSlice:
        if self._at_hand(position) is None:
            self._page = deque(await self._turn_to(position))
        found = self._at_hand(position)
        assert found is not None, "the log is dense up to its head"
        return found

    def _at_hand(self, position: int) -> LogSlice | None:
        """The slice after `position`, where it need not be read."""
        while self._page and self._page[0].first <= position:
            self._page.popleft()
        if self._page and self._page[0].first == position + 1:
            return self._page[0]
        return self._tail.recent(position)

    async def _turn_to(self, position: int) -> list[LogSlice]:
        if self._next is None or self._next[0] != position:
            await self.close()
            page = await self._tail.read(position, _PAGE)
        else:
            _, reading = self._next
            self._next = None
            page = await reading
        last = page[-1].last
        if self._tail.head - last > MAX_BATCH and self._tail.recent(last) is None:
            self._next = last, asyncio.create_task(self._tail.read(last, _PAGE), name="relay-read-ahead")
        return page

    async def close(self) -> None:
        """Ends the reading ahead."""
        if self._next is not None:
            _, reading = self._next
            self._next = None
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


class _OpenBatch(NamedTuple):
    last: int
    """Its last position."""
    messages: int
    confirmed: "asyncio.Future[list[object]]"
    sent_at_s: float
    span: trace.Span


class Publisher(ABC):
    """Publishes the log in order to one exchange, from its own checkpoint, with pipelined confirms."""

    name: str
    exchange: str

    def __init__(self, tail: LogTail, checkpoints: pg.Session, amqp_url: str, epoch: UUID) -> None:
        self._tail = tail
        self._checkpoints = checkpoints
        self._amqp_url = amqp_url
        self._epoch = epoch
        self.position = 0
        """The highest position up to which everything is confirmed."""
        self._saved_position = 0
        self._saved_at_s = 0.0
        self._open: deque[_OpenBatch] = deque()

    async def run(self) -> None:
        """Publishes until cancelled; comes back by itself when the broker does."""
        self.position = self._saved_position = await self._checkpoints.fetchval(
            "SELECT store.read_checkpoint($1)", self.name
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_age(), name=f"{self.name}.age")
            tasks.create_task(self._run_for_ever(), name=f"{self.name}.publish")

    async def _watch_age(self) -> None:
        """Tells the age of the oldest event that is not confirmed, also while there is no broker to confirm any."""
        oldest, oldest_at = 0, datetime.now(UTC)
        while True:
            if self._tail.head > self.position:
                if oldest != self.position + 1:
                    oldest, oldest_at = self.position + 1, await self._time_of_first_open()
                age_s = (datetime.now(UTC) - oldest_at).total_seconds()
                metrics.unpublished_age.labels(self.name).set(max(age_s, 0.0))
            else:
                metrics.unpublished_age.labels(self.name).set(0.0)
            await asyncio.sleep(_AGE_EVERY_S)

    async def _time_of_first_open(self) -> datetime:
        found = self._tail.recent(self.position)
        if found is None:  # not by the session that reads what is published meanwhile
            row = await self._checkpoints.fetchrow(_READ, self.position, self.position + 1)
            found = LogSlice(*row) if row is not None else None
        with contextlib.suppress(msgspec.DecodeError):  # somebody has damaged it: no older than we are here
            if found is not None:
                return found.decoded()[0].time
        return datetime.now(UTC)

    async def _run_for_ever(self) -> None:
        backoff_s = 0.1
        while True:
            started_s = time.monotonic()
            try:
                await self._run_on_one_connection()
            except BROKER_ERRORS as error:
                log.warning("relay.broker_away", publisher=self.name, position=self.position, error=repr(error))
            if time.monotonic() - started_s > 5:
                backoff_s = 0.1
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, 2)

    async def _run_on_one_connection(self) -> None:
        connection = await connect_broker(self._amqp_url, self.name)
        try:
            channel = await connection.channel(publisher_confirms=True)
            await self._declare(channel)
            underlay = await channel.get_underlay_channel()
            assert isinstance(underlay, aiormq.Channel)
            await self._publish(underlay)
        finally:
            await close_broker(connection)

    @abstractmethod
    async def _declare(self, channel: aio_pika.abc.AbstractChannel) -> None:
        """Declares what is published to, so that publishing goes on when the broker comes back empty."""

    @abstractmethod
    async def _messages(self, slices: Sequence[LogSlice]) -> list[Message]:
        """The messages of a batch."""

    def _heartbeat(self) -> "list[Message]":
        """What to send when there is nothing to send."""
        return []

    async def _publish(self, channel: aiormq.Channel) -> None:
        sent = self.position
        self._open.clear()
        backlog = _Backlog(self._tail)
        try:
            while True:
                while self._may_send(sent):
                    slices = await backlog.after(sent)
                    span = _tracer.start_span(f"publish {self.exchange}", kind=trace.SpanKind.PRODUCER)
                    if span.is_recording():
                        with contextlib.suppress(msgspec.DecodeError):
                            link(span, [event.traceparent for each in slices for event in each.decoded()])
                    confirms = await self._send(channel, await self._messages(slices))
                    sent = slices[-1].last
                    self._open.append(
                        _OpenBatch(sent, len(confirms), asyncio.gather(*confirms), time.monotonic(), span)
                    )
                    await asyncio.sleep(0)  # it goes out, and the store reads ahead, while the next one is put together
                if self._open:
                    either: set[asyncio.Future[Any]] = {self._open[0].confirmed, self._tail.grown}
                    await asyncio.wait(either, timeout=_CONFIRM_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
                    self._settle()
                    if self._open and time.monotonic() - self._open[0].sent_at_s > _CONFIRM_WITHIN_S:
                        raise TimeoutError(f"no confirm within {_CONFIRM_WITHIN_S:.0f} s: publishing again")
                else:
                    await asyncio.wait({self._tail.grown}, timeout=_HEARTBEAT_S)
                    if self._tail.head == sent:
                        async with asyncio.timeout(_CONFIRM_WITHIN_S):
                            await asyncio.gather(*await self._send(channel, self._heartbeat()))
                await self._save_checkpoint()
        finally:
            await backlog.close()
            for batch in self._open:
                batch.confirmed.cancel()
                batch.span.end()
            await asyncio.gather(*(batch.confirmed for batch in self._open), return_exceptions=True)

    def _may_send(self, sent: int) -> bool:
        waiting = self._tail.head - sent
        if not waiting:
            return False
        if waiting < MAX_BATCH:
            return len(self._open) < _PARTIAL_BATCHES_IN_FLIGHT
        return sum(batch.messages for batch in self._open) < MAX_OPEN_CONFIRMS and len(self._open) < _BATCHES_IN_FLIGHT

    def _settle(self) -> None:
        """Moves the position over the batches whose confirms have come, in order."""
        while self._open and self._open[0].confirmed.done():
            batch = self._open.popleft()
            batch.confirmed.result()
            batch.span.end()
            metrics.published.labels(self.name).inc(batch.last - self.position)
            self.position = batch.last

    async def _send(self, channel: aiormq.Channel, messages: list[Message]) -> "list[asyncio.Future[object]]":
        async with asyncio.timeout(_CONFIRM_WITHIN_S):
            return await publish_all(channel, self.exchange, messages)

    async def _save_checkpoint(self) -> None:
        if self.position == self._saved_position or time.monotonic() - self._saved_at_s < _CHECKPOINT_EVERY_S:
            return
        self._saved_at_s = time.monotonic()
        await self._checkpoints.execute("SELECT store.save_checkpoint($1, $2)", self.name, self.position)
        self._saved_position = self.position


class LogPublisher(Publisher):
    """Every event, in batches, to our own services."""

    name = exchange = wire.LOG_EXCHANGE

    async def _declare(self, channel: aio_pika.abc.AbstractChannel) -> None:
        await channel.declare_exchange(wire.UNROUTED_EXCHANGE, aio_pika.ExchangeType.FANOUT, durable=True)
        await channel.declare_exchange(
            self.exchange,
            aio_pika.ExchangeType.FANOUT,
            durable=True,
            arguments={"alternate-exchange": wire.UNROUTED_EXCHANGE},
        )
        await channel.declare_exchange(wire.DEAD_EXCHANGE, aio_pika.ExchangeType.FANOUT, durable=True)

    async def _messages(self, slices: Sequence[LogSlice]) -> list[Message]:
        body, headers = wire.encode_batch(slices, self._epoch)
        return [(body, "", self._properties(headers))]

    def _heartbeat(self) -> list[Message]:
        body, headers = wire.encode_heartbeat(self.position, self._epoch)
        properties = self._properties(headers)
        properties.expiration = "10000"  # ms: of no use to a consumer that was away
        return [(body, "", properties)]

    @staticmethod
    def _properties(headers: dict[str, Any]) -> spec.Basic.Properties:
        return spec.Basic.Properties(content_type=wire.BATCH_CONTENT_TYPE, delivery_mode=2, headers=headers)


class EventsPublisher(Publisher):
    """Public events, one message each, in CloudEvents binary mode (AMQP protocol binding, `cloudEvents:` headers)."""

    name = exchange = wire.EVENTS_EXCHANGE

    async def _declare(self, channel: aio_pika.abc.AbstractChannel) -> None:
        await channel.declare_exchange(self.exchange, aio_pika.ExchangeType.TOPIC, durable=True)

    async def _messages(self, slices: Sequence[LogSlice]) -> list[Message]:
        try:
            events = [event for each in slices for event in each.decoded()]
        except msgspec.DecodeError:
            events = await self._undamaged(slices)
        return [
            (bytes(event.data), event.type, self._properties(event))
            for event in events
            if registry.is_public(event.type, event.schemaversion)
        ]

    async def _undamaged(self, slices: Sequence[LogSlice]) -> list[CloudEvent]:
        events = []
        for each in await self._tail.read_one_by_one(slices[0].first - 1, slices[-1].last):
            try:
                events += each.decoded()
            except msgspec.DecodeError as error:
                # Somebody has changed it in the store: `sangam events verify` tells more. It holds up nobody else's.
                log.error("relay.damaged", publisher=self.name, position=each.first, error=repr(error))
        return events

    @staticmethod
    def _properties(event: CloudEvent) -> spec.Basic.Properties:
        attributes = event.attributes()
        content_type = attributes.pop("datacontenttype")
        attributes["time"] = event.time.isoformat().replace("+00:00", "Z")
        return spec.Basic.Properties(
            content_type=content_type,
            delivery_mode=2,
            message_id=attributes["id"],
            headers={f"cloudEvents:{name}": value for name, value in attributes.items()},
        )
