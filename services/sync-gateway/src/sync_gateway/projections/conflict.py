"""Conflicts by field, without values: what health counts, and what a proposed policy is tried against."""

from collections.abc import Sequence

import asyncpg
import msgspec
from events.contracts import contract_of, customer, identity
from events.contracts.customer import FieldDecision
from events.envelope import RecordedEvent

from sync_gateway.policies import PastDecision

_TYPES = (customer.ConflictDetected, customer.ConflictResolved, customer.ConflictReopened, identity.UserErased)


class ConflictProjection:
    """One row per conflict."""

    name = "conflict"
    types = frozenset(contract_of(contract).type for contract in _TYPES)
    ddl = """
        CREATE TABLE IF NOT EXISTS conflict (
            conflict_id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            position bigint NOT NULL,
            entity text NOT NULL,
            platform text NOT NULL,
            open boolean NOT NULL,
            decisions bytea NOT NULL
        );
        CREATE INDEX IF NOT EXISTS conflict_open ON conflict (platform) WHERE open;
        CREATE INDEX IF NOT EXISTS conflict_by_user ON conflict (user_id);
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            match event.payload:
                case customer.ConflictDetected() as detected:
                    await db.execute(
                        "INSERT INTO conflict VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
                        detected.conflict_id,
                        event.subject,
                        event.position,
                        detected.entity,
                        detected.platform,
                        any(decision.winner is None for decision in detected.decisions),
                        msgspec.json.encode(detected.decisions),
                    )
                case customer.ConflictResolved(conflict_id=conflict_id):
                    await db.execute("UPDATE conflict SET open = false WHERE conflict_id = $1", conflict_id)
                case customer.ConflictReopened(conflict_id=conflict_id):
                    await db.execute("UPDATE conflict SET open = true WHERE conflict_id = $1", conflict_id)
                case identity.UserErased(user_id=user_id):
                    await db.execute("DELETE FROM conflict WHERE user_id = $1", user_id)


async def open_conflicts(database: "asyncpg.Pool[asyncpg.Record]") -> dict[str, int]:
    """How many conflicts wait for a person, by the platform whose change came second."""
    rows = await database.fetch("SELECT platform, count(*) AS n FROM conflict WHERE open GROUP BY platform")
    return {row["platform"]: row["n"] for row in rows}


async def past_decisions(database: "asyncpg.Pool[asyncpg.Record]", limit: int) -> list[PastDecision]:
    """The decisions of the latest conflicts of everybody."""
    rows = await database.fetch(
        "SELECT conflict_id, entity, decisions FROM conflict ORDER BY position DESC LIMIT $1", limit
    )
    return [
        PastDecision(
            str(row["conflict_id"]),
            row["entity"],
            decision.field,
            decision.policy,
            decision.winner,
            decision.bfc_clock,
            decision.vyomo_clock,
        )
        for row in rows
        for decision in msgspec.json.decode(row["decisions"], type=tuple[FieldDecision, ...])
    ]
