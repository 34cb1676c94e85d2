"""Each customer's preferences, for reading them. Grouping keeps its own copy, as of its own position."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, identity
from events.contracts.notification import PreferenceChanged
from events.envelope import RecordedEvent

_decoder = msgspec.json.Decoder(PreferenceChanged)


class PreferenceProjection:
    """The read model behind `/api/notifications/preferences`."""

    name = "preference"
    types = frozenset(contract_of(struct).type for struct in (PreferenceChanged, identity.UserErased))
    ddl = """
        CREATE TABLE IF NOT EXISTS preference (
            user_id uuid PRIMARY KEY,
            preferences bytea NOT NULL
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if isinstance(event.payload, identity.UserErased):
                await db.execute("DELETE FROM preference WHERE user_id = $1", event.payload.user_id)
            else:
                await db.execute(
                    "INSERT INTO preference (user_id, preferences) VALUES ($1, $2)"
                    " ON CONFLICT (user_id) DO UPDATE SET preferences = excluded.preferences",
                    UUID(event.stream_id),
                    event.data,
                )


async def preferences(database: asyncpg.Pool, user_id: UUID) -> PreferenceChanged:
    """The customer's preferences; the defaults for who has set none."""
    data = await database.fetchval("SELECT preferences FROM preference WHERE user_id = $1", user_id)
    return PreferenceChanged() if data is None else _decoder.decode(data)
