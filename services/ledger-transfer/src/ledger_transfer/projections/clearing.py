"""Read model: the other side of what the platforms report, summed over all customers, and the self-check."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import asyncpg
from events.contracts.ledger import AccountOpened, AccountPosted, TransferCompleted
from events.contracts.registry import Event, contract_of
from events.envelope import RecordedEvent

from ledger_transfer.state import customer_account


class Clearing:
    """Table `clearing`, one row per clearing or opening account and currency.

    Sums, because a running balance inside the events would make one hot account of all customers.
    """

    name = "clearing"
    ddl = """
        CREATE TABLE IF NOT EXISTS clearing (
            account       text NOT NULL,
            currency      text NOT NULL,
            balance_minor numeric NOT NULL,
            PRIMARY KEY (account, currency)
        ) WITH (fillfactor = 50);
    """
    types = frozenset(contract_of(struct).type for struct in (AccountOpened, AccountPosted))

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        sums: dict[tuple[str, str], int] = {}
        for event in events:
            payload = event.payload
            assert isinstance(payload, AccountOpened | AccountPosted)
            for leg in payload.legs:
                if customer_account(leg) is None:
                    key = (leg.account_id, leg.currency)
                    sums[key] = sums.get(key, 0) + leg.amount_minor
        if sums:
            await db.execute(
                """
                INSERT INTO clearing AS c (account, currency, balance_minor)
                SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[])
                ON CONFLICT (account, currency)
                DO UPDATE SET balance_minor = c.balance_minor + excluded.balance_minor
                """,
                [account for account, _ in sums],
                [currency for _, currency in sums],
                list(sums.values()),
            )


class Break(NamedTuple):
    """Something that does not add up, in minor units."""

    currency: str
    difference_minor: int


async def self_check(db: asyncpg.Pool | asyncpg.Connection) -> list[Break]:
    """Currencies in which the balances of all accounts, customers' and ours, do not sum to zero: none.

    Customers' balances are the ones stated in the events, clearing balances are sums of legs: two ways
    of counting that only agree when every leg was balanced and applied once.
    """
    rows = await db.fetch(
        """
        SELECT currency, sum(balance_minor) AS difference_minor
        FROM (SELECT currency, balance_minor::numeric FROM account
              UNION ALL SELECT currency, balance_minor FROM clearing) AS balance
        GROUP BY currency HAVING sum(balance_minor) <> 0 ORDER BY currency
        """
    )
    return [Break(row["currency"], int(row["difference_minor"])) for row in rows]


class Totals(NamedTuple):
    """Everything ever debited and credited in one currency, in minor units; both positive."""

    debits_minor: int
    credits_minor: int


def totals(events: Iterable[Event]) -> dict[str, Totals]:
    """Debits and credits per currency over a log: the two must be equal."""
    sums: dict[str, Totals] = {}
    for event in events:
        if isinstance(event, AccountOpened | AccountPosted | TransferCompleted):
            for leg in event.legs:
                debits, credits_ = sums.get(leg.currency, Totals(0, 0))
                if leg.amount_minor < 0:
                    sums[leg.currency] = Totals(debits - leg.amount_minor, credits_)
                else:
                    sums[leg.currency] = Totals(debits, credits_ + leg.amount_minor)
    return sums
