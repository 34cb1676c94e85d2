"""Rebuilds and replays: asked for in a table, done by the service's own code in a process of its own.

`sangam` writes a row into `operation` of the service's database. A replica of the service sees it and starts a worker
(`chassis.operating`), which has the service's settings, code and rights but serves nobody. The worker keeps its
progress in the row, so that another one can go on where it died, and looks there for the operator's wish.
"""

import asyncio
import time
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec
import structlog

from events.envelope import new_id

log = structlog.get_logger(__name__)

DDL = """
    CREATE TABLE IF NOT EXISTS operation (
        id uuid PRIMARY KEY,
        kind text NOT NULL,
        consumer text NOT NULL,
        request bytea NOT NULL,
        operator text NOT NULL,
        state text NOT NULL DEFAULT 'requested',
        wish text NOT NULL DEFAULT 'run',
        position bigint NOT NULL DEFAULT 0,
        up_to bigint,
        applied bigint NOT NULL DEFAULT 0,
        result bytea,
        error text,
        requested_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz,
        heartbeat_at timestamptz,
        finished_at timestamptz
    );
    CREATE TABLE IF NOT EXISTS generation (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        consumer text NOT NULL,
        projections text[] NOT NULL,
        schema text NOT NULL,
        state text NOT NULL,
        position bigint NOT NULL DEFAULT 0,
        epoch uuid NOT NULL,
        deferred bigint[] NOT NULL DEFAULT '{}',
        created_at timestamptz NOT NULL DEFAULT now(),
        promoted_at timestamptz,
        shape text, -- of the version whose tables they are (events.shapes)
        used_at timestamptz -- when a process of that version last read them, while another version was live
    );
"""

OPEN = ("requested", "running")
ENDED = ("done", "failed", "cancelled")

_BEAT_S = 0.5
_PAUSED_POLL_S = 0.5


class Cancelled(Exception):
    """The operator has changed their mind."""


class Refused(Exception):
    """What was asked for cannot be done, for a reason the operator can do something about."""


class RebuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Fill tables anew beside the live ones, and put them in their place."""

    projections: list[str] | None = None
    """Read models by name; None: all that the consumer has."""
    action: Literal["build", "promote", "rollback", "discard"] = "build"
    """`build` a new generation, `promote` or `discard` the one that is ready, `rollback` to the one before."""
    promote: bool = True
    """After building: put it in place. Otherwise it stays ready beside the live one."""
    diff: bool = False
    """After building: compare with the live rows at the same position."""


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Give chosen events of the past to one consumer again."""

    projections: list[str] | None = None
    after: int = 0
    up_to: int | None = None
    since: str | None = None
    """RFC 3339; events recorded before are left out."""
    until: str | None = None
    type_pattern: str | None = None
    stream: str | None = None
    correlation_id: str | None = None
    rate: float | None = None
    """At most so many events a second."""
    dry_run: bool = False
    sample: int = 1_000
    """How many events a dry run applies, and takes back, to see what changes."""
    with_effects: bool = False
    """Let outside effects (webhooks, mails) happen that have not happened for these events yet."""
    anyway: bool = False
    """Also where a read model does not say that applying an event twice is the same as once."""


class RetentionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Delete what the service has kept for long enough (`events.retention`)."""

    dry_run: bool = False
    """Only count it."""


Request = RebuildRequest | ReplayRequest | RetentionRequest
_KINDS: dict[str, type[Request]] = {"rebuild": RebuildRequest, "replay": ReplayRequest, "retention": RetentionRequest}


def request_of(row: asyncpg.Record) -> Request:
    """What an `operation` row asks for."""
    return msgspec.json.decode(row["request"], type=_KINDS[row["kind"]])


async def ask(db: asyncpg.Connection | asyncpg.Pool, consumer: str, request: Request, operator: str) -> UUID:
    """Writes the row that a worker of the service will find."""
    operation_id = new_id()
    await db.execute(
        "INSERT INTO operation (id, kind, consumer, request, operator) VALUES ($1, $2, $3, $4, $5)",
        operation_id,
        next(kind for kind, struct in _KINDS.items() if isinstance(request, struct)),
        consumer,
        msgspec.json.encode(request),
        operator,
    )
    return operation_id


async def waiting(db: asyncpg.Connection | asyncpg.Pool) -> UUID | None:
    """The oldest operation that wants a worker and has none; None if there is none, or one is at work."""
    row = await db.fetchrow(
        "SELECT id FROM operation WHERE state = ANY ($1) AND wish <> 'pause' AND NOT EXISTS (SELECT FROM pg_locks"
        "  WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        "  AND classid = 0 AND objid = $2 AND granted) ORDER BY requested_at LIMIT 1",
        list(OPEN),
        WORKER_LOCK,
    )
    return UUID(int=row["id"].int) if row else None


WORKER_LOCK = 1_398_034_003
"""Advisory lock of a service's one worker, held for as long as its session lives."""


class Progress:
    """The worker's side of an `operation` row: what is done so far, and what the operator wishes by now."""

    def __init__(self, db: asyncpg.Connection, operation_id: UUID) -> None:
        self._db = db
        self.id = operation_id
        self._beaten_at_s = 0.0
        self.applied = 0

    async def begin(self) -> asyncpg.Record:
        """Marks it running; gives the row."""
        row = await self._db.fetchrow(
            "UPDATE operation SET state = 'running', started_at = coalesce(started_at, now()), heartbeat_at = now()"
            " WHERE id = $1 RETURNING *",
            self.id,
        )
        assert row is not None, "whoever starts a worker has seen the row"
        self.applied = row["applied"]
        return row

    async def at(self, position: int, up_to: int, *, now: bool = False) -> None:
        """Tells how far it is, twice a second at most; waits while it is paused.

        Raises:
            Cancelled: the operator wishes so.
        """
        if not now and time.monotonic() - self._beaten_at_s < _BEAT_S:
            return
        wish = await self._beat(position, up_to)
        while wish == "pause":
            await asyncio.sleep(_PAUSED_POLL_S)
            wish = await self._beat(position, up_to)
        if wish == "cancel":
            raise Cancelled

    async def _beat(self, position: int, up_to: int) -> str:
        self._beaten_at_s = time.monotonic()
        wish: str = await self._db.fetchval(
            "UPDATE operation SET position = $2, up_to = $3, applied = $4, heartbeat_at = now() WHERE id = $1"
            " RETURNING wish",
            self.id,
            position,
            up_to,
            self.applied,
        )
        return wish

    async def end(self, state: str, *, result: object = None, error: str | None = None) -> None:
        """The last word."""
        await self._db.execute(
            "UPDATE operation SET state = $2, result = $3, error = $4, applied = $5, finished_at = now() WHERE id = $1",
            self.id,
            state,
            msgspec.json.encode(result) if result is not None else None,
            error,
            self.applied,
        )
        log.info("operation.ended", operation=str(self.id), state=state, error=error)
