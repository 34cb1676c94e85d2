"""Synchronisation runs: requested, and what they brought from each platform."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, identity, ledger, sync
from events.envelope import RecordedEvent

from sync_gateway.feeds import PLATFORMS, Platform

_REQUESTED = contract_of(sync.SyncRunRequested).type
_BY_LEDGER = contract_of(ledger.SyncRequested).type
_COMPLETED = contract_of(sync.SyncRunCompleted).type
_ERASED = contract_of(identity.UserErased).type


class RequestedRun(NamedTuple):
    sync_id: UUID
    user_id: UUID
    platforms: tuple[Platform, ...]
    entity: str | None
    event_id: UUID
    """What requested it."""


class RunRow(NamedTuple):
    position: int
    sync_id: UUID
    platforms: tuple[Platform, ...]
    entity: str | None
    status: str
    requested_at: datetime
    completed_at: datetime | None
    outcomes: tuple[sync.PlatformOutcome, ...]


class SyncRunProjection:
    """One row per run."""

    name = "sync_run"
    types = frozenset({_REQUESTED, _BY_LEDGER, _COMPLETED, _ERASED})
    ddl = """
        CREATE TABLE IF NOT EXISTS sync_run (
            sync_id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            position bigint NOT NULL,
            event_id uuid NOT NULL,
            platforms text[] NOT NULL,
            entity text,
            status text NOT NULL,
            requested_at timestamptz NOT NULL,
            completed_at timestamptz,
            outcomes bytea
        );
        CREATE INDEX IF NOT EXISTS sync_run_by_user ON sync_run (user_id, position);
        CREATE INDEX IF NOT EXISTS sync_run_requested ON sync_run (position) WHERE status = 'requested';
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            payload: Any = event.payload
            if event.type == _COMPLETED:
                await db.execute(
                    "UPDATE sync_run SET status = $2, completed_at = $3, outcomes = $4 WHERE sync_id = $1",
                    payload.sync_id,
                    payload.status,
                    event.recorded_at,
                    msgspec.json.encode(payload.outcomes),
                )
            elif event.type == _ERASED:
                await db.execute("DELETE FROM sync_run WHERE user_id = $1", payload.user_id)
            else:
                await db.execute(
                    "INSERT INTO sync_run (sync_id, user_id, position, event_id, platforms, entity, status,"
                    " requested_at) VALUES ($1, $2, $3, $4, $5, $6, 'requested', $7) ON CONFLICT DO NOTHING",
                    payload.sync_id,
                    event.subject,
                    event.position,
                    event.event_id,
                    list(payload.platforms) or list(PLATFORMS),
                    getattr(payload, "entity", None),
                    event.recorded_at,
                )


async def requested_runs(database: "asyncpg.Pool[asyncpg.Record]", limit: int) -> list[RequestedRun]:
    """The oldest runs that are not completed."""
    rows = await database.fetch(
        "SELECT * FROM sync_run r WHERE status = 'requested' AND NOT EXISTS (SELECT 1 FROM sync_run_claim c"
        " WHERE c.sync_id = r.sync_id AND c.claimed_until > now()) ORDER BY position LIMIT $1",
        limit,
    )
    return [
        RequestedRun(
            UUID(int=row["sync_id"].int),
            UUID(int=row["user_id"].int),
            tuple(row["platforms"]),
            row["entity"],
            UUID(int=row["event_id"].int),
        )
        for row in rows
    ]


async def runs_of(
    database: "asyncpg.Pool[asyncpg.Record]", user_id: UUID, *, before: int | None, sync_id: UUID | None, limit: int
) -> list[RunRow]:
    """A customer's runs, newest first; or the one of that id."""
    rows = await database.fetch(
        "SELECT * FROM sync_run WHERE user_id = $1 AND position < $2 AND ($3::uuid IS NULL OR sync_id = $3)"
        " ORDER BY position DESC LIMIT $4",
        user_id,
        2**62 if before is None else before,
        sync_id,
        limit,
    )
    return [
        RunRow(
            row["position"],
            row["sync_id"],
            tuple(row["platforms"]),
            row["entity"],
            row["status"],
            row["requested_at"],
            row["completed_at"],
            ()
            if row["outcomes"] is None
            else msgspec.json.decode(row["outcomes"], type=tuple[sync.PlatformOutcome, ...]),
        )
        for row in rows
    ]
