"""Read model: every customer's accounts on both platforms with their balances."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import identity
from events.contracts.ledger import (
    AccountClosed,
    AccountFrozen,
    AccountKind,
    AccountOpened,
    AccountPosted,
    AccountUnfrozen,
    Platform,
    TransferCompleted,
)
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

from ledger_transfer.projections.holds import HELD
from ledger_transfer.state import customer_account


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """An account as the customer sees it. Amounts are minor units of `currency`."""

    account_id: UUID
    platform: Platform
    platform_account_id: str
    kind: AccountKind
    name: str | None
    currency: str
    balance_minor: int
    available_minor: int
    status: str
    opened_position: int
    """Where in the log it was opened: the order of the list, and where its next page begins."""


class Accounts:
    """Table `account`, one row per account."""

    name = "accounts"
    ddl = """
        CREATE TABLE IF NOT EXISTS account (
            account_id          uuid PRIMARY KEY,
            user_id             uuid NOT NULL,
            platform            text NOT NULL,
            platform_account_id text NOT NULL,
            kind                text NOT NULL,
            name                text,
            currency            text NOT NULL,
            balance_minor       bigint NOT NULL,
            status              text NOT NULL,
            opened_position     bigint NOT NULL
        ) WITH (fillfactor = 70);
        CREATE INDEX IF NOT EXISTS account_of_user ON account (user_id, opened_position);
    """
    types = frozenset(
        contract_of(struct).type
        for struct in (
            AccountOpened,
            AccountPosted,
            AccountClosed,
            AccountFrozen,
            AccountUnfrozen,
            TransferCompleted,
            identity.UserErased,
        )
    )

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        opened: list[tuple[object, ...]] = []
        balances: dict[UUID, int] = {}
        statuses: dict[UUID, str] = {}
        erased: list[UUID] = []
        for event in events:
            payload = event.payload
            if isinstance(payload, AccountOpened):
                opened.append(
                    (
                        payload.account_id,
                        UUID(event.stream_id),
                        payload.platform,
                        payload.platform_account_id,
                        payload.kind,
                        payload.name,
                        payload.currency,
                        event.position,
                    )
                )
            elif isinstance(payload, AccountClosed):
                statuses[payload.account_id] = "closed"
            elif isinstance(payload, AccountFrozen):
                statuses[payload.account_id] = "frozen"
            elif isinstance(payload, AccountUnfrozen):
                statuses[payload.account_id] = "active"
            elif isinstance(payload, identity.UserErased):
                erased.append(payload.user_id)
            if isinstance(payload, AccountOpened | AccountPosted | TransferCompleted):
                for leg in payload.legs:
                    account_id = customer_account(leg)
                    if account_id is not None and leg.balance_after_minor is not None:
                        balances[account_id] = leg.balance_after_minor
        if opened:
            await db.execute(
                """
                INSERT INTO account (account_id, user_id, platform, platform_account_id, kind, name, currency,
                                     opened_position, balance_minor, status)
                SELECT *, 0, 'active' FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[],
                                                  $6::text[], $7::text[], $8::bigint[])
                """,
                *zip(*opened, strict=True),
            )
        if balances:
            await db.execute(
                """
                UPDATE account SET balance_minor = latest.balance_minor
                FROM unnest($1::uuid[], $2::bigint[]) AS latest(account_id, balance_minor)
                WHERE account.account_id = latest.account_id
                """,
                list(balances),
                list(balances.values()),
            )
        if statuses:
            await db.execute(
                """
                UPDATE account SET status = latest.status
                FROM unnest($1::uuid[], $2::text[]) AS latest(account_id, status)
                WHERE account.account_id = latest.account_id
                """,
                list(statuses),
                list(statuses.values()),
            )
        if erased:
            await db.execute("UPDATE account SET name = NULL WHERE user_id = ANY ($1::uuid[])", erased)


_COLUMNS = f"""account_id, platform, platform_account_id, kind, name, currency, balance_minor,
               balance_minor - {HELD} AS available_minor, status, opened_position"""


async def list_accounts(db: asyncpg.Pool, user_id: UUID, *, after_position: int, limit: int) -> list[AccountRow]:
    """The customer's accounts in the order they were opened here, from behind a position of the log."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM account WHERE user_id = $1 AND opened_position > $2 ORDER BY opened_position LIMIT $3",
        user_id,
        after_position,
        limit,
    )
    return [msgspec.convert(dict(row), AccountRow) for row in rows]


async def get_account(db: asyncpg.Pool, user_id: UUID, account_id: UUID) -> AccountRow | None:
    """The customer's account of that id; None when it does not exist or is another customer's."""
    row = await db.fetchrow(
        f"SELECT {_COLUMNS} FROM account WHERE user_id = $1 AND account_id = $2",
        user_id,
        account_id,
    )
    return msgspec.convert(dict(row), AccountRow) if row else None


async def all_accounts(db: asyncpg.Pool, user_id: UUID) -> list[AccountRow]:
    """The customer's accounts in the order they were opened here."""
    return await list_accounts(db, user_id, after_position=0, limit=2**31)
