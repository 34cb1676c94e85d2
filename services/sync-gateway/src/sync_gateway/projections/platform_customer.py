"""Who is linked to which platform customer, and which of a customer's items have come.

A platform numbers a customer's items without gaps, so what never came is known: everything after `contiguous` that is
not in `ahead`.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
from events.contracts import contract_of, identity, registered
from events.envelope import RecordedEvent

from sync_gateway.feeds import Platform

_ITEMS = ("banking.", "trading.")
_CONFIRMED = contract_of(identity.LinkConfirmed).type
_REMOVED = contract_of(identity.LinkRemoved).type
_ERASED = contract_of(identity.UserErased).type


class PlatformCustomer(NamedTuple):
    platform: Platform
    customer_id: str
    contiguous: int
    """Every item up to this sequence number has come."""


class PlatformCustomerProjection:
    """One row per platform customer who is linked, one per stream of items."""

    name = "platform_customer"
    types = frozenset(contract.type for contract in registered() if contract.type.startswith(_ITEMS)) | {
        _CONFIRMED,
        _REMOVED,
        _ERASED,
    }
    ddl = """
        CREATE TABLE IF NOT EXISTS platform_customer (
            platform_stream text PRIMARY KEY,
            platform text NOT NULL,
            customer_id text NOT NULL,
            user_id uuid NOT NULL
        );
        CREATE INDEX IF NOT EXISTS platform_customer_by_user ON platform_customer (user_id);
        CREATE TABLE IF NOT EXISTS platform_sequence (
            platform_stream text PRIMARY KEY,
            contiguous bigint NOT NULL,
            ahead bigint[] NOT NULL
        );
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        came: dict[str, set[int]] = {}
        for event in events:
            if event.type.startswith(_ITEMS):
                sequence = getattr(event.payload, "sequence", None)
                if sequence is not None:
                    came.setdefault(event.stream, set()).add(sequence)
                continue
            match event.payload:
                case identity.LinkConfirmed() as link:
                    await db.execute(
                        "INSERT INTO platform_customer VALUES ($1, $2, $3, $4)"
                        " ON CONFLICT (platform_stream) DO UPDATE SET user_id = excluded.user_id",
                        link.platform_stream,
                        link.platform,
                        link.platform_customer_id,
                        event.subject,
                    )
                case identity.LinkRemoved() as link:
                    await db.execute(
                        "DELETE FROM platform_customer WHERE platform_stream = $1 AND user_id = $2",
                        link.platform_stream,
                        event.subject,
                    )
                case identity.UserErased() as erased:
                    await db.execute("DELETE FROM platform_customer WHERE user_id = $1", erased.user_id)
        if came:
            await self._advance(db, came)

    async def _advance(self, db: asyncpg.Connection, came: dict[str, set[int]]) -> None:
        rows = await db.fetch("SELECT * FROM platform_sequence WHERE platform_stream = ANY ($1)", list(came))
        known = {row["platform_stream"]: (row["contiguous"], row["ahead"]) for row in rows}
        streams = sorted(came)
        after = []
        for stream in streams:
            contiguous, ahead = known.get(stream, (0, ()))
            after.append(advanced(contiguous, came[stream].union(ahead)))
        await db.executemany(
            "INSERT INTO platform_sequence VALUES ($1, $2, $3) ON CONFLICT (platform_stream) DO UPDATE"
            " SET contiguous = excluded.contiguous, ahead = excluded.ahead",
            [(stream, contiguous, ahead) for stream, (contiguous, ahead) in zip(streams, after, strict=True)],
        )


def advanced(contiguous: int, came: set[int]) -> tuple[int, list[int]]:
    """How far there is no gap after these numbers came, and what is beyond the first gap."""
    while contiguous + 1 in came:
        contiguous += 1
    return contiguous, sorted(number for number in came if number > contiguous)


async def customers_of(database: "asyncpg.Pool[asyncpg.Record]", user_id: UUID) -> list[PlatformCustomer]:
    """The platform customers that a user is linked to."""
    rows = await database.fetch(
        "SELECT platform, customer_id, coalesce(contiguous, 0) AS contiguous FROM platform_customer"
        " LEFT JOIN platform_sequence USING (platform_stream) WHERE user_id = $1 ORDER BY platform, customer_id",
        user_id,
    )
    return [PlatformCustomer(row["platform"], row["customer_id"], row["contiguous"]) for row in rows]


async def user_of(database: "asyncpg.Pool[asyncpg.Record]", platform_stream: str) -> UUID | None:
    """Whom the platform customer is linked to."""
    found = await database.fetchval("SELECT user_id FROM platform_customer WHERE platform_stream = $1", platform_stream)
    return None if found is None else UUID(int=found.int)
