"""The insights that were raised, cleared and dismissed, with the words they were raised in."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
from events.contracts import contract_of
from events.contracts.wealth import InsightCleared, InsightDismissed, InsightRaised
from events.envelope import RecordedEvent

from wealth.insights import from_bucket
from wealth.projections.timeline import ERASED


class NoticedProjection:
    """One row per insight and customer."""

    name = "noticed"
    types = frozenset(contract_of(s).type for s in (InsightRaised, InsightCleared, InsightDismissed)) | {ERASED}
    ddl = """
        CREATE TABLE IF NOT EXISTS noticed (
            user_id uuid NOT NULL,
            insight_id uuid NOT NULL,
            rule text NOT NULL,
            subject text NOT NULL,
            level integer NOT NULL,
            state text NOT NULL,
            title text NOT NULL,
            body text NOT NULL,
            facts text NOT NULL,
            raised_at timestamptz NOT NULL,
            PRIMARY KEY (user_id, insight_id)
        );
        CREATE TABLE IF NOT EXISTS noticed_changed (
            user_id uuid PRIMARY KEY,
            position bigint NOT NULL
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if event.type == ERASED:
                await db.execute("DELETE FROM noticed WHERE user_id = $1", event.subject)
                await db.execute("DELETE FROM noticed_changed WHERE user_id = $1", event.subject)
                continue
            await _apply(db, UUID(event.stream_id), event)


async def _apply(db: asyncpg.Connection, user_id: UUID, event: RecordedEvent) -> None:
    payload = event.payload
    if isinstance(payload, InsightRaised):
        subject, level = from_bucket(payload.bucket)
        await db.execute(
            "INSERT INTO noticed VALUES ($1, $2, $3, $4, $5, 'active', $6, $7, $8, $9) "
            "ON CONFLICT (user_id, insight_id) DO UPDATE SET state = 'active', title = excluded.title, "
            "body = excluded.body, facts = excluded.facts, raised_at = excluded.raised_at",
            user_id,
            payload.insight_id,
            payload.rule,
            subject,
            level,
            payload.title,
            payload.body,
            "; ".join(f"{item.fact}: {item.value}" for item in payload.evidence),
            payload.raised_at,
        )
    elif isinstance(payload, InsightCleared | InsightDismissed):
        await db.execute(
            "UPDATE noticed SET state = $3 WHERE user_id = $1 AND insight_id = $2",
            user_id,
            payload.insight_id,
            "cleared" if isinstance(payload, InsightCleared) else "dismissed",
        )
    await db.execute(
        "INSERT INTO noticed_changed (user_id, position) VALUES ($1, $2) "
        "ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        user_id,
        event.position,
    )
