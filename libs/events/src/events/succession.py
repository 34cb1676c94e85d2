"""What happens when a version of a service starts whose read models are not those that the database has.

It builds its own beside the live ones, from the log, and puts them in their place before it serves; nobody has to ask
for it. Processes of the version before may still run: their tables move to the schema `shape_…` that comes first in
their search path, so that their statements go on finding them, and they keep them fresh themselves until they end. The
last version that started is the live one; a version that starts again, after a rollback or a crash, takes its tables
back, caught up, without a rebuild.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import asyncpg
import msgspec
import structlog

from events import metrics
from events.operations import WORKER_LOCK
from events.outage import until_it_works
from events.projections import Projections
from events.rebuilding import Overtaken, Rebuild, Succession
from events.shapes import Model, Models, bring_up, catalog, changed, expected, lock_tables, shape_of
from events.store import EventStore

log = structlog.get_logger(__name__)

RECLAIM_S = 15.0
"""So long the live version may stand still, while the log goes on, before an older one that still runs takes over."""

_POLL_S = 0.05
_SAY_S = 5.0
_UNKNOWN = "unknown"


class Superseded(Exception):
    """The tables of another version are live: whoever meant to write must not."""


class Abandoned(Exception):
    """This version's tables are gone, or others are needed than it kept: start again."""


class _Spoken:
    """Progress for the log's readers: every few seconds a line."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._said_at_s = time.monotonic()
        self.applied = 0

    async def at(self, position: int, up_to: int, *, now: bool = False) -> None:
        if time.monotonic() - self._said_at_s > _SAY_S:
            self._said_at_s = time.monotonic()
            log.info("read_models.building", consumer=self._consumer, position=position, up_to=up_to)


class ReadModels:
    """The tables of one consumer's read models, as this process has them.

    Args:
        consumer: its full name.
        reclaim_s: see `RECLAIM_S`.
    """

    def __init__(
        self,
        consumer: str,
        projections: Projections,
        *,
        store: EventStore,
        database: asyncpg.Pool,
        reclaim_s: float = RECLAIM_S,
    ) -> None:
        self._consumer = consumer
        self._projections = projections
        self._store = store
        self._database = database
        self._reclaim_s = reclaim_s

    async def prepare(self) -> None:
        """Makes this version's tables the live ones. Returns when they are and hold what the consumer has applied.

        Raises:
            shapes.NotAdditive: tables that are not built from the log differ by more than new columns.
            Exception: an event cannot be applied, or there is an outage. What was live is live still.
        """
        if await self._are_live():
            return
        async with self._connections() as (live, own):
            await self._wait_for_lock(live)
            try:
                # Another replica may have done it meanwhile.
                if not await self._are_live():
                    await self._succeed(live, own)
            finally:
                if not live.is_closed():
                    await live.execute("SELECT pg_advisory_unlock($1)", WORKER_LOCK)
        if not await self._are_live():
            raise Superseded(f"{self._consumer}: another version has started in the same moment")

    async def _are_live(self) -> bool:
        """Whether the live tables are ours. Creates them where there are none yet."""
        projections = self._projections
        async with self._database.acquire() as proxy, proxy.transaction():
            db = cast(asyncpg.Connection, proxy)
            await lock_tables(db)
            row = await db.fetchrow("SELECT shape, models FROM consumed WHERE consumer = $1", self._consumer)
            if row is not None and row["shape"] != projections.shape:
                found = _decode(row["models"]) if row["models"] else await self._found(db)
                if shape_of(found) != projections.shape:
                    return False
            await bring_up(db, self._consumer, projections.ddl)
            await db.execute(
                "INSERT INTO consumed (consumer, shape, models, tables) VALUES ($1, $2, $3, $4) ON CONFLICT (consumer)"
                " DO UPDATE SET shape = excluded.shape, models = excluded.models, tables = excluded.tables",
                self._consumer,
                projections.shape,
                msgspec.json.encode(projections.models),
                sorted({table for model in projections.models.values() for table in model.tables}),
            )
            return True

    async def _found(self, db: asyncpg.Connection) -> Models:
        """What a version left that did not write its shape down: told from the tables themselves."""
        ours = self._projections.models
        wanted = await expected(db, self._projections.ddl)
        have = await catalog(db, "public", wanted)
        if not have:
            return ours
        return {
            name: model if all(have.get(table) == wanted[table] for table in model.tables)
            # Whichever of these tables are there, they are of that version.
            else Model(fingerprint=_UNKNOWN, tables=model.tables)
            for name, model in ours.items()
        }  # fmt: skip

    async def _live_models(self, db: asyncpg.Connection | asyncpg.Pool) -> Models:
        row = await db.fetchrow("SELECT models FROM consumed WHERE consumer = $1", self._consumer)
        if row is not None and row["models"]:
            return _decode(row["models"])
        async with self._database.acquire() as proxy, proxy.transaction():
            found = cast(asyncpg.Connection, proxy)
            await lock_tables(found)
            return await self._found(found)

    async def _succeed(self, live: asyncpg.Connection, own: asyncpg.Connection) -> None:
        started_s = time.monotonic()
        succession = Succession(await self._live_models(live), self._projections.models)
        names = changed(succession.live, succession.ours)
        log.info("read_models.differ", consumer=self._consumer, build=names, leave=succession.names)
        progress = _Spoken(self._consumer)
        rebuild = self._rebuild(self._projections.only(names), live, own, progress)
        position = await rebuild.succeed(succession)
        taken_s = time.monotonic() - started_s
        metrics.read_models_built.labels(self._consumer).inc()
        metrics.read_models_built_seconds.labels(self._consumer).set(taken_s)
        log.info(
            "read_models.succeeded",
            consumer=self._consumer,
            built=names,
            position=position,
            events=progress.applied,
            seconds=round(taken_s, 2),
        )

    async def follow(self, stopping: asyncio.Event, advanced: Callable[[int], None]) -> None:
        """While another version is live: keeps this one's tables fresh. Returns when it is live again, or stopping.

        Args:
            advanced: told the position that the tables hold.

        Raises:
            Abandoned: the tables are gone, because more than one version has come since.
        """
        metrics.read_models_outgoing.labels(self._consumer).set(1)
        log.info("read_models.superseded", consumer=self._consumer)
        try:
            while not stopping.is_set():
                if await until_it_works(self._consumer, lambda: self._follow_on_one_session(stopping, advanced)):
                    break
            if not stopping.is_set():
                log.info("read_models.live_again", consumer=self._consumer)
        finally:
            metrics.read_models_outgoing.labels(self._consumer).set(0)

    async def _follow_on_one_session(self, stopping: asyncio.Event, advanced: Callable[[int], None]) -> bool:
        """True: this version is live again. False: it is stopping."""
        ours = self._projections.models
        watch = _Standstill(self._reclaim_s)
        used_at_s = 0.0
        async with self._connections() as (live, own):
            while not stopping.is_set():
                row = await live.fetchrow("SELECT shape, models FROM consumed WHERE consumer = $1", self._consumer)
                if row is None or row["shape"] == self._projections.shape:
                    return True
                needed = changed(_decode(row["models"]), ours)
                generation = await live.fetchrow(
                    "SELECT * FROM generation WHERE consumer = $1 AND shape = $2 AND state = 'previous'"
                    " AND schema LIKE 'shape%' ORDER BY number DESC LIMIT 1",
                    self._consumer,
                    self._projections.shape,
                )
                if generation is None or set(generation["projections"]) != set(needed):
                    raise Abandoned(f"{self._consumer}: another version has taken the place of the one after this")
                rebuild = self._rebuild(self._projections.only(needed), live, own, _Spoken(self._consumer))
                await rebuild.use(generation)
                with contextlib.suppress(Overtaken):
                    live_position = await rebuild.follow()
                    advanced(rebuild.position)
                    if watch.stands_still(live_position, (await self._store.head()).position):
                        log.warning("read_models.reclaimed", consumer=self._consumer, position=live_position)
                        break
                if time.monotonic() - used_at_s > 1:
                    used_at_s = time.monotonic()
                    await live.execute("UPDATE generation SET used_at = now() WHERE number = $1", generation["number"])
                await asyncio.sleep(_POLL_S)
            else:
                return False
        await self.prepare()
        return True

    def _rebuild(
        self, projections: Projections, live: asyncpg.Connection, own: asyncpg.Connection, progress: _Spoken
    ) -> Rebuild:
        @contextlib.asynccontextmanager
        async def session() -> AsyncIterator[asyncpg.Connection]:
            async with self._database.acquire() as beside:
                yield cast(asyncpg.Connection, beside)

        return Rebuild(
            consumer=self._consumer,
            projections=projections,
            store=self._store,
            live=live,
            own=own,
            session=session,
            progress=progress,
        )

    @contextlib.asynccontextmanager
    async def _connections(self) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection]]:
        """Two of the pool's. The second one's settings are changed meanwhile, so it is not given back."""
        async with self._database.acquire() as live, self._database.acquire() as own:
            try:
                yield cast(asyncpg.Connection, live), cast(asyncpg.Connection, own)
            finally:
                own.terminate()

    async def _wait_for_lock(self, live: asyncpg.Connection) -> None:
        """One at a time builds read models of a database: a starting replica, or the worker of an operation."""
        said_at_s = 0.0
        while not await live.fetchval("SELECT pg_try_advisory_lock($1)", WORKER_LOCK):
            if time.monotonic() - said_at_s > _SAY_S:
                said_at_s = time.monotonic()
                log.info("read_models.waiting", consumer=self._consumer, on="another replica or an operation")
            await asyncio.sleep(0.1)


class _Standstill:
    """Tells that a position has not moved for a while although there is more."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._position = -1
        self._since_s = 0.0

    def stands_still(self, position: int, head: int) -> bool:
        if position != self._position or head == position:
            self._position, self._since_s = position, time.monotonic()
        return time.monotonic() - self._since_s > self._after_s


def _decode(models: bytes) -> dict[str, Model]:
    return msgspec.json.decode(models, type=dict[str, Model])
