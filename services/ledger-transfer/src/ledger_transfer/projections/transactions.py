"""Read model: the combined history of both platforms, one row per leg on a customer's account."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import identity
from events.contracts.ledger import AccountOpened, AccountPosted, Direction, Platform, TransferCompleted
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent, derived_id

from ledger_transfer.state import customer_account

_ERASED = contract_of(identity.UserErased).type

TransactionType = Literal["opening_balance", "transaction", "trade", "wallet_movement", "fixed_deposit", "transfer"]


_LIKE = re.compile(r"[\\%_]")


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
            signed_minor        bigint NOT NULL,
            recorded_at         timestamptz NOT NULL,
            PRIMARY KEY (position, leg)
        );
        CREATE INDEX IF NOT EXISTS transaction_of_user ON transaction (user_id, occurred_at, position, leg);
        CREATE INDEX IF NOT EXISTS transaction_of_account ON transaction (account_id, occurred_at, position, leg);
    """
    types = frozenset(
        contract_of(struct).type for struct in (AccountOpened, AccountPosted, TransferCompleted, identity.UserErased)
    )

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        rows = [row for event in events if event.type != _ERASED for row in _rows(event)]
        if rows:
            await _insert(db, rows)
        for event in events:
            if isinstance(event.payload, identity.UserErased):
                # The law keeps the money; what tells about a person's life goes.
                await db.execute(
                    "UPDATE transaction SET memo = NULL, counterparty = NULL, reference = NULL"
                    " WHERE user_id = $1 AND position <= $2",
                    event.payload.user_id,
                    event.position,
                )


async def _insert(db: asyncpg.Connection, rows: list[tuple[object, ...]]) -> None:
    await db.execute(
        """
        INSERT INTO transaction (position, leg, transaction_id, user_id, platform, account_id, type,
                                 direction, amount_minor, currency, category, counterparty, memo,
                                 reference, balance_after_minor, occurred_at, transfer_id, signed_minor, recorded_at)
        SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::uuid[], $4::uuid[], $5::text[], $6::uuid[],
                             $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[], $12::text[],
                             $13::text[], $14::text[], $15::bigint[], $16::timestamptz[], $17::uuid[],
                             $18::bigint[], $19::timestamptz[])
        """,
        *zip(*rows, strict=True),
    )


_COLUMNS = """transaction_id, platform, account_id, type, direction, amount_minor, currency, category,
              counterparty, memo, reference, balance_after_minor, occurred_at, transfer_id, position, leg"""

_FILTERED = """
    user_id = $1 AND occurred_at >= $2 AND occurred_at < $3
    AND amount_minor BETWEEN $4 AND $5
    AND platform = coalesce($6, platform)
    AND account_id = coalesce($7, account_id)
    AND type = coalesce($8, type)
    AND category = coalesce($9, category)
    AND direction = coalesce($10, direction)
"""


def _values(user_id: UUID, chosen: Filter) -> tuple[object, ...]:
    return (
        user_id,
        chosen.since,
        chosen.until,
        chosen.min_amount_minor,
        chosen.max_amount_minor,
        chosen.platform,
        chosen.account_id,
        chosen.type,
        chosen.category,
        chosen.direction,
    )


async def list_transactions(
    db: asyncpg.Pool, user_id: UUID, chosen: Filter, *, before: Place = LATEST, limit: int, text: str | None = None
) -> list[TransactionRow]:
    """The customer's history that passes the filter, the latest first, from behind a place.

    `text`: only rows with all of its words in their memo, counterparty or reference, in any order and case.
    """
    words = ["%" + _LIKE.sub(r"\\\g<0>", word) + "%" for word in (text or "").split()]
    rows = await db.fetch(
        f"""
        SELECT {_COLUMNS} FROM transaction
        WHERE {_FILTERED} AND (occurred_at, position, leg) < ($11, $12, $13)
          AND (cardinality($14::text[]) = 0
               OR concat_ws(' ', memo, counterparty, reference) ILIKE ALL ($14::text[]))
        ORDER BY occurred_at DESC, position DESC, leg DESC
        LIMIT $15
        """,
        *_values(user_id, chosen),
        *before,
        words,
        limit,
    )
    return [msgspec.convert(dict(row), TransactionRow) for row in rows]


class Total(NamedTuple):
    """What moved in one group and currency, in minor units; both positive."""

    key: str
    currency: str
    in_minor: int
    out_minor: int
    movements: int


GroupBy = Literal["category", "platform", "day", "month"]

_GROUPS: dict[str, str] = {
    "category": "category",
    "platform": "platform",
    "day": "to_char(occurred_at AT TIME ZONE 'Asia/Kolkata', 'YYYY-MM-DD')",
    "month": "to_char(occurred_at AT TIME ZONE 'Asia/Kolkata', 'YYYY-MM')",
}


async def summarise(db: asyncpg.Pool, user_id: UUID, chosen: Filter, group_by: GroupBy) -> list[Total]:
    """What came in and went out per group. Days and months are India's.

    An opening balance has not moved and is left out. An own transfer is both an out and an in: the net is right.
    """
    rows = await db.fetch(
        f"""
        SELECT {_GROUPS[group_by]} AS key, currency,
               coalesce(sum(amount_minor) FILTER (WHERE direction = 'credit'), 0)::bigint AS in_minor,
               coalesce(sum(amount_minor) FILTER (WHERE direction = 'debit'), 0)::bigint AS out_minor,
               count(*) AS movements
        FROM transaction WHERE {_FILTERED} AND type <> 'opening_balance'
        GROUP BY 1, 2 ORDER BY 1, 2
        """,
        *_values(user_id, chosen),
    )
    return [Total(**dict(row)) for row in rows]


async def balance_at(
    db: asyncpg.Pool, user_id: UUID, account_id: UUID, as_of: datetime, known_at: datetime | None = None
) -> int:
    """The account's balance from all that had happened by `as_of`, of what was recorded by `known_at`."""
    balance: int = await db.fetchval(
        """
        SELECT coalesce(sum(signed_minor), 0)::bigint FROM transaction
        WHERE account_id = $2 AND user_id = $1 AND occurred_at <= $3 AND recorded_at <= coalesce($4, recorded_at)
        """,
        user_id,
        account_id,
        as_of,
        known_at,
    )
    return balance


async def account_lines(
    db: asyncpg.Pool, user_id: UUID, account_id: UUID, since: datetime, until: datetime
) -> tuple[int, list[TransactionRow]]:
    """The balance before `since`, and the account's movements until before `until` in order of their time."""
    opening, rows = (
        await db.fetchval(
            "SELECT coalesce(sum(signed_minor), 0)::bigint FROM transaction"
            " WHERE account_id = $2 AND user_id = $1 AND occurred_at < $3",
            user_id,
            account_id,
            since,
        ),
        await db.fetch(
            f"""
            SELECT {_COLUMNS} FROM transaction
            WHERE account_id = $2 AND user_id = $1 AND occurred_at >= $3 AND occurred_at < $4
            ORDER BY occurred_at, position, leg
            """,
            user_id,
            account_id,
            since,
            until,
        ),
    )
    return opening, [msgspec.convert(dict(row), TransactionRow) for row in rows]


async def everything(db: asyncpg.Pool, user_id: UUID, chosen: Filter, *, limit: int) -> list[TransactionRow]:
    """The movements on the customer's accounts that pass the filter, in order of their time."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM transaction WHERE {_FILTERED} ORDER BY occurred_at, position, leg LIMIT $11",
        *_values(user_id, chosen),
        limit,
    )
    return [msgspec.convert(dict(row), TransactionRow) for row in rows]


async def balances_before(db: asyncpg.Pool, user_id: UUID, before: datetime) -> dict[UUID, int]:
    """Each account's balance from all that happened before an instant."""
    rows = await db.fetch(
        "SELECT account_id, sum(signed_minor)::bigint AS balance FROM transaction"
        " WHERE user_id = $1 AND occurred_at < $2 GROUP BY account_id",
        user_id,
        before,
    )
    return {UUID(int=row["account_id"].int): row["balance"] for row in rows}


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
            leg.amount_minor,
            event.recorded_at,
        )
        for number, leg in enumerate(payload.legs)
        if (account_id := customer_account(leg)) is not None
    ]
