"""Rebuilding a read model beside the live one, and putting it in its place.

A *generation* is a schema of its own with the tables of some read models, filled straight from the log. It follows the
live consumer's position: exactly the events that the live tables hold, none more. At equal position, under the lock of
the consumer's row, the tables change schemas; readers see the old rows or the new ones, and wait for neither. The old
tables stay as the generation before, which can be caught up and put back the same way.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import asyncpg
import msgspec
import structlog

from events.envelope import RecordedEvent
from events.feed import EpochChanged
from events.log_chunks import log_chunks
from events.operations import RebuildRequest, Refused
from events.outage import is_outage
from events.parking import skipped_positions
from events.planner import Statistics
from events.projections import Projections
from events.row_differences import differences
from events.shapes import PUBLIC, Models, changed, schema_of, shape_of
from events.store import EventStore

log = structlog.get_logger(__name__)

_NEAR_EVENTS = 2_000
"""So close to the live position a generation must be before the live consumer is made to wait for the rest."""
_LOCK_TIMEOUT_MS = 100
_SWAP_ATTEMPTS = 100
_USED_LATELY = "interval '30 s'"
"""The tables of a version whose processes have read them so lately are not dropped."""


class Progress(Protocol):
    """Who is told how far it is; may wait, or raise `operations.Cancelled`."""

    applied: int

    async def at(self, position: int, up_to: int, *, now: bool = False) -> None: ...


class Overtaken(Exception):
    """Another process has brought the same generation further."""


class Succession(NamedTuple):
    """One version's read models are to take the place of another's."""

    live: Models
    ours: Models

    @property
    def names(self) -> list[str]:
        """What the version that is live now takes along."""
        return changed(self.ours, self.live)

    @property
    def tables(self) -> list[str]:
        return sorted({table for name in self.names for table in self.live[name].tables})


class _Target(NamedTuple):
    """What the live tables hold: everything up to `position` but these."""

    position: int
    epoch: UUID
    parked: set[int]
    skipped: set[int]


class Rebuild:
    """The work on one generation.

    Args:
        live: a connection to the service's database, for locks and for comparing.
        own: another one, whose search path is changed to the generation's schema.
        session: gives one more, for what goes on beside.
    """

    def __init__(
        self,
        *,
        consumer: str,
        projections: Projections,
        store: EventStore,
        live: asyncpg.Connection,
        own: asyncpg.Connection,
        session: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]],
        progress: Progress,
    ) -> None:
        self._consumer = consumer
        self._projections = projections
        self._store = store
        self._live = live
        self._own = own
        self._session = session
        self._statistics = Statistics(session, self._qualified_tables)
        self._progress = progress
        self._types = sorted(projections.types)
        self._number = 0
        self._schema = ""
        self._succession: Succession | None = None
        self.position = 0
        """What the generation holds: everything up to here."""
        self._deferred: set[int] = set()

    async def run(self, request: RebuildRequest) -> dict[str, Any]:
        """Does what is asked; gives what to tell the operator.

        Raises:
            Refused: there is no generation to promote, discard or go back to.
            Cancelled: the operator wishes so; what was built is dropped, except for a generation that was ready before.
            Exception: an event cannot be applied. The live tables are as they were.
        """
        match request.action:
            case "build":
                await self._fill()
            case "promote" | "discard":
                await self._take("ready", "no generation is ready: `sangam rebuild` with --diff or --keep builds one")
            case "rollback":
                await self._take("previous", "there is no generation before this one")
        if request.action == "discard":
            await self._drop()
            return {"discarded": self._schema}
        result: dict[str, Any] = {"generation": self._number, "schema": self._schema}
        await self._catch_up()
        if request.diff:
            result["diff"] = await self.diff()
        if request.action in ("promote", "rollback") or request.promote:
            result["promoted_at_position"] = await self._promote()
        else:
            await self._live.execute("UPDATE generation SET state = 'ready' WHERE number = $1", self._number)
        return {**result, "position": self.position}

    async def succeed(self, succession: Succession) -> int:
        """Puts this version's tables in the place of another's, which keeps its own in its schema.

        From a generation of this version that was live before, or is half built, else from the log's beginning.

        Raises:
            Exception: an event cannot be applied, or there is an outage. The live tables are as they were.
        """
        self._succession = succession
        head = await self._store.head()
        while True:
            try:
                row = await self._live.fetchrow(
                    "SELECT * FROM generation WHERE consumer = $1 AND projections = $2 AND shape = $3 AND epoch = $4"
                    " AND state = 'previous' AND to_regnamespace(schema) IS NOT NULL ORDER BY number DESC LIMIT 1",
                    self._consumer,
                    self._projections.names,
                    self._projections.shape,
                    head.epoch,
                )
                if row is not None:
                    await self.use(row)
                else:
                    await self._fill()
                await self._catch_up()
                return await self._promote()
            except Overtaken:
                continue

    async def follow(self) -> int:
        """Brings the generation in use to the live position; gives that.

        Raises:
            Overtaken: another process has, meanwhile.
        """
        target = await self._target()
        await self._follow(target)
        return target.position

    async def _fill(self) -> None:
        await self._create_or_resume()
        try:
            await self._own.execute(self._projections.ddl or "SELECT 1")
            await self._build()
        except Exception as error:
            # Of no use any more. After an outage, or when the worker is killed, another one goes on.
            if not is_outage(error):
                await self._drop()
            raise

    # --- the generation -----------------------------------------------------------------------------

    async def _create_or_resume(self) -> None:
        target = await self._target()
        row = await self._live.fetchrow(
            "SELECT * FROM generation WHERE consumer = $1 AND projections = $2 AND state = 'building' AND epoch = $3"
            " AND shape = $4 ORDER BY number DESC LIMIT 1",
            self._consumer,
            self._projections.names,
            target.epoch,
            self._projections.shape,
        )
        if row is not None and await self._live.fetchval("SELECT to_regnamespace($1) IS NOT NULL", row["schema"]):
            await self.use(row)
            return
        await self._drop_others("building", "ready")
        async with self._live.transaction():
            number = await self._live.fetchval(
                "INSERT INTO generation (consumer, projections, schema, state, epoch, shape)"
                " VALUES ($1, $2, '', 'building', $3, $4) RETURNING number",
                self._consumer,
                self._projections.names,
                target.epoch,
                self._projections.shape,
            )
            schema = f"generation_{number}"
            await self._live.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE; CREATE SCHEMA "{schema}"')
            row = await self._live.fetchrow(
                "UPDATE generation SET schema = $2 WHERE number = $1 RETURNING *", number, schema
            )
        assert row is not None
        await self.use(row)

    async def _take(self, state: str, otherwise: str) -> None:
        row = await self._live.fetchrow(
            "SELECT * FROM generation WHERE consumer = $1 AND projections = $2 AND state = $3"
            " AND (shape IS NULL OR shape = $4) ORDER BY number DESC LIMIT 1",
            self._consumer,
            self._projections.names,
            state,
            self._projections.shape,
        )
        if row is None:
            raise Refused(otherwise)
        if UUID(int=row["epoch"].int) != (epoch := (await self._store.head()).epoch):
            raise Refused(f"generation {row['number']} is of log epoch {row['epoch']}, and the store is now at {epoch}")
        await self.use(row)

    async def use(self, row: asyncpg.Record) -> None:
        """Goes on with a generation that is there."""
        self._number, self._schema, self.position = row["number"], row["schema"], row["position"]
        self._deferred = set(row["deferred"])
        # Only the generation's own schema: a read model that needs another one's table says so by failing.
        await self._own.execute(
            f'SET search_path = "{self._schema}"; SET synchronous_commit = off;'
            # A plan made while a table was empty would scan it for ever.
            " SET plan_cache_mode = force_custom_plan"
        )

    async def _drop(self) -> None:
        await self._live.execute(f'DROP SCHEMA IF EXISTS "{self._schema}" CASCADE')
        await self._live.execute("DELETE FROM generation WHERE number = $1", self._number)

    async def _drop_others(self, *states: str) -> None:
        """Earlier generations of any of these read models: at most one is ready and one is the one before."""
        rows = await self._live.fetch(
            "DELETE FROM generation WHERE consumer = $1 AND projections && $2 AND state = ANY ($3) AND number <> $4"
            f" AND (used_at IS NULL OR used_at < now() - {_USED_LATELY}) RETURNING schema",
            self._consumer,
            self._projections.names,
            list(states),
            self._number,
        )
        for row in rows:
            await self._live.execute(f'DROP SCHEMA IF EXISTS "{row["schema"]}" CASCADE')

    # --- filling ------------------------------------------------------------------------------------

    async def _target(self) -> _Target:
        """One snapshot: a position and what is parked at it belong together."""
        async with self._live.transaction(isolation="repeatable_read"):
            return await self._target_here()

    async def _target_here(self) -> _Target:
        row = await self._live.fetchrow("SELECT position, epoch FROM consumed WHERE consumer = $1", self._consumer)
        if row is None:
            raise Refused(f"{self._consumer} has never run")
        parked = await self._live.fetch("SELECT position FROM parked WHERE consumer = $1", self._consumer)
        head = await self._store.head()
        epoch = UUID(int=row["epoch"].int) if row["epoch"] is not None else head.epoch
        if epoch != head.epoch:
            raise EpochChanged(self._consumer, epoch, head.epoch)
        return _Target(
            row["position"],
            epoch,
            {each["position"] for each in parked},
            await skipped_positions(self._live, self._consumer),
        )

    async def _build(self) -> None:
        while True:
            target = await self._target()
            await self._follow(target)
            await self._progress.at(self.position, target.position, now=True)
            if (await self._target()).position - self.position <= _NEAR_EVENTS:
                return

    async def _catch_up(self) -> None:
        """As near as the live consumer lets us, without making it wait."""
        for _ in range(20):
            target = await self._target()
            await self._follow(target)
            if (await self._target()).position - self.position <= _NEAR_EVENTS:
                break
        await self._statistics.complete(self.position)

    async def _follow(self, target: _Target, *, under_lock: bool = False) -> None:
        """Brings the generation to what `target` says, exactly. Under the lock nobody may pause it."""
        released = sorted(self._deferred - target.parked)
        if released:
            events = await self._store.read_positions([each for each in released if each not in target.skipped])
            self._deferred -= set(released)
            await self._apply(events, self.position)
        async with self._statistics.beside():
            async for last, events in log_chunks(self._store, self._types, self.position, target.position):
                if target.skipped:
                    events = [event for event in events if event.position not in target.skipped]
                now = events
                if target.parked:
                    self._deferred |= {event.position for event in events if event.position in target.parked}
                    now = [event for event in events if event.position not in target.parked]
                await self._apply(now, last)
                self._progress.applied += len(events)
                if under_lock:
                    continue
                await self._progress.at(last, target.position)
                await self._statistics.reached(last, target.position)

    async def _apply(self, events: list[RecordedEvent], reached: int) -> None:
        async with self._own.transaction():
            # First, so that of two processes only one applies.
            ours = await self._own.fetchval(
                "UPDATE public.generation SET position = $2, deferred = $3 WHERE number = $1 AND position = $4"
                " RETURNING true",
                self._number,
                reached,
                sorted(self._deferred),
                self.position,
            )
            if not ours:
                raise Overtaken
            if events:
                await self._projections.apply(self._own, events)
        self.position = reached

    async def _qualified_tables(self) -> list[str]:
        return [f'"{self._schema}"."{table}"' for table in await self._tables()]

    # --- comparing and swapping ---------------------------------------------------------------------

    async def _tables(self) -> list[str]:
        """The generation's tables that take the live ones' place. What makes outside effects is nobody's to replace."""
        rows = await self._live.fetch(
            "SELECT c.relname, c.relkind FROM pg_class c WHERE c.relnamespace = $1::regnamespace"
            " AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.relname",
            f'"{self._schema}"',
        )
        if other := [row["relname"] for row in rows if row["relkind"] not in (b"r", b"p")]:
            raise Refused(f"only tables can be swapped, and {', '.join(other)} is none")
        others = self._projections.kept | self._projections.effects.keys()
        return [row["relname"] for row in rows if row["relname"] not in others]

    async def _at_equal_position(self) -> _Target:
        """Inside a transaction of `live`: locks the consumer's row and brings the generation to its position."""
        await self._live.execute("SELECT FROM consumed WHERE consumer = $1 FOR UPDATE", self._consumer)
        target = await self._target_here()
        if target.position - self.position > 2 * _NEAR_EVENTS:
            raise _TooFar
        await self._follow(target, under_lock=True)
        return target

    async def diff(self) -> dict[str, Any]:
        """Rows that differ between the live tables and the generation, at one and the same position."""
        async with self._session() as other:
            await self._near()
            async with self._live.transaction():
                await self._at_equal_position()
                # The snapshot is taken under the lock; comparing holds up nobody.
                await other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1")
            return {
                table: found
                for table in await self._tables()
                if (found := await differences(other, self._schema, table))
            }

    async def _near(self) -> None:
        while (await self._target()).position - self.position > _NEAR_EVENTS:
            await self._follow(await self._target())

    async def _promote(self) -> int:
        """The swap. Readers wait for no longer than it takes to rename the tables.

        Raises:
            Refused: the tables were never free for a moment.
        """
        for attempt in range(_SWAP_ATTEMPTS):
            try:
                await self._near()
                async with self._live.transaction():
                    target = await self._at_equal_position()
                    await self._swap(target)
            except (_TooFar, asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                # A reader held a table for longer; those behind us in the queue have waited enough.
                await asyncio.sleep(min(0.05 * 1.2**attempt, 1) * random.uniform(0.5, 1))  # noqa: S311 - jitter
                continue
            log.info("rebuild.promoted", consumer=self._consumer, generation=self._number, position=target.position)
            return target.position
        raise Refused("some reader holds a table all the time: end long queries (pg_stat_activity), then promote again")

    async def _swap(self, target: _Target) -> None:
        shape = shape_of(self._succession.live) if self._succession else self._projections.shape
        names = self._succession.names if self._succession else self._projections.names
        before = schema_of(shape) if self._succession else f"before_generation_{self._number}"
        tables = await self._tables()
        await self._live.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}; SET LOCAL search_path = {PUBLIC}")
        await self._live.execute(f'DROP SCHEMA IF EXISTS "{before}" CASCADE; CREATE SCHEMA "{before}"')
        existing = [
            table
            for table in sorted({*tables, *(self._succession.tables if self._succession else ())})
            if await self._live.fetchval("SELECT to_regclass($1) IS NOT NULL", f'public."{table}"')
        ]
        # All locks first, in one order: the tables change places together or not at all.
        if existing:
            locked = ", ".join(f'public."{table}"' for table in existing)
            await self._live.execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE")
        for table in existing:
            await self._live.execute(f'ALTER TABLE public."{table}" SET SCHEMA "{before}"')
        for table in tables:
            await self._live.execute(f'ALTER TABLE "{self._schema}"."{table}" SET SCHEMA public')
        await self._drop_others("previous")
        await self._live.execute(f'DROP SCHEMA "{self._schema}" CASCADE')
        await self._live.execute(
            "DELETE FROM generation WHERE consumer = $1 AND projections && $2 AND state = 'live'",
            self._consumer,
            self._projections.names,
        )
        await self._live.execute(
            "UPDATE generation SET state = 'live', schema = 'public', position = $2, promoted_at = now()"
            " WHERE number = $1",
            self._number,
            target.position,
        )
        await self._live.execute(
            "INSERT INTO generation (consumer, projections, schema, state, position, epoch, deferred, shape, used_at)"
            " VALUES ($1, $2, $3, 'previous', $4, $5, $6, $7, CASE WHEN $8 THEN now() END)",
            self._consumer,
            names,
            before,
            target.position,
            target.epoch,
            sorted(target.parked),
            shape,
            self._succession is not None,
        )
        if self._succession is not None:
            ours = self._succession.ours
            await self._live.execute(
                "UPDATE consumed SET shape = $2, models = $3, tables = $4 WHERE consumer = $1",
                self._consumer,
                shape_of(ours),
                msgspec.json.encode(ours),
                sorted({table for model in ours.values() for table in model.tables}),
            )


class _TooFar(Exception):
    """The live consumer got ahead between catching up and the lock."""
