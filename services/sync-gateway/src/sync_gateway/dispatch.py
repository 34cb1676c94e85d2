"""Sends what is in the delivery ledger.

A replica leases a webhook before it sends to it, so that two never do. Deliveries of one chain (an event's stream) go
one after the other; chains do not wait for each other, webhooks neither. An attempt's result is durable before the next
delivery of its chain starts. A process that dies leaves its lease to run out: what it had not got an answer for, or not
written down, is sent again under the same message id.
"""

import asyncio
import contextlib
import time
from uuid import UUID

import asyncpg
import structlog
from chassis.egress import Egress
from events.outage import is_outage, until_it_works
from prometheus_client import Gauge

from sync_gateway.deliveries import CHANNEL
from sync_gateway.endpoint import Endpoint, Limits, Owner
from sync_gateway.ledger import Ledger
from sync_gateway.meter import Meter
from sync_gateway.secret_box import SecretBox

log = structlog.get_logger(__name__)

_LEASED = Gauge("webhook_endpoints_leased", "Webhooks that this process sends to at the moment")

LOOK_EVERY_S = 1.0
DRAIN_S = 8.0


class Dispatcher:
    """Sends to every webhook that this replica has leased."""

    def __init__(
        self,
        database: "asyncpg.Pool[asyncpg.Record]",
        egress: Egress,
        box: SecretBox,
        owner: Owner,
        limits: Limits,
        meter: Meter,
    ) -> None:
        # A lease outlives any attempt begun under it.
        self.ledger = Ledger(database, lease_s=egress.timeout_s + 6)
        self._database = database
        self.egress = egress
        self.box = box
        self.owner = owner
        self.limits = limits
        self.meter = meter
        self._endpoints: dict[UUID, Endpoint] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self.leased_until_s = 0.0

    async def run(self) -> None:
        """Sends for ever."""
        tasks = [
            asyncio.create_task(self.ledger.write_forever(), name="webhook results"),
            asyncio.create_task(self._listen(), name="webhook wake-up"),
            asyncio.create_task(self._lease_forever(), name="webhook leases"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for endpoint in self._endpoints.values():
                endpoint.task.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *(e.task for e in self._endpoints.values()), return_exceptions=True)

    async def drain(self) -> None:
        """Starts nothing more, and waits for the answers under way."""
        self._stopping = True
        for endpoint in self._endpoints.values():
            endpoint.wake.set()
        sending = [task for endpoint in self._endpoints.values() for task in endpoint.sending]
        late: set[asyncio.Task[None]] = set()
        if sending:
            _, late = await asyncio.wait(sending, timeout=DRAIN_S)
        if not late:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self.ledger.release(list(self._endpoints))

    @property
    def may_start(self) -> bool:
        """Whether an attempt that starts now ends under the lease."""
        return not self._stopping and time.monotonic() + self.egress.timeout_s + 1 < self.leased_until_s

    async def _lease_forever(self) -> None:
        while not self._stopping:
            asked_s = time.monotonic()
            self._wake.clear()
            rows = await until_it_works("webhook leases", self.ledger.lease)
            # From before the question: whatever it took, the lease is not shorter than this.
            self.leased_until_s = asked_s + self.ledger.lease_s
            leased = {}
            for row in rows:
                webhook_id = UUID(int=row["webhook_id"].int)
                leased[webhook_id] = row
                endpoint = self._endpoints.get(webhook_id)
                if endpoint is None or endpoint.task.done():
                    endpoint = self._endpoints[webhook_id] = Endpoint(self, webhook_id, row)
                    endpoint.task = asyncio.create_task(endpoint.run(), name=f"webhook {webhook_id}")
                    endpoint.task.add_done_callback(lambda task, endpoint=endpoint: self._ended(endpoint, task))  # type: ignore[misc]
                else:
                    endpoint.configure(row)
                endpoint.more()
            for webhook_id, endpoint in list(self._endpoints.items()):
                if webhook_id not in leased:
                    # Nothing left to send, deleted, paused, or another replica's.
                    endpoint.stop()
                    if endpoint.task.done():
                        del self._endpoints[webhook_id]
            _LEASED.set(len(self._endpoints))
            try:
                async with asyncio.timeout(min(LOOK_EVERY_S, self.ledger.lease_s / 5)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _ended(self, endpoint: Endpoint, task: "asyncio.Task[None]") -> None:
        """What goes wrong with one webhook is that one's: it begins anew when leases are looked at next."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("webhook_failed", task=task.get_name(), exc_info=error)
        elif not endpoint.failed:
            self._wake.set()

    async def _listen(self) -> None:
        """Wakes up with the commit that enqueued something; without a connection, looking every second is enough."""
        while True:
            try:
                async with self._database.acquire() as db:

                    def woken(*_: object) -> None:
                        self._wake.set()

                    await db.add_listener(CHANNEL, woken)
                    try:
                        while not db.is_closed():
                            await asyncio.sleep(5)
                            await db.execute("SELECT 1")
                    finally:
                        await db.remove_listener(CHANNEL, woken)
            except Exception as error:
                if not is_outage(error):
                    raise
                log.warning("webhook_wake_up_lost", error=repr(error))
            await asyncio.sleep(1)
