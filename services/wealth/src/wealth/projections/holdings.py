"""What each customer holds: accounts and balances, loans, funds, positions, realised P&L, what is linked.

Balances come from the ledger only; the platforms' items add what the ledger does not hold. A fixed deposit is
an account of the ledger, so `banking.fixed_deposit.*` is not read here: it would be counted twice for as long
as the ledger has not moved its money yet.

Items of a platform may come out of order. What states a whole (a loan, a fund, a position) is kept with
the time it was stated for, and an older statement never replaces a newer one; a closed position therefore
stays as a row of quantity 0.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import banking, contract_of, identity, ledger, trading
from events.contracts.registry import Event
from events.envelope import RecordedEvent
from events.platform_items import PlatformItems

from wealth.networth import Holdings

_PLATFORM_ITEMS = (
    banking.LoanOpened,
    banking.LoanChanged,
    banking.FundChanged,
    trading.PositionChanged,
    trading.TradeExecuted,
)
_LEDGER = (ledger.AccountOpened, ledger.AccountPosted, ledger.TransferCompleted)


class Snapshot(NamedTuple):
    """One customer's holdings as of one state of the read model."""

    as_of: datetime | None
    """When the last event applied to the read model was recorded; None before the first."""
    position: int
    """The position of that event in the log; 0 before the first."""
    holdings: Holdings


class HoldingsProjection:
    """The read model behind net worth."""

    name = "holdings"
    types = frozenset(contract_of(s).type for s in (*_LEDGER, *_PLATFORM_ITEMS, identity.LinkConfirmed))
    _own_ddl = """
        CREATE TABLE IF NOT EXISTS account (
            account_id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            kind text NOT NULL,
            currency text NOT NULL,
            balance_minor bigint NOT NULL
        );
        CREATE INDEX IF NOT EXISTS account_by_user ON account (user_id);
        CREATE TABLE IF NOT EXISTS linked_platform (
            user_id uuid NOT NULL,
            platform text NOT NULL,
            PRIMARY KEY (user_id, platform)
        );
        CREATE TABLE IF NOT EXISTS loan (
            user_id uuid NOT NULL,
            loan_id text NOT NULL,
            currency text NOT NULL,
            outstanding_minor bigint NOT NULL,
            stated_at timestamptz NOT NULL,
            PRIMARY KEY (user_id, loan_id)
        );
        CREATE TABLE IF NOT EXISTS fund (
            user_id uuid NOT NULL,
            scheme_code text NOT NULL,
            currency text NOT NULL,
            units numeric NOT NULL,
            nav numeric NOT NULL,
            stated_at timestamptz NOT NULL,
            PRIMARY KEY (user_id, scheme_code)
        );
        CREATE TABLE IF NOT EXISTS open_position (
            user_id uuid NOT NULL,
            position_id text NOT NULL,
            instrument text NOT NULL,
            currency text NOT NULL,
            quantity bigint NOT NULL,
            mark_price_minor bigint NOT NULL,
            unrealized_pnl_minor bigint NOT NULL,
            stated_at timestamptz NOT NULL,
            PRIMARY KEY (user_id, position_id)
        );
        CREATE TABLE IF NOT EXISTS realized_pnl (
            user_id uuid NOT NULL,
            currency text NOT NULL,
            amount_minor bigint NOT NULL,
            PRIMARY KEY (user_id, currency)
        );
        CREATE TABLE IF NOT EXISTS holdings_applied (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            position bigint NOT NULL,
            recorded_at timestamptz NOT NULL
        );
    """

    def __init__(self) -> None:
        self._platform_items = PlatformItems()
        self.ddl = self._own_ddl + self._platform_items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Raises:
        LookupError: a leg on an account that was never opened.
        """
        if not events:
            return
        await _apply_ledger(db, [event for event in events if event.type.startswith("ledger.")])
        await _apply_links(db, [event for event in events if event.type == "identity.user.link_confirmed"])
        items_and_links = [event for event in events if not event.type.startswith("ledger.")]
        if items_and_links:
            await _apply_items(db, await self._platform_items.resolve(db, items_and_links))
        await db.execute(
            "INSERT INTO holdings_applied (position, recorded_at) VALUES ($1, $2) "
            "ON CONFLICT (only_row) DO UPDATE "
            "SET position = excluded.position, recorded_at = excluded.recorded_at",
            events[-1].position,
            events[-1].recorded_at,
        )


async def _apply_ledger(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
    opened: list[tuple[UUID, UUID, str, str]] = []
    balances: dict[UUID, int] = {}
    for event in events:
        payload = event.payload
        if isinstance(payload, ledger.AccountOpened):
            opened.append((payload.account_id, UUID(event.stream_id), payload.kind, payload.currency))
            balances[payload.account_id] = 0
        if isinstance(payload, ledger.AccountOpened | ledger.AccountPosted | ledger.TransferCompleted):
            for leg in payload.legs:
                # A leg without a balance is on a clearing or opening account: not the customer's.
                if leg.balance_after_minor is not None:
                    balances[UUID(leg.account_id)] = leg.balance_after_minor
    if opened:
        await db.execute(
            "INSERT INTO account (account_id, user_id, kind, currency, balance_minor) "
            "SELECT *, 0 FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])",
            *_columns(opened),
        )
    if balances:
        updated = await db.execute(
            "UPDATE account SET balance_minor = new.balance_minor "
            "FROM unnest($1::uuid[], $2::bigint[]) AS new (account_id, balance_minor) "
            "WHERE account.account_id = new.account_id",
            list(balances),
            list(balances.values()),
        )
        if updated != f"UPDATE {len(balances)}":
            raise LookupError(f"{updated} of {len(balances)} accounts: one of {sorted(map(str, balances))}")


async def _apply_links(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
    links = {
        (UUID(event.stream_id), event.payload.platform)
        for event in events
        if isinstance(event.payload, identity.LinkConfirmed)
    }
    if links:
        await db.execute(
            "INSERT INTO linked_platform (user_id, platform) SELECT * FROM unnest($1::uuid[], $2::text[]) "
            "ON CONFLICT DO NOTHING",  # a platform may be linked again
            *_columns(sorted(links)),
        )


async def _apply_items(db: asyncpg.Connection, items: Sequence[tuple[UUID, RecordedEvent]]) -> None:
    loans: dict[tuple[UUID, str], banking.Loan] = {}
    funds: dict[tuple[UUID, str], banking.FundChanged] = {}
    positions: dict[tuple[UUID, str], trading.PositionChanged] = {}
    realized: dict[tuple[UUID, str], int] = {}
    for user_id, item in items:
        payload = item.payload
        match payload:
            case banking.LoanOpened() | banking.LoanChanged():
                _keep_latest(loans, (user_id, payload.loan_id), payload)
            case banking.FundChanged():
                _keep_latest(funds, (user_id, payload.scheme_code), payload)
            case trading.PositionChanged():
                _keep_latest(positions, (user_id, payload.position_id), payload)
            case trading.TradeExecuted() if payload.realized_pnl_minor is not None:
                key = (user_id, payload.currency)
                realized[key] = realized.get(key, 0) + payload.realized_pnl_minor
    if loans:
        await db.execute(
            "INSERT INTO loan (user_id, loan_id, currency, outstanding_minor, stated_at) "
            "SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[]) "
            "ON CONFLICT (user_id, loan_id) DO UPDATE SET currency = excluded.currency, "
            "outstanding_minor = excluded.outstanding_minor, stated_at = excluded.stated_at "
            "WHERE excluded.stated_at >= loan.stated_at",
            *_columns([(*key, loan.currency, loan.outstanding_minor, loan.occurred_at) for key, loan in loans.items()]),
        )
    if funds:
        await db.execute(
            "INSERT INTO fund (user_id, scheme_code, currency, units, nav, stated_at) "
            "SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::numeric[], $5::numeric[], "
            "$6::timestamptz[]) "
            "ON CONFLICT (user_id, scheme_code) DO UPDATE SET currency = excluded.currency, "
            "units = excluded.units, nav = excluded.nav, stated_at = excluded.stated_at "
            "WHERE excluded.stated_at >= fund.stated_at",
            *_columns(
                [
                    (*key, fund.currency, _finite(fund.units), _finite(fund.nav), fund.occurred_at)
                    for key, fund in funds.items()
                ]
            ),
        )
    if positions:
        await db.execute(
            "INSERT INTO open_position (user_id, position_id, instrument, currency, quantity, "
            "mark_price_minor, unrealized_pnl_minor, stated_at) "
            "SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], "
            "$6::bigint[], $7::bigint[], $8::timestamptz[]) "
            "ON CONFLICT (user_id, position_id) DO UPDATE SET instrument = excluded.instrument, "
            "currency = excluded.currency, quantity = excluded.quantity, "
            "mark_price_minor = excluded.mark_price_minor, "
            "unrealized_pnl_minor = excluded.unrealized_pnl_minor, stated_at = excluded.stated_at "
            "WHERE excluded.stated_at >= open_position.stated_at",
            *_columns(
                [
                    (
                        *key,
                        p.instrument,
                        p.currency,
                        p.quantity,
                        p.mark_price_minor,
                        p.unrealized_pnl_minor,
                        p.occurred_at,
                    )
                    for key, p in positions.items()
                ]
            ),
        )
    if realized:
        await db.execute(
            "INSERT INTO realized_pnl (user_id, currency, amount_minor) "
            "SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[]) "
            "ON CONFLICT (user_id, currency) DO UPDATE "
            "SET amount_minor = realized_pnl.amount_minor + excluded.amount_minor",
            *_columns([(*key, amount) for key, amount in realized.items()]),
        )


def _keep_latest(latest: dict[tuple[UUID, str], Any], key: tuple[UUID, str], item: Event) -> None:
    """Of statements for one time, the one that came last counts: the same rule as in the upserts."""
    known = latest.get(key)
    if known is None or item.occurred_at >= known.occurred_at:  # type: ignore[attr-defined]
        latest[key] = item


def _finite(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"not a number of units or a NAV: {text!r}")
    return value


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


# One statement is one snapshot: figures and position belong together without a transaction around them.
# Numerics travel as text: JSON numbers would pass through a float on their way.
_SNAPSHOT = """
    SELECT applied.position, applied.recorded_at, json_build_object(
        'linked', (SELECT coalesce(json_agg(platform), '[]') FROM linked_platform WHERE user_id = $1),
        'accounts', (SELECT coalesce(json_agg(t), '[]') FROM
            (SELECT kind, currency, balance_minor FROM account WHERE user_id = $1) t),
        'loans', (SELECT coalesce(json_agg(t), '[]') FROM
            (SELECT loan_id, currency, outstanding_minor FROM loan WHERE user_id = $1) t),
        'funds', (SELECT coalesce(json_agg(t), '[]') FROM
            (SELECT scheme_code, currency, units::text, nav::text FROM fund WHERE user_id = $1) t),
        'positions', (SELECT coalesce(json_agg(t), '[]') FROM
            (SELECT position_id, instrument, currency, quantity, mark_price_minor, unrealized_pnl_minor
             FROM open_position WHERE user_id = $1 AND quantity <> 0) t),
        'realized', (SELECT coalesce(json_agg(t), '[]') FROM
            (SELECT currency, amount_minor FROM realized_pnl WHERE user_id = $1) t)
    )::text AS holdings
    FROM (SELECT 1) AS one LEFT JOIN holdings_applied AS applied ON true
"""


async def snapshot(database: asyncpg.Pool, user_id: UUID) -> Snapshot:
    """What `user_id` holds now, as far as the read model has come."""
    row = await database.fetchrow(_SNAPSHOT, user_id)
    assert row is not None  # a left join from one row gives one row
    return Snapshot(
        as_of=row["recorded_at"],
        position=row["position"] or 0,
        holdings=msgspec.json.decode(row["holdings"], type=Holdings),
    )
