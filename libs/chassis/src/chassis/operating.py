"""Operations (rebuild, replay) of a service: each in a worker process with the service's own code and settings.

A worker is the service's program once more, with SANGAM_OPERATION naming what to do. It wires the service as usual, but
serves no requests, consumes no queue and starts no background task; so a rebuild takes no time from requests, and works
whatever read models the service wires up.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from uuid import UUID

import asyncpg
import structlog
from events import operations
from events.outage import is_outage
from events.replaying import RecordingStore
from events.store import EventStore

log = structlog.get_logger(__name__)

OPERATION = "SANGAM_OPERATION"
NICENESS = 10
"""Of a worker's process: on a machine without a core to spare, requests come first."""

_LOOK_S = 1.0
_AFTER_A_CRASH_S = 5.0


def wanted() -> UUID | None:
    """The operation that this process was started for; None for a service."""
    text = os.environ.get(OPERATION)
    return UUID(text) if text else None


async def start_workers(service: str, database: asyncpg.Pool, is_live: Callable[[], bool]) -> None:
    """Starts a worker for each operation that waits, one at a time; another one where a worker died.

    Every replica of the version that is live does so: a lock of the database lets only one worker work.
    """
    while True:
        try:
            operation_id = await operations.waiting(database) if is_live() else None
        except Exception as error:
            if not is_outage(error):
                raise
            operation_id = None
        if operation_id is not None:
            code = await _work(service, operation_id)
            if code:
                log.error("operation_worker_died", operation=str(operation_id), exit_code=code)
                await asyncio.sleep(_AFTER_A_CRASH_S)
        await asyncio.sleep(_LOOK_S)


async def _work(service: str, operation_id: UUID) -> int:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", service, env={**os.environ, OPERATION: str(operation_id)}
    )
    try:
        return await worker.wait()
    finally:
        if worker.returncode is None:  # the service stops: the operation goes on when it is back
            worker.terminate()
            await worker.wait()


async def store_for(operation_id: UUID, database: asyncpg.Pool, url: str) -> EventStore:
    """The event store; for a dry run one that appends nothing."""
    row = await database.fetchrow("SELECT kind, request FROM operation WHERE id = $1", operation_id)
    dry = row is not None and getattr(operations.request_of(row), "dry_run", False)
    return await (RecordingStore if dry else EventStore).connect(url)
