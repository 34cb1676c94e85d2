"""What every service knows of identity, in its own database: who may sign access tokens, which sessions have ended."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
from events.contracts import identity
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent
from events.projections import Projection
from events.store import EventStore

from chassis.revocations import KEPT_S, Revocations, revoked_in

_PUBLISHED = contract_of(identity.SigningKeyPublished).type
_RETIRED = contract_of(identity.SigningKeyRetired).type
_REVOKED = contract_of(identity.SessionRevoked).type

_PAGE = 2_000
_BISECT_ABOVE = 20_000
_KEPT = timedelta(seconds=KEPT_S)


class VerificationKeys:
    """Projection of identity's signing keys. A retired key stays in the table, never to be trusted again."""

    name = "verification_keys"
    repeatable = True
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


class RevokedSessions:
    """Projection of the sessions that ended lately: what `Revocations` starts from.

    A session is forgotten once no token of it can be alive, told by the time of a later revocation: the rows depend
    on the events alone.
    """

    name = "revoked_sessions"
    repeatable = True
    types = frozenset({_REVOKED})
    ddl = """
        CREATE TABLE IF NOT EXISTS revoked_session (
            session_id uuid PRIMARY KEY,
            revoked_at timestamptz NOT NULL
        );
        CREATE INDEX IF NOT EXISTS revoked_session_at ON revoked_session (revoked_at);
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await db.execute(
            "INSERT INTO revoked_session (session_id, revoked_at)"
            " SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) ON CONFLICT DO NOTHING",
            [event.payload.session_id for event in events if isinstance(event.payload, identity.SessionRevoked)],
            [event.recorded_at for event in events],
        )
        last = max(event.recorded_at for event in events)
        await db.execute("DELETE FROM revoked_session WHERE revoked_at < $1", last - _KEPT)


def access_models() -> list[Projection]:
    """The read models that every service has beside its own."""
    return [VerificationKeys(), RevokedSessions()]


async def active_keys(database: asyncpg.Pool) -> dict[str, dict[str, str]]:
    """The JWK of every key that may sign, by its id."""
    rows = await database.fetch(
        "SELECT kid, jwk::text AS jwk FROM verification_key WHERE retired_at IS NULL", timeout=2
    )
    return {row["kid"]: msgspec.json.decode(row["jwk"], type=dict[str, str]) for row in rows}


async def take_snapshot(
    revocations: Revocations, database: asyncpg.Pool, store: EventStore, *, consumer: str, upto: int
) -> None:
    """Tells `revocations` of every session that ended up to position `upto` and whose tokens may be alive.

    From the read model as far as it has come, from the log from there on. What is older than any living token is
    not read: a service that was away for long starts as fast as one that was not.

    Raises:
        OSError, asyncpg.PostgresError: the database or the log cannot be read.
    """
    # One statement, one snapshot: the rows are exactly those of the position.
    rows = await database.fetch(
        "SELECT position, session_id FROM consumed LEFT JOIN revoked_session ON true WHERE consumer = $1", consumer
    )
    revocations.add(row["session_id"] for row in rows if row["session_id"] is not None)
    position = rows[0]["position"] if rows else 0
    if upto - position > _BISECT_ABOVE:
        position = max(position, await _position_at(store, datetime.now(UTC) - _KEPT, position, upto))
    while position < upto:
        events = await store.read_log(position, min(_PAGE, upto - position))
        if not events:
            raise ConnectionError("the log ends before its head")
        revocations.add(revoked_in(events))
        position = events[-1].position


async def _position_at(store: EventStore, instant: datetime, low: int, high: int) -> int:
    """A position before which nothing was recorded after `instant`, give or take the minutes of clocks and commits."""
    instant -= timedelta(minutes=5)
    while high - low > _PAGE:
        middle = (low + high) // 2
        (event,) = await store.read_log(middle, 1)
        low, high = (middle, high) if event.recorded_at < instant else (low, middle)
    return low
