"""Where figures are asked for: a customer's picture is read once, computed in a thread, and kept until it changes."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, date, datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from wealth import queries
from wealth.answers import SummaryAnswer, summary_answer, summary_at
from wealth.computing import Computed, compute
from wealth.insights import Thresholds
from wealth.ledger_lines import local_day
from wealth.performance import PERIODS
from wealth.picture import Picture

KEPT_MAX = 300
"""Customers whose figures are kept; each takes about 50 to 300 KB."""


class Look(NamedTuple):
    """A customer's figures, and the position of the log that they hold for."""

    position: int
    as_of: datetime | None
    computed: Computed
    answers: SummaryAnswer
    """The figures as the routes give them, at that position."""


class _Kept(NamedTuple):
    changed: int
    noticed: int
    day: date
    computed: Computed
    answers: SummaryAnswer

    def at(self, stamp: queries.Stamp) -> Look:
        return Look(stamp.position, stamp.as_of, self.computed, summary_at(self.answers, stamp.position, stamp.as_of))


def _figures(picture: Picture, rules: Thresholds) -> tuple[Computed, SummaryAnswer]:
    """What takes long: also the answers, which are some thousand formatted amounts."""
    computed = compute(picture, rules)
    return computed, summary_answer(picture.position, picture.as_of, computed, PERIODS)


class Desk:
    """Figures of customers, computed off the event loop in `executor` (None: the loop's own threads)."""

    def __init__(
        self,
        database: asyncpg.Pool,
        rules: Thresholds,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        executor: Executor | None = None,
    ) -> None:
        self._database = database
        self._rules = rules
        self.clock = clock
        self._executor = executor
        self._kept: OrderedDict[UUID, _Kept] = OrderedDict()

    async def look(self, user_id: UUID, db: asyncpg.Connection | None = None) -> Look:
        """The customer's figures now. What has not changed since they were computed is not computed again.

        Args:
            db: the snapshot to look in, for who reads more of it; None: one of its own.
        """
        now = self.clock()
        kept = self._kept.get(user_id)
        if kept is not None and kept.day == local_day(now):
            stamp = await queries.stamp(db or self._database, user_id)
            if (stamp.changed, stamp.noticed) == (kept.changed, kept.noticed):
                self._kept.move_to_end(user_id)
                return kept.at(stamp)
        if db is not None:
            stamp, picture = await queries.picture(db, user_id, now)
        else:
            async with queries.snapshot(self._database) as own:
                stamp, picture = await queries.picture(own, user_id, now)
        loop = asyncio.get_running_loop()
        figures = await loop.run_in_executor(self._executor, _figures, picture, self._rules)
        kept = self._kept[user_id] = _Kept(stamp.changed, stamp.noticed, picture.today, *figures)
        self._kept.move_to_end(user_id)
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return kept.at(stamp)

    def forget(self, user_id: UUID) -> None:
        """Drops what is kept of a customer: they were erased."""
        self._kept.pop(user_id, None)
