"""Read model: the self-check. Every money event is checked when it is applied, at its position in the log.

Two things must hold at every position: the legs of each event sum to zero in each currency, and each balance that
an event states is the one before it plus the leg. Together: debits equal credits, and balances are the fold of the
log. What breaks them is kept as a row; there is none unless something is badly wrong.
"""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
from events.contracts.ledger import AccountOpened, AccountPosted, TransferCompleted
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

from ledger_transfer.state import customer_account


class Integrity:
    """Tables `integrity_break` and `integrity_balance`: what each account had after its last event."""

    name = "integrity"
    ddl = """
        CREATE TABLE IF NOT EXISTS integrity_break (
            position         bigint NOT NULL,
            number           smallint NOT NULL,
            kind             text NOT NULL,
            currency         text NOT NULL,
            account_id       uuid,
            difference_minor numeric NOT NULL,
            PRIMARY KEY (position, number)
        );
        CREATE TABLE IF NOT EXISTS integrity_balance (
            account_id    uuid PRIMARY KEY,
            balance_minor bigint NOT NULL
        ) WITH (fillfactor = 70);
    """
    types = frozenset(contract_of(struct).type for struct in (AccountOpened, AccountPosted, TransferCompleted))

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        touched: dict[UUID, int] = {}
        for event in events:
            payload = event.payload
            assert isinstance(payload, AccountOpened | AccountPosted | TransferCompleted)
            touched.update(dict.fromkeys(filter(None, map(customer_account, payload.legs)), 0))
        if touched:
            rows = await db.fetch(
                "SELECT account_id, balance_minor FROM integrity_balance WHERE account_id = ANY ($1::uuid[])",
                list(touched),
            )
            touched.update((UUID(int=row["account_id"].int), row["balance_minor"]) for row in rows)
        breaks = [row for event in events for row in _breaks(event, touched)]
        if touched:
            await db.execute(
                """
                INSERT INTO integrity_balance (account_id, balance_minor)
                SELECT * FROM unnest($1::uuid[], $2::bigint[])
                ON CONFLICT (account_id) DO UPDATE SET balance_minor = excluded.balance_minor
                """,
                list(touched),
                list(touched.values()),
            )
        if breaks:
            await db.executemany(
                "INSERT INTO integrity_break (position, number, kind, currency, account_id, difference_minor)"
                " VALUES ($1, $2, $3, $4, $5, $6)",
                breaks,
            )


def _breaks(event: RecordedEvent, balances: dict[UUID, int]) -> list[tuple[object, ...]]:
    """What of the event does not add up; moves `balances` on to what it states."""
    payload = event.payload
    assert isinstance(payload, AccountOpened | AccountPosted | TransferCompleted)
    found: list[tuple[object, ...]] = []
    sums: dict[str, int] = {}
    for leg in payload.legs:
        sums[leg.currency] = sums.get(leg.currency, 0) + leg.amount_minor
        account_id = customer_account(leg)
        if account_id is None:
            continue
        expected = balances[account_id] + leg.amount_minor
        stated = leg.balance_after_minor if leg.balance_after_minor is not None else expected
        if stated != expected:
            found.append(
                (event.position, len(found), "balance_is_not_the_fold", leg.currency, account_id, stated - expected)
            )
        balances[account_id] = stated
    for currency, total in sums.items():
        if total:
            found.append((event.position, len(found), "legs_do_not_balance", currency, None, total))
    return found


class IntegrityBreak(NamedTuple):
    """Something at a position of the log that does not add up, in minor units."""

    position: int
    kind: str
    currency: str
    difference_minor: int


async def integrity_breaks(db: asyncpg.Pool | asyncpg.Connection, *, limit: int = 100) -> list[IntegrityBreak]:
    """The breaks, the first first."""
    rows = await db.fetch(
        "SELECT position, kind, currency, difference_minor FROM integrity_break ORDER BY position, number LIMIT $1",
        limit,
    )
    return [IntegrityBreak(r["position"], r["kind"], r["currency"], int(r["difference_minor"])) for r in rows]
