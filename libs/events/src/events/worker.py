"""The worker of a service's operations: takes one `operation` row and does it to its end."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from uuid import UUID

import asyncpg
import structlog

from events import retention
from events.consumer import Handler
from events.feed import EpochChanged
from events.operations import (
    ENDED,
    WORKER_LOCK,
    Cancelled,
    Progress,
    RebuildRequest,
    Refused,
    ReplayRequest,
    RetentionRequest,
    request_of,
)
from events.outage import is_outage
from events.passwords import connect_postgres
from events.projections import Projections
from events.rebuilding import Rebuild
from events.replaying import Replay
from events.store import EventStore

log = structlog.get_logger(__name__)

_COLLECT_FROM = 100_000
"""A chunk of events is tens of thousands of objects, none of them garbage before it is written: looking for cycles
among them every 700, as Python does, took a quarter of a rebuild's time."""


class Operator:
    """Does rebuilds and replays of one service's consumers, one at a time over all its replicas.

    Args:
        database_url: the service's own database, as its role.
        store: a `RecordingStore` where the operation may be a dry run.
        handlers: by the consumer's full name.
        kept: how long rows are kept, by table, where the rules say otherwise.
    """

    def __init__(
        self,
        *,
        database_url: str,
        store: EventStore,
        handlers: Mapping[str, Handler],
        kept: Mapping[str, timedelta] | None = None,
    ) -> None:
        self._kept = kept or {}
        self._database_url = database_url
        self._store = store
        self._handlers = handlers

    async def run(self, operation_id: UUID) -> bool:
        """Does the operation. False: another worker is at it, or it has ended.

        Raises:
            OSError, asyncpg.PostgresError: an outage. The row stays as it is, for the next worker.
        """
        connections = await asyncio.gather(*(self._connect() for _ in range(3)))
        progress_db, live, own = connections
        collecting = gc.get_threshold()
        gc.set_threshold(_COLLECT_FROM, *collecting[1:])
        try:
            if not await progress_db.fetchval("SELECT pg_try_advisory_lock($1)", WORKER_LOCK):
                return False
            progress = Progress(progress_db, operation_id)
            row = await progress_db.fetchrow("SELECT * FROM operation WHERE id = $1", operation_id)
            if row is None or row["state"] in ENDED:
                return False
            row = await progress.begin()
            try:
                result = await self._do(row, progress, live, own)
            except Cancelled:
                await progress.end("cancelled")
            except (Refused, EpochChanged, LookupError) as refusal:
                await progress.end("failed", error=str(refusal))
            except Exception as error:
                if is_outage(error):
                    raise
                log.exception("operation.failed", operation=str(operation_id))
                await progress.end("failed", error=repr(error))
            else:
                await progress.end("done", result=result)
            return True
        finally:
            gc.set_threshold(*collecting)
            for connection in connections:
                await connection.close(timeout=5)

    async def _do(
        self, row: asyncpg.Record, progress: Progress, live: asyncpg.Connection, own: asyncpg.Connection
    ) -> dict[str, object]:
        consumer = row["consumer"]
        request = request_of(row)
        if isinstance(request, RetentionRequest):
            rules = retention.rules_of(self._handlers.values())
            return {"tables": await retention.apply(live, rules, self._kept, dry_run=request.dry_run)}
        if consumer not in self._handlers:
            raise Refused(f"no consumer {consumer}; there are {', '.join(sorted(self._handlers))}")
        handler = self._handlers[consumer]
        if isinstance(handler, Projections):
            shape = await live.fetchval("SELECT shape FROM consumed WHERE consumer = $1", consumer)
            if shape not in (None, handler.shape):
                raise Refused("another version of the service is live than the one asked: finish the deploy first")
        if request.projections is not None:
            if not isinstance(handler, Projections):
                raise Refused(f"{consumer} has no read models of its own")
            handler = handler.only(request.projections)
        if isinstance(request, ReplayRequest):
            replay = Replay(
                consumer=consumer, handler=handler, store=self._store, db=live, other=own, progress=progress
            )
            return await replay.run(request, row["position"], row["up_to"])
        assert isinstance(request, RebuildRequest)
        if not isinstance(handler, Projections):
            raise Refused(f"{consumer} decides and appends: it is no read model, and cannot be built anew")
        rebuild = Rebuild(
            consumer=consumer,
            projections=handler,
            store=self._store,
            live=live,
            own=own,
            session=self._session,
            progress=progress,
        )
        return await rebuild.run(request)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await self._connect()
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def _connect(self) -> asyncpg.Connection:
        return await connect_postgres(
            self._database_url, timeout=5, server_settings={"application_name": "operator", "jit": "off"}
        )
