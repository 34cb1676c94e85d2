"""Money over a real event store: once per request, once per item, never overdrawn, whatever crashes."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from events.contracts import banking, identity
from events.contracts.ledger import (
    AccountOpened,
    AccountPosted,
    TransferCompleted,
    TransferRefused,
    TransferSettled,
)
from events.envelope import RecordedEvent, new_id, platform_stream
from events.projections import Projections, rebuild
from events.sequencer import Sequencer
from events.store import EventIdReused, EventStore, StreamAppend
from keys_in_memory import texts
from ledger_transfer.freezing import AccountUnlinked
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.projections.clearing import Totals, self_check, totals
from ledger_transfer.reactions import Reactions
from ledger_transfer.state import LedgerState, fold
from ledger_transfer.transfers import AccountNotFound, Clearance, TransferRequest
from ledger_world import AT, NOBODY, CrashError, Customer, World
from recording import recorded

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


@pytest.fixture
def urls(cell: "Cell") -> dict[str, str]:
    found = {role: cell.store_url(role) for role in ("ledger_transfer", "sync_gateway", "identity", "relay")}
    return found | {"database": cell.database_url("ledger_transfer")}


@pytest.fixture
async def world(urls: dict[str, str]) -> AsyncIterator[World]:
    services = ("ledger_transfer", "sync_gateway", "identity")
    stores = {role: await EventStore.connect(urls[role]) for role in services}
    db = await asyncpg.create_pool(urls["database"], min_size=1, max_size=4)
    relay = await asyncpg.connect(urls["relay"])
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    found = World(urls["ledger_transfer"], stores, db, sequencer)
    for ddl in (Reactions(found.ledger).ddl, *(projection.ddl for projection in PROJECTIONS)):
        await db.execute(ddl)
    yield found
    for store in stores.values():
        await store.close()
    await db.close()
    await relay.close()


def balances(state: LedgerState, customer: Customer) -> tuple[int, int]:
    return (
        state.accounts[customer.savings].balance_minor,
        state.accounts[customer.wallet].balance_minor,
    )


async def test_one_transfer_posted_fifty_times_at_once_moves_money_once(world: World) -> None:
    customer = await world.customer(savings=100_00)
    second = await EventStore.connect(world.store_url)
    ledgers = (world.ledger, Ledger(second, texts()))
    outcomes = await asyncio.gather(
        *(
            ledgers[n % 2].transfer(customer.user_id, customer.request(40_00, "k"), NOBODY, AT + timedelta(n))
            for n in range(50)
        )
    )
    await second.close()
    assert sum(not outcome.replayed for outcome in outcomes) == 1
    assert len({outcome.event.transfer_id for outcome in outcomes}) == 1
    assert all(outcome.event == outcomes[0].event for outcome in outcomes)
    assert balances(await world.ledger.state(customer.user_id), customer) == (60_00, 40_00)


async def test_fifty_transfers_for_one_balance_never_overdraw_it(world: World) -> None:
    """From two processes, each with a cache that the other makes stale."""
    customer = await world.customer(savings=100_00)
    second = await EventStore.connect(world.store_url)
    ledgers = (world.ledger, Ledger(second, texts()))
    for ledger in ledgers:
        await ledger.state(customer.user_id)
    outcomes = await asyncio.gather(
        *(ledgers[n % 2].transfer(customer.user_id, customer.request(7_00, f"k{n}"), NOBODY, AT) for n in range(50))
    )
    await second.close()
    completed = [outcome.event for outcome in outcomes if isinstance(outcome.event, TransferCompleted)]
    refused = [outcome.event for outcome in outcomes if isinstance(outcome.event, TransferRefused)]
    assert (len(completed), len(refused)) == (14, 36)
    assert {event.code for event in refused} == {"insufficient_funds"}
    events = await world.ledger_events(customer.user_id)
    assert balances(fold(events), customer) == (2_00, 98_00)
    assert totals(events)["INR"] == Totals(100_00 + 98_00, 100_00 + 98_00)


async def test_a_stale_replica_does_not_refuse_money_that_is_there(world: World) -> None:
    customer = await world.customer(savings=0)
    second = await EventStore.connect(world.store_url)
    stale = Ledger(second, texts())
    await stale.state(customer.user_id)
    await world.ledger.record(customer.user_id, recorded(customer.posted(50_00)))
    outcome = await stale.transfer(customer.user_id, customer.request(50_00, "k"), NOBODY, AT)
    await second.close()
    assert isinstance(outcome.event, TransferCompleted)


async def test_a_refusal_is_the_answer_for_ever(world: World) -> None:
    customer = await world.customer(savings=10_00)
    request = customer.request(40_00, "k")
    first = await world.ledger.transfer(customer.user_id, request, NOBODY, AT)
    assert isinstance(first.event, TransferRefused)
    await world.ledger.record(customer.user_id, recorded(customer.posted(90_00)))
    again = await world.ledger.transfer(customer.user_id, request, NOBODY, AT + timedelta(days=1))
    assert again == (first.event, True)
    assert balances(await world.ledger.state(customer.user_id), customer) == (100_00, 0)
    found = await world.ledger.find_transfer(customer.user_id, request.transfer_id)
    assert found is not None
    assert (found.first, found.completed) == (first.event, None)


async def test_a_key_used_for_another_request_is_refused(world: World) -> None:
    customer = await world.customer(savings=100_00)
    await world.ledger.transfer(customer.user_id, customer.request(40_00, "k"), NOBODY, AT)
    with pytest.raises(EventIdReused):
        await world.ledger.transfer(customer.user_id, customer.request(41_00, "k"), NOBODY, AT)
    # Nor is it told why the other request would be refused.
    with pytest.raises(EventIdReused):
        await world.ledger.transfer(
            customer.user_id, customer.request(42_00, "k"), NOBODY, AT, Clearance(threshold_minor=41_00)
        )
    assert balances(await world.ledger.state(customer.user_id), customer) == (60_00, 40_00)


async def test_an_unknown_account_leaves_nothing_behind(world: World) -> None:
    customer = Customer(new_id())
    request = customer.request(40_00, "k")
    with pytest.raises(AccountNotFound):
        await world.ledger.transfer(customer.user_id, request, NOBODY, AT)
    assert await world.ledger_events(customer.user_id) == []
    for item in (customer.savings_opened(50_00), customer.wallet_opened(0)):
        await world.ledger.record(customer.user_id, recorded(item))
    outcome = await world.ledger.transfer(customer.user_id, request, NOBODY, AT)
    assert isinstance(outcome.event, TransferCompleted)


async def test_another_customers_account_does_not_exist(world: World) -> None:
    mine, theirs = await world.customer(savings=100_00), await world.customer(savings=100_00)
    for source, target in ((mine.savings, theirs.savings), (theirs.savings, mine.wallet)):
        request = TransferRequest(
            transfer_id=new_id(),
            from_account_id=source,
            to_account_id=target,
            amount_minor=1,
            currency="INR",
        )
        with pytest.raises(AccountNotFound):
            await world.ledger.transfer(mine.user_id, request, NOBODY, AT)
    outcome = await world.ledger.transfer(theirs.user_id, theirs.request(1, "k"), NOBODY, AT)
    assert await world.ledger.find_transfer(mine.user_id, outcome.event.transfer_id) is None


async def test_a_crash_between_append_and_position_moves_the_money_once(world: World) -> None:
    customer = Customer(new_id())
    await world.link(customer.user_id, "bfc", customer.bank_id)
    await world.platform_says(customer.savings_opened(100_00), customer.posted(25_00), customer.posted(-5_00))
    with pytest.raises(CrashError):
        await world.react(crash=True)
    before = await world.ledger_events(customer.user_id)
    assert len(before) == 3, "the append was durable before the crash"
    restarted = Ledger(world.store, texts())
    await world.react(reactions=Reactions(restarted))
    assert await world.ledger_events(customer.user_id) == before
    assert (await restarted.state(customer.user_id)).accounts[customer.savings].balance_minor == 120_00


async def test_a_crash_in_the_middle_of_a_batch_moves_the_money_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = Customer(new_id())
    await world.link(customer.user_id, "bfc", customer.bank_id)
    await world.platform_says(
        customer.savings_opened(100_00), *(customer.posted(amount) for amount in (1_00, 2_00, 4_00))
    )
    dying = Ledger(world.store, texts())
    record, count = dying.record, itertools.count()

    async def record_two(user_id: UUID, item: RecordedEvent) -> None:
        if next(count) == 2:
            raise CrashError
        await record(user_id, item)

    monkeypatch.setattr(dying, "record", record_two)
    with pytest.raises(CrashError):
        await world.react(reactions=Reactions(dying))
    assert len(await world.ledger_events(customer.user_id)) == 2
    await world.react()
    assert fold(await world.ledger_events(customer.user_id)).accounts[customer.savings].balance_minor == 107_00


@pytest.mark.parametrize("batch", [1, 2, 3, 50])
async def test_items_around_the_link_are_posted_once_in_every_order(world: World, batch: int) -> None:
    orders = list(itertools.permutations(["opened", "credit", "debit", "link"]))
    customers = [Customer(new_id()) for _ in orders]
    for step in range(4):
        for customer, order in zip(customers, orders, strict=True):
            match order[step]:
                case "opened":
                    await world.platform_says(customer.savings_opened(100_00))
                case "credit":
                    await world.platform_says(customer.posted(30_00))
                case "debit":
                    await world.platform_says(customer.posted(-10_00))
                case "link":
                    await world.link(customer.user_id, "bfc", customer.bank_id)
    await world.react(batch)
    for customer in customers:
        events = await world.ledger_events(customer.user_id)
        assert [type(event) for event in events].count(AccountOpened) == 1
        assert [type(event) for event in events].count(AccountPosted) == 2
        assert fold(events).accounts[customer.savings].balance_minor == 120_00


async def test_items_racing_the_link_are_posted_once(world: World) -> None:
    """Everything at once, the consumer running all the while."""
    customers = [Customer(new_id()) for _ in range(20)]
    appends = [
        append
        for customer in customers
        for append in (
            world.platform_says(customer.savings_opened(100_00), customer.posted(30_00), customer.posted(-10_00)),
            world.platform_says(customer.posted(5_00)),
            world.link(customer.user_id, "bfc", customer.bank_id),
        )
    ]
    random.Random(7).shuffle(appends)
    racing = asyncio.gather(*appends)
    while not racing.done():
        await world.react(batch=3)
        await asyncio.sleep(0)
    await racing
    await world.react(batch=3)
    for customer in customers:
        state = fold(await world.ledger_events(customer.user_id))
        assert state.accounts[customer.savings].balance_minor == 125_00


async def _unlink(world: World, customer: Customer, platform: Any = "bfc") -> None:
    removed = identity.LinkRemoved(
        link_id=new_id(),
        platform=platform,
        platform_customer_id=customer.bank_id,
        platform_stream=platform_stream(platform, customer.bank_id),
    )
    await world.stores["identity"].append(
        [StreamAppend(f"user-{customer.user_id}", (removed,))], event_id=new_id(), subject=customer.user_id
    )


@pytest.mark.parametrize("batch", [1, 100])
async def test_who_unlinks_keeps_a_history_and_the_next_owner_gets_it_from_the_opening(
    world: World, batch: int
) -> None:
    first, second = Customer(new_id()), Customer(new_id())
    second.bank_id = first.bank_id
    await world.platform_says(first.savings_opened(1_000_00))
    await world.link(first.user_id, "bfc", first.bank_id)
    await world.platform_says(first.posted(50_00))
    await world.ledger.record(first.user_id, recorded(first.wallet_opened(500_00)))
    await _unlink(world, first)
    await world.platform_says(first.posted(7_00))
    await world.react(batch)

    def balances(state: LedgerState, customer: Customer) -> tuple[int, str, str]:
        savings, wallet = state.accounts[customer.savings], state.accounts.get(customer.wallet)
        return savings.balance_minor, savings.status, wallet.status if wallet else "none"

    assert balances(await world.ledger.state(first.user_id), first) == (1_050_00, "frozen", "active")
    with pytest.raises(AccountUnlinked):
        await world.ledger.freeze(first.user_id, first.savings, "customer", NOBODY, AT, thaw=True)
    frozen_again = await world.ledger.freeze(first.user_id, first.savings, "customer", NOBODY, AT)
    assert not frozen_again.events, "it stays what the removal made it"
    for key, request in (("out", first.request(1, "out")), ("in", first.request(1, "in"))):
        if key == "in":
            request = msgspec.structs.replace(request, from_account_id=first.wallet, to_account_id=first.savings)
        refused = await world.ledger.transfer(first.user_id, request, NOBODY, AT)
        assert isinstance(refused.event, TransferRefused)
        assert refused.event.code == "account_frozen"

    await world.link(second.user_id, "bfc", first.bank_id)
    await world.platform_says(first.posted(1_00))
    await world.react(batch)
    assert balances(await world.ledger.state(second.user_id), second) == (1_058_00, "active", "none")
    assert balances(await world.ledger.state(first.user_id), first)[0] == 1_050_00

    await _unlink(world, second)
    await world.link(first.user_id, "bfc", first.bank_id)
    for _ in range(2):
        await world.react(batch)
    assert balances(await world.ledger.state(first.user_id), first) == (1_058_00, "active", "active")
    await world.project()
    assert not await self_check(world.db)


async def test_an_echo_of_our_transfer_settles_it(world: World) -> None:
    customer = await world.customer(savings=100_00)
    other = await world.customer(savings=100_00)
    outcome = await world.ledger.transfer(customer.user_id, customer.request(40_00, "k"), NOBODY, AT)
    reference = str(outcome.event.transfer_id)
    await world.ledger.record(customer.user_id, recorded(customer.posted(-40_00, reference)))
    assert balances(await world.ledger.state(customer.user_id), customer) == (60_00, 40_00)
    assert isinstance((await world.ledger_events(customer.user_id))[-1], TransferSettled)
    # The same reference on another customer's account is not an echo of theirs.
    await world.ledger.record(other.user_id, recorded(other.posted(-40_00, reference)))
    assert balances(await world.ledger.state(other.user_id), other) == (60_00, 0)


async def a_history(world: World) -> list[Customer]:
    """Customers with a bit of everything, applied live in small batches."""
    customers = [Customer(new_id()) for _ in range(5)]
    for number, customer in enumerate(customers):
        await world.platform_says(customer.posted(3_00), customer.savings_opened(100_00 * number))
        await world.link(customer.user_id, "bfc", customer.bank_id)
        await world.link(customer.user_id, "vyomo", customer.broker_id)
        await world.platform_says(customer.wallet_opened(number), customer.posted(-50_00))
        await world.platform_says(
            banking.FixedDepositMatured(
                item_id="m",
                customer_id=customer.bank_id,
                occurred_at=AT,
                deposit_id="FD1",
                account_id="SB1",
                payout_minor=21_00,
            ),
            banking.FixedDepositOpened(
                item_id="o",
                customer_id=customer.bank_id,
                occurred_at=AT,
                deposit_id="FD1",
                account_id="SB1",
                principal_minor=20_00,
                currency="INR",
                rate_percent="5",
                opened_on=AT.date(),
                matures_on=AT.date(),
            ),
        )
        await world.react(batch=2)
        for attempt in range(4):
            await world.ledger.transfer(
                customer.user_id, customer.request(60_00, f"k{attempt}"), NOBODY, AT + timedelta(attempt)
            )
        await world.project(batch=3)
    return customers


async def rows(db: asyncpg.Pool | asyncpg.Connection, table: str) -> list[tuple[Any, ...]]:
    return sorted((tuple(row) for row in await db.fetch(f"SELECT * FROM {table}")), key=repr)


async def test_live_read_models_equal_a_rebuild_row_for_row(world: World, urls: dict[str, str]) -> None:
    customers = await a_history(world)
    head = (await world.log())[-1].position
    tables = ("account", "transaction", "clearing")
    live = {table: await rows(world.db, table) for table in tables}
    connection = await asyncpg.connect(urls["database"])
    await rebuild(Projections(PROJECTIONS), world.store, connection, "rebuilt", up_to=head)
    rebuilt = {table: await rows(connection, table) for table in tables}
    await connection.close()
    assert rebuilt == live
    assert len(live["account"]) == 3 * len(customers)
    for customer in customers:
        state = await world.ledger.state(customer.user_id)
        stored = await world.db.fetch(
            "SELECT account_id, balance_minor, status FROM account WHERE user_id = $1", customer.user_id
        )
        assert {(row["account_id"], row["balance_minor"], row["status"]) for row in stored} == {
            (account.account_id, account.balance_minor, account.status) for account in state.accounts.values()
        }


async def test_the_books_balance_and_a_break_is_found(world: World) -> None:
    await a_history(world)
    assert await self_check(world.db) == []
    for debits, credits_ in totals([event.payload for event in await world.log()]).values():
        assert debits == credits_ > 0
    # Every account's balance is the sum of its history.
    assert (
        await world.db.fetch(
            """
            SELECT account_id FROM account JOIN transaction USING (account_id) GROUP BY account_id
            HAVING min(account.balance_minor)
                   <> sum(CASE direction WHEN 'credit' THEN amount_minor ELSE -amount_minor END)
            """
        )
        == []
    )
    await world.db.execute("UPDATE clearing SET balance_minor = balance_minor + 1 WHERE account = 'opening:bfc'")
    assert await self_check(world.db) == [("INR", 1)]
