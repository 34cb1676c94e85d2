"""What people and banks write about money: sealed in the log, there for the customer, gone with their key."""

import base64
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import pytest
from events.contracts import banking, identity, trading
from events.contracts.ledger_rules import RuleFired
from events.envelope import new_id, platform_stream
from events.projections import Projections, rebuild
from events.sealing import SubjectKeys
from events.store import StreamAppend
from events.texts import Texts
from ledger_transfer.bulk import BulkRequest
from ledger_transfer.idempotency import transfer_id_of
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.rule_commands import change, create
from ledger_transfer.state import Decision
from ledger_transfer.transfers import UNRESTRICTED, TransferRequest
from rule_stories import daily
from rule_world import AT, NOBODY, Customer, RuleWorld, rule_world

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

MASTER = base64.b64encode(bytes(range(32))).decode()

WORDS = ("wedding", "margin", "clinic", "Rao", "UTR77", "Everyday", "deposit for Ravi", "too much", "PAYIN9")


class Keys(NamedTuple):
    ledger: SubjectKeys
    gateway: SubjectKeys
    identity: SubjectKeys


@pytest.fixture
async def keys(cell: "Cell") -> AsyncIterator[Keys]:
    opened = [
        await SubjectKeys.connect(cell.keys_url(role), MASTER)
        for role in ("ledger_transfer", "sync_gateway", "identity")
    ]
    yield Keys(*opened)
    for each in opened:
        await each.close()


@pytest.fixture
async def world(cell: "Cell", keys: Keys) -> AsyncIterator[RuleWorld]:
    async with rule_world(cell, Texts(keys.ledger)) as opened:
        yield opened


async def _says(world: RuleWorld, keys: Keys, *items: Any) -> None:
    """The platforms' items, as the gateway stores them."""
    for item in items:
        platform = "bfc" if isinstance(item, banking.BankItem) else "vyomo"
        stream = platform_stream(platform, item.customer_id)
        sealed = await Texts(keys.gateway).sealed(UUID(stream.split("-", 1)[1]), item)
        await world.stores["sync_gateway"].append([StreamAppend(stream, (sealed,))], event_id=new_id())


def _items(customer: Customer) -> list[Any]:
    """An account, what moved on it, and what moved on one that nobody has reported."""
    about: dict[str, Any] = {"customer_id": customer.bank_id, "occurred_at": AT}
    moved: dict[str, Any] = {
        **about,
        "direction": "credit",
        "amount_minor": 5_000_00,
        "currency": "INR",
        "category": "other",
    }
    return [
        banking.AccountOpened(
            **about,
            item_id="1",
            account_id="SB1",
            kind="savings",
            currency="INR",
            opening_balance_minor=0,
            name="Everyday",
        ),
        banking.TransactionPosted(
            **moved,
            item_id="2",
            transaction_id="T1",
            account_id="SB1",
            counterparty="Dr Rao",
            memo="to the clinic",
            reference="UTR77",
        ),
        banking.TransactionPosted(**moved, item_id="3", transaction_id="T2", account_id="SB2", memo="deposit for Ravi"),
        trading.WalletOpened(
            **{**about, "customer_id": customer.bank_id},
            item_id="4",
            wallet_id="W1",
            currency="INR",
            opening_balance_minor=0,
        ),
        trading.WalletPosted(
            **{**about, "customer_id": customer.bank_id},
            item_id="5",
            movement_id="5",
            wallet_id="W1",
            direction="credit",
            amount_minor=1_00,
            currency="INR",
            reason="payin",
            reference="PAYIN9",
        ),
    ]


def _request(customer: Customer, key: str, amount_minor: int, memo: str, **more: Any) -> TransferRequest:
    return TransferRequest(
        transfer_id=transfer_id_of(customer.user_id, key),
        from_account_id=customer.savings,
        to_account_id=customer.wallet,
        amount_minor=amount_minor,
        currency="INR",
        memo=memo,
        **more,
    )


async def _linked(world: RuleWorld, customer: Customer) -> None:
    for platform in ("bfc", "vyomo"):
        confirmed = identity.LinkConfirmed(
            link_id=new_id(),
            platform=platform,
            platform_customer_id=customer.bank_id,
            platform_stream=platform_stream(platform, customer.bank_id),
        )
        await world.stores["identity"].append(
            [StreamAppend(f"user-{customer.user_id}", (confirmed,))], event_id=new_id(), subject=customer.user_id
        )


async def _lived(world: RuleWorld, keys: Keys) -> tuple[Customer, dict[str, UUID]]:
    """A customer about whom something was written in every way there is: some before the link, some after it."""
    customer = Customer()
    first, *others = _items(customer)
    await _says(world, keys, first)
    await world.react()
    await _linked(world, customer)
    await _says(world, keys, *others)
    await world.react()
    user, ledger = customer.user_id, world.ledger
    sent = await ledger.transfer(user, _request(customer, "a", 100_00, "for the wedding"), NOBODY, AT)
    held = await ledger.transfer(user, _request(customer, "b", 200_00, "margin", hold_s=600), NOBODY, AT)
    captured = await ledger.capture(user, held.event.transfer_id, None, NOBODY, AT)
    refused = await ledger.transfer(user, _request(customer, "c", 9_999_00, "too much"), NOBODY, AT)
    bulk = BulkRequest(
        bulk_id=new_id(), mode="independent", items=(_request(customer, "-", 1_00, "wedding, the rest"),)
    )
    done = await ledger.bulk(user, bulk, NOBODY, AT)
    told = [sent.event.memo, held.event.memo, captured.events[1].memo, refused.event.memo, done.events[0].memo]  # type: ignore[attr-defined]
    assert told == ["for the wedding", "margin", "margin", "too much", "wedding, the rest"]
    again = await ledger.transfer(user, _request(customer, "a", 100_00, "for the wedding"), NOBODY, AT)
    assert (again.replayed, again.event) == (True, sent.event)
    back = await ledger.reverse(user, sent.event.transfer_id, NOBODY, AT)
    assert back.events[0].memo == "for the wedding"  # type: ignore[attr-defined]
    return customer, {"sent": sent.event.transfer_id, "held": held.event.transfer_id}


async def _rows(db: Any, customer: Customer) -> list[tuple[Any, ...]]:
    return [
        tuple(row)
        for row in await db.fetch(
            "SELECT position, leg, type, signed_minor, memo, counterparty, reference FROM transaction"
            " WHERE user_id = $1 ORDER BY position, leg",
            customer.user_id,
        )
    ]


async def test_the_log_holds_no_word_and_the_customer_reads_them_all(
    world: RuleWorld, keys: Keys, cell: "Cell"
) -> None:
    customer, made = await _lived(world, keys)
    await world.project()
    texts = [row[4:] for row in await _rows(world.db, customer)]
    assert ("to the clinic", "Dr Rao", "UTR77") in texts
    assert (None, None, "PAYIN9") in texts
    assert [memo for memo, _, _ in texts if memo].count("for the wedding") == 4
    assert await world.db.fetchval("SELECT name FROM account WHERE platform = 'bfc'") == "Everyday"
    for transfer_id, memo in ((made["sent"], "for the wedding"), (made["held"], "margin")):
        found = await world.ledger.find_transfer(customer.user_id, transfer_id)
        assert found is not None
        assert found.completed is not None
        assert (found.first.memo, found.completed.memo) == (memo, memo)
    admin = await asyncpg.connect(cell.admin_url())
    stored = b"".join([row["data"] for row in await admin.fetch("SELECT data FROM store.events")])
    await admin.close()
    state = msgspec.json.encode(await world.ledger.state(customer.user_id))
    for word in WORDS:
        assert word.encode() not in stored, word
        assert word.encode() not in state, "what is kept as a snapshot"
    assert b"sealed_texts" in state, "the movement that waits"
    kept = await world.db.fetch("SELECT event FROM platform_item")
    assert not kept, "everything was linked"


async def test_items_that_wait_for_a_link_wait_sealed(world: RuleWorld, keys: Keys) -> None:
    customer = Customer()
    await _says(world, keys, *_items(customer))
    await world.react()
    [table] = [
        row[0]
        for row in await world.db.fetch("SELECT tablename FROM pg_tables WHERE tablename LIKE '%\\_item'")
        if not row[0].startswith("statement")
    ]
    waiting = b"".join([row["event"] for row in await world.db.fetch(f"SELECT event FROM {table}")])
    assert b"sealed_texts" in waiting
    assert not [word for word in WORDS if word.encode() in waiting]
    await _linked(world, customer)
    await world.react()
    await world.project()
    assert ("to the clinic", "Dr Rao", "UTR77") in [row[4:] for row in await _rows(world.db, customer)]


async def test_who_is_erased_leaves_money_without_words_live_and_rebuilt(
    world: RuleWorld, keys: Keys, cell: "Cell"
) -> None:
    customer, made = await _lived(world, keys)
    await world.project()
    before = await _rows(world.db, customer)
    streams = tuple(platform_stream(platform, customer.bank_id) for platform in ("bfc", "vyomo"))
    erased = identity.UserErased(user_id=customer.user_id, erased_at=AT, platform_streams=streams)
    await world.stores["identity"].append(
        [StreamAppend(f"user-{customer.user_id}", (erased,))], event_id=new_id(), subject=customer.user_id
    )
    # Somebody who has not heard of it: sealed with a key that is still there, behind the erasure in the log.
    await world.ledger.transfer(customer.user_id, _request(customer, "late", 1_00, "wedding"), NOBODY, AT)
    await world.react()
    await world.project()
    for stream in streams:
        await keys.identity.erase(UUID(stream.split("-", 1)[1]))
    await keys.identity.erase(customer.user_id)
    rows = await _rows(world.db, customer)
    assert [row[:4] for row in rows[: len(before)]] == [row[:4] for row in before]
    assert len(rows) == len(before) + 2
    assert {row[4:] for row in rows} == {(None, None, None)}
    found = await world.ledger.find_transfer(customer.user_id, made["sent"])
    assert found is not None
    assert found.first.memo is None
    sent = await world.ledger.transfer(customer.user_id, _request(customer, "after", 1_00, "wedding"), NOBODY, AT)
    stored = await world.store.find(sent.event.transfer_id)
    assert stored is not None
    assert b'"sealed_texts":null' in stored.event.data, "nothing is sealed for them any more"
    connection = await asyncpg.connect(cell.database_url("ledger_transfer"))
    # Another process, which has never heard of anything.
    fresh = await SubjectKeys.connect(cell.keys_url("ledger_transfer"), MASTER)
    world.store.opens_with(Texts(fresh).open_events)
    await world.project()
    await rebuild(Projections(PROJECTIONS), world.store, connection, "rebuilt", up_to=(await world.log())[-1].position)
    for table in ("transaction", "account"):
        rebuilt = sorted(map(repr, await connection.fetch(f"SELECT * FROM rebuilt.{table}")))
        assert rebuilt == sorted(map(repr, await world.db.fetch(f"SELECT * FROM {table}"))), table
    await connection.close()
    await fresh.close()


async def test_a_rule_is_called_by_its_name_everywhere_but_in_the_log(
    world: RuleWorld, keys: Keys, cell: "Cell"
) -> None:
    customer = await world.customer(savings=500_00)
    user, ledger, rule_id = customer.user_id, world.ledger, new_id()
    clear = msgspec.structs.replace(
        daily(1_00, source=customer.savings, target=customer.wallet), name="For the divorce"
    )

    async def decided(step: Callable[[Decision], None]) -> tuple[Any, ...]:
        return (await ledger.execute(user, step, event_id=new_id(), metadata=NOBODY, now=AT)).events

    sealed = await ledger.sealed_terms(user, clear)
    await decided(lambda decision: create(decision, rule_id, sealed, UNRESTRICTED))
    again = await ledger.sealed_terms(user, clear, like=sealed)
    assert not await decided(lambda decision: change(decision, rule_id, again, UNRESTRICTED)), "the same terms"
    other = await ledger.sealed_terms(user, msgspec.structs.replace(clear, name="For the move"), like=sealed)
    assert len(await decided(lambda decision: change(decision, rule_id, other, UNRESTRICTED))) == 1
    await world.project()
    world.now = AT.replace(month=2, day=5)
    assert await world.timer.tick() == 1
    await world.project()
    admin = await asyncpg.connect(cell.admin_url())
    stored = b"".join([row["data"] for row in await admin.fetch("SELECT data FROM store.events")])
    await admin.close()
    state = msgspec.json.encode(await ledger.state(user))
    assert not [word for word in (b"divorce", b"the move") if word in stored + state]
    [fired] = [event.payload for event in await world.log() if isinstance(event.payload, RuleFired)]
    assert fired.name == "For the move"
    assert '"name":"For the move"' in await world.db.fetchval("SELECT rule FROM rule WHERE rule_id = $1", rule_id)
    assert {row[4] for row in await _rows(world.db, customer)} >= {"For the move"}
    found = await ledger.find_transfer(user, fired.transfer_id)
    assert found is not None
    assert found.first.memo == "For the move"

    await keys.identity.erase(user)
    fresh = await SubjectKeys.connect(cell.keys_url("ledger_transfer"), MASTER)
    world.store.opens_with(Texts(fresh).open_events)
    [fired] = [event.payload for event in await world.log() if isinstance(event.payload, RuleFired)]
    assert fired.name == "", "another process, which has no key of theirs"
    await fresh.close()


async def test_no_rule_of_an_erased_customer_does_anything(world: RuleWorld) -> None:
    """Neither where the read model has forgotten it, nor where it has not yet; and what the bank says is nobody's."""
    customers = [Customer(), Customer()]
    for customer in customers:
        agreed = daily(1_00, source=customer.savings, target=customer.wallet)
        await world.customer(agreed, savings=500_00, customer=customer)
        await world.linked(customer)
    await world.project()
    erased = identity.UserErased(
        user_id=customers[0].user_id,
        erased_at=AT,
        platform_streams=(platform_stream("bfc", customers[0].bank_id),),
    )
    await world.stores["identity"].append(
        [StreamAppend(f"user-{customers[0].user_id}", (erased,))], event_id=new_id(), subject=customers[0].user_id
    )
    for customer in customers:
        await world.bank_says(customer.salary(10_00))
    for _ in range(2):
        world.restart()
        await world.react()
    world.now = AT.replace(month=2, day=5)
    assert await world.timer.tick() == 2, "the read model does not know yet"
    assert [len(await world.firings(customer)) for customer in customers] == [0, 1]
    events = await world.events(customers[0])
    assert [type(event).__name__ for event in events[3:]] == ["RulesEnded"]
    assert type((await world.events(customers[1]))[3]).__name__ == "AccountPosted"
    await world.project()
    assert await world.db.fetchval("SELECT count(*) FROM rule WHERE user_id = $1", customers[0].user_id) == 0
