"""Consumers: each applies the whole log, in order, with effects and position in one transaction."""

import asyncio
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol, cast
from uuid import UUID

import asyncpg
import structlog
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from events import metrics
from events.contracts import UnknownContract
from events.envelope import RecordedEvent
from events.feed import Chunk, LogFeed
from events.outage import until_it_works
from events.store import EventStore

log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("events.consumer")

_propagator = TraceContextTextMapPropagator()

_MAX_LINKS = 64
_ATTEMPTS_BEFORE_PARKING = 3
_SAVE_AFTER_S = 0.25
"""How long a position that only other handlers' events have moved may stay unsaved."""

DDL = """
    CREATE TABLE IF NOT EXISTS consumed (
        consumer text PRIMARY KEY,
        position bigint NOT NULL DEFAULT 0,
        epoch uuid
    );
    CREATE TABLE IF NOT EXISTS parked (
        consumer text NOT NULL,
        position bigint NOT NULL,
        stream text NOT NULL,
        event_id uuid NOT NULL,
        type text NOT NULL,
        reason text NOT NULL,
        error text,
        parked_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (consumer, position)
    );
"""


class Handler(Protocol):
    """What a consumer does with events: a read model's rows, or a reaction's appends.

    `apply` gets the events of its `types` and runs inside the transaction that saves the position. An outage it raises
    (database, network, timeout) pauses the consumer; any other exception is the event's own fault and, after some
    attempts, parks its stream.
    """

    @property
    def ddl(self) -> str: ...
    @property
    def types(self) -> frozenset[str]: ...

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None: ...


class Consumer:
    """A work consumer: one of its kind per service, whichever replica the broker picks.

    Args:
        name: `<service>.<consumer>`, also its queue's name.
        database: the service's own database, where effects and position live.
    """

    def __init__(
        self, *, name: str, handler: Handler, database: asyncpg.Pool, store: EventStore, amqp_url: str
    ) -> None:
        self.name = name
        self.position = 0
        """The last position this process knows to be applied."""
        self._handler = handler
        self._database = database
        self._feed = LogFeed(queue=name, replica=False, store=store, amqp_url=amqp_url, moved_beyond=self._moved_beyond)
        self._saved = 0
        """The position in the database. It may trail `position` over events that are none of this handler's."""
        self._saved_at_s = 0.0
        self._parked_streams: set[str] = set()
        self._advanced = asyncio.Event()
        self._stopping = asyncio.Event()

    @property
    def head(self) -> int:
        """The log's last position, as far as this consumer has heard."""
        return max(self._feed.head, self.position)

    @property
    def lag(self) -> int:
        """Positions behind the log's head, as far as this consumer has heard of it."""
        return self.head - self.position

    @property
    def connected(self) -> bool:
        """Whether its queue is being consumed."""
        return self._feed.connected

    async def run(self) -> None:
        """Applies the log until stop() is called.

        Raises:
            EpochChanged: the store was restored; nothing may be applied until the operator has decided.
        """
        receiving = asyncio.create_task(self._feed.receive(), name=f"{self.name}.receive")
        try:
            await until_it_works(self.name, self._prepare)
            while not self._stopping.is_set():
                chunk = await self._next(receiving)
                if chunk is None:
                    break
                if chunk.events:
                    await self._apply(chunk)
                else:
                    await until_it_works(self.name, self._reload)
            await self._save_position()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    def stop(self) -> None:
        """Lets run() return after the transaction under way."""
        self._stopping.set()

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """Whether everything up to `position` is applied, waiting for it.

        Works on a standby replica too: there the position moves in the database only.
        """
        deadline = time.monotonic() + timeout_s
        while self.position < position:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return False
            advanced = self._advanced
            try:
                async with asyncio.timeout(min(remaining_s, 0.025)):
                    await advanced.wait()
            except TimeoutError:
                if await self._saved_position() >= position:
                    return True
        return True

    async def _prepare(self) -> None:
        async with self._database.acquire() as db, db.transaction():
            # CREATE TABLE IF NOT EXISTS is not safe against itself.
            await db.execute("SELECT pg_advisory_xact_lock(hashtext('consumer.ddl'))")
            await db.execute(DDL + self._handler.ddl)
            await db.execute("INSERT INTO consumed (consumer) VALUES ($1) ON CONFLICT DO NOTHING", self.name)
        await self._reload()

    async def _reload(self) -> None:
        """Takes position, epoch and parked streams from the database: another replica may have moved them."""
        row = await self._database.fetchrow("SELECT position, epoch FROM consumed WHERE consumer = $1", self.name)
        assert row is not None
        self._saved = row["position"]
        self._advance(row["position"])
        if row["epoch"] is not None:
            self._feed.epoch = UUID(int=row["epoch"].int)
        parked = await self._database.fetch("SELECT DISTINCT stream FROM parked WHERE consumer = $1", self.name)
        self._parked_streams = {row["stream"] for row in parked}

    async def _moved_beyond(self, position: int) -> bool:
        return (await self._saved_position()) > position

    async def _saved_position(self) -> int:
        saved = await self._database.fetchval("SELECT position FROM consumed WHERE consumer = $1", self.name)
        return saved or 0

    async def _next(self, receiving: "asyncio.Task[None]") -> Chunk | None:
        """The next chunk; None when asked to stop. An error that ended `receiving` is raised."""
        following = asyncio.ensure_future(until_it_works(self.name, lambda: self._feed.next(self.position)))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while True:
                unsaved = self.position > self._saved
                done, _ = await asyncio.wait(
                    {following, stopping, receiving},
                    timeout=_SAVE_AFTER_S if unsaved else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if receiving in done:
                    receiving.result()
                if done:
                    return following.result() if following.done() else None
                await until_it_works(self.name, self._save_position)
        finally:
            following.cancel()
            stopping.cancel()

    async def _apply(self, chunk: Chunk) -> None:
        last = chunk.events[-1].position
        mine = [event for event in chunk.events if event.type in self._handler.types]
        if not mine or await self._take_effect(mine, last):
            self._advance(last)
        if time.monotonic() - self._saved_at_s > _SAVE_AFTER_S:
            await until_it_works(self.name, self._save_position)
        await self._feed.settle(chunk)
        lag_s = (datetime.now(UTC) - chunk.events[-1].recorded_at).total_seconds()
        metrics.visible_seconds.labels(self.name).observe(max(lag_s, 0.0))
        metrics.consumed.labels(self.name).inc(len(chunk.events))
        metrics.consumer_lag.labels(self.name).set(self.lag)

    async def _save_position(self) -> None:
        """Saves a position that only other handlers' events have moved; gives way where another replica was first."""
        self._saved_at_s = time.monotonic()
        if self.position == self._saved:
            return
        saved = await self._database.fetchval(
            "UPDATE consumed SET position = $2, epoch = $3 WHERE consumer = $1 AND position = $4 RETURNING position",
            self.name,
            self.position,
            self._feed.epoch,
            self._saved,
        )
        if saved is None:
            await self._reload()
        else:
            self._saved = saved

    async def _take_effect(self, events: list[RecordedEvent], up_to: int) -> bool:
        """Applies or parks the events. False: another replica has, and this one now stands where that one does."""
        try:
            return await until_it_works(self.name, lambda: self._commit(events, up_to))
        except Exception as error:
            log.warning("consumer.one_by_one", consumer=self.name, events=len(events), error=repr(error))
        for event in events:
            if not await self._apply_or_park(event):
                return False
        return True

    async def _apply_or_park(self, event: RecordedEvent) -> bool:
        for attempt in range(1, _ATTEMPTS_BEFORE_PARKING + 1):
            try:
                return await until_it_works(self.name, lambda: self._commit([event], event.position))
            except Exception as error:
                fault = error
                await asyncio.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311 - jitter
        log.error(
            "consumer.parked",
            consumer=self.name,
            stream=event.stream,
            position=event.position,
            event_id=str(event.event_id),
            exc_info=fault,
        )
        reason = "unknown_contract" if isinstance(fault, UnknownContract) else "failed"
        parked = await until_it_works(
            self.name, lambda: self._commit([event], event.position, park=(reason, repr(fault)))
        )
        self._parked_streams.add(event.stream)
        return parked

    async def _commit(self, events: list[RecordedEvent], up_to: int, park: tuple[str, str] | None = None) -> bool:
        """Effects and position in one transaction. False, and nothing at all, where another replica was first."""
        with _tracer.start_as_current_span(f"consume {self.name}") as span:
            if span.is_recording():
                _link(span, events)
            async with self._database.acquire() as proxy, proxy.transaction():
                db = cast(asyncpg.Connection, proxy)
                # The log is the truth: a read model that loses its last commit in a crash loses its position with
                # it, and applies the same events again. So no wait for the disk.
                position = await db.fetchval(
                    "SELECT position, set_config('synchronous_commit', 'off', true) FROM consumed"
                    " WHERE consumer = $1 FOR UPDATE",
                    self.name,
                )
                ours = bool(position == self._saved)
                if ours:
                    behind = [event for event in events if event.stream in self._parked_streams]
                    free = [event for event in events if event.stream not in self._parked_streams]
                    if park is not None:
                        await self._park(db, free, *park)
                    elif free:
                        await self._handler.apply(db, free)
                    await self._park(db, behind, "behind", None)
                    await db.execute(
                        "UPDATE consumed SET position = $2, epoch = $3 WHERE consumer = $1",
                        self.name,
                        up_to,
                        self._feed.epoch,
                    )
        if ours:
            self._saved = up_to
            self._saved_at_s = time.monotonic()
            self._advance(up_to)
        else:
            await self._reload()
        return ours

    async def _park(
        self, db: asyncpg.Connection, events: Sequence[RecordedEvent], reason: str, error: str | None
    ) -> None:
        if not events:
            return
        await db.executemany(
            "INSERT INTO parked (consumer, position, stream, event_id, type, reason, error)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [(self.name, e.position, e.stream, e.event_id, e.type, reason, error) for e in events],
        )
        metrics.parked.labels(self.name).inc(len(events))

    def _advance(self, position: int) -> None:
        self.position = position
        metrics.consumer_position.labels(self.name).set(position)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()


def _link(span: trace.Span, events: Sequence[RecordedEvent]) -> None:
    """Links the span to the requests that appended the events: one chunk serves many of them."""
    parents = {event.metadata.traceparent for event in events[:_MAX_LINKS]} - {None}
    for parent in parents:
        context = trace.get_current_span(_propagator.extract({"traceparent": parent})).get_span_context()
        span.add_link(context)
