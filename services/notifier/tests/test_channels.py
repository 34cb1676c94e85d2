"""The channels over a real SMTP server and real HTTP endpoints: delivered, refused, hanging, gone."""

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import jwt
import pytest
from chassis.settings import Secret
from events.contracts import identity, ledger
from events.contracts.notification import NotificationRaised, PreferenceChanged, QuietHours
from events.envelope import new_id
from notifier import deliveries
from notifier.deliveries import DeliveryLedger
from notifier.further import AppriseServices
from standardwebhooks import Webhook as Verifier

sys.path.insert(0, str(Path(__file__).parent))

from deployed import settings_of
from outside import BROKER, EMAIL, Browser, Endpoint, Post, add_webhook, open_post, soon, subscribe
from samples import opened, posting, risk

if TYPE_CHECKING:
    from provision import Cell

    from conftest import Desk

pytestmark = pytest.mark.integration


async def test_a_critical_notification_is_mailed_once(post: Post, mailbox: Any) -> None:
    user = await post.customer()
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    assert await post.send("email") == 1
    (mail,) = mailbox.mails
    assert mailbox.recipients == [EMAIL]
    assert mail["Subject"] == "⚠️ Risk alert: Critical"
    assert "Margin is at 92 %" in mail.get_content()
    (row,) = await post.rows("email")
    assert (row["status"], row["attempts"], row["response_code"]) == ("delivered", 1, 250)
    assert mail["Message-ID"].startswith(f"<{row['id']}@")
    assert EMAIL not in repr(row)
    # The consumer that fills the ledger is replayed from the start: nothing is sent again.
    events = [e for e in await post.desk.store.read_log(0) if e.type in DeliveryLedger.types]
    async with post.desk.world.db.acquire() as db, db.transaction():
        await DeliveryLedger().apply(db, events)  # type: ignore[arg-type]
    assert await post.send("email", soon(30)) == 0
    assert len(await post.desk.told(user)) == 1


async def test_a_name_cannot_write_headers(post: Post, mailbox: Any) -> None:
    user = await post.customer()
    from events.contracts.notification import NotificationRequested

    title = "x\r\nBcc: thief@example.com\r\n\r\nhello"
    await post.desk.append(
        f"inbox-{user}", NotificationRequested(category="alert", priority="critical", title=title, body="b")
    )
    await post.desk.run()
    await post.send("email")
    (mail,) = mailbox.mails
    assert mail["Bcc"] is None
    assert mailbox.recipients == [EMAIL]


async def test_codes_are_mailed_at_once_and_forgotten(post: Post, mailbox: Any) -> None:
    user = await post.customer()

    async def issue(lives: timedelta) -> None:
        code = identity.CodeIssued(
            user_id=user,
            code_id=new_id(),
            purpose="password_reset",
            code_hash="h",
            code_sealed=await post.seal.seal(user, "483920", "code"),
            to_sealed=await post.seal.seal(user, "new@example.in", "to"),
            expires_at=datetime.now(UTC) + lives,
        )
        await post.desk.append(f"user-{user}", code)

    await issue(timedelta(minutes=10))
    await issue(timedelta(seconds=-1))  # too late already
    await post.desk.run()
    assert await post.send("email") == 1
    (mail,) = mailbox.mails
    assert mailbox.recipients == ["new@example.in"]
    assert "483920" in mail.get_content()
    assert "483920" not in mail["Subject"]
    await deliveries.tidy(post.desk.world.db, datetime.now(UTC))
    rows = await post.rows("email")
    assert sorted((row["status"], row["code"]) for row in rows) == [("delivered", None), ("expired", None)]
    assert await post.desk.told(user) == []  # a code is in no inbox


async def test_mail_that_is_refused_hangs_or_must_wait(post: Post, mailbox: Any) -> None:
    await post.customer()
    cases = (("550 no such user", 0.0, "failed"), ("451 later", 0.0, "pending"), ("250 OK", 5.0, "pending"))
    for answer, pause_s, status in cases:
        mailbox.answer, mailbox.pause_s = answer, pause_s
        await post.desk.append(BROKER, risk("critical"))
        await post.desk.run()
        await post.send("email")
        row = (await post.rows("email"))[-1]
        assert row["status"] == status, (answer, dict(row))
    mailbox.answer, mailbox.pause_s = "250 OK", 0.0
    assert await post.send("email", soon(30)) == 2
    assert [row["status"] for row in await post.rows("email")].count("delivered") == 2


async def test_an_attempt_that_died_is_not_repeated_by_mail_but_by_webhook(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    await add_webhook(post, user, endpoint)
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    db = post.desk.world.db
    for channel in ("email", "webhook"):
        assert len(await deliveries.claim(db, channel, datetime.now(UTC), 10)) == 1  # and the process dies
        assert await deliveries.claim(db, channel, datetime.now(UTC), 10) == []  # another replica
    await deliveries.tidy(db, soon(deliveries.CLAIM_S + 1))
    assert await post.send("email", soon(99)) == 0
    assert [row["status"] for row in await post.rows("email")] == ["unknown"]
    assert await post.send("webhook", soon(99)) == 1
    assert [row["status"] for row in await post.rows("webhook")] == ["delivered"]


async def test_a_webhook_is_signed_retried_and_given_up(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    secret = await add_webhook(post, user, endpoint)
    endpoint.status = 503
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    at = datetime.now(UTC)
    for _ in range(len(deliveries.RETRIES_S) + 1):
        assert await post.send("webhook", at) == 1
        at += timedelta(hours=2)
    (row,) = await post.rows("webhook")
    assert (row["status"], row["attempts"], row["reason"]) == ("exhausted", 7, "http_503")
    assert len({headers["webhook-id"] for headers, _ in endpoint.requests}) == 1
    headers, body = endpoint.requests[0]
    assert Verifier(secret).verify(body, headers)["data"]["title"] == "Risk alert: Critical"
    endpoint.status, endpoint.headers = 429, {"Retry-After": "900"}
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    await post.send("webhook")
    row = (await post.rows("webhook"))[-1]
    assert row["next_attempt_at"] - row["updated_at"] >= timedelta(seconds=899)
    endpoint.status = 410
    await post.send("webhook", soon(901))
    assert await post.desk.world.db.fetchval("SELECT count(*) FROM webhook_target") == 0


async def test_web_push_reaches_the_browser_and_dead_ones_are_pruned(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    browser = Browser(endpoint, "alive")
    await subscribe(post, user, browser)
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    assert await post.send("web_push") == 1
    ((headers, body),) = endpoint.requests
    shown = browser.read(body)
    assert (shown["title"], shown["priority"]) == ("Risk alert: Critical", "critical")
    assert shown["actions"][0]["href"] == "/api/wealth/net-worth"
    assert (headers["content-encoding"], headers["urgency"]) == ("aes128gcm", "high")
    assert 0 < int(headers["ttl"]) <= 4 * 3600
    scheme, _, parameters = headers["authorization"].partition(" ")
    assert scheme == "vapid"
    token = dict(part.strip().split("=", 1) for part in parameters.split(","))["t"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["aud"] == endpoint.url
    endpoint.status = 410
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    await post.send("web_push")
    assert [row["reason"] for row in await post.rows("web_push")][-1] == "gone"
    assert await post.desk.world.db.fetchval("SELECT count(*) FROM push_subscription") == 0


async def test_a_channel_that_hangs_holds_up_no_other(post: Post, endpoint: Endpoint, mailbox: Any) -> None:
    """The real loops: the push service never answers, and the mail is out long before it is given up on."""
    user = await post.customer()
    await subscribe(post, user, Browser(endpoint, "slow"))
    endpoint.pause_s = 30
    loops = [asyncio.create_task(post.sender.send_forever(channel)) for channel in ("web_push", "email")]
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    async with asyncio.timeout(5):
        while not mailbox.mails:
            await asyncio.sleep(0.01)
        while not (rows := await post.rows("web_push")) or rows[0]["status"] != "pending" or not rows[0]["attempts"]:
            await asyncio.sleep(0.05)
    assert rows[0]["reason"] == "timeout"
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)


async def test_what_is_critical_goes_to_further_services(
    cell: "Cell", desk_with_apprise: "Desk", endpoint: Endpoint
) -> None:
    """Over Apprise's own HTTP, to a real endpoint: told once, tried again where it was refused, never redirected."""
    desk = desk_with_apprise
    settings = settings_of(
        apprise_urls=Secret(f"json://127.0.0.1:{endpoint.port}/ops"), allowed_targets=f"127.0.0.1:{endpoint.port}"
    )
    async with open_post(cell, desk, settings) as post:
        await post.customer()
        endpoint.status, endpoint.headers = 302, {"Location": f"{endpoint.url}/elsewhere"}
        await desk.append(BROKER, risk("critical"), risk("warning"))
        await desk.run()
        await desk.tick(soon())
        assert await post.send("apprise") == 1  # and nothing of the one that is not critical
        (row,) = await post.rows("apprise")
        assert (row["status"], row["reason"]) == ("pending", "apprise_failed")
        endpoint.status = 200
        assert await post.send("apprise", soon(10)) == 1
        (row,) = await post.rows("apprise")
        assert (row["status"], row["attempts"]) == ("delivered", 2)
    bodies = [json.loads(body) for _, body in endpoint.requests]
    assert [(body["title"], body["message"]) for body in bodies] == [("Risk alert: Critical", "Margin is at 92 %")] * 2


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("json://127.0.0.1:9/x", "our own network"),
        ("json://10.0.0.7/x", "our own network"),
        ("jsons://localhost/x", "our own network"),
        ("json://[::1]:9/x", "our own network"),
        ("nonsense://x", "no service"),
    ],
)
def test_a_further_service_is_refused_at_the_start(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as refused:
        AppriseServices(f"json://hooks.example.com/secret {url}", allowed=["127.0.0.1:10"])
    assert url not in str(refused.value)


async def test_the_night_is_mailed_as_one_digest(post: Post, mailbox: Any) -> None:
    user = await post.customer()
    nights = QuietHours(days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"), start="00:00", end="00:00")
    await post.desk.append(f"inbox-{user}", PreferenceChanged(quiet_hours=(nights,)))
    account = new_id()
    await post.desk.append(f"ledger-{user}", opened(account), posting(-100, below_floor=True))
    await post.desk.append(
        f"ledger-{user}",
        ledger.LimitsChanged(daily_minor=1, weekly_minor=1, monthly_minor=1, changed_at=datetime.now(UTC)),
    )
    await post.desk.run()
    await post.desk.tick(soon())
    assert await post.rows("email") == []
    await post.desk.append(f"inbox-{user}", PreferenceChanged())
    await post.desk.run()
    await post.desk.tick(soon())
    raised = [event for event in await post.desk.told(user) if isinstance(event, NotificationRaised)]
    assert len(raised) >= 2
    assert await post.send("email", soon(10)) == 1
    (mail,) = mailbox.mails
    assert mail["Subject"] == f"{len(raised)} notifications while you were away"
    assert all(event.title in mail.get_content() for event in raised)


async def test_what_comes_after_its_digest_was_sent_is_mailed_by_itself(post: Post, mailbox: Any) -> None:
    user = await post.customer()
    nights = QuietHours(days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"), start="00:00", end="00:00")
    await post.desk.append(f"inbox-{user}", PreferenceChanged(quiet_hours=(nights,)))
    await post.desk.append(f"ledger-{user}", opened(new_id()), posting(-100, below_floor=True))
    await post.desk.run()
    await post.desk.tick(soon())
    await post.desk.append(f"inbox-{user}", PreferenceChanged())
    await post.desk.run()
    await post.desk.tick(soon())
    held = [
        event
        for event in await post.desk.store.read_log(0)
        if isinstance(event.payload, NotificationRaised) and event.payload.digest_id is not None
    ]
    assert len(held) == 2
    database = post.desk.world.db
    await database.execute("DELETE FROM delivery")
    for times, event in ((1, held[0]), (2, held[1])):
        for _ in range(times):
            async with database.acquire() as proxy, proxy.transaction():
                await post.desk.ledger.apply(cast(asyncpg.Connection, proxy), [event])
        assert await post.send("email", soon(10)) == 1
    assert len(mailbox.mails) == len(await post.rows("email")) == 2


async def test_a_target_in_our_own_network_is_never_connected_to(post: Post, endpoint: Endpoint) -> None:
    user = await post.customer()
    other = Endpoint()
    other.url = "http://127.0.0.2:1"
    await add_webhook(post, user, other)
    await post.desk.append(BROKER, risk("critical"))
    await post.desk.run()
    await post.send("webhook")
    (row,) = await post.rows("webhook")
    assert (row["status"], row["reason"]) == ("failed", "url_not_allowed")
