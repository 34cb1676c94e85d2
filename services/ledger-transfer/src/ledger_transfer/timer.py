"""Wakes the rules whose time has come: runs of the calendar, and second looks after a refusal.

The read model says when to look; whether anything is due is decided on the stream. So neither a table that lags, nor
two replicas at once, nor a crash between any two steps makes a run twice or loses one: an append carries the key
(rule, version, occurrence), and until it is in the log the row stays due.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from events.envelope import Metadata, derived_id
from events.outage import is_outage, until_it_works

from ledger_transfer.ledger import Ledger
from ledger_transfer.projections.rules import DueRow, list_due
from ledger_transfer.replenish import come_due, due_occasion

log = structlog.get_logger(__name__)

POLL_S: Final = 1.0
BATCH: Final = 1_000
CONCURRENT_MAX: Final = 128

_AGAIN_AFTER_S = 5.0
"""How long the read model may take to show what was done before the timer looks at the rule again."""
_FAULTY_AFTER_S = 60.0


def firing_id(rule_id: UUID, version: int, occurrence: str) -> UUID:
    """The id of the append that makes a run: one for ever, whoever makes it."""
    return derived_id(rule_id, "firing", version, occurrence)


class Timer:
    """One per replica; `clock` is the test's to move."""

    def __init__(
        self, ledger: Ledger, database: asyncpg.Pool, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._ledger = ledger
        self._database = database
        self._clock = clock
        self._resting: dict[UUID, float] = {}
        """Rules looked at of late, and until when to leave them (monotonic)."""

    async def run(self) -> None:
        """Looks once a second, until cancelled. Outages are waited out."""
        while True:
            try:
                looked_at = await until_it_works("rules.timer", self.tick)
            except asyncpg.UndefinedTableError:
                looked_at = 0  # The service has just been born: its read model makes the table.
            if looked_at < BATCH:
                await asyncio.sleep(POLL_S)

    async def tick(self) -> int:
        """Wakes what is due now. How many rules were looked at.

        Raises:
            OSError, asyncpg.PostgresError: an outage; what was not done stays due.
        """
        monotonic = time.monotonic()
        self._resting = {rule_id: until for rule_id, until in self._resting.items() if until > monotonic}
        now = self._clock()
        rows = await list_due(self._database, now, but=tuple(self._resting), limit=BATCH)
        turns = asyncio.Semaphore(CONCURRENT_MAX)

        async def wake(row: DueRow) -> None:
            async with turns:
                await self._wake(row, now)

        outcomes = await asyncio.gather(*(wake(row) for row in rows), return_exceptions=True)
        outages = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                if is_outage(outcome):
                    outages.append(outcome)
                    continue
                # One rule at fault must not hold up the others.
                log.error("rule_not_woken", version=row.rule.version, exc_info=outcome)
            rest_s = _FAULTY_AFTER_S if isinstance(outcome, BaseException) else _AGAIN_AFTER_S
            self._resting[row.rule.rule_id] = monotonic + rest_s
        if outages:
            raise outages[0]
        return len(rows)

    async def _wake(self, row: DueRow, now: datetime) -> None:
        rule = row.rule
        occasion = due_occasion(rule, now)
        if occasion is None:
            return
        await self._ledger.execute(
            row.user_id,
            lambda decision: come_due(decision, rule.rule_id, rule.version, occasion.occurrence),
            event_id=firing_id(rule.rule_id, rule.version, occasion.occurrence),
            metadata=Metadata(actor="service:ledger_transfer"),
            now=now,
        )
