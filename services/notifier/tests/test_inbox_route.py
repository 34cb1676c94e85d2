"""The inbox as a client gets it, from events alone."""

from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest
from chassis.consistency import HEADER, consistency_token
from events.contracts import identity, ledger, trading
from events.envelope import derived_id, new_id, platform_stream

pytestmark = pytest.mark.integration

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
BROKER = platform_stream("vyomo", "VY-1")


def leg(account: object, amount: int, balance: int | None = None) -> ledger.Leg:
    return ledger.Leg(account_id=str(account), amount_minor=amount, currency="INR", balance_after_minor=balance)


def opened(account_id: UUID, kind: Literal["savings", "trading_wallet"]) -> ledger.AccountOpened:
    return ledger.AccountOpened(
        account_id=account_id,
        platform="bfc" if kind == "savings" else "vyomo",
        platform_account_id="A-1",
        kind=kind,
        currency="INR",
        occurred_at=AT,
    )


def posted(account_id: UUID, amount: int, counterparty: str = "Acme Ltd") -> ledger.AccountPosted:
    return ledger.AccountPosted(
        account_id=account_id,
        platform="bfc",
        legs=(leg(account_id, amount, amount), leg("clearing:bfc", -amount)),
        type="transaction",
        category="salary",
        counterparty=counterparty,
        item_id=str(new_id()),
        occurred_at=AT,
    )


def transfer(source: UUID, target: UUID) -> ledger.TransferCompleted:
    return ledger.TransferCompleted(
        transfer_id=new_id(),
        from_account_id=source,
        to_account_id=target,
        amount_minor=50_000_00,
        currency="INR",
        legs=(leg(source, -50_000_00, 35_000_00), leg(target, 50_000_00, 50_000_00)),
        completed_at=AT,
    )


def risk(severity: Literal["critical", "warning", "info"]) -> trading.RiskAlerted:
    return trading.RiskAlerted(
        item_id=str(new_id()),
        customer_id="VY-1",
        occurred_at=AT,
        alert_id=str(new_id()),
        severity=severity,
        message="Margin is at 92 %",
    )


async def inbox(
    client: httpx.AsyncClient, world: Any, user_id: UUID, query: str = "", **headers: str
) -> dict[str, Any]:
    response = await client.get(f"/api/notifications/smart?{query}", headers=world.bearer(user_id) | headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_transfer_becomes_one_notification(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, wallet = new_id(), new_id(), new_id()
    await world.append(f"ledger-{user}", opened(savings, "savings"), opened(wallet, "trading_wallet"))
    await world.deliver()  # the accounts' names come from an earlier batch
    moved = transfer(savings, wallet)
    event_id = await world.append(f"ledger-{user}", moved)
    await world.deliver()
    found = await inbox(client, world, user, **{HEADER: consistency_token(event_id)})
    assert found["unread_count"] == 3
    assert found["next_cursor"] is None
    first = found["items"][0]
    (event,) = [e for e in await world.store.read_log(0) if e.event_id == event_id]
    assert datetime.fromisoformat(first.pop("created_at")) == event.recorded_at
    assert first == {
        "id": str(derived_id(event_id, "notification")),
        "category": "transfer",
        "priority": "medium",
        "title": "₹50,000 transferred",
        "body": "From BFC savings account A-1 to Vyomo trading wallet A-1.",
        "emoji": "💸",
        "count": 1,
        "event_ids": [str(event_id)],
        "actions": [{"label": "View transfer", "method": "GET", "href": f"/api/transfers/{moved.transfer_id}"}],
        "read_at": None,
    }
    await world.live_equals_rebuild()


async def test_what_happened_on_the_platform_before_the_link_is_told_once(
    world: Any, client: httpx.AsyncClient
) -> None:
    user = new_id()
    await world.append(BROKER, risk("critical"))
    await world.deliver()
    assert (await inbox(client, world, user))["items"] == []
    link = identity.LinkConfirmed(
        link_id=new_id(), platform="vyomo", platform_customer_id="VY-1", platform_stream=BROKER
    )
    await world.append(f"user-{user}", link)
    await world.append(BROKER, risk("info"))
    await world.deliver()
    found = await inbox(client, world, user)
    assert [(item["category"], item["priority"]) for item in found["items"]] == [
        ("alert", "medium"),
        ("account", "high"),
        ("alert", "critical"),
    ]
    await world.live_equals_rebuild()


async def test_filters(world: Any, client: httpx.AsyncClient) -> None:
    user, savings = new_id(), new_id()
    session = identity.SessionStarted(session_id=new_id(), user_id=user, platform="bfc", acr=1, expires_at=AT)
    await world.append(f"session-{session.session_id}", session)
    await world.append(f"ledger-{user}", opened(savings, "savings"), posted(savings, 100))
    await world.deliver()
    for query, categories in (
        ("", ["transaction", "account", "security"]),
        ("unread=true", ["transaction", "account", "security"]),
        ("unread=false", []),
        ("priority=critical", ["security"]),
        ("category=account", ["account"]),
        ("category=account&priority=critical", []),
    ):
        found = await inbox(client, world, user, query)
        assert sorted(item["category"] for item in found["items"]) == sorted(categories), query
        assert found["unread_count"] == 3


async def test_pages_stay_whole_while_more_arrives(world: Any, client: httpx.AsyncClient) -> None:
    user, savings = new_id(), new_id()
    # One append: all of one recorded time, so that only the id tells their order.
    await world.append(
        f"ledger-{user}", opened(savings, "savings"), *(posted(savings, n, f"N{n}") for n in range(1, 12))
    )
    await world.deliver()
    every = [item["id"] for item in (await inbox(client, world, user))["items"]]
    assert len(every) == 12
    seen: list[str] = []
    query = "limit=5"
    while True:
        page = await inbox(client, world, user, query)
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query = f"limit=5&cursor={page['next_cursor']}"
        await world.append(f"ledger-{user}", posted(savings, 7))
        await world.deliver()
    assert seen == every


async def test_an_inbox_is_its_owners(world: Any, client: httpx.AsyncClient) -> None:
    owner, other, savings = new_id(), new_id(), new_id()
    await world.append(f"ledger-{owner}", opened(savings, "savings"), posted(savings, 100))
    await world.deliver()
    found = await inbox(client, world, other)
    assert found == {"items": [], "unread_count": 0, "next_cursor": None}
    cursor = (await inbox(client, world, owner, "limit=1"))["next_cursor"]
    response = await client.get(f"/api/notifications/smart?cursor={cursor}", headers=world.bearer(other))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


async def test_bad_input(world: Any, client: httpx.AsyncClient) -> None:
    for field, value in (
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "x"),
        ("priority", "urgent"),
        ("category", "x"),
        ("unread", "perhaps"),
        ("cursor", "abc"),
    ):
        response = await client.get(f"/api/notifications/smart?{field}={value}", headers=world.bearer(new_id()))
        assert response.status_code == 400, field
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["errors"][0]["field"] == field


async def test_needs_a_token(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/notifications/smart")
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
