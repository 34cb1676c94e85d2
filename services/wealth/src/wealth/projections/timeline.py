"""What each customer has and owes, now and at the end of every day on which it changed.

Balances come from the ledger only; the platforms' items add what the ledger does not hold. Rows of days are
sparse: a day without a row is like the day before it. An event of an earlier day changes that day's row and the
later ones of its item, nothing else. Items of a platform may come out of order: an older statement never
replaces a newer one, it only mends its own days.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any
from uuid import UUID

import asyncpg
from events.contracts import banking, contract_of, identity, trading
from events.envelope import RecordedEvent
from events.platform_items import PlatformItems

from wealth.folding import fold, read
from wealth.ledger_lines import MONEY_TYPES
from wealth.projections.timeline_rows import columns, load, write

ERASED = "identity.user.erased"
_LINKED = "identity.user.link_confirmed"
_PLATFORM_ITEMS = (
    banking.LoanOpened,
    banking.LoanChanged,
    banking.FundChanged,
    banking.FixedDepositOpened,
    trading.PositionChanged,
    trading.TradeExecuted,
)
_THREAD_FROM = 32
"""From how many events on a batch is folded in a thread, so that requests are answered meanwhile."""

TABLES = ("item", "fact", "daily", "cashflow", "trade", "deposit", "linked_platform", "changed")
"""The tables with rows of a person."""


class TimelineProjection:
    """The read model behind every figure of a customer."""

    name = "timeline"
    types = (
        MONEY_TYPES
        | {contract_of(struct).type for struct in (*_PLATFORM_ITEMS, identity.LinkConfirmed, identity.LinkRemoved)}
        | {ERASED}
    )
    _own_ddl = """
        CREATE TABLE IF NOT EXISTS item (
            user_id uuid NOT NULL,
            item text NOT NULL,
            asset_class text NOT NULL,
            currency text NOT NULL,
            label text NOT NULL,
            underlying text NOT NULL,
            value_minor bigint NOT NULL,
            last_day date NOT NULL,
            stated_at timestamptz,
            stated_position bigint,
            quantity numeric,
            price numeric,
            cost bigint,
            PRIMARY KEY (user_id, item)
        ) WITH (fillfactor = 80);
        CREATE TABLE IF NOT EXISTS fact (
            user_id uuid NOT NULL,
            item text NOT NULL,
            at timestamptz NOT NULL,
            position bigint NOT NULL,
            part smallint NOT NULL,
            event_id uuid NOT NULL,
            type text NOT NULL,
            nature text NOT NULL,
            amount_minor bigint NOT NULL,
            flow_minor bigint NOT NULL,
            quantity text,
            price text,
            cost bigint,
            PRIMARY KEY (user_id, item, at, position, part)
        );
        CREATE TABLE IF NOT EXISTS daily (
            user_id uuid NOT NULL,
            item text NOT NULL,
            day date NOT NULL,
            value_minor bigint NOT NULL,
            flow_minor bigint NOT NULL,
            emi_minor bigint NOT NULL,
            PRIMARY KEY (user_id, item, day)
        );
        CREATE TABLE IF NOT EXISTS cashflow (
            user_id uuid NOT NULL,
            month date NOT NULL,
            category text NOT NULL,
            in_minor bigint NOT NULL,
            out_minor bigint NOT NULL,
            PRIMARY KEY (user_id, month, category)
        );
        CREATE TABLE IF NOT EXISTS trade (
            user_id uuid NOT NULL,
            at timestamptz NOT NULL,
            position bigint NOT NULL,
            event_id uuid NOT NULL,
            symbol text NOT NULL,
            instrument text NOT NULL,
            quantity bigint NOT NULL,
            price_minor bigint NOT NULL,
            charges_minor bigint NOT NULL,
            realized_minor bigint,
            currency text NOT NULL,
            PRIMARY KEY (user_id, at, position)
        );
        CREATE TABLE IF NOT EXISTS deposit (
            user_id uuid NOT NULL,
            deposit_id text NOT NULL,
            principal_minor bigint NOT NULL,
            currency text NOT NULL,
            rate_percent numeric NOT NULL,
            matures_on date NOT NULL,
            PRIMARY KEY (user_id, deposit_id)
        );
        CREATE TABLE IF NOT EXISTS linked_platform (
            user_id uuid NOT NULL,
            platform text NOT NULL,
            PRIMARY KEY (user_id, platform)
        );
        CREATE TABLE IF NOT EXISTS changed (
            user_id uuid PRIMARY KEY,
            position bigint NOT NULL
        ) WITH (fillfactor = 50);
        CREATE TABLE IF NOT EXISTS erased (
            user_id uuid PRIMARY KEY
        );
        CREATE TABLE IF NOT EXISTS timeline_applied (
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
        ValueError: a value that is no customer's.
        """
        if not events:
            return
        owners = {
            stream: UUID(stream.split("-", 1)[1]) for stream in {e.stream for e in events if e.type in MONEY_TYPES}
        }
        links = [(event.subject, event) for event in events if event.type == _LINKED and event.subject is not None]
        erased = {event.subject for event in events if event.type == ERASED and event.subject is not None}
        items = await self._platform_items.resolve(db, [event for event in events if event.type not in MONEY_TYPES])
        # Nothing that comes after an erasure brings the person back.
        concerned = {*owners.values(), *(user_id for user_id, _ in items), *(user_id for user_id, _ in links)}
        gone = erased | await _gone(db, concerned)
        customers = await _off_the_loop(len(events), read, events, owners, items, gone)
        await load(db, customers)
        rows = await _off_the_loop(len(events), fold, customers)
        await write(db, customers, rows)
        await _link(db, [(user_id, event) for user_id, event in links if user_id not in gone])
        for user_id in erased:
            await _erase(db, user_id)
        await db.execute(
            "INSERT INTO timeline_applied (position, recorded_at) VALUES ($1, $2) "
            "ON CONFLICT (only_row) DO UPDATE SET position = excluded.position, recorded_at = excluded.recorded_at",
            events[-1].position,
            events[-1].recorded_at,
        )


async def _off_the_loop(size: int, work: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(work, *arguments) if size >= _THREAD_FROM else work(*arguments)


async def _gone(db: asyncpg.Connection, users: Collection[UUID]) -> set[UUID]:
    rows = await db.fetch("SELECT user_id FROM erased WHERE user_id = ANY ($1)", list(users)) if users else []
    return {UUID(int=row["user_id"].int) for row in rows}


async def _link(db: asyncpg.Connection, links: Sequence[tuple[UUID, RecordedEvent]]) -> None:
    if not links:
        return
    platforms = {(user_id, event.payload.platform) for user_id, event in links}  # type: ignore[attr-defined]
    await db.execute(
        "INSERT INTO linked_platform (user_id, platform) SELECT * FROM unnest($1::uuid[], $2::text[]) "
        "ON CONFLICT DO NOTHING",  # a platform may be linked again
        *columns(sorted(platforms)),
    )
    await db.execute(
        "INSERT INTO changed (user_id, position) SELECT DISTINCT ON (1) * FROM unnest($1::uuid[], $2::bigint[]) "
        "ORDER BY 1, 2 DESC "
        "ON CONFLICT (user_id) DO UPDATE SET position = greatest(changed.position, excluded.position)",
        *columns([(user_id, event.position) for user_id, event in links]),
    )


async def _erase(db: asyncpg.Connection, user_id: UUID) -> None:
    for table in TABLES:
        await db.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
    await db.execute("INSERT INTO erased (user_id) VALUES ($1) ON CONFLICT DO NOTHING", user_id)
