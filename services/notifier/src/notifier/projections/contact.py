"""How each customer can be reached by e-mail: identity's profile, sealed as it comes. It is opened only to send."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
from events.contracts import contract_of, identity
from events.envelope import RecordedEvent


class ContactProjection:
    """The newest sealed profile of each customer."""

    name = "contact"
    types = frozenset(
        contract_of(struct).type for struct in (identity.UserRegistered, identity.ProfileChanged, identity.UserErased)
    )
    ddl = """
        CREATE TABLE IF NOT EXISTS contact (
            user_id uuid PRIMARY KEY,
            sealed_profile text NOT NULL
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            match event.payload:
                case identity.UserErased(user_id=user_id):
                    await db.execute("DELETE FROM contact WHERE user_id = $1", user_id)
                case identity.UserRegistered(sealed_profile=sealed) | identity.ProfileChanged(sealed_profile=sealed):
                    await db.execute(
                        "INSERT INTO contact (user_id, sealed_profile) VALUES ($1, $2)"
                        " ON CONFLICT (user_id) DO UPDATE SET sealed_profile = excluded.sealed_profile",
                        UUID(event.stream_id),
                        sealed,
                    )


async def sealed_profile(database: asyncpg.Pool, user_id: UUID) -> str | None:
    """The customer's sealed profile; None for who was erased, or is not known yet."""
    sealed: str | None = await database.fetchval("SELECT sealed_profile FROM contact WHERE user_id = $1", user_id)
    return sealed
