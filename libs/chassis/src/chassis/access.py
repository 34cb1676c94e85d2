"""The read model of who may sign access tokens: identity's public keys, in every service's own database."""

from collections.abc import Sequence

import asyncpg
import msgspec
from events.contracts import identity
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

_PUBLISHED = contract_of(identity.SigningKeyPublished).type
_RETIRED = contract_of(identity.SigningKeyRetired).type


class VerificationKeys:
    """Projection of identity's signing keys. A retired key stays in the table, never to be trusted again."""

    name = "verification_keys"
    types = frozenset({_PUBLISHED, _RETIRED})
    ddl = """
        CREATE TABLE IF NOT EXISTS verification_key (
            kid text PRIMARY KEY,
            jwk jsonb NOT NULL,
            retired_at timestamptz
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Keys are few and rare: one statement each."""
        for event in events:
            match event.payload:
                case identity.SigningKeyPublished(kid=kid, public_jwk=jwk):
                    await db.execute(
                        "INSERT INTO verification_key (kid, jwk) VALUES ($1, $2::text::jsonb)"
                        " ON CONFLICT (kid) DO NOTHING",
                        kid,
                        msgspec.json.encode(jwk).decode(),
                    )
                case identity.SigningKeyRetired(kid=kid):
                    await db.execute(
                        "UPDATE verification_key SET retired_at = $2 WHERE kid = $1 AND retired_at IS NULL",
                        kid,
                        event.recorded_at,
                    )


async def active_keys(database: asyncpg.Pool) -> dict[str, dict[str, str]]:
    """The JWK of every key that may sign, by its id."""
    rows = await database.fetch(
        "SELECT kid, jwk::text AS jwk FROM verification_key WHERE retired_at IS NULL", timeout=2
    )
    return {row["kid"]: msgspec.json.decode(row["jwk"], type=dict[str, str]) for row in rows}
