"""What has an end, whose it is, and what is left of somebody who is gone."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import httpx
import pytest
from chassis.cursors import CursorCodec
from events.contracts import identity
from events.contracts.notification import Channel, NotificationRaised, NotificationRequested
from events.envelope import new_id
from notifier import deliveries
from notifier.api import PUSH_SUBSCRIPTIONS_MAX
from notifier.deliveries import Outcome
from notifier.live import NotificationFeed
from notifier.outbox import enqueue
from notifier.preferences import mailed, pushed
from notifier.telling import Entry
from recording import recorded

sys.path.insert(0, str(Path(__file__).parent))

from outside import BROKER, Browser, Endpoint, Post, add_webhook, soon, subscribe
from samples import posting, risk
from tellers import AT, changed, example_of

if TYPE_CHECKING:
    from conftest import Desk

P256DH = "BPtGyrmBw5Ck3tbFrlSFYzUsVbUzIQ-A1pqWWf4lkC8pqkN3QCXgJCXDPo6xYMhdKqBQUpRG8AEnvqQaajxdWrk"


def raised(*channels: Channel) -> NotificationRaised:
    event: NotificationRaised = changed(
        example_of(NotificationRaised), notification_id=new_id(), channels=channels, sealed_text=None
    )
    return event


def test_only_what_is_urgent_is_mailed_and_nothing_low_is_pushed() -> None:
    assert [mailed(priority) for priority in ("critical", "high", "medium", "low")] == [True, True, False, False]
    assert [pushed(priority) for priority in ("critical", "high", "medium", "low")] == [True, True, True, False]


async def test_a_socket_tells_what_the_inbox_shows() -> None:
    user = new_id()
    offered: list[int] = []

    class Listening:
        user_id = user

        def wants(self, kind: str) -> bool:
            return True

        def offer(self, version: int, frame: bytes) -> None:
            offered.append(version)

    class Everybody:
        def of(self, subject: Any) -> list[Any]:
            return [Listening()] if subject == user else []

    world: Any = None
    clients: Any = Everybody()
    feed = NotificationFeed(clients, world, world, world, CursorCodec("a secret of the tests"))
    events = [
        recorded(payload, position=n, stream=f"inbox-{of}", version=n, subject=of)
        for n, (of, payload) in enumerate(
            [
                (user, raised("in_app", "email")),
                (user, raised("email")),
                (new_id(), raised("in_app")),
                (user, raised("in_app")),
            ],
            start=1,
        )
    ]
    await feed.on_events(events)
    assert offered == [1, 4]


@pytest.mark.integration
async def test_an_outcome_that_comes_too_late_changes_nothing(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    await add_webhook(post, user, endpoint)
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    db, now = post.desk.world.db, datetime.now(UTC)
    (hanging,) = await deliveries.claim(db, "webhook", now, 10)
    await deliveries.tidy(db, soon(deliveries.CLAIM_S + 1))
    (again,) = await deliveries.claim(db, "webhook", soon(99), 10)
    await deliveries.settle(db, hanging, Outcome("failed", "late"), now, 0.0)
    assert [row["status"] for row in await post.rows("webhook")] == ["sending"]
    await deliveries.settle(db, again, Outcome("delivered"), now, 0.0)
    assert [row["status"] for row in await post.rows("webhook")] == ["delivered"]


@pytest.mark.integration
async def test_a_long_message_fits_into_a_push(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    browser = Browser(endpoint, "alive")
    await subscribe(post, user, browser)
    long = NotificationRequested(category="alert", priority="critical", title="लंबा", body="अ" * 2_000)
    await post.desk.append(f"inbox-{user}", long)
    await post.desk.run()
    assert await post.send("web_push") == 1
    ((_, body),) = endpoint.requests
    assert len(body) <= 4_096, "what push services take (RFC 8030)"
    shown = browser.read(body)
    assert shown["title"] == long.title
    assert long.body.startswith(shown["body"])


@pytest.mark.integration
async def test_a_receiver_puts_us_off_for_an_hour_at_most(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    await add_webhook(post, user, endpoint)
    endpoint.status = 429
    far = datetime.now(UTC) + timedelta(days=9)
    for retry_after in ("999999", f"{far:%a, %d %b %Y %H:%M:%S} GMT"):
        endpoint.headers = {"Retry-After": retry_after}
        await post.desk.append(BROKER, risk("critical"))
        await post.desk.run()
        assert await post.send("webhook") == 1
        row = (await post.rows("webhook"))[-1]
        assert row["status"] == "pending"
        assert timedelta(minutes=59) < row["next_attempt_at"] - row["updated_at"] <= timedelta(hours=1)


@pytest.mark.integration
async def test_what_became_of_a_notification_is_its_owners(desk: "Desk", client: httpx.AsyncClient) -> None:
    owner, stranger = new_id(), new_id()
    session = identity.SessionStarted(session_id=new_id(), user_id=owner, platform="bfc", acr=1, expires_at=AT)
    await desk.append(f"session-{session.session_id}", session)
    await desk.run()
    (told,) = await desk.told(owner)
    path = f"/api/notifications/smart/{told.notification_id}/deliveries"
    found = await client.get(path, headers=desk.world.bearer(owner))
    assert [item["channel"] for item in found.json()["items"]] == ["email"]
    refused = await client.get(path, headers=desk.world.bearer(stranger))
    assert (refused.status_code, refused.json()["code"]) == (404, "notification_not_found")
    for action, body in (("read", None), ("snooze", {"until": soon(60).isoformat()})):
        path = f"/api/notifications/smart/{told.notification_id}/{action}"
        refused = await client.put(path, json=body, headers=desk.world.bearer(stranger))
        assert (refused.status_code, refused.json()["code"]) == (404, "notification_not_found"), action


@pytest.mark.integration
async def test_browsers_have_an_end_and_one_owner(desk: "Desk", client: httpx.AsyncClient) -> None:
    first, second = desk.world.bearer(new_id()), desk.world.bearer(new_id())
    path = "/api/notifications/push-subscriptions"

    async def add(n: int, bearer: dict[str, str]) -> httpx.Response:
        keys = {"p256dh": P256DH, "auth": "BTBZMqHH6r4Tts7J_aSIgg"}
        return await client.post(path, json={"endpoint": f"https://push.example/{n}", "keys": keys}, headers=bearer)

    async def of(bearer: dict[str, str]) -> int:
        return len((await client.get(path, headers=bearer)).json()["items"])

    for n in range(PUSH_SUBSCRIPTIONS_MAX):
        assert (await add(n, first)).status_code == 201
    refused = await add(PUSH_SUBSCRIPTIONS_MAX, first)
    assert (refused.status_code, refused.json()["code"]) == (422, "too_many_push_subscriptions")
    # Somebody else signs in with one of these browsers.
    assert (await add(0, second)).status_code == 201
    assert (await of(first), await of(second)) == (PUSH_SUBSCRIPTIONS_MAX - 1, 1)


@pytest.mark.integration
async def test_an_operator_writes_to_whom_the_address_names(desk: "Desk", client: httpx.AsyncClient) -> None:
    named, other = new_id(), new_id()
    for user in (named, other):
        await desk.append(f"user-{user}", identity.UserRegistered(user_id=user, sealed_profile="s"))
    await desk.run()
    body = {"category": "system", "priority": "low", "title": "Hello", "body": "There."}
    operator = desk.world.operator("notifications:write")
    path = f"/api/notifications/smart?user_id={named}"
    refused = await client.post(path, json=body | {"user_id": str(other)}, headers=operator)
    assert (refused.status_code, refused.json()["code"]) == (400, "user_id_mismatch")
    made = await client.post(path, json=body | {"user_id": str(named)}, headers=operator)
    assert made.status_code == 201, made.text


@pytest.mark.integration
async def test_nothing_is_decided_for_who_is_gone(desk: "Desk") -> None:
    user = new_id()
    await desk.append(f"user-{user}", identity.UserErased(user_id=user, erased_at=AT))
    await desk.run()
    await desk.append(f"ledger-{user}", posting(-100), posting(-200, below_floor=True))
    await desk.run()
    await desk.tick(soon())
    assert await desk.world.db.fetchval("SELECT count(*) FROM lane WHERE user_id = $1", user) == 0
    assert await desk.told(user) == []


@pytest.mark.integration
async def test_what_was_on_its_way_is_not_shown_to_nobody(desk: "Desk") -> None:
    user = new_id()
    await desk.append(f"user-{user}", identity.UserErased(user_id=user, erased_at=AT))
    await desk.append(f"inbox-{user}", raised("in_app"))
    await desk.run()
    assert await desk.world.db.fetchval("SELECT count(*) FROM notification WHERE user_id = $1", user) == 0


@pytest.mark.integration
async def test_the_outbox_goes_on_without_who_is_gone(desk: "Desk") -> None:
    gone, other = new_id(), new_id()
    desk.keys.bury(gone)
    async with desk.world.db.acquire() as proxy, proxy.transaction():
        await enqueue(
            cast(asyncpg.Connection, proxy), [Entry(new_id(), user, raised("in_app"), None) for user in (gone, other)]
        )
    await desk.run()
    assert [len(await desk.told(user)) for user in (gone, other)] == [0, 1]
    assert await desk.world.db.fetchval("SELECT count(*) FROM outbox") == 0
