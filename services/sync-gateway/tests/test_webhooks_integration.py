"""Webhooks out, over the real log: signed, in order, retried, quarantined, and never sent twice by a restart."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from events.store import EventStore
from gateway_harness import Gateway, Received, Receiver, append, running, status
from standardwebhooks import WebhookVerificationError

pytestmark = pytest.mark.integration


async def deliveries(gateway: Gateway, token: str, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    """Oldest first."""
    answer = await gateway.get(f"/api/sync/webhooks/{webhook['id']}/deliveries?limit=200", token)
    assert answer.status == 200
    return list(reversed(answer.body["items"]))


async def until_status(gateway: Gateway, token: str, webhook: dict[str, Any], *wanted: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(15):
        while True:
            found = await deliveries(gateway, token, webhook)
            if [item["status"] for item in found] == list(wanted):
                return found
            await asyncio.sleep(0.05)


async def test_a_customer_s_events_arrive_signed_numbered_and_once(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, other = uuid4(), uuid4()
    token = gateway.token(user_id)
    path = f"/{uuid4()}"
    async with Receiver(gateway.receiver_port) as receiver:
        webhook = await gateway.webhook(token, "ledger.transfer.*", path=path)
        assert webhook["secret"].startswith("whsec_")
        # At once, so that both customers' events are in one batch.
        await asyncio.gather(
            append(ledger_store, user_id, *range(1, 31)),
            *(append(ledger_store, other, number) for number in range(1000, 1010)),
        )
        received = await receiver.until(30, path)
        assert [message.amount for message in received] == list(range(1, 31)), "in the order of the stream"
        assert [message.body["sequence"] for message in received] == list(range(1, 31)), "gap-free"
        for message in received:
            message.verify(webhook["secret"])
            assert message.headers["webhook-id"] == message.body["id"]
            assert message.body["subject"] == str(user_id)
        found = await until_status(gateway, token, webhook, *["delivered"] * 30)
        assert [item["sequence"] for item in found] == list(range(1, 31))
        assert found[0]["event_id"] == received[0].headers["webhook-id"]
        (attempt,) = found[0]["attempts"]
        assert attempt["response_code"] == 200
        assert attempt["latency_ms"] > 0
        shown = (await gateway.get(f"/api/sync/webhooks/{webhook['id']}", token)).body
        assert "secret" not in shown, "shown once"
        listed = (await gateway.get("/api/sync/webhooks", token)).body["items"]
        assert [item["id"] for item in listed] == [webhook["id"]]
        assert (await gateway.get("/api/sync/pending", token)).body["items"] == []
        assert (await gateway.get("/api/sync/stats?window=1m", token)).body["webhooks"]["delivered"] >= 30


async def test_the_secret_at_rest_is_sealed(gateway: Gateway) -> None:
    import asyncpg

    webhook = await gateway.webhook(gateway.token(uuid4()), "#")
    encoded = webhook["secret"].removeprefix("whsec_")
    for url in (gateway.cell.admin_url(), gateway.cell.admin_url("sync_gateway")):
        connection = await asyncpg.connect(url)
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for table in tables:
            rows = await connection.fetch(
                f"SELECT t::text AS row, encode(convert_to(t::text, 'UTF8'), 'escape') AS e FROM {table['name']} t"
            )
            for row in rows:
                assert encoded not in row["row"]
                # bytea is shown as hex
                assert encoded.encode().hex() not in row["row"], table["name"]
        await connection.close()


async def test_rotation_signs_with_both_secrets_for_a_while(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:
        webhook = await gateway.webhook(token, "#", path=path)
        url = f"/api/sync/webhooks/{webhook['id']}/rotate-secret"
        rotated = await gateway.call("POST", url, token, {"overlap_s": 3600})
        assert rotated.status == 200
        await gateway.settled()
        await append(ledger_store, user_id, 1)
        (message,) = await receiver.until(1, path)
        message.verify(webhook["secret"])
        message.verify(rotated.body["secret"])
        again = await gateway.call("POST", url, token, {"overlap_s": 0})
        await gateway.settled()
        await append(ledger_store, user_id, 2)
        message = (await receiver.until(2, path))[1]
        message.verify(again.body["secret"])
        with pytest.raises(WebhookVerificationError):
            message.verify(rotated.body["secret"])


async def test_failures_are_retried_and_one_bad_event_does_not_stop_others(
    gateway: Gateway, ledger_store: EventStore
) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)

    async def reply(message: Received) -> web.StreamResponse:
        return web.Response(status=500 if message.amount == 2 else 200)

    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[path] = reply
        webhook = await gateway.webhook(token, "#", path=path, retry_delays_s=[0, 0])
        await append(ledger_store, user_id, 1)
        await append(ledger_store, user_id, 2, 3)
        found = await until_status(gateway, token, webhook, "delivered", "exhausted", "delivered")
        assert [attempt["response_code"] for attempt in found[1]["attempts"]] == [500, 500, 500]
        # In order: what follows in the stream waits for the last try.
        assert [message.amount for message in receiver.at(path)][:2] == [1, 2]
        assert receiver.at(path)[-1].amount == 3


async def test_retry_after_is_honoured(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[path] = status(429, **{"Retry-After": "1"})
        webhook = await gateway.webhook(token, "#", path=path, retry_delays_s=[0])
        await append(ledger_store, user_id, 1)
        await receiver.until(1, path)
        del receiver.replies[path]
        first, second = await receiver.until(2, path)
        assert second.at_s - first.at_s > 0.9
        await until_status(gateway, token, webhook, "delivered")


async def test_retry_after_is_about_the_receiver_not_about_one_message(
    gateway: Gateway, ledger_store: EventStore
) -> None:
    """Nothing of any stream is sent before the time that the receiver asked for."""
    token, users, path = gateway.ops_token(), [uuid4() for _ in range(6)], f"/{uuid4()}"
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[path] = status(429, **{"Retry-After": "2"})
        webhook = await gateway.webhook(token, "ledger.#", path=path, retry_delays_s=[0, 0], concurrency_max=1)
        for user_id in users:
            await append(ledger_store, user_id, 1)
        (first,) = await receiver.until(1, path)
        receiver.replies.clear()
        received = await receiver.until(1 + len(users), path)
        assert min(message.at_s for message in received[1:]) - first.at_s > 1.9
        assert (await gateway.call("DELETE", f"/api/sync/webhooks/{webhook['id']}", token)).status == 204


async def test_probes_wait_for_retry_after_too(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:

        async def reply(_: Received) -> web.StreamResponse:
            fails_first = len(receiver.at(path)) < 5
            return web.Response(status=500) if fails_first else web.Response(status=503, headers={"Retry-After": "3"})

        receiver.replies[path] = reply
        webhook = await gateway.webhook(token, "ledger.#", path=path, retry_delays_s=[0] * 3)
        for number in (1, 2):
            await append(ledger_store, user_id, number)
        asked = (await receiver.until(5, path))[4]  # the fifth failure: quarantine
        after = (await receiver.until(6, path))[5]
        assert after.at_s - asked.at_s > 2.9, "probed after 0.3 s otherwise"
        await gateway.call("DELETE", f"/api/sync/webhooks/{webhook['id']}", token)


async def test_no_more_at_once_than_the_webhook_allows(gateway: Gateway, ledger_store: EventStore) -> None:
    token, users, path = gateway.ops_token(), [uuid4() for _ in range(12)], f"/{uuid4()}"
    at_once, most = 0, 0

    async def slowly(_: Received) -> web.StreamResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.1)
        at_once -= 1
        return web.Response()

    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[path] = slowly
        webhook = await gateway.webhook(token, "ledger.#", path=path, concurrency_max=3, rate_per_s=1000)
        for user_id in users:
            await append(ledger_store, user_id, 1)
        await receiver.until(len(users), path)
        assert most == 3
        await gateway.call("DELETE", f"/api/sync/webhooks/{webhook['id']}", token)


async def test_no_faster_than_the_webhook_allows(gateway: Gateway, ledger_store: EventStore) -> None:
    token, path, count = gateway.ops_token(), f"/{uuid4()}", 21
    async with Receiver(gateway.receiver_port) as receiver:
        webhook = await gateway.webhook(token, "ledger.#", path=path, concurrency_max=64, rate_per_s=10)
        for _ in range(count):
            await append(ledger_store, uuid4(), 1)
        received = await receiver.until(count, path)
        assert received[-1].at_s - received[0].at_s > 0.9 * (count - 1) / 10
        await gateway.call("DELETE", f"/api/sync/webhooks/{webhook['id']}", token)


async def test_one_slow_webhook_holds_up_neither_others_nor_other_streams(
    gateway: Gateway, ledger_store: EventStore
) -> None:
    slow_user, user_id = uuid4(), uuid4()
    released = asyncio.Event()
    slow, fast = f"/{uuid4()}", f"/{uuid4()}"

    async def wait(message: Received) -> web.StreamResponse:
        if message.body["subject"] == str(slow_user):
            await released.wait()
        return web.Response()

    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[slow] = wait
        everyone = gateway.ops_token()
        webhook = await gateway.webhook(everyone, "ledger.transfer.*", path=slow)
        own = await gateway.webhook(gateway.token(user_id), "#", path=fast)
        await append(ledger_store, slow_user, 1, 2)
        await append(ledger_store, user_id, *range(3, 20))
        await receiver.until(17, fast, timeout_s=5)
        # The ops webhook gets everyone's; only the stream that waits for its answer waits.
        async with asyncio.timeout(5):
            while [m.amount for m in receiver.at(slow) if m.body["subject"] == str(user_id)] != list(range(3, 20)):
                await asyncio.sleep(0.02)
        assert [m.amount for m in receiver.at(slow) if m.body["subject"] == str(slow_user)] == [1]
        released.set()
        for hook, token in ((webhook, everyone), (own, gateway.token(user_id))):
            assert (await gateway.call("DELETE", f"/api/sync/webhooks/{hook['id']}", token)).status == 204


async def test_a_failing_webhook_is_quarantined_probed_restored_and_misses_nothing(
    gateway: Gateway, ledger_store: EventStore
) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver, gateway.connect(token) as listener:
        await listener.receive()
        await listener.subscribe("sync.webhook.*")
        receiver.replies[path] = status(503)
        webhook = await gateway.webhook(token, "ledger.#", path=path, retry_delays_s=[0, 0])
        for number in range(1, 11):
            await append(ledger_store, user_id, number)
        frame = await listener.receive()
        assert frame["event"]["type"] == "sync.webhook.quarantined"
        assert frame["event"]["data"]["reason"] == "http_503"
        state = (await gateway.get(f"/api/sync/webhooks/{webhook['id']}", token)).body["state"]
        assert state == "quarantined"
        attempts = len(receiver.at(path))
        assert attempts <= 8, "no hammering: only probes from now on"
        pending = (await gateway.get("/api/sync/pending", token)).body["items"]
        assert {item["kind"] for item in pending} == {"webhook"}
        assert len(pending) >= 9
        receiver.replies.clear()
        assert (await listener.receive())["event"]["type"] == "sync.webhook.restored"
        await until_status(gateway, token, webhook, *["delivered"] * 10)
        good = [message for message in receiver.at(path)[attempts:] if message.body["type"].startswith("ledger.")]
        came = [message.body["sequence"] for message in good]
        assert sorted(came) == list(range(1, 11)), "each once, what was given up as well"
        assert [number for number in came if number > 2] == list(range(3, 11)), "in order"


async def test_gone_disables(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies[path] = status(410)
        webhook = await gateway.webhook(token, "ledger.#", path=path)
        url = f"/api/sync/webhooks/{webhook['id']}"
        await append(ledger_store, user_id, 1)
        async with asyncio.timeout(10):
            while (await gateway.get(url, token)).body["state"] != "disabled":
                await asyncio.sleep(0.05)
        await append(ledger_store, user_id, 2)
        receiver.replies.clear()
        body = {"url": webhook["url"], "events": ["ledger.#"], "active": True}
        assert (await gateway.call("PUT", url, token, body)).body["state"] == "active"
        await gateway.settled()
        await append(ledger_store, user_id, 3)
        received = await receiver.until(2, path)
        assert [message.amount for message in received] == [1, 3]


async def test_test_resend_and_replay(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:
        webhook = await gateway.webhook(token, "ledger.#", path=path)
        url = f"/api/sync/webhooks/{webhook['id']}"
        assert (await gateway.call("POST", f"{url}/test", token)).status == 202
        (tried,) = await receiver.until(1, path)
        tried.verify(webhook["secret"])
        assert tried.body["type"] == "webhook.test"
        since = datetime.now(UTC) - timedelta(seconds=1)
        await append(ledger_store, user_id, 1, 2, 3)
        sent = (await receiver.until(4, path))[1:]
        found = await until_status(gateway, token, webhook, *["delivered"] * 4)
        again = await gateway.call("POST", f"{url}/deliveries/{found[2]['id']}/resend", token)
        assert again.status == 202
        resent = (await receiver.until(5, path))[-1]
        assert resent.headers["webhook-id"] == sent[1].headers["webhook-id"], "so that the receiver knows it"
        assert resent.raw == sent[1].raw
        replayed = await gateway.call("POST", f"{url}/replay", token, {"since": since.isoformat()})
        assert (replayed.status, replayed.body) == (202, {"queued": 3})
        everything = await receiver.until(8, path)
        assert [message.raw for message in everything[5:]] == [message.raw for message in sent]


async def test_one_replay_at_a_time(gateway: Gateway, ledger_store: EventStore) -> None:
    """Asked for again and again, each would copy all of the past."""
    user_id, path = uuid4(), f"/{uuid4()}"
    token = gateway.token(user_id)
    async with Receiver(gateway.receiver_port) as receiver:
        webhook = await gateway.webhook(token, "ledger.#", path=path, retry_delays_s=[3600])
        await append(ledger_store, user_id, 1, 2)
        await receiver.until(2, path)
        await until_status(gateway, token, webhook, "delivered", "delivered")
        receiver.replies[path] = status(500)
        url, body = f"/api/sync/webhooks/{webhook['id']}/replay", {"since": "2026-01-01T00:00:00Z"}
        answers = await asyncio.gather(*(gateway.call("POST", url, token, body) for _ in range(5)))
        assert sorted(answer.status for answer in answers) == [202, 409, 409, 409, 409]
        assert {a.body["code"] for a in answers if a.status == 409} == {"replay_under_way"}
        assert len(await deliveries(gateway, token, webhook)) == 4
        await gateway.call("DELETE", f"/api/sync/webhooks/{webhook['id']}", token)


async def test_only_the_owner_sees_or_touches_a_webhook(gateway: Gateway) -> None:
    token, stranger = gateway.token(uuid4()), gateway.token(uuid4())
    webhook = await gateway.webhook(token, "#")
    url = f"/api/sync/webhooks/{webhook['id']}"
    delivery = f"{url}/deliveries/{uuid4()}/resend"
    body = {"url": webhook["url"], "events": ["#"]}
    for who in (stranger, gateway.ops_token()):
        calls: list[tuple[str, str, Any]] = [
            ("GET", url, None), ("PUT", url, body), ("DELETE", url, None), ("GET", f"{url}/deliveries", None),
            ("POST", f"{url}/test", None), ("POST", f"{url}/rotate-secret", {}), ("POST", delivery, None),
            ("POST", f"{url}/replay", {"since": "2026-01-01T00:00:00Z"}),
        ]  # fmt: skip
        for method, path, sent in calls:
            answer = await gateway.call(method, path, who, sent)
            assert (answer.status, answer.body["code"]) == (404, "webhook_not_found"), (method, path)
    assert (await gateway.get("/api/sync/webhooks", gateway.ops_token("transfers:reverse"))).status == 403
    assert (await gateway.get(url, token)).status == 200


async def test_a_restart_sends_nothing_twice(gateway: Gateway, ledger_store: EventStore, tmp_path: Path) -> None:
    """A second replica beside the first, both restarted while events flow: each event is sent once."""
    user_id, path = uuid4(), f"/{secrets.token_hex(8)}"
    token = gateway.token(user_id)
    second = gateway.replica()
    async with Receiver(gateway.receiver_port) as receiver:
        webhook = await gateway.webhook(token, "ledger.#", path=path)
        for round_ in range(2):
            async with running(second, tmp_path / str(round_)):
                for number in range(20):
                    await append(ledger_store, user_id, round_ * 20 + number + 1)
        received = await receiver.until(40, path)
        await asyncio.sleep(0.5)
        assert [message.body["sequence"] for message in receiver.at(path)] == list(range(1, 41)), [
            item["attempts"] for item in await deliveries(gateway, token, webhook) if len(item["attempts"]) > 1
        ]
        assert len({message.headers["webhook-id"] for message in received}) == 40
        assert UUID(webhook["id"])
