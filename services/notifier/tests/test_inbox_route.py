"""From events of every service to the inbox as a client gets it, over a real store and database."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import msgspec
import pytest
from chassis.consistency import HEADER
from events.contracts import identity, ledger
from events.contracts.notification import NotificationRaised
from events.envelope import derived_id, new_id, platform_stream
from events.sealing import SubjectKeys

sys.path.insert(0, str(Path(__file__).parent))

from deployed import MASTER
from samples import BROWSER, leg, opened, posting, risk, trade, transfer

if TYPE_CHECKING:
    from provision import Cell

    from conftest import Desk

pytestmark = pytest.mark.integration

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
BROKER = platform_stream("vyomo", "VY-1")
BANK = platform_stream("bfc", "BFC-1")


def later(seconds: float = 5) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def link(platform: Any = "vyomo") -> identity.LinkConfirmed:
    stream, customer = (BROKER, "VY-1") if platform == "vyomo" else (BANK, "BFC-1")
    return identity.LinkConfirmed(
        link_id=new_id(), platform=platform, platform_customer_id=customer, platform_stream=stream
    )


def paid(amount_minor: int, account: UUID, **changes: Any) -> ledger.AccountPosted:
    legs = (leg(account, amount_minor, 85_000_00), leg("clearing:bfc", -amount_minor))
    return posting(amount_minor, account_id=account, legs=legs, **changes)


async def inbox(
    client: httpx.AsyncClient, desk: "Desk", user_id: UUID, query: str = "", **headers: str
) -> dict[str, Any]:
    response = await client.get(f"/api/notifications/smart?{query}", headers=desk.world.bearer(user_id) | headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_transfer_becomes_one_notification(desk: "Desk", client: httpx.AsyncClient) -> None:
    user, savings, wallet = new_id(), new_id(), new_id()
    await desk.append(
        f"ledger-{user}",
        opened(savings),
        opened(wallet, platform="vyomo", kind="trading_wallet", platform_account_id="VW-1"),
    )
    await desk.run()
    moved = transfer(transfer_id=new_id(), from_account_id=savings, to_account_id=wallet)
    event_id = await desk.append(f"ledger-{user}", moved)
    await desk.run()
    assert (await inbox(client, desk, user))["items"] == []  # nothing is told before its five seconds are over
    await desk.tick(later())
    found = await inbox(client, desk, user, "category=transfer")
    assert found["unread_count"] == 2
    (first,) = found["items"]
    raised = [e for e in await desk.store.read_stream(f"inbox-{user}") if event_id in e.payload.event_ids]  # type: ignore[attr-defined]
    assert datetime.fromisoformat(first.pop("created_at")) == raised[0].recorded_at
    assert first == {
        "id": str(derived_id(event_id, "notification")),
        "category": "transfer",
        "priority": "medium",
        "title": "₹50,000 transferred",
        "body": "From BFC savings account SB-1001 to Vyomo trading wallet VW-1.",
        "emoji": "💸",
        "count": 1,
        "total": "50000.00",
        "currency": "INR",
        "event_ids": [str(event_id)],
        "actions": [{"label": "View transfer", "method": "GET", "href": f"/api/transfers/{moved.transfer_id}"}],
        "read_at": None,
    }
    assert raised[0].metadata.causation_id == event_id
    await desk.world.live_equals_rebuild()


async def test_groups_restarts_and_stragglers(desk: "Desk", client: httpx.AsyncClient) -> None:
    """The deadline is in the database: whoever comes next closes the group. A late member revises it."""
    user, savings = new_id(), new_id()
    await desk.append(f"ledger-{user}", opened(savings), *(paid(10_000_00, savings) for _ in range(4)))
    await desk.run(batch=2)
    reborn = type(desk.grouping)(desk.world.db, desk.store, desk.keys)  # a process that knows nothing
    await reborn.close_due(later(), later())
    await desk.run()
    (first,) = (await inbox(client, desk, user, "category=transaction"))["items"]
    assert (first["title"], first["total"]) == ("4 Transactions, Total: ₹40,000", "40000.00")
    await desk.append(f"ledger-{user}", paid(10_000_00, savings))  # within five seconds of the first, told too soon
    await desk.run()
    (revised,) = (await inbox(client, desk, user, "category=transaction"))["items"]
    assert (revised["id"], revised["title"]) == (first["id"], "5 Transactions, Total: ₹50,000")
    assert len(revised["event_ids"]) == 5
    await desk.world.live_equals_rebuild()


async def test_the_log_says_nothing_of_a_person(cell: "Cell", desk: "Desk", client: httpx.AsyncClient) -> None:
    """What is told, and what an operator wrote, is sealed in the log and at rest; with the key its words are gone."""
    user, savings = new_id(), new_id()
    await desk.append(f"user-{user}", identity.UserRegistered(user_id=user, sealed_profile="x"))
    await desk.append(f"ledger-{user}", opened(savings), paid(-1_234_00, savings, counterparty="Dr. Sharma, oncology"))
    await desk.run()
    body = {
        "user_id": str(user),
        "category": "system",
        "priority": "critical",
        "title": "About your loan",
        "body": "Please call us",
        "actions": [{"label": "Call back", "method": "POST", "href": "/api/sync/trigger", "body": {"about": "a loan"}}],
    }
    posted = await client.post(
        "/api/notifications/smart", json=body, headers=desk.world.operator("notifications:write")
    )
    assert posted.status_code == 201, posted.text
    await desk.run()
    await desk.tick(later())
    items = (await inbox(client, desk, user))["items"]
    assert {"₹1,234 paid", "About your loan"} <= {item["title"] for item in items}
    (message,) = [item for item in items if item["title"] == "About your loan"]
    assert message["actions"] == body["actions"]
    words = ("Sharma", "1,234", "loan", "call", "Call back")
    own = [event for event in await desk.store.read_log(0) if event.type.startswith("notification.")]
    kept = await desk.world.db.fetch("SELECT content FROM notification")
    assert len(own) > len(kept) > 1
    for at_rest in (*(event.data for event in own), *(row["content"] for row in kept)):
        assert not [word for word in words if word.encode() in at_rest]
    # Erased: nobody can read it any more, and what is in the outbox by then is not appended.
    await desk.append(f"ledger-{user}", transfer(transfer_id=new_id(), from_account_id=savings))
    await desk.run()
    await desk.grouping.close_due(later(60), later(60))
    eraser = await SubjectKeys.connect(cell.keys_url("identity"), MASTER)
    await eraser.erase(user)
    await eraser.close()
    desk.keys.forget(user)
    assert await desk.world.db.fetchval("SELECT count(*) FROM outbox") == 1
    await desk.run()
    assert await desk.world.db.fetchval("SELECT count(*) FROM outbox") == 0
    assert len([e for e in await desk.store.read_log(0) if e.type.startswith("notification.")]) == len(own)
    assert {item["title"] for item in (await inbox(client, desk, user))["items"]} == {""}
    await desk.world.live_equals_rebuild()
    await desk.append(f"user-{user}", identity.UserErased(user_id=user, erased_at=AT))
    await desk.run()
    assert (await inbox(client, desk, user))["items"] == []
    await desk.world.live_equals_rebuild()


async def test_critical_does_not_wait(desk: "Desk", client: httpx.AsyncClient) -> None:
    user = new_id()
    session = identity.SessionStarted(session_id=new_id(), user_id=user, platform="bfc", acr=1, expires_at=AT)
    await desk.append(f"session-{session.session_id}", session)
    await desk.append(f"user-{user}", link())
    await desk.append(BROKER, risk("critical"))
    await desk.run()
    found = await inbox(client, desk, user, "priority=critical")
    assert [item["title"] for item in found["items"]] == ["Risk alert: Critical", "New sign-in on BFC"]


async def test_what_did_not_commit_was_never_counted(desk: "Desk", client: httpx.AsyncClient) -> None:
    """Lanes are kept in memory between transactions: one that is rolled back leaves nothing there."""
    user, savings = new_id(), new_id()
    await desk.append(f"ledger-{user}", opened(savings), paid(1_00, savings))
    await desk.run()
    await desk.append(f"ledger-{user}", paid(10_00, savings))
    await desk.world.sequence()
    events = await desk.store.read_log(desk.position)
    async with desk.world.db.acquire() as db:
        for _ in range(2):
            dying = db.transaction()
            await dying.start()
            await desk.grouping.apply(db, events)  # type: ignore[arg-type]
            await dying.rollback()
    await desk.run()
    await desk.tick(later())
    (item,) = (await inbox(client, desk, user, "category=transaction"))["items"]
    assert (item["title"], item["count"]) == ("2 Transactions, Total: ₹11", 2)


async def test_nothing_is_said_twice_after_a_crash(desk: "Desk") -> None:
    """The outbox is appended, and the process dies before it knows: the same again writes nothing."""
    user, savings = new_id(), new_id()
    await desk.append(f"ledger-{user}", opened(savings), paid(100, savings))
    await desk.run()
    await desk.grouping.close_due(later(), later())
    outbox = await desk.world.db.fetch("SELECT event_id, user_id, type, data, cause FROM outbox")
    assert len(outbox) == 2
    await desk.run()
    await desk.world.db.executemany(
        "INSERT INTO outbox (event_id, user_id, type, data, cause) VALUES ($1, $2, $3, $4, $5)",
        [tuple(row) for row in outbox],
    )
    await desk.run()
    assert len(await desk.told(user)) == 2


async def test_a_replay_from_the_start_says_nothing_again(desk: "Desk") -> None:
    user, savings = new_id(), new_id()
    await desk.append(f"ledger-{user}", opened(savings), *(paid(100, savings) for _ in range(3)))
    await desk.append(f"user-{user}", link("bfc"))
    await desk.run()
    await desk.tick(later())
    before = await desk.told(user)
    # The database of the notifier is lost, and the log is consumed anew.
    for table in (
        "lane",
        "lane_writer",
        "sighting",
        "outbox",
        "account_name",
        "recent_link",
        "grouped_link",
        "grouped_item",
    ):
        await desk.world.db.execute(f"DELETE FROM {table}")
    desk.position = 0
    await desk.run()
    await desk.tick(later(30))
    assert await desk.told(user) == before


async def test_what_happened_before_the_link_is_one_line(desk: "Desk", client: httpx.AsyncClient) -> None:
    user, savings = new_id(), new_id()
    stated = [await desk.append(BROKER, trade(trade_id=str(n)), risk("critical")) for n in range(20)]
    await desk.run()
    await desk.append(f"user-{user}", link())
    await desk.append(f"user-{user}", link("bfc"))
    await desk.append(f"ledger-{user}", opened(savings))
    await desk.run()
    # The ledger posts what the bank had said before, each caused by its item; then something new happens.
    for cause in stated:
        await desk.world.append(f"ledger-{user}", paid(100, savings), cause=cause)
    news = await desk.append(BANK, risk("info"))
    await desk.world.append(f"ledger-{user}", paid(777_00, savings), cause=news)
    await desk.run()
    await desk.tick(later(60))
    items = (await inbox(client, desk, user))["items"]
    told = {item["title"]: item for item in items}
    assert told["Your past joined your view"]["count"] == 60  # 20 trades, 20 alerts, 20 postings
    assert told["₹777 received"]["count"] == 1
    assert told["3 Account changes"]["count"] == 3  # two links and an account
    assert not [item for item in items if item["priority"] == "critical"]
    await desk.world.live_equals_rebuild()


async def test_quiet_hours_and_their_end(desk: "Desk", client: httpx.AsyncClient) -> None:
    user, savings = new_id(), new_id()
    bearer = desk.world.bearer(user)
    body = {
        "quiet_hours": [{"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "start": "00:00", "end": "00:00"}]
    }
    response = await client.put("/api/notifications/preferences", json=body, headers=bearer)
    assert response.status_code == 200, response.text
    await desk.append(f"ledger-{user}", opened(savings), paid(100, savings), paid(200, savings))
    await desk.append(f"user-{user}", link())
    await desk.append(BROKER, risk("critical"))
    await desk.run()
    await desk.tick(later())
    found = await inbox(client, desk, user)
    assert [item["priority"] for item in found["items"]] == ["critical"]
    assert found["held_count"] == 4
    # They are given up: what was held back comes at once, in as few words as can be.
    token = (await client.put("/api/notifications/preferences", json={}, headers=bearer)).headers[HEADER]
    await desk.run()
    await desk.tick(later())
    found = await inbox(client, desk, user, **{HEADER: token})
    assert found["held_count"] == 0
    assert {item["title"] for item in found["items"]} >= {"2 Transactions, Total: ₹3"}
    raised = [event for event in await desk.told(user) if isinstance(event, NotificationRaised) and event.held]
    assert len({event.digest_id for event in raised}) == 1


async def test_read_read_all_and_snooze(desk: "Desk", client: httpx.AsyncClient) -> None:
    user, other = new_id(), new_id()
    await desk.append(f"user-{user}", link())
    for _ in range(3):
        await desk.append(BROKER, risk("critical"))
    await desk.run()
    await desk.tick(later())
    bearer = desk.world.bearer(user)
    items = (await inbox(client, desk, user))["items"]
    assert len(items) == 4
    path = f"/api/notifications/smart/{items[0]['id']}"
    assert (await client.put(f"{path}/read", headers=desk.world.bearer(other))).status_code == 404
    response = await client.put(f"{path}/read", headers=bearer)
    assert response.status_code == 200
    await desk.run()
    again = await client.put(f"{path}/read", headers=bearer)
    assert again.json() == response.json()  # the first reading counts
    found = await inbox(client, desk, user, **{HEADER: response.headers[HEADER]})
    assert found["unread_count"] == 3
    assert [item["id"] for item in (await inbox(client, desk, user, "unread=false"))["items"]] == [items[0]["id"]]

    until = later(3600)
    path = f"/api/notifications/smart/{items[1]['id']}"
    assert (
        await client.put(f"{path}/snooze", json={"until": "2020-01-01T00:00:00Z"}, headers=bearer)
    ).status_code == 400
    response = await client.put(f"{path}/snooze", json={"until": until.isoformat()}, headers=bearer)
    assert response.status_code == 200, response.text
    await desk.run()
    assert len((await inbox(client, desk, user))["items"]) == 3

    # Raised, and not yet in the read model when the customer presses the button.
    raised = [event for event in await desk.told(user) if isinstance(event, NotificationRaised)]
    unseen = msgspec.structs.replace(raised[-1], notification_id=new_id())
    await desk.append(f"inbox-{user}", unseen)
    response = await client.put("/api/notifications/smart/read-all", headers=bearer)
    assert response.status_code == 200
    await desk.run()
    found = await inbox(client, desk, user)
    assert found["unread_count"] == 1  # what nobody had seen yet

    await desk.tick(until)
    back = [item for item in (await inbox(client, desk, user))["items"] if item["id"] == items[1]["id"]]
    assert [item["read_at"] for item in back] == [None]
    await desk.world.live_equals_rebuild()


async def test_filters_and_pages(desk: "Desk", client: httpx.AsyncClient) -> None:
    user, savings = new_id(), new_id()
    await desk.append(f"user-{user}", link())
    await desk.append(f"ledger-{user}", opened(savings), paid(100, savings))
    for _ in range(9):
        await desk.append(BROKER, risk("critical"))
    await desk.run()
    await desk.tick(later())
    for query, count in (
        ("", 11),
        ("unread=true", 11),
        ("unread=false", 0),
        ("priority=critical", 9),
        ("category=transaction", 1),
        ("category=transaction&priority=critical", 0),
    ):
        found = await inbox(client, desk, user, query)
        assert len(found["items"]) == count, query
        assert found["unread_count"] == 11
    every = [item["id"] for item in (await inbox(client, desk, user))["items"]]
    seen: list[str] = []
    query = "limit=4"
    while True:
        page = await inbox(client, desk, user, query)
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        query = f"limit=4&cursor={page['next_cursor']}"
        await desk.append(BROKER, risk("critical"))
        await desk.run()
    assert seen == every
    cursor = (await inbox(client, desk, user, "limit=1"))["next_cursor"]
    response = await client.get(f"/api/notifications/smart?cursor={cursor}", headers=desk.world.bearer(new_id()))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


async def test_an_inbox_is_its_owners(desk: "Desk", client: httpx.AsyncClient) -> None:
    owner = new_id()
    await desk.append(f"user-{owner}", link())
    await desk.append(BROKER, risk("critical"))
    await desk.run()
    found = await inbox(client, desk, new_id())
    assert found == {"items": [], "unread_count": 0, "held_count": 0, "next_cursor": None}
    response = await client.get("/api/notifications/smart")
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_an_erased_customer_is_forgotten(desk: "Desk", client: httpx.AsyncClient) -> None:
    user, savings = new_id(), new_id()
    bearer = desk.world.bearer(user)
    await desk.append(f"user-{user}", identity.UserRegistered(user_id=user, sealed_profile="s"), link())
    await desk.append(f"ledger-{user}", opened(savings), paid(100, savings))
    await desk.append(BROKER, risk("critical"))
    await client.put("/api/notifications/preferences", json={"language": "hi-IN"}, headers=bearer)
    await client.post("/api/notifications/push-subscriptions", json=BROWSER, headers=bearer)
    await desk.run()
    await desk.append(f"user-{user}", identity.UserErased(user_id=user, erased_at=AT))
    await desk.append(BROKER, risk("critical"))  # the platform goes on for a while
    await desk.run()
    await desk.tick(later())
    tables = await desk.world.db.fetch(
        "SELECT table_name FROM information_schema.columns WHERE column_name = 'user_id' AND table_schema = 'public'"
    )
    left = {
        table["table_name"]
        for table in tables
        if await desk.world.db.fetchval(f"SELECT count(*) FROM {table['table_name']} WHERE user_id = $1", user)
    }
    # Who is gone must be known, so that nothing of theirs comes back; the link is platform_items' own.
    assert left <= {"gone_user", "inbox_gone", "grouped_link"}
    assert (await inbox(client, desk, user))["items"] == []
    await desk.world.live_equals_rebuild()


async def test_operators_write(desk: "Desk", client: httpx.AsyncClient) -> None:
    user = new_id()
    await desk.append(f"user-{user}", identity.UserRegistered(user_id=user, sealed_profile="s"))
    await desk.run()
    body = {
        "user_id": str(user),
        "category": "system",
        "priority": "critical",
        "title": "Cards are blocked",
        "body": "Call us.",
        "actions": [{"label": "Accounts", "method": "GET", "href": "/api/accounts"}],
    }
    path = "/api/notifications/smart"
    refused = await client.post(path, json=body, headers=desk.world.bearer(user))
    assert (refused.status_code, refused.json()["code"]) in ((403, "insufficient_scope"), (403, "forbidden"))
    operator = desk.world.operator("notifications:write")
    assert (await client.post(path, json=body, headers=desk.world.operator("sync:admin"))).status_code == 403
    response = await client.post(path, json=body, headers=operator | {"Idempotency-Key": "k1"})
    assert response.status_code == 201, response.text
    again = await client.post(path, json=body, headers=operator | {"Idempotency-Key": "k1"})
    assert again.json() == response.json()
    reused = await client.post(path, json=body | {"title": "x"}, headers=operator | {"Idempotency-Key": "k1"})
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    await desk.run()
    (item,) = (await inbox(client, desk, user, **{HEADER: response.headers[HEADER]}))["items"]
    assert (item["id"], item["title"]) == (response.json()["id"], "Cards are blocked")
    nobody = await client.post(path, json=body | {"user_id": str(new_id())}, headers=operator)
    assert (nobody.status_code, nobody.json()["code"]) == (404, "user_not_found")
    for href in ("https://evil.example/", "//evil.example", "/api/../admin", "javascript:alert(1)"):
        bad = body | {"actions": [{"label": "x", "method": "GET", "href": href}]}
        assert (await client.post(path, json=bad, headers=operator)).status_code == 400, href


async def test_bad_input(desk: "Desk", client: httpx.AsyncClient) -> None:
    for field, value in (
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "x"),
        ("priority", "urgent"),
        ("category", "x"),
        ("unread", "perhaps"),
        ("cursor", "abc"),
    ):
        response = await client.get(f"/api/notifications/smart?{field}={value}", headers=desk.world.bearer(new_id()))
        assert response.status_code == 400, field
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["errors"][0]["field"] == field
