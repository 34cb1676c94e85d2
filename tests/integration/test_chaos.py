"""SIGKILL of everything, in turn, under load: every accepted transfer is there exactly once, and everything agrees."""

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
from customers import Customer, log_in_again, make_customer, transfer
from events.contracts import ledger
from truth import books_balance, everything_applied, nothing_parked, read_log, read_models_equal_a_rebuild

if TYPE_CHECKING:
    from stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

CUSTOMERS = 10
TRANSFERS = 5_000
VICTIMS = (
    "ledger_transfer",
    "relay-1",
    "wealth",
    "rabbitmq",
    "identity",
    "postgres",
    "sync_gateway",
    "relay-2",
    "notifier",
    "ledger_transfer",
    "search",
    "nginx",
)


async def run_transfers(
    stack: "Stack", http: aiohttp.ClientSession, customers: list[Customer], keys: list[str]
) -> dict[str, str]:
    """Makes one transfer per key; returns transfer id by key. Each is retried until its answer is definite."""
    accepted: dict[str, str] = {}
    work = iter(enumerate(keys))

    async def client() -> None:
        for n, key in work:
            answer = await transfer(stack, http, customers[n % len(customers)], "1.00", key)
            assert answer.status == 201, answer
            accepted[key] = answer.body["transfer_id"]

    await asyncio.gather(*(client() for _ in range(24)))
    return accepted


async def kill_in_turn(stack: "Stack", done: asyncio.Event, victims: tuple[str, ...]) -> Counter[str]:
    """Kills one process after the other until the load is done and each was killed at least once."""
    kills: Counter[str] = Counter()
    while not done.is_set() or any(not kills[victim] for victim in victims):
        for victim in victims:
            await asyncio.sleep(random.uniform(0.2, 1.0))
            stack.kill(victim)
            kills[victim] += 1
            await asyncio.to_thread(stack.wait_ready, [victim], 60)
            if done.is_set() and all(kills[name] for name in victims):
                break
    await asyncio.to_thread(stack.wait_ready, None, 90)
    return kills


async def check_everything(stack: "Stack", accepted: dict[str, str]) -> None:
    head = await everything_applied(stack.cell, 90)
    log = await read_log(stack.cell)
    assert len(log) == head
    completed = [e.payload for e in log if isinstance(e.payload, ledger.TransferCompleted)]
    assert Counter(str(event.transfer_id) for event in completed) == Counter(accepted.values()), "exactly once each"
    books_balance(log)
    await nothing_parked(stack.cell)
    await read_models_equal_a_rebuild(stack, head)


async def test_sigkill_of_everything_under_load(make_stack: "Callable[..., Stack]") -> None:
    stack = make_stack()
    async with aiohttp.ClientSession() as http:
        customers = await asyncio.gather(*(make_customer(stack, http) for _ in range(CUSTOMERS)))
        keys = [uuid4().hex for _ in range(TRANSFERS)]
        done = asyncio.Event()
        killing = asyncio.create_task(kill_in_turn(stack, done, VICTIMS))
        accepted: dict[str, str] = {}
        # In rounds, so that access tokens (5 minutes) stay fresh however slow the machine is.
        for start in range(0, TRANSFERS, 1_000):
            accepted |= await run_transfers(stack, http, customers, keys[start : start + 1_000])
            customers = [await log_in_again(stack, http, customer) for customer in customers]
        done.set()
        kills = await killing
        print(f"kills: {dict(kills)}")
        assert len(accepted) == TRANSFERS
        # A lost answer asked for again is the first answer.
        for key in random.sample(keys, 50):
            again = await transfer(stack, http, customers[keys.index(key) % CUSTOMERS], "1.00", key)
            assert again.body["transfer_id"] == accepted[key]
            assert again.headers["Idempotent-Replayed"] == "true"
        await check_everything(stack, accepted)


async def test_a_broker_restored_empty_and_a_database_gone_for_a_minute(make_stack: "Callable[..., Stack]") -> None:
    stack = make_stack()
    async with aiohttp.ClientSession() as http:
        customers = [await make_customer(stack, http) for _ in range(2)]
        accepted = await run_transfers(stack, http, customers, [uuid4().hex for _ in range(200)])

        stack.pause("rabbitmq")

        async def come_back_empty() -> None:
            await asyncio.sleep(8)
            shutil.rmtree(stack.data / "rabbitmq" / "mnesia")
            stack.resume("rabbitmq")
            await asyncio.to_thread(stack.wait_ready, None, 90)

        # Money still moves, until nobody can say any more which sessions have ended; then it waits, and none is lost.
        meanwhile, _ = await asyncio.gather(
            run_transfers(stack, http, customers, [uuid4().hex for _ in range(100)]), come_back_empty()
        )
        accepted |= meanwhile
        accepted |= await run_transfers(stack, http, customers, [uuid4().hex for _ in range(100)])
        await everything_applied(stack.cell, 60)

        stack.pause("postgres")

        async def come_back_after_a_minute() -> None:
            await asyncio.sleep(60)
            stack.resume("postgres")
            await asyncio.to_thread(stack.wait_ready, None, 90)

        # Posted while there is no database: they wait, and none is refused.
        late, _ = await asyncio.gather(
            run_transfers(stack, http, customers, [uuid4().hex for _ in range(50)]), come_back_after_a_minute()
        )
        accepted |= late
        await check_everything(stack, accepted)


async def test_a_deleted_queue_is_declared_again(make_stack: "Callable[..., Stack]") -> None:
    stack = make_stack()
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(stack, http)
        management = stack.cell.management
        for queue in ("wealth.projections", "ledger_transfer.reactions", "sync_gateway.projections"):
            await asyncio.to_thread(management.call, "DELETE", f"/queues/{stack.cell.vhost}/{queue}")
        accepted = await run_transfers(stack, http, [customer], [uuid4().hex for _ in range(100)])
        await check_everything(stack, accepted)
        names = await asyncio.to_thread(management.call, "GET", f"/queues/{stack.cell.vhost}")
        assert "wealth.projections" in str(names)


async def test_each_role_is_kept_to_its_own(sangam: "Stack") -> None:
    """No service's role can read another's tables, nor append to another's streams."""
    services = ("identity", "ledger_transfer", "sync_gateway", "wealth", "notifier", "search")
    for role in services:
        for database in services:
            if role != database:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await asyncpg.connect(sangam.cell.foreign_url(role, database))
