"""Read model: the combined history of both platforms, one row per leg on a customer's account."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts.ledger import AccountOpened, AccountPosted, Direction, Platform, TransferCompleted
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent, derived_id

from ledger_transfer.state import customer_account

TransactionType = Literal["opening_balance", "transaction", "trade", "wallet_movement", "fixed_deposit", "transfer"]


class Place(NamedTuple):
    """A row's place in the history. No later row changes it, so a page never shifts."""

    occurred_at: datetime
    position: int
    leg: int


LATEST = Place(datetime(9999, 12, 31, tzinfo=UTC), 2**63 - 1, 2**15 - 1)
"""Before the first page."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows to list. Amounts are minor units, inclusive; `until` is exclusive."""

    platform: Platform | None = None
    account_id: UUID | None = None
    type: TransactionType | None = None
    category: str | None = None
    direction: Direction | None = None
    since: datetime = datetime(1, 1, 1, tzinfo=UTC)
    until: datetime = LATEST.occurred_at
    min_amount_minor: int = 0
    max_amount_minor: int = 2**63 - 1


class TransactionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One movement on one account. Amounts are positive minor units, `direction` says which way."""

    transaction_id: UUID
    platform: Platform
    account_id: UUID
    type: TransactionType
    direction: Direction
    amount_minor: int
    currency: str
    category: str
    counterparty: str | None
    memo: str | None
    reference: str | None
    balance_after_minor: int
    occurred_at: datetime
    transfer_id: UUID | None
    position: int
    leg: int

    @property
    def place(self) -> Place:
        return Place(self.occurred_at, self.position, self.leg)


class Transactions:
    """Table `transaction`."""

    name = "transactions"
    ddl = """
        CREATE TABLE IF NOT EXISTS transaction (
            position            bigint NOT NULL,
            leg                 smallint NOT NULL,
            transaction_id      uuid NOT NULL,
            user_id             uuid NOT NULL,
            platform            text NOT NULL,
            account_id          uuid NOT NULL,
            type                text NOT NULL,
            direction           text NOT NULL,
            amount_minor        bigint NOT NULL,
            currency            text NOT NULL,
            category            text NOT NULL,
            counterparty        text,
            memo                text,
            reference           text,
            balance_after_minor bigint NOT NULL,
            occurred_at         timestamptz NOT NULL,
            transfer_id         uuid,
            PRIMARY KEY (position, leg)
        );
        CREATE INDEX IF NOT EXISTS transaction_of_user ON transaction (user_id, occurred_at, position, leg);
    """
    types = frozenset(contract_of(struct).type for struct in (AccountOpened, AccountPosted, TransferCompleted))

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        rows = [row for event in events for row in _rows(event)]
        if not rows:
            return
        await db.execute(
            """
            INSERT INTO transaction (position, leg, transaction_id, user_id, platform, account_id, type,
                                     direction, amount_minor, currency, category, counterparty, memo,
                                     reference, balance_after_minor, occurred_at, transfer_id)
            SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::uuid[], $4::uuid[], $5::text[], $6::uuid[],
                                 $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[], $12::text[],
                                 $13::text[], $14::text[], $15::bigint[], $16::timestamptz[], $17::uuid[])
            """,
            *zip(*rows, strict=True),
        )


async def list_transactions(
    db: asyncpg.Pool, user_id: UUID, chosen: Filter, *, before: Place, limit: int
) -> list[TransactionRow]:
    """The customer's history that passes the filter, the latest first, from behind a place."""
    rows = await db.fetch(
        """
        SELECT transaction_id, platform, account_id, type, direction, amount_minor, currency, category,
               counterparty, memo, reference, balance_after_minor, occurred_at, transfer_id, position, leg
        FROM transaction
        WHERE user_id = $1 AND (occurred_at, position, leg) < ($2, $3, $4)
          AND occurred_at >= $5 AND occurred_at < $6
          AND amount_minor BETWEEN $7 AND $8
          AND platform = coalesce($9, platform)
          AND account_id = coalesce($10, account_id)
          AND type = coalesce($11, type)
          AND category = coalesce($12, category)
          AND direction = coalesce($13, direction)
        ORDER BY occurred_at DESC, position DESC, leg DESC
        LIMIT $14
        """,
        user_id,
        *before,
        chosen.since,
        chosen.until,
        chosen.min_amount_minor,
        chosen.max_amount_minor,
        chosen.platform,
        chosen.account_id,
        chosen.type,
        chosen.category,
        chosen.direction,
        limit,
    )
    return [msgspec.convert(dict(row), TransactionRow) for row in rows]


def _rows(event: RecordedEvent) -> list[tuple[object, ...]]:
    payload = event.payload
    counterparty = reference = transfer_id = None
    match payload:
        case AccountOpened():
            kind, category, memo, occurred_at = (
                "opening_balance",
                "opening_balance",
                None,
                payload.occurred_at,
            )
        case TransferCompleted():
            kind, category, memo, occurred_at = "transfer", "transfer", payload.memo, payload.completed_at
            transfer_id = payload.transfer_id
        case AccountPosted():
            kind, category, memo, occurred_at = (
                payload.type,
                payload.category,
                payload.memo,
                payload.occurred_at,
            )
            counterparty, reference = payload.counterparty, payload.reference
        case _:
            raise TypeError(f"{event.type} has no legs")
    return [
        (
            event.position,
            number,
            derived_id(event.event_id, "leg", number),
            UUID(event.stream_id),
            leg.platform,
            account_id,
            kind,
            "credit" if leg.amount_minor > 0 else "debit",
            abs(leg.amount_minor),
            leg.currency,
            category,
            counterparty,
            memo,
            reference,
            leg.balance_after_minor,
            occurred_at,
            transfer_id,
        )
        for number, leg in enumerate(payload.legs)
        if (account_id := customer_account(leg)) is not None
    ]
