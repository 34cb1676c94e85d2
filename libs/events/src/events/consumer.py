"""Consumers: each applies the whole log, in order, with effects and position in one transaction."""

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import asyncpg
import structlog
from opentelemetry import trace

from events import metrics
from events.checkpoint import DDL, Checkpoint
from events.contracts import UnknownContract
from events.envelope import RecordedEvent
from events.feed import Chunk, LogFeed
from events.outage import is_outage, until_it_works
from events.parking import Fault, Parking
from events.projections import Projections
from events.shapes import bring_up, derived_tables, lock_tables
from events.store import EventStore
from events.succession import RECLAIM_S, ReadModels, Superseded
from events.tracing import link

log = structlog.get_logger(__name__)
_tracer = trace.get_tracer("events.consumer")

_ATTEMPTS_BEFORE_PARKING = 4
_FIRST_PAUSE_S = 0.1
"""Before the second attempt at an event of its own fault; doubled for each further one, with jitter."""
_LOOK_AFTER_PARKED_S = 1.0
_RETRIED_AT_ONCE = 500
_DECODED_AT_ONCE = 256
PACE_S = 0.02
"""Between two transactions of a consumer. What comes meanwhile shares the second one: a transaction costs the same for
one event as for fifty. Whoever is waited for (`wait_for`) does not wait; after a pause longer than this nobody does."""

_SAVE_AFTER_S = 0.25
"""How long a position that only other handlers' events have moved may stay unsaved."""


class Handler(Protocol):
    """What a consumer does with events: a read model's rows, or a reaction's appends.

    `apply` gets the events of its `types` and runs inside the transaction that saves the position. An outage it raises
    (database, network, timeout) pauses the consumer; any other exception is the event's own fault and, after some
    attempts, parks its stream.

    More attributes may be there. `repeatable = True` says that applying an event which was applied before
    changes nothing: then it may be replayed. `effects` names tables whose new rows make things happen outside
    (deliveries, mails), each with words for people: a replay and a rebuild leave these tables as they are. `kept`
    names tables of what the log does not hold: a rebuild leaves them, too. `retention` says how long rows are kept
    (`events.retention`).
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
        attempts: how often an event is tried that fails for a reason of its own, before it is parked.
        reclaim_s: see `succession.RECLAIM_S`.
        pace_s: the least time between two transactions; 0 for what others wait for.
    """

    def __init__(
        self,
        *,
        name: str,
        handler: Handler,
        database: asyncpg.Pool,
        store: EventStore,
        amqp_url: str,
        attempts: int = _ATTEMPTS_BEFORE_PARKING,
        reclaim_s: float = RECLAIM_S,
        pace_s: float = PACE_S,
    ) -> None:
        self.name = name
        self.position = 0
        """The last position this process knows to be applied."""
        self._handler = handler
        self._store = store
        self._attempts = attempts
        self._database = database
        self._amqp_url = amqp_url
        self._feed = self._new_feed()
        self._read_models: ReadModels | None = None
        shape: str | None = None
        if isinstance(handler, Projections):
            self._read_models = ReadModels(name, handler, store=store, database=database, reclaim_s=reclaim_s)
            shape = handler.shape
        self._prepared = False
        self.superseded = False
        """Whether another version's read models are live, and this process keeps its own in a schema of theirs."""
        self._parking = Parking(name)
        self._checkpoint = Checkpoint(name, shape, database, self._parking)
        self._looked_at_s = 0.0
        self._up_to_date_at: datetime | None = None
        """A moment whose events are all applied; None before anything is known."""
        metrics.consumer_lag.labels(name).set_function(lambda: self.lag)
        metrics.consumer_lag_seconds.labels(name).set_function(lambda: self.lag_seconds)
        self._advanced = asyncio.Event()
        self._stopping = asyncio.Event()
        self._pace_s = pace_s
        self._awaited: list[int] = []
        """The positions that somebody waits for."""
        self._hurry = asyncio.Event()
        """Set when somebody begins to wait."""
        self._fetched_at_s = 0.0
        self._following: tuple[int, asyncio.Future[Chunk]] | None = None
        """What comes after a position: on its way, or here and not applied yet."""

    @property
    def head(self) -> int:
        """The log's last position, as far as this consumer has heard."""
        return max(self._feed.head, self.position)

    @property
    def lag(self) -> int:
        """Positions behind the log's head, as far as this consumer has heard of it."""
        return self.head - self.position

    @property
    def lag_seconds(self) -> float:
        """How long ago everything was applied, in seconds; 0 at the log's head. It grows while nothing is applied."""
        if not self.lag or self._up_to_date_at is None:
            return 0.0
        return (datetime.now(UTC) - self._up_to_date_at).total_seconds()

    @property
    def connected(self) -> bool:
        """Whether its queue is being consumed; another version's process does so while this one is superseded."""
        return self.superseded or self._feed.connected

    async def run(self) -> None:
        """Applies the log until stop() is called.

        Raises:
            EpochChanged: the store was restored; nothing may be applied until the operator has decided.
        """
        await until_it_works(self.name, self.prepare)
        while not self._stopping.is_set():
            try:
                await self._consume()
            except Superseded:
                await self._stand_aside()

    async def _consume(self) -> None:
        """Applies what the queue brings until asked to stop.

        Raises:
            Superseded: another version is to apply from here on.
        """
        receiving = asyncio.create_task(self._feed.receive(), name=f"{self.name}.receive")
        try:
            await until_it_works(self.name, self._reload)
            await self._look_after_parked()
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
            await asyncio.gather(receiving, self._forget_following(), return_exceptions=True)

    async def _stand_aside(self) -> None:
        """Leaves the queue to the version that is live, until this one is again."""
        assert self._read_models is not None
        self.superseded = True
        try:
            await self._read_models.follow(self._stopping, self._advance)
        finally:
            self.superseded = False
        self._feed = self._new_feed()

    def _new_feed(self) -> LogFeed:
        return LogFeed(
            queue=self.name,
            replica=False,
            store=self._store,
            amqp_url=self._amqp_url,
            moved_beyond=self._moved_beyond,
        )

    def stop(self) -> None:
        """Lets run() return after the transaction under way."""
        self._stopping.set()

    async def wait_for(self, position: int, timeout_s: float, *, hurry: bool = True) -> bool:
        """Whether everything up to `position` is applied, waiting for it; in a hurry nothing gathers before it is.

        Works on a standby replica too: there the position moves in the database only.
        """
        if self.position >= position:
            return True
        if not hurry:
            return await self._reach(position, timeout_s)
        self._awaited.append(position)
        self._hurry.set()
        try:
            return await self._reach(position, timeout_s)
        finally:
            self._awaited.remove(position)

    async def _reach(self, position: int, timeout_s: float) -> bool:
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
                if await self._checkpoint.current() >= position:
                    return True
        return True

    async def prepare(self) -> None:
        """Makes the tables what this version of the code needs; builds read models that differ, however long it takes.

        Raises:
            shapes.NotAdditive: tables that are not built from the log differ by more than new columns.
        """
        if self._prepared:
            return
        async with self._database.acquire() as proxy, proxy.transaction():
            db = cast(asyncpg.Connection, proxy)
            await lock_tables(db)
            await bring_up(db, "events.consumer", DDL)
            if self._read_models is None:
                await bring_up(db, self.name, self._handler.ddl)
                await db.execute(
                    "INSERT INTO consumed (consumer, tables) VALUES ($1, $2)"
                    " ON CONFLICT (consumer) DO UPDATE SET tables = excluded.tables",
                    self.name,
                    derived_tables(self._handler),
                )
        if self._read_models is not None:
            await self._read_models.prepare()
        await self._parking.ask_for_unknown(self._database)
        self._prepared = True

    async def _reload(self) -> None:
        """Takes position, epoch and parked streams from the database: another replica may have moved them.

        Raises:
            Superseded: the position is that of another version's tables.
        """
        await self._checkpoint.load()
        self._advance(self._checkpoint.position)
        if self._checkpoint.epoch is not None:
            self._feed.epoch = self._checkpoint.epoch

    async def _moved_beyond(self, position: int) -> bool:
        return await self._checkpoint.current() > position

    async def _next(self, receiving: "asyncio.Task[None]") -> Chunk | None:
        """The next chunk; None when asked to stop. An error that ended `receiving` is raised."""
        if self._following is None or self._following[0] != self.position:
            await self._forget_following()
            self._follow(self.position)
        assert self._following is not None
        _, following = self._following
        stopping = asyncio.ensure_future(self._stopping.wait())
        any_of: set[asyncio.Future[Any]] = {following, stopping, receiving}
        try:
            while True:
                unsaved = self.position > self._checkpoint.position
                done, _ = await asyncio.wait(
                    any_of,
                    timeout=_SAVE_AFTER_S if unsaved else _LOOK_AFTER_PARKED_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if receiving in done:
                    receiving.result()
                if done:
                    if not following.done():
                        return None
                    self._following = None
                    return following.result()
                if unsaved:
                    await until_it_works(self.name, self._save_position)
                await self._look_after_parked()
        finally:
            stopping.cancel()

    def _follow(self, position: int) -> None:
        following = until_it_works(self.name, lambda: self._fetch(position))
        self._following = position, asyncio.ensure_future(following)

    async def _fetch(self, position: int) -> Chunk:
        """The next chunk with its payloads decoded, while the database works on the one before."""
        await self._keep_pace(position)
        chunk = await self._feed.next(position)
        for number, event in enumerate(chunk.events, 1):
            if event.type in self._handler.types:
                with contextlib.suppress(Exception):  # whoever applies it meets it again, and parks it
                    event.payload  # noqa: B018
            if number % _DECODED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._fetched_at_s = time.monotonic()
        return chunk

    async def _keep_pace(self, position: int) -> None:
        """Lets events gather for a while after the last chunk, unless somebody waits for one after `position`."""
        until_s = self._fetched_at_s + self._pace_s
        while (pause_s := until_s - time.monotonic()) > 0 and max(self._awaited, default=0) <= position:
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()

    async def _forget_following(self) -> None:
        """What it may already have taken out of the queue is a gap then, and comes from the log."""
        if self._following is not None:
            _, following = self._following
            self._following = None
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _apply(self, chunk: Chunk) -> None:
        last = chunk.events[-1].position
        # The next chunk is received and decoded while the database works on this one.
        self._follow(last)
        mine = [event for event in chunk.events if event.type in self._handler.types]
        if not mine or await self._take_effect(mine, last):
            self._advance(last)
        if time.monotonic() - self._checkpoint.saved_at_s > _SAVE_AFTER_S:
            await until_it_works(self.name, self._save_position)
        await self._look_after_parked()
        await self._feed.settle(chunk)
        lag_s = (datetime.now(UTC) - chunk.events[-1].recorded_at).total_seconds()
        metrics.visible_seconds.labels(self.name).observe(max(lag_s, 0.0))
        metrics.consumed.labels(self.name).inc(len(chunk.events))
        if self._up_to_date_at is None or chunk.events[-1].recorded_at > self._up_to_date_at:
            self._up_to_date_at = chunk.events[-1].recorded_at

    async def _save_position(self) -> None:
        """Saves a position that only other handlers' events have moved; gives way where another replica was first."""
        if not await self._checkpoint.save(self.position, self._feed.epoch):
            await self._reload()

    async def _take_effect(self, events: list[RecordedEvent], up_to: int) -> bool:
        """Applies or parks the events. False: another replica has, and this one now stands where that one does.

        A fault among many is found by halves: whatever is before it takes effect first.
        """
        try:
            return await until_it_works(self.name, lambda: self._commit(events, up_to))
        except Superseded:
            raise
        except Exception as error:
            if len(events) == 1:
                return await self._try_again_or_park(events[0], up_to, error)
            log.warning("consumer.fault_among_many", consumer=self.name, events=len(events), error=repr(error))
        middle = len(events) // 2
        return await self._take_effect(events[:middle], events[middle].position - 1) and await self._take_effect(
            events[middle:], up_to
        )

    async def _try_again_or_park(self, event: RecordedEvent, up_to: int, fault: Exception) -> bool:
        attempts = 1
        # A contract that is not known now will not be known in a second.
        while attempts < self._attempts and not isinstance(fault, UnknownContract):
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (attempts - 1) * random.uniform(0.5, 1))  # noqa: S311 - jitter
            attempts += 1
            try:
                return await until_it_works(self.name, lambda: self._commit([event], up_to))
            except Superseded:
                raise
            except Exception as error:
                fault = error
        log.error(
            "consumer.parked",
            consumer=self.name,
            stream=event.stream,
            position=event.position,
            event_id=str(event.event_id),
            attempts=attempts,
            exc_info=fault,
        )
        return await until_it_works(self.name, lambda: self._commit([event], up_to, park=Fault(fault, attempts)))

    async def _commit(self, events: list[RecordedEvent], up_to: int, park: Fault | None = None) -> bool:
        """Effects and position in one transaction. False, and nothing at all, where another replica was first."""
        with _tracer.start_as_current_span(f"consume {self.name}") as span:
            link(span, (event.metadata.traceparent for event in events))
            async with self._database.acquire() as proxy, proxy.transaction():
                db = cast(asyncpg.Connection, proxy)
                ours = await self._checkpoint.lock(db)
                if ours:
                    parked = self._parking.streams
                    behind = [event for event in events if event.stream in parked] if parked else []
                    free = [event for event in events if event.stream not in parked] if behind else events
                    if park is not None and free:
                        await self._parking.park(db, free, park)
                        await self._parking.changed(db)
                    elif free:
                        await self._handler.apply(db, free)
                    if behind:
                        await self._parking.park(db, behind, None)
                    await self._checkpoint.move(db, up_to, self._feed.epoch)
        if not ours:
            await self._reload()
            return False
        self._checkpoint.moved(up_to)
        self._advance(up_to)
        return True

    async def _look_after_parked(self) -> None:
        """Tries again what somebody asked to be tried again."""
        if time.monotonic() - self._looked_at_s < _LOOK_AFTER_PARKED_S:
            return
        self._looked_at_s = time.monotonic()
        if not self.lag:
            self._up_to_date_at = datetime.now(UTC)
        if not self._parking.streams and self._read_models is None:
            return
        try:
            await self._checkpoint.load_parked()
            for stream in await self._parking.due(self._database):
                await self._retry(stream)
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("consumer.retry_put_off", consumer=self.name, error=repr(error))

    async def _retry(self, stream: str) -> None:
        """Applies the stream's parked events in order, the first one by itself; stops at the first that fails."""
        at_once = 1
        while True:
            try:
                applied = await self._retry_first(stream, at_once)
            except Exception as error:
                if is_outage(error) or isinstance(error, Superseded):
                    raise
                if at_once == 1:
                    return await self._failed_again(stream, Fault(error, 1))
                at_once //= 2  # one of them: those before it go first
                continue
            if not applied:
                return None
            metrics.retried.labels(self.name).inc(applied)
            at_once = min(at_once * 2, _RETRIED_AT_ONCE)

    async def _retry_first(self, stream: str, at_once: int) -> int:
        async with self._database.acquire() as proxy, proxy.transaction():
            db = cast(asyncpg.Connection, proxy)
            await self._checkpoint.lock(db)
            positions = await self._parking.first(db, stream, at_once)
            if positions:
                events = await self._store.read_positions(positions)
                await self._handler.apply(db, events)
                await self._parking.unpark(db, stream, positions)
            version = await self._parking.changed(db)
            await self._parking.load(db, version)
        log.info("consumer.unparked", consumer=self.name, stream=stream, events=len(positions))
        return len(positions)

    async def _failed_again(self, stream: str, fault: Fault) -> None:
        async with self._database.acquire() as proxy, proxy.transaction():
            db = cast(asyncpg.Connection, proxy)
            await self._checkpoint.lock(db)
            for position in await self._parking.first(db, stream, 1):
                await self._parking.failed_again(db, position, fault)
        log.warning("consumer.parked_again", consumer=self.name, stream=stream, error=fault.error)

    def _advance(self, position: int) -> None:
        self.position = position
        metrics.consumer_position.labels(self.name).set(position)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()
