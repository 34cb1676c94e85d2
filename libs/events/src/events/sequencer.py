"""Gives committed events their dense global position. One leader at a time, in the relay process.

Why the scan looks as it does (docs/architecture.md, "Sequence"): ids are drawn after a stream's lock, so within a
stream they rise with the version, but transactions commit in any order. The leader therefore remembers the ids it
skipped (`gaps`) and scans for ids above the highest it has seen plus those gaps. Every commit a snapshot sees is
safe to sequence; one that it does not see delays nobody. A rolled-back id is forgotten once every transaction
that could have drawn it has ended.
"""

import time

import asyncpg
import structlog

from events import metrics, pg
from events.wire import LogSlice

log = structlog.get_logger(__name__)

LEADER_LOCK = "hashtext('sangam.sequencer')"
MAX_EVENTS_PER_STATEMENT = 2_048
_SETTLE_EVERY_S = 0.02
_IDS_PER_PARTITION_CHECK = 1_000_000


class LostLeadership(Exception):
    """The session that held the leader's lock is gone; another relay may lead now."""


class Sequencer:
    """The leader's memory. Valid only while its connection holds the lock: a takeover makes a new one."""

    def __init__(self, connection: asyncpg.Connection, high: int, takeover_xid: int) -> None:
        self._connection = connection
        self._high = high
        """The highest id seen. Ids up to the one at takeover are not tracked one by one."""
        self._takeover_xid: int | None = takeover_xid
        """Until every older transaction has ended, scans are full: they may hold ids unknown to us."""
        self._gaps: dict[int, int | None] = {}
        """Skipped id → a transaction id above its owner's; None until one was drawn."""
        self._partitions_checked_at = high
        self._settled_at_s = 0.0

    @classmethod
    async def take_over(cls, connection: asyncpg.Connection) -> "Sequencer | None":
        """The sequencer, if this session gets the leader's lock; None while another holds it."""
        if not await connection.fetchval(f"SELECT pg_try_advisory_lock({LEADER_LOCK})"):
            return None
        await connection.execute("SELECT store.ensure_partitions()")
        # In this order: whoever drew an id up to `high` has a transaction id below `xid`.
        high = await connection.fetchval("SELECT store.last_event_id()")
        xid = int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
        log.info("sequencer.leads", last_event_id=high)
        return cls(connection, high, xid)

    async def sequence(self) -> list[LogSlice]:
        """Gives positions to what has committed, some thousand events at most. Empty: there was nothing.

        Raises:
            LostLeadership: the connection broke.
        """
        try:
            return await self._sequence()
        except Exception as error:
            if pg.is_outage(error):
                raise LostLeadership(str(error)) from error
            raise

    async def _sequence(self) -> list[LogSlice]:
        ended_before = await self._ended_before()
        full_scan = self._takeover_xid is not None
        rows = await self._connection.fetch(
            "SELECT * FROM store.sequence($1, $2, $3)",
            0 if full_scan else self._high,
            list(self._gaps),
            MAX_EVENTS_PER_STATEMENT,
        )
        seen = {id_ for row in rows for id_ in row["ids"]}

        # This scan's snapshot is younger than `ended_before`: it saw all that those transactions committed.
        # Only a full scan that the limit has cut short did not look everywhere.
        if not full_scan or len(seen) < MAX_EVENTS_PER_STATEMENT:
            if self._takeover_xid is not None and self._takeover_xid <= ended_before:
                self._takeover_xid = None
            self._gaps = {gap: xid for gap, xid in self._gaps.items() if xid is None or xid > ended_before}
        for found in seen & self._gaps.keys():
            del self._gaps[found]
        if seen and (top := max(seen)) > self._high:
            # Ids are taken lowest first, so what is missing below `top` has not committed.
            self._gaps.update((id_, None) for id_ in range(self._high + 1, top) if id_ not in seen)
            self._high = top
            if top - self._partitions_checked_at > _IDS_PER_PARTITION_CHECK:
                self._partitions_checked_at = top
                await self._connection.execute("SELECT store.ensure_partitions()")
        metrics.sequenced.inc(len(seen))
        return [LogSlice(row["first"], row["last"], row["events"]) for row in rows]

    async def _ended_before(self) -> int:
        """The transaction id below which every transaction has ended; 0 where nothing needs it."""
        if self._takeover_xid is None and not self._gaps:
            return 0
        if time.monotonic() - self._settled_at_s < _SETTLE_EVERY_S:
            return 0
        self._settled_at_s = time.monotonic()
        row = await self._connection.fetchrow(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS ended_before, pg_current_xact_id()::text AS xid"
        )
        assert row is not None
        # The owner of every gap known so far is older than this statement's own transaction.
        xid = int(row["xid"])
        self._gaps = {gap: owner_below or xid for gap, owner_below in self._gaps.items()}
        return int(row["ended_before"])
