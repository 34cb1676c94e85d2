"""Read model: the open holds, for `available` balances and for the timer that lets them expire."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
from events.contracts.ledger import TransferCaptured, TransferHeld, TransferVoided
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

HELD = """coalesce((SELECT sum(hold.amount_minor) FROM hold
                    WHERE hold.account_id = account.account_id AND hold.expires_at > now()), 0)::bigint"""
"""What is held of a row of `account`, in SQL. An expired hold holds nothing, recorded or not."""


class Holds:
    """Table `hold`, one row per hold that is neither captured nor voided."""

    name = "holds"
    ddl = """
        CREATE TABLE IF NOT EXISTS hold (
            transfer_id  uuid PRIMARY KEY,
            user_id      uuid NOT NULL,
            account_id   uuid NOT NULL,
            amount_minor bigint NOT NULL,
            expires_at   timestamptz NOT NULL
        );
        CREATE INDEX IF NOT EXISTS hold_of_account ON hold (account_id);
        CREATE INDEX IF NOT EXISTS hold_expiry ON hold (expires_at);
    """
    types = frozenset(contract_of(struct).type for struct in (TransferHeld, TransferCaptured, TransferVoided))

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        opened: dict[UUID, tuple[object, ...]] = {}
        ended: list[UUID] = []
        for event in events:
            payload = event.payload
            if isinstance(payload, TransferHeld):
                opened[payload.transfer_id] = (
                    payload.transfer_id,
                    UUID(event.stream_id),
                    payload.from_account_id,
                    payload.amount_minor,
                    payload.expires_at,
                )
            elif isinstance(payload, TransferCaptured | TransferVoided):
                ended.append(payload.transfer_id)
                opened.pop(payload.transfer_id, None)
        if ended:
            await db.execute("DELETE FROM hold WHERE transfer_id = ANY ($1::uuid[])", ended)
        if opened:
            await db.execute(
                """
                INSERT INTO hold (transfer_id, user_id, account_id, amount_minor, expires_at)
                SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::timestamptz[])
                """,
                *zip(*opened.values(), strict=True),
            )


class DueHold(NamedTuple):
    """A hold whose time is over."""

    user_id: UUID
    transfer_id: UUID


async def due_holds(db: asyncpg.Pool, now: datetime, *, limit: int) -> list[DueHold]:
    """Holds that have expired by `now`: one per customer, since all of a customer's expire together."""
    rows = await db.fetch(
        """
        SELECT user_id, (array_agg(transfer_id ORDER BY expires_at))[1] AS transfer_id
        FROM hold WHERE expires_at <= $1 GROUP BY user_id LIMIT $2
        """,
        now,
        limit,
    )
    return [DueHold(UUID(int=row["user_id"].int), UUID(int=row["transfer_id"].int)) for row in rows]
