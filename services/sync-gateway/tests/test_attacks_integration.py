"""The attacks on feeds, webhooks and WebSockets, in one list. Each is tried against the running gateway.

What needs a server of its own to attack from (rebinding, redirects, answers that never end, every form of address) is
in `libs/chassis/tests/test_egress.py`; slow readers and floods that take long are in `test_sync_integration.py`.
"""

import base64
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import websockets.asyncio.client as ws
from gateway_harness import Gateway, Listener, append
from standardwebhooks import Webhook
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.integration

Attack = Callable[[Gateway], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def register(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return register


def item(customer_id: str = "BFC-attacked") -> dict[str, Any]:
    return {
        "id": f"ev-{uuid4()}",
        "type": "kyc.completed",
        "occurred_at": "2026-02-12T09:00:00Z",
        "customer_id": customer_id,
        "data": {"level": "full"},
    }


def feed(name: str, headers: dict[str, str] | None = None, key: str | None = None) -> None:
    @attack(f"feed: {name}")
    async def push(gateway: Gateway) -> None:
        answer = await gateway.push("bfc", [item()], headers=headers, key=key)
        assert (answer.status, answer.body["code"]) == (401, "invalid_signature"), answer


feed("unsigned", {"webhook-signature": ""})
feed("foreign key", key="whsec_" + base64.b64encode(b"x" * 32).decode())
feed("malformed base64", {"webhook-signature": "v1,%%%not-base64%%%"})
feed("no version", {"webhook-signature": "AAAA"})
feed("timestamp NaN", {"webhook-timestamp": "NaN"})
feed("timestamp infinite", {"webhook-timestamp": "inf"})
feed("timestamp huge", {"webhook-timestamp": "9" * 400})
feed("timestamp of another alphabet", {"webhook-timestamp": "١٧٧٠٨٠٠٠٠٠".encode().decode("latin-1")})
feed("stale", {"webhook-timestamp": str(int(time.time()) - 600)})
feed("from the future", {"webhook-timestamp": str(int(time.time()) + 600)})
feed("another message id", {"webhook-id": "msg_other"})


@attack("feed: another platform's key")
async def another_platforms_key(gateway: Gateway) -> None:
    assert (await gateway.push("bfc", [item()], key=gateway.secrets["vyomo"])).status == 401


@attack("feed: tampered body")
async def tampered(gateway: Gateway) -> None:
    body = msgspec.json.encode({"items": [item()]})
    signature = Webhook(gateway.secrets["bfc"]).sign("msg_1", datetime.now(UTC), body.decode())
    headers = {"webhook-id": "msg_1", "webhook-signature": signature}
    assert (await gateway.push_bytes("bfc", body.replace(b"full", b"none"), headers=headers)).status == 401


@attack("feed: our own announcement sent back as a batch")
async def reflected(gateway: Gateway) -> None:
    answer = await gateway.push("bfc", [item()], key=gateway.announce_secrets["bfc"])
    assert answer.status == 401


@attack("feed: replayed batch has no second effect")
async def replayed(gateway: Gateway) -> None:
    sent = [item(f"BFC-{uuid4().hex}")]
    first, second = await gateway.push("bfc", sent), await gateway.push("bfc", sent)
    assert [r["status"] for r in first.body["items"] + second.body["items"]] == ["accepted", "duplicate"]


@attack("feed: an item id reused for something else")
async def reused(gateway: Gateway) -> None:
    sent = item()
    await gateway.push("bfc", [sent])
    answer = await gateway.push("bfc", [{**sent, "data": {"level": "forged"}}])
    assert answer.body["items"][0]["reason"] == "id_reused"


@attack("feed: oversized body")
async def oversized(gateway: Gateway) -> None:
    assert (await gateway.push_bytes("bfc", b'{"items": [' + b" " * (1 << 20) + b"]}")).status == 413


for _form, _url in {
    "loopback": "https://127.0.0.1/",
    "loopback by name": "https://localhost/",
    "loopback in one number": "https://2130706433/",
    "loopback in hex": "https://0x7f000001/",
    "loopback, short": "https://127.1/",
    "link-local": "https://169.254.169.254/latest/meta-data/",
    "private": "https://10.0.0.1/",
    "unspecified": "https://0.0.0.0/",
    "IPv6 loopback": "https://[::1]/",
    "IPv6-mapped": "https://[::ffff:127.0.0.1]/",
    "NAT64": "https://[64:ff9b::7f00:1]/",
    "6to4": "https://[2002:7f00:1::]/",
    "unique local": "https://[fd00::1]/",
    "zone": "https://[fe80::1%25lo]/",
    "credentials": "https://user:pass@example.com/",
    "no https": "http://example.com/",
    "file": "file:///etc/passwd",
}.items():

    def _forbidden(url: str) -> Attack:
        async def register(gateway: Gateway) -> None:
            body = {"url": url, "events": ["#"]}
            answer = await gateway.call("POST", "/api/sync/webhooks", gateway.token(uuid4()), body)
            assert (answer.status, answer.body["code"]) == (422, "url_not_allowed"), answer

        return register

    ATTACKS[f"webhook URL: {_form}"] = _forbidden(_url)


@attack("webhook: rate and concurrency of 0 are refused, not unlimited")
async def no_limits(gateway: Gateway) -> None:
    for field in ("rate_per_s", "concurrency_max"):
        body = {"url": "https://example.com/", "events": ["#"], field: 0}
        answer = await gateway.call("POST", "/api/sync/webhooks", gateway.token(uuid4()), body)
        assert (answer.status, answer.body["code"]) == (400, "invalid_request")


@attack("webhook: mass assignment of another owner")
async def another_owner(gateway: Gateway) -> None:
    body = {"url": "https://example.com/", "events": ["#"], "owner_id": str(uuid4()), "secret": "whsec_AAAA"}
    answer = await gateway.call("POST", "/api/sync/webhooks", gateway.token(uuid4()), body)
    assert answer.status == 400


@attack("webhook: a customer names another customer")
async def names_another(gateway: Gateway) -> None:
    answer = await gateway.get(f"/api/sync/webhooks?user_id={uuid4()}", gateway.token(uuid4()))
    assert (answer.status, answer.body["code"]) == (403, "forbidden")


@attack("webhook: more of them than allowed")
async def too_many(gateway: Gateway) -> None:
    token = gateway.token(uuid4())
    body = {"url": "https://192.0.0.9.nip.invalid/", "events": ["#"], "active": False}
    answers = []
    for _ in range(21):
        answers.append(await gateway.call("POST", "/api/sync/webhooks", token, body))
        await gateway.settled()
    assert [answer.status for answer in answers] == [201] * 20 + [422]
    assert answers[-1].body["code"] == "too_many_webhooks"


@attack("webhook: a forged cursor")
async def forged_cursor(gateway: Gateway) -> None:
    token = gateway.token(uuid4())
    answer = await gateway.get(f"/api/sync/history?cursor={'A' * 60}", token)
    assert (answer.status, answer.body["code"]) == (400, "invalid_cursor")


@attack("WebSocket: no token")
async def no_token(gateway: Gateway) -> None:
    async with ws.connect(gateway.ws) as socket:
        code, _ = await Listener(socket).closed()
    assert code == 4401


@attack("WebSocket: expired and forged tokens")
async def bad_tokens(gateway: Gateway) -> None:
    past = int((datetime.now(UTC) - timedelta(hours=1)).timestamp())
    for token in (gateway.token(uuid4(), exp=past), gateway.token(uuid4())[:-6] + "AAAAAA", "x.y.z"):
        async with gateway.connect(token) as listener:
            code, _ = await listener.closed()
        assert code == 4401


@attack("WebSocket: token in the address")
async def token_in_query(gateway: Gateway) -> None:
    async with ws.connect(f"{gateway.ws}?access_token={gateway.token(uuid4())}") as socket:
        code, (bye,) = await Listener(socket).closed()
    assert (code, bye["reason"]) == (4401, "token_in_query")


@attack("WebSocket: foreign origin")
async def foreign_origin(gateway: Gateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with gateway.connect(gateway.token(uuid4()), origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


@attack("WebSocket: frame flood")
async def flood(gateway: Gateway) -> None:
    async with gateway.connect(gateway.token(uuid4())) as listener:
        for _ in range(200):
            try:
                await listener.send(type="ping")
            except ConnectionClosed:
                break
        code, _ = await listener.closed()
    assert code == 1008


@attack("WebSocket: oversized frame")
async def oversized_frame(gateway: Gateway) -> None:
    async with gateway.connect(gateway.token(uuid4())) as listener:
        await listener.socket.send('{"type":"subscribe","topics":["' + "x" * 40_000 + '"]}')
        code, _ = await listener.closed()
    assert code == 1009


@attack("WebSocket: another customer's events, by topic or by cursor")
async def another_customer(gateway: Gateway) -> None:
    victim, thief = uuid4(), uuid4()
    async with gateway.connect(gateway.token(victim)) as own:
        cursor = (await own.receive())["resume"]
    async with gateway.store("ledger_transfer") as store:
        await append(store, victim, 1)
    async with gateway.connect(gateway.token(thief)) as listener:
        await listener.receive()
        assert (await listener.subscribe(f"ledger-{victim}"))["type"] == "error"
        await listener.subscribe("#", resume=cursor)
        assert (await listener.receive())["type"] == "resync"
        with pytest.raises(TimeoutError):
            await listener.receive(timeout_s=0.3)


@attack("WebSocket: malformed and deeply nested frames")
async def malformed(gateway: Gateway) -> None:
    async with gateway.connect(gateway.token(uuid4())) as listener:
        await listener.receive()
        for text in ("{", "[]", "null", '{"type":"subscribe"}', '{"type":"x"}', "[" * 8000):
            await listener.socket.send(text)
            assert (await listener.receive())["type"] == "error"


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack(gateway: Gateway, name: str) -> None:
    await ATTACKS[name](gateway)
