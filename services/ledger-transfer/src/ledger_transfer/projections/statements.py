"""Read model: what the platforms say their accounts hold, compared with what we say they held then."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
from events.contracts import banking, trading
from events.contracts.ledger import Platform, TransferSettled
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent
from events.platform_items import ERASED, LINK_CONFIRMED, LINK_REMOVED, PlatformItems

from ledger_transfer.state import account_id_of

_STATED = frozenset(contract_of(struct).type for struct in (banking.BalanceStated, trading.BalanceStated))
_SETTLED = contract_of(TransferSettled).type

_COMPARED = 100
"""How many statements of an account are looked back on for the age of a break."""


class Statements:
    """Tables `stated_balance`, one row per statement, and `settlement`, one per own transfer and platform."""

    name = "statements"
    types = _STATED | {LINK_CONFIRMED, LINK_REMOVED, ERASED, _SETTLED}

    def __init__(self) -> None:
        self._items = PlatformItems("statement")
        self.ddl = (
            self._items.ddl
            + """
            CREATE TABLE IF NOT EXISTS stated_balance (
                account_id       uuid NOT NULL,
                position         bigint NOT NULL,
                user_id          uuid NOT NULL,
                platform         text NOT NULL,
                balance_minor    bigint NOT NULL,
                currency         text NOT NULL,
                as_of            timestamptz NOT NULL,
                through_sequence bigint,
                PRIMARY KEY (account_id, position)
            );
            CREATE INDEX IF NOT EXISTS stated_balance_of_user ON stated_balance (user_id);
            CREATE TABLE IF NOT EXISTS settlement (
                transfer_id uuid NOT NULL,
                platform    text NOT NULL,
                PRIMARY KEY (transfer_id, platform)
            );
        """
        )

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        settled = [event.payload for event in events if isinstance(event.payload, TransferSettled)]
        if settled:
            await db.execute(
                "INSERT INTO settlement (transfer_id, platform) SELECT * FROM unnest($1::uuid[], $2::text[])"
                " ON CONFLICT DO NOTHING",
                [payload.transfer_id for payload in settled],
                [payload.platform for payload in settled],
            )
        platform_side = [event for event in events if event.type != _SETTLED]
        rows = [_row(user_id, item) for user_id, item in await self._items.resolve(db, platform_side)]
        if rows:
            await db.execute(
                """
                INSERT INTO stated_balance (account_id, position, user_id, platform, balance_minor, currency, as_of,
                                            through_sequence)
                SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::bigint[], $6::text[],
                                     $7::timestamptz[], $8::bigint[])
                """,
                *zip(*rows, strict=True),
            )


def _row(user_id: UUID, item: RecordedEvent) -> tuple[object, ...]:
    stated = item.payload
    assert isinstance(stated, banking.BalanceStated | trading.BalanceStated)
    bank = isinstance(stated, banking.BalanceStated)
    platform: Platform = "bfc" if bank else "vyomo"
    platform_account_id = stated.account_id if isinstance(stated, banking.BalanceStated) else stated.wallet_id
    return (
        account_id_of(user_id, platform, platform_account_id),
        item.position,
        user_id,
        platform,
        stated.balance_minor,
        stated.currency,
        stated.as_of,
        stated.through_sequence,
    )


class Comparison(NamedTuple):
    """One account beside its platform's last statement. Amounts are minor units of `currency`."""

    user_id: UUID
    account_id: UUID
    platform: Platform
    currency: str
    balance_minor: int
    """Ours, now."""
    stated_minor: int | None
    """The platform's, as of `as_of`; None: it has stated none."""
    as_of: datetime | None
    ours_minor: int | None
    """Ours as of the same instant, by all we know now."""
    in_transit_minor: int
    """Of it, what our own transfers moved that the platform has not reported back."""
    broken_since: datetime | None
    """The first statement since which every one differs; None: the last one agrees."""

    @property
    def difference_minor(self) -> int:
        """How much more the platform states than we know; 0 where that is explained."""
        if self.broken_since is None or self.stated_minor is None or self.ours_minor is None:
            return 0
        return self.stated_minor - self.ours_minor


_COMPARE = """
    WITH stated AS (
        SELECT s.*, row_number() OVER (PARTITION BY s.account_id ORDER BY s.as_of DESC, s.position DESC) AS age
        FROM stated_balance s WHERE {which}
    ), compared AS (
        SELECT stated.*, sums.ours_minor, sums.in_transit_minor,
               -- A platform may or may not have booked our own transfers that it has not reported back.
               stated.balance_minor NOT IN (sums.ours_minor, sums.ours_minor - sums.in_transit_minor) AS broken
        FROM stated CROSS JOIN LATERAL (
            SELECT coalesce(sum(signed_minor), 0)::bigint AS ours_minor,
                   coalesce(sum(signed_minor) FILTER (
                       WHERE t.transfer_id IS NOT NULL
                         AND NOT EXISTS (SELECT FROM settlement
                                         WHERE settlement.transfer_id = t.transfer_id
                                           AND settlement.platform = t.platform)), 0)::bigint AS in_transit_minor
            FROM transaction t WHERE t.account_id = stated.account_id AND t.occurred_at <= stated.as_of) AS sums
        WHERE stated.age <= {compared}
    )
    SELECT account.user_id, account.account_id, account.platform, account.currency, account.balance_minor,
           last.balance_minor AS stated_minor, last.as_of, last.ours_minor,
           coalesce(last.in_transit_minor, 0) AS in_transit_minor,
           (SELECT min(c.as_of) FROM compared c
            WHERE c.account_id = account.account_id AND last.broken
              AND c.age < coalesce((SELECT min(good.age) FROM compared good
                                    WHERE good.account_id = account.account_id AND NOT good.broken),
                                   {compared} + 1)) AS broken_since
    FROM account LEFT JOIN compared last ON last.account_id = account.account_id AND last.age = 1
"""


async def compare(db: asyncpg.Pool, user_id: UUID) -> list[Comparison]:
    """The customer's accounts beside their platforms' statements.

    Compared with what we know now: a movement that came late mends the break that its absence was.
    """
    query = _COMPARE.format(which="s.user_id = $1", compared=_COMPARED)
    rows = await db.fetch(f"{query} WHERE account.user_id = $1 ORDER BY account.opened_position", user_id)
    return [_comparison(row) for row in rows]


async def breaks(db: asyncpg.Pool, *, stated_after: int, limit: int) -> list[Comparison]:
    """Accounts of all customers that were stated behind a position of the log and whose last statement differs."""
    query = _COMPARE.format(
        which="s.account_id IN (SELECT account_id FROM stated_balance WHERE position > $1)", compared=_COMPARED
    )
    rows = await db.fetch(f"{query} WHERE last.broken ORDER BY last.position LIMIT $2", stated_after, limit)
    return [_comparison(row) for row in rows]


def _comparison(row: asyncpg.Record) -> Comparison:
    values = dict(row)
    return Comparison(
        **{
            **values,
            "user_id": UUID(int=values["user_id"].int),
            "account_id": UUID(int=values["account_id"].int),
        }
    )
