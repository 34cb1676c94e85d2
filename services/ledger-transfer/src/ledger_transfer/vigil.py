"""What the service does by itself, in every replica: it lets holds expire, and checks that the books add up.

Doing it twice changes nothing: expiring is decided on the stream, and an alert's id follows from what it is about.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import structlog
from events.contracts.ledger import AlertRaised
from events.envelope import derived_id
from events.outage import until_it_works
from prometheus_client import Gauge

from ledger_transfer.ledger import NOBODY, Ledger
from ledger_transfer.projections.clearing import self_check
from ledger_transfer.projections.holds import due_holds
from ledger_transfer.projections.integrity import integrity_breaks
from ledger_transfer.projections.statements import breaks

log = structlog.get_logger(__name__)

EXPIRY_EVERY_S: Final = 1.0
CHECK_EVERY_S: Final = 15.0
BREAK_GRACE: Final = timedelta(minutes=15)
"""How old a difference to a platform's statement must be to alert: what is missing may be on its way."""

_HOLDS_AT_ONCE: Final = 200

books_broken = Gauge("sangam_ledger_integrity_breaks", "Positions or currencies at which the books do not add up")
difference = Gauge(
    "sangam_ledger_currency_difference_minor", "Debits less credits; anything but 0 is wrong", ["currency"]
)
checked_at = Gauge("sangam_ledger_checked_timestamp_seconds", "When the books were checked last")
reconciliation_breaks = Gauge("sangam_ledger_reconciliation_breaks", "Accounts that differ from their platform's word")


class Vigil:
    """The loops. Each pass is a method, so that a test need not wait for it."""

    def __init__(self, ledger: Ledger, database: asyncpg.Pool) -> None:
        self._ledger = ledger
        self._database = database
        self._off: set[str] = set()
        """The currencies that did not sum to zero at the last check."""

    async def expire_for_ever(self) -> None:
        """Records the expiry of holds soon after it; `available` counts it at once, recorded or not."""
        await self._until_there_are_tables()
        while True:
            await asyncio.sleep(EXPIRY_EVERY_S)
            await until_it_works("expire holds", lambda: self.expire(datetime.now(UTC)))

    async def check_for_ever(self) -> None:
        """Checks the books and the platforms' statements."""
        await self._until_there_are_tables()
        while True:
            await until_it_works("check the books", lambda: self.check(datetime.now(UTC)))
            await asyncio.sleep(CHECK_EVERY_S)

    async def expire(self, now: datetime) -> int:
        """Records the expiry of what has expired by `now`. Returns for how many customers."""
        due = await due_holds(self._database, now, limit=_HOLDS_AT_ONCE)
        for user_id, transfer_id in due:
            await self._ledger.expire_holds(user_id, transfer_id, now)
        return len(due)

    async def check(self, now: datetime) -> int:
        """Raises an alert for each thing that does not add up, once. Returns how many there are."""
        wrong = await integrity_breaks(self._database)
        off = await self_check(self._database)
        for found in off:
            difference.labels(found.currency).set(found.difference_minor)
        for currency in self._off - {found.currency for found in off}:
            difference.labels(currency).set(0)
        self._off = {found.currency for found in off}
        books_broken.set(len(wrong) + len(off))
        for broken in wrong:
            await self._alert_nobody(
                f"{broken.position}:{broken.kind}:{broken.currency}",
                f"At position {broken.position} of the log: {broken.kind.replace('_', ' ')}.",
                broken.currency,
                broken.difference_minor,
                now,
            )
        for found in off:
            # One alert per difference: the same one is not told every quarter of a minute.
            await self._alert_nobody(
                f"total:{found.currency}:{found.difference_minor}",
                "The balances of all accounts do not sum to zero.",
                found.currency,
                found.difference_minor,
                now,
            )
        await self._reconcile(now)
        checked_at.set(now.timestamp())
        return len(wrong) + len(off)

    async def _until_there_are_tables(self) -> None:
        """A service that has just been born creates them after it is wired."""
        query = "SELECT to_regclass('hold') IS NOT NULL AND to_regclass('stated_balance') IS NOT NULL"
        while True:
            if await until_it_works("look for tables", lambda: self._database.fetchval(query)):
                return
            await asyncio.sleep(0.25)

    async def _reconcile(self, now: datetime) -> None:
        differing = await breaks(self._database, stated_after=0, limit=1_000)
        reconciliation_breaks.set(len(differing))
        for row in differing:
            assert row.broken_since is not None
            if now - row.broken_since < BREAK_GRACE:
                continue
            alert = AlertRaised(
                alert_id=derived_id(row.account_id, "reconciliation_break", row.broken_since.isoformat()),
                kind="reconciliation_break",
                severity="warning",
                account_id=row.account_id,
                platform=row.platform,
                currency=row.currency,
                balance_minor=row.ours_minor,
                stated_minor=row.stated_minor,
                difference_minor=row.difference_minor,
                detail="The platform states another balance than we know of.",
                raised_at=now,
            )
            await self._ledger.raise_alert(row.user_id, alert)

    async def _alert_nobody(self, about: str, detail: str, currency: str, difference_minor: int, now: datetime) -> None:
        log.error("books_do_not_add_up", currency=currency, difference_minor=difference_minor)
        alert = AlertRaised(
            alert_id=derived_id(NOBODY, "self_check_failed", about),
            kind="self_check_failed",
            severity="critical",
            currency=currency,
            difference_minor=difference_minor,
            detail=detail,
            raised_at=now,
        )
        await self._ledger.raise_alert(None, alert)
