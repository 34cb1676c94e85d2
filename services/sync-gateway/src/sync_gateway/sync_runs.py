"""Synchronisation runs: ask the platforms for what never came, and for what they say the balances are.

A run is requested by an event, carried out by whichever replica claims it, and completed by an event whose id is
derived from the run's: carried out twice, it still ends once, and items are duplicates the second time.
"""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg
import structlog
from events.contracts import sync
from events.envelope import Metadata, derived_id
from events.outage import until_it_works
from events.store import EventStore, StreamAppend

from sync_gateway.feeds import Platform
from sync_gateway.intake import Busy, FeedIntake, Unavailable
from sync_gateway.platforms import PlatformAway, Platforms
from sync_gateway.projections.platform_customer import PlatformCustomer, customers_of
from sync_gateway.projections.sync_run import RequestedRun, requested_runs

log = structlog.get_logger(__name__)

CLAIMS_DDL = """
    CREATE TABLE IF NOT EXISTS sync_run_claim (
        sync_id uuid PRIMARY KEY,
        claimed_until timestamptz NOT NULL
    );
"""

LOOK_EVERY_S = 1.0
CLAIM = timedelta(minutes=2)
RUNS_MAX = 4
BALANCE_ENTITIES = (None, "balance", "account", "transaction")
_BATCH = 200


class SyncRuns:
    """Carries out what was requested."""

    def __init__(
        self, database: "asyncpg.Pool[asyncpg.Record]", store: EventStore, intake: FeedIntake, platforms: Platforms
    ) -> None:
        self._database = database
        self._store = store
        self._intake = intake
        self._platforms = platforms
        self._wake = asyncio.Event()
        self._running: dict[UUID, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Something was requested."""
        self._wake.set()

    async def run(self) -> None:
        """Carries out runs for ever, a few at a time."""
        try:
            while True:
                self._wake.clear()
                for run in await until_it_works("sync runs", lambda: requested_runs(self._database, RUNS_MAX * 2)):
                    if len(self._running) >= RUNS_MAX or run.sync_id in self._running:
                        continue
                    if await until_it_works("sync runs", lambda run=run: self._claim(run.sync_id)):  # type: ignore[misc]
                        task = asyncio.create_task(self._carry_out(run), name="sync run")
                        self._running[run.sync_id] = task
                        task.add_done_callback(lambda task, sync_id=run.sync_id: self._ended(sync_id, task))  # type: ignore[misc]
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._running.values():
                task.cancel()

    def _ended(self, sync_id: UUID, task: "asyncio.Task[None]") -> None:
        del self._running[sync_id]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("sync_run_failed", exc_info=error)

    async def _claim(self, sync_id: UUID) -> bool:
        claimed = await self._database.fetchval(
            "INSERT INTO sync_run_claim AS known (sync_id, claimed_until) VALUES ($1, now() + $2)"
            " ON CONFLICT (sync_id) DO UPDATE SET claimed_until = now() + $2 WHERE known.claimed_until < now()"
            " RETURNING true",
            sync_id,
            CLAIM,
        )
        return claimed is True

    async def _carry_out(self, run: RequestedRun) -> None:
        customers = await until_it_works("sync runs", lambda: customers_of(self._database, run.user_id))
        outcomes = []
        for platform in run.platforms:
            linked = [customer for customer in customers if customer.platform == platform]
            outcomes.append(await self._ask(platform, linked, run))
        failed = any(outcome.status == "failed" for outcome in outcomes)
        completed = sync.SyncRunCompleted(
            sync_id=run.sync_id, status="failed" if failed else "completed", outcomes=tuple(outcomes)
        )
        await until_it_works(
            "sync runs",
            lambda: self._store.append(
                [StreamAppend(f"sync_run-{run.sync_id}", (completed,))],
                event_id=derived_id(run.sync_id, "completed"),
                subject=run.user_id,
                metadata=Metadata(actor="service:sync-gateway", causation_id=run.event_id),
            ),
        )

    async def _ask(
        self, platform: Platform, linked: Sequence[PlatformCustomer], run: RequestedRun
    ) -> sync.PlatformOutcome:
        if not linked:
            return sync.PlatformOutcome(platform=platform, status="not_linked")
        counts = dict.fromkeys(("accepted", "duplicate", "conflict", "rejected"), 0)
        reason: str | None = None
        try:
            for customer in linked:
                async for page in self._platforms.items_after(platform, customer.customer_id, customer.contiguous):
                    await self._take(platform, page, counts, run)
                if run.entity in BALANCE_ENTITIES:
                    stated = await self._platforms.balances(platform, customer.customer_id)
                    await self._take(platform, stated, counts, run)
        except PlatformAway as away:
            reason = away.reason
        return sync.PlatformOutcome(
            platform=platform,
            status="completed" if reason is None else "failed",
            found=sum(counts.values()),
            applied=counts["accepted"] + counts["conflict"],
            duplicates=counts["duplicate"],
            conflicts=counts["conflict"],
            rejected=counts["rejected"],
            reason=reason,
        )

    async def _take(
        self, platform: Platform, items: Sequence[object], counts: dict[str, int], run: RequestedRun
    ) -> None:
        metadata = Metadata(actor=f"platform:{platform}", platform=platform, causation_id=run.event_id)
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            while True:
                try:
                    results = await self._intake.take(platform, batch, metadata)
                except (Busy, Unavailable):
                    await asyncio.sleep(0.5)
                    continue
                break
            for result in results:
                counts[result.status] += 1
