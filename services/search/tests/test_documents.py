"""What events make findable beyond money and trades, what can be done with it as it is, and what is forgotten."""

import base64
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from events.contracts import banking, encode, identity, ledger, ledger_rules, notification, wealth
from events.envelope import new_id, platform_stream
from events.notification_texts import seal_text
from events.projections import Projections, rebuild
from events.sealing import SubjectKeys
from search.projections import PROJECTIONS, projections
from search_story import AT, BROKER, customer, linked, position, posted, search, trade

if TYPE_CHECKING:
    from provision import Cell

MASTER = base64.b64encode(bytes(range(32))).decode()
pytestmark = [pytest.mark.integration, pytest.mark.parametrize("client", ["index"], indirect=True)]


def labels(item: dict[str, Any]) -> list[str]:
    return [action["label"] for action in item["actions"]]


async def one(client: httpx.AsyncClient, world: Any, user: UUID, **query: Any) -> dict[str, Any]:
    found = await search(client, world, user, **query)
    assert found["total"] == len(found["items"]) == 1, found
    item: dict[str, Any] = found["items"][0]
    return item


def raised(title: str = "Salary credited", notification_id: UUID | None = None) -> notification.NotificationRaised:
    return notification.NotificationRaised(
        notification_id=notification_id or new_id(),
        category="transaction",
        priority="medium",
        language="en-IN",
        emoji="💰",
        title=title,
        body="₹85,000 from Acme Ltd",
        count=1,
        total_minor=85_000_00,
        currency="INR",
        event_ids=(),
        channels=("in_app",),
        through=1,
        opened_at=AT,
    )


async def test_an_account_offers_what_its_state_allows(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, _ = await customer(world)
    item = await one(client, world, user, q="savings account", types="account")
    assert (item["title"], item["amount"], item["state"]) == ("BFC savings account A-1", None, "active")
    assert labels(item) == ["View account", "Freeze account"]
    for event, offered in (
        (ledger.AccountFrozen(account_id=savings, platform="bfc", by="customer", frozen_at=AT), ["Unfreeze account"]),
        (ledger.AccountUnfrozen(account_id=savings, platform="bfc", by="customer", unfrozen_at=AT), ["Freeze account"]),
        (ledger.AccountFrozen(account_id=savings, platform="bfc", by="ops", frozen_at=AT), []),
        (ledger.AccountClosed(account_id=savings, platform="bfc", occurred_at=AT), []),
    ):
        await world.append(f"ledger-{user}", event)
        await world.deliver()
        assert labels(await one(client, world, user, q="savings account", types="account"))[1:] == offered
    assert (await search(client, world, user, q="type:account is:closed"))["total"] == 1
    await world.live_equals_rebuild()


async def test_a_rule_is_paused_resumed_and_gone(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, wallet = await customer(world)
    rule_id = new_id()
    terms = ledger_rules.RuleTerms(
        name="Keep the wallet ready",
        source_account_id=savings,
        target_account_id=wallet,
        currency="INR",
        trigger=ledger_rules.BalanceBelow(threshold_minor=10_000_00),
        amount=ledger_rules.FixedAmount(amount_minor=5_000_00),
    )
    worst = ledger_rules.WorstCase(per_day_minor=1, per_week_minor=1, per_month_minor=1)
    await world.append(
        f"ledger-{user}",
        ledger_rules.RuleCreated(rule_id=rule_id, terms=terms, worst_case=worst, created_at=AT),
    )
    await world.deliver()
    item = await one(client, world, user, q="wallet ready")
    assert item["subtitle"] == "When below ₹10,000: BFC savings account A-1 to Vyomo trading wallet A-1"
    assert item["actions"][1] == {
        "label": "Pause rule",
        "method": "PATCH",
        "href": f"/api/auto-replenish/{rule_id}/status",
        "body": {"status": "paused"},
    }
    await world.append(f"ledger-{user}", ledger_rules.RulePaused(rule_id=rule_id, version=1, paused_at=AT))
    await world.deliver()
    assert labels(await one(client, world, user, q="5000 type:rule"))[1] == "Resume rule"
    await world.append(f"ledger-{user}", ledger_rules.RuleDeleted(rule_id=rule_id, version=1, deleted_at=AT))
    await world.deliver()
    assert (await search(client, world, user, q="wallet ready"))["total"] == 0
    await world.live_equals_rebuild()


async def test_a_notification_is_unread_until_it_is_read(world: Any, client: httpx.AsyncClient) -> None:
    user = new_id()
    first, second = raised(), raised("Rent paid")
    await world.append(f"inbox-{user}", first, second)
    await world.deliver()
    item = await one(client, world, user, q="salary credited")
    assert (item["state"], item["platform"], item["amount"]) == ("unread", None, "85000.00")
    assert item["actions"] == [
        {"label": "Mark as read", "method": "PUT", "href": f"/api/notifications/smart/{first.notification_id}/read"}
    ]
    await world.append(
        f"inbox-{user}", notification.NotificationRead(notification_id=first.notification_id, read_at=AT)
    )
    await world.deliver()
    assert labels(await one(client, world, user, q="salary credited")) == []
    assert (await one(client, world, user, q="is:unread"))["title"] == "Rent paid"
    # All up to a version of the inbox; one that is raised in the same batch, later, is not among them.
    await world.append(
        f"inbox-{user}", notification.NotificationRead(through_version=2, read_at=AT), raised("Gold bought")
    )
    await world.deliver()
    assert (await one(client, world, user, q="is:unread"))["title"] == "Gold bought"
    await world.live_equals_rebuild()


async def test_a_sealed_notification_is_found_until_its_key_is_destroyed(
    cell: "Cell", world: Any, client: httpx.AsyncClient
) -> None:
    user, stranger = new_id(), new_id()
    keys = await SubjectKeys.connect(cell.keys_url("identity"), MASTER)
    for person in (user, stranger):
        sealed = await seal_text(keys, person, raised())
        assert b"Salary" not in encode(sealed)
        await world.append(f"inbox-{person}", sealed)
    await world.deliver()
    item = await one(client, world, user, q="salary credited")
    assert (item["title"], item["subtitle"], item["amount"]) == ("Salary credited", "₹85,000 from Acme Ltd", "85000.00")
    await world.live_equals_rebuild()
    await keys.erase(user)
    await world.append(f"user-{user}", identity.UserErased(user_id=user, erased_at=AT))
    await world.deliver()
    assert (await search(client, world, user, q="salary credited"))["total"] == 0
    # A rebuild, by a process that never had the key, cannot read what the person was told, and need not.
    reborn = await SubjectKeys.connect(cell.keys_url("search"), MASTER)
    rebuilt = await asyncpg.connect(cell.database_url("search"))
    await rebuild(Projections(projections(reborn)), world.store, rebuilt, "again", up_to=world.position)
    live = await world.rows("search_document")
    assert [row[0] for row in live] == [stranger]
    assert live == await world.rows("search_document", "again")
    await rebuilt.close()
    for opened in (keys, reborn):
        await opened.close()


async def test_an_insight_is_there_until_it_is_cleared(world: Any, client: httpx.AsyncClient) -> None:
    user, insight_id = new_id(), new_id()
    await world.append(
        f"wealth-{user}",
        wealth.InsightRaised(
            insight_id=insight_id, rule="idle_cash", bucket="b", kind="opportunity", priority="low",
            title="Idle cash earns nothing", body="₹4,20,000 has not moved", evidence=(), raised_at=AT,
        ),
    )  # fmt: skip
    await world.deliver()
    item = await one(client, world, user, q="idle cash")
    assert item["actions"][1]["href"] == f"/api/wealth/insights/{insight_id}/dismiss"
    await world.append(f"wealth-{user}", wealth.InsightDismissed(insight_id=insight_id, dismissed_at=AT))
    await world.deliver()
    assert (await search(client, world, user, q="idle cash"))["total"] == 0
    # Gone once more: a rebuild meets both at once.
    await world.append(f"wealth-{user}", wealth.InsightCleared(insight_id=insight_id, reason="expired", cleared_at=AT))
    await world.deliver()
    await world.live_equals_rebuild()


async def test_a_fund_is_a_position_at_the_bank_and_only_an_open_position_can_be_closed(
    world: Any, client: httpx.AsyncClient
) -> None:
    user, bank = new_id(), platform_stream("bfc", "BFC-1")
    fund = banking.FundChanged(
        item_id="i1", customer_id="BFC-1", occurred_at=AT, scheme_code="PPFCF", scheme_name="Parag Parikh Flexi Cap",
        units=str(Decimal("100.5")), nav="70.25", cost_minor=1, currency="INR", as_of=AT.date(),
    )  # fmt: skip
    await world.append(bank, fund)  # waits for its customer
    await world.deliver()
    await world.append(
        f"user-{user}",
        identity.LinkConfirmed(link_id=new_id(), platform="bfc", platform_customer_id="BFC-1", platform_stream=bank),
        linked(),
    )
    await world.append(BROKER, position())
    await world.deliver()
    item = await one(client, world, user, q="flexi cap")
    assert (item["type"], item["platform"], item["amount"]) == ("position", "bfc", "7060.13")
    assert "Close position" in labels(await one(client, world, user, q="nifty"))
    await world.append(BROKER, position(0, AT + timedelta(days=1)))
    await world.deliver()
    assert "Close position" not in labels(await one(client, world, user, q="nifty"))


async def test_a_removed_link_brings_nothing_more(world: Any, client: httpx.AsyncClient) -> None:
    user, heir = new_id(), new_id()
    link = linked()
    await world.append(f"user-{user}", link)
    await world.append(BROKER, trade("BEFORE"))
    await world.append(
        f"user-{user}",
        identity.LinkRemoved(
            link_id=link.link_id, platform="vyomo", platform_customer_id="VY-1", platform_stream=BROKER
        ),
    )
    await world.append(BROKER, trade("AFTER"))
    await world.deliver()
    assert [i["title"] for i in (await search(client, world, user, q="type:trade"))["items"]] == ["BEFORE"]
    await world.append(f"user-{heir}", linked())
    await world.deliver()
    assert [i["title"] for i in (await search(client, world, heir, q="type:trade"))["items"]] == ["AFTER"]
    await world.live_equals_rebuild()


async def test_an_erased_customer_is_forgotten(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, _ = await customer(world, lambda account: posted(account, 5, "Secretary Services"))
    other, _, _ = await customer(world, lambda account: posted(account, 5, "Secretary Services"))
    await world.append(f"user-{user}", linked())
    await world.append(BROKER, trade())
    await world.append(f"inbox-{user}", raised())
    await world.deliver()
    assert (await search(client, world, user, q="secretary"))["total"] == 1
    erased = identity.UserErased(user_id=user, erased_at=AT, platform_streams=(BROKER,))
    await world.append(f"user-{user}", erased)
    await world.append(f"ledger-{user}", posted(savings, 9, "Secretary Services"))  # late
    await world.append(BROKER, trade())
    await world.deliver()
    for query in ("secretary", "secretray", "nifty", "salary", "type:account", "last year"):
        assert (await search(client, world, user, q=query))["total"] == 0, query
    kept = await world.db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for table in {row["tablename"] for row in kept} - {"search_erased", "search_removed", "platform_item"}:
        text = repr(await world.rows(table))
        assert str(user) not in text or table == "recent_search", table
    suggested = await client.get("/api/search/suggestions?q=secr", headers=world.bearer(user))
    assert [item for item in suggested.json()["items"] if item["kind"] == "title"] == []
    assert (await search(client, world, other, q="secretary"))["total"] == 1
    await world.live_equals_rebuild()


async def test_the_last_ten_distinct_queries_are_remembered_and_forgotten(
    world: Any, client: httpx.AsyncClient
) -> None:
    user, other = new_id(), new_id()

    async def recent(of: UUID) -> list[str]:
        answer = await client.get("/api/search/recent", headers=world.bearer(of))
        assert answer.status_code == 200
        return [item["query"] for item in answer.json()["items"]]

    for number in range(12):
        await search(client, world, user, q=f"query {number}")
    await search(client, world, user, q="Query 5 ")
    assert await recent(user) == ["Query 5", *[f"query {n}" for n in (11, 10, 9, 8, 7, 6, 4, 3, 2)]]
    assert await recent(other) == []
    suggested = await client.get("/api/search/suggestions?q=query 1", headers=world.bearer(user))
    assert [item["text"] for item in suggested.json()["items"]] == ["query 11", "query 10"]
    await search(client, world, other, q="mine")
    assert (await client.delete("/api/search/recent", headers=world.bearer(user))).status_code == 204
    assert (await recent(user), await recent(other)) == ([], ["mine"])


async def test_filters_in_the_box_are_told(world: Any, client: httpx.AsyncClient) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked())
    this_month = datetime.now(UTC).replace(day=15)
    then = this_month.replace(day=1) - timedelta(days=10)
    await world.append(BROKER, trade("NIFTY CALL", then), trade("NIFTY CALL", this_month), position(at=then))
    await world.deliver()
    query = "type:trade platform:vyomo amount>5000 last month NIFTY"
    found = await search(client, world, user, q=query)
    assert found["total"] == 1
    assert found["parsed"]["text"] == "NIFTY"
    assert [(f["field"], f["operator"]) for f in found["parsed"]["filters"]] == [
        ("type", "="), ("platform", "="), ("amount", ">"), ("date", "between"),
    ]  # fmt: skip
    assert [query[f["start"] : f["end"]] for f in found["parsed"]["filters"]] == [
        "type:trade", "platform:vyomo", "amount>5000", "last month",
    ]  # fmt: skip
    assert (await search(client, world, user, q="amount>7000 nifty", types="trade"))["total"] == 0
    assert (await search(client, world, user, q="type:position NIFTY", types="trade"))["total"] == 0  # both hold


async def test_a_replay_is_refused_for_it_would_not_give_the_same(world: Any, client: httpx.AsyncClient) -> None:
    user, note = new_id(), raised()
    read = notification.NotificationRead(notification_id=note.notification_id, read_at=AT)
    await world.append(f"inbox-{user}", note, read)
    await world.deliver()
    assert (await one(client, world, user, q="salary credited"))["state"] == "read"
    assert not Projections(PROJECTIONS).repeatable
    again = [event for event in await world.store.read_log(0, 1000) if event.payload == note]
    async with world.db.acquire() as db:
        await PROJECTIONS[0].apply(db, again)
        assert await db.fetchval("SELECT state FROM search_document WHERE user_id = $1", user) == "unread"
