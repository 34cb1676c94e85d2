"""The delivery ledger when a webhook is deleted at the worst moment, or when sending to one of several goes wrong."""

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from chassis.egress import Reply
from sync_gateway.announcements import Announcements
from sync_gateway.deliveries import Deliveries, DeliveryLedger, enqueue
from sync_gateway.delivery import NewDelivery
from sync_gateway.dispatch import Dispatcher
from sync_gateway.endpoint import Limits, Owner
from sync_gateway.ledger import Delivery, Ledger, Result
from sync_gateway.measures import MEASURES_DDL, Measures
from sync_gateway.retries import Answer
from sync_gateway.secret_box import SecretBox

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

Pool = asyncpg.Pool
BOX = SecretBox(b"k" * 32)
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


@pytest_asyncio.fixture
async def database(cell: "Cell") -> AsyncIterator[Pool]:
    pool = await asyncpg.create_pool(cell.database_url("sync_gateway"), min_size=1, max_size=4)
    await pool.execute(DeliveryLedger(Announcements(())).ddl)
    yield pool
    await pool.close()


async def webhook(database: Pool, *, state: str = "active") -> UUID:
    """A webhook with one delivery to send; its path is its id."""
    webhook_id = uuid4()
    await database.execute(
        "INSERT INTO webhook_endpoint (webhook_id, url, patterns, state, retry_delays_s, concurrency_max, rate_per_s,"
        " sealed_secret) VALUES ($1, $2, '{}', $3, '{1}', 1, 1000, $4)",
        webhook_id,
        f"https://example.com/{webhook_id}",
        state,
        BOX.seal(SECRET, str(webhook_id)),
    )
    async with database.acquire() as db, db.transaction():
        await enqueue(db, [NewDelivery(webhook_id, "event", uuid4(), "t", None, "chain", b"{}", datetime.now(UTC))])
    return webhook_id


async def test_a_webhook_belongs_to_one_replica_until_it_is_released_or_its_lease_is_over(database: Pool) -> None:
    theirs = await webhook(database)
    first, second = Ledger(database, lease_s=10), Ledger(database, lease_s=0)

    async def leased(ledger: Ledger) -> list[UUID]:
        return [row["webhook_id"] for row in await ledger.lease()]

    assert sorted(map(len, await asyncio.gather(leased(first), leased(first)))) == [1, 1], "kept by who has it"
    assert await leased(second) == []
    await first.release([theirs])
    assert await leased(second) == [theirs]
    assert await leased(first) == [theirs], "a lease of no seconds is over"


async def test_a_webhook_that_is_being_deleted_is_not_leased(database: Pool) -> None:
    """One statement decides on leases of all webhooks: failing for one, it would fail for all."""
    kept, deleted = await webhook(database), await webhook(database)
    ledger = Ledger(database, lease_s=10)
    async with database.acquire() as other:
        deleting = other.transaction()
        await deleting.start()
        await other.execute("DELETE FROM webhook_endpoint WHERE webhook_id = $1", deleted)
        leasing = asyncio.create_task(ledger.lease())
        await asyncio.sleep(0.2)
        await deleting.commit()
    assert [row["webhook_id"] for row in await leasing] == [kept]


async def test_a_result_for_a_webhook_that_is_gone_is_no_error(database: Pool) -> None:
    kept, deleted = await webhook(database), await webhook(database)
    ledger = Ledger(database, lease_s=10)
    writing = asyncio.create_task(ledger.write_forever())
    results = []
    for webhook_id in (kept, deleted):
        (delivery,) = await ledger.load(webhook_id, 0)
        delivery.attempts += 1
        results.append(_delivered(webhook_id, delivery))
    await database.execute("DELETE FROM webhook_endpoint WHERE webhook_id = $1", deleted)
    async with asyncio.timeout(5):
        await asyncio.gather(*map(ledger.record, results))
    writing.cancel()
    assert await database.fetchval("SELECT array_agg(webhook_id) FROM webhook_attempt") == [kept]


async def test_nothing_is_sent_again_for_a_webhook_that_is_gone(database: Pool) -> None:
    webhook_id = await webhook(database)
    delivery_id = await database.fetchval("SELECT delivery_id FROM webhook_delivery")
    async with database.acquire() as other:
        deleting = other.transaction()
        await deleting.start()
        await other.execute("DELETE FROM webhook_endpoint WHERE webhook_id = $1", webhook_id)
        deliveries = Deliveries(database)
        asked = asyncio.gather(
            deliveries.resend(webhook_id, delivery_id), deliveries.replay(webhook_id, datetime(2026, 1, 1, tzinfo=UTC))
        )
        await asyncio.sleep(0.2)
        await deleting.commit()
    resent, replayed = await asked
    assert (resent, replayed) == (None, 0)


class Faulty:
    """Egress that has a fault of its own for some paths."""

    timeout_s = 1.0

    def __init__(self, faulty: set[str]) -> None:
        self._faulty = faulty
        self.asked: list[str] = []

    async def post(self, url: str, headers: Any, body: bytes, *, trusted: bool = False) -> Reply:
        path = url.rpartition("/")[2]
        self.asked.append(path)
        if path in self._faulty:
            raise RuntimeError("nobody thought of this")
        return Reply(200, None)


@pytest.mark.parametrize("state", ["active", "quarantined"])
async def test_a_fault_with_one_webhook_is_not_the_others(database: Pool, state: str) -> None:
    async def nothing(*_: Any) -> None:
        return None

    await database.execute(MEASURES_DDL)
    broken = await webhook(database, state=state)
    egress: Any = Faulty({str(broken)})
    owner = Owner(nothing, nothing, nothing, nothing)
    dispatcher = Dispatcher(database, egress, BOX, owner, Limits(5, 0.1), Measures(database))
    running = asyncio.create_task(dispatcher.run())
    async with asyncio.timeout(10):
        while str(broken) not in egress.asked:
            await asyncio.sleep(0.02)
        good = await webhook(database)
        while await database.fetchval("SELECT status FROM webhook_delivery WHERE webhook_id = $1", good) != "delivered":
            await asyncio.sleep(0.02)
        again = len(egress.asked)
        while egress.asked[again:].count(str(broken)) < 1:
            await asyncio.sleep(0.02)  # begun anew
    assert not running.done()
    assert egress.asked.count(str(broken)) < 50, "no hot loop"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await database.fetchval("SELECT status FROM webhook_delivery WHERE webhook_id = $1", broken) == "pending"


class Away:
    """Egress to receivers that are not there."""

    timeout_s = 1.0

    def __init__(self) -> None:
        self.asked = 0

    async def post(self, url: str, headers: Any, body: bytes, *, trusted: bool = False) -> Reply:
        self.asked += 1
        return Reply(None, "connection_failed")


@pytest.mark.parametrize(("platform", "longest_s"), [(None, 3600), ("bfc", 60)])
async def test_probes_of_one_that_stays_away_become_rare(
    database: Pool, platform: str | None, longest_s: float
) -> None:
    """Up to an hour apart; a platform, which lacks money in its books, is asked every minute."""

    async def as_it_is(_: str, body: bytes) -> bytes:
        return body

    async def nothing(*_: Any) -> None:
        return None

    await database.execute(MEASURES_DDL)
    webhook_id = await webhook(database, state="quarantined")
    await database.execute("UPDATE webhook_endpoint SET platform = $2 WHERE webhook_id = $1", webhook_id, platform)
    began = datetime.now(UTC)
    await database.execute(
        "INSERT INTO webhook_lease (webhook_id, leased_by, leased_until, failures, failing_since, probes,"
        " next_probe_at) VALUES ($1, $1, '-infinity', 12, now(), 12, now())",
        webhook_id,
    )
    egress: Any = Away()
    owner = Owner(nothing, nothing, nothing, as_it_is)
    dispatcher = Dispatcher(database, egress, BOX, owner, Limits(5, 30), Measures(database))
    running = asyncio.create_task(dispatcher.run())
    async with asyncio.timeout(10):
        while await database.fetchval("SELECT probes FROM webhook_lease") < 13:
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert egress.asked == 1
    pause_s = (await database.fetchval("SELECT next_probe_at FROM webhook_lease") - began).total_seconds()
    assert 0.8 * longest_s <= pause_s <= 1.2 * longest_s + 11


def _delivered(webhook_id: UUID, delivery: Delivery) -> Result:
    return Result(webhook_id, delivery, datetime.now(UTC), Answer(200, None, 1.0), "delivered", None)
