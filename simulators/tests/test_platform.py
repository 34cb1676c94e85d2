"""The routes of a platform, over HTTP to a real process."""

import asyncio
import base64
import os
import signal
import sys
from datetime import UTC, datetime
from typing import Any

import jwt
import msgspec
import pytest
from simulators.harness import Platform, Receiver, eventually
from standardwebhooks import Webhook

WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


async def test_customers_are_added_once(platform: Platform) -> None:
    body = {"customer_id": "BFC-1", "pin": "1111"}
    assert await platform.call("POST", "/customers", body) == (201, {"customer_id": "BFC-1"})
    assert await platform.call("POST", "/customers", body) == (200, {"customer_id": "BFC-1"})
    status, problem = await platform.call("POST", "/customers", body | {"pin": "2222"})
    assert (status, problem["code"]) == (409, "customer_exists")
    await platform.emit("BFC-1")
    _, listed = await platform.call("GET", "/customers")
    assert listed == {"items": [{"customer_id": "BFC-1", "last_sequence": 1}]}


async def test_link_assertion_verifies_with_the_published_keys(platform: Platform) -> None:
    await platform.customer("BFC-1001", "4321")
    _, jwks = await platform.call("GET", "/.well-known/jwks.json")
    status, answer = await platform.call("POST", "/customers/BFC-1001/link-assertion", {"nonce": "n-42", "pin": "4321"})
    assert status == 200
    header = jwt.get_unverified_header(answer["assertion"])
    key = jwt.PyJWKSet.from_dict(jwks)[header["kid"]]
    claims = jwt.decode(
        answer["assertion"], key, algorithms=["ES256"], audience="sangam", issuer="bfc",
        options={"require": ["iss", "sub", "aud", "nonce", "iat", "exp"]},
    )  # fmt: skip
    assert (claims["sub"], claims["nonce"]) == ("BFC-1001", "n-42")
    assert "d" not in jwks["keys"][0], "a private key was published"


@pytest.mark.parametrize(
    ("customer_id", "pin", "refusal"),
    [("BFC-1001", "0000", (403, "wrong_pin")), ("BFC-9", "4321", (404, "customer_not_found"))],
)
async def test_no_assertion_without_the_customer(
    platform: Platform, customer_id: str, pin: str, refusal: tuple[int, str]
) -> None:
    await platform.customer("BFC-1001", "4321")
    path = f"/customers/{customer_id}/link-assertion"
    status, problem = await platform.call("POST", path, {"nonce": "n", "pin": pin})
    assert (status, problem["code"]) == refusal


async def test_events_are_pulled_in_sequence(platform: Platform) -> None:
    await platform.customer("BFC-1")
    await platform.customer("BFC-2")
    for number in range(3):
        await platform.emit("BFC-1", type="note", data={"n": number})
        await platform.emit("BFC-2")
    _, all_of_one = await platform.call("GET", "/events", params={"customer_id": "BFC-1"})
    assert [(item["sequence"], item["data"]["n"]) for item in all_of_one["items"]] == [(1, 0), (2, 1), (3, 2)]
    _, rest = await platform.call("GET", "/events", params={"customer_id": "BFC-1", "after": "1", "limit": "1"})
    assert rest["items"] == all_of_one["items"][1:2]
    assert (await platform.call("GET", "/events", params={"customer_id": "BFC-9"}))[0] == 404


async def test_many_events_at_once_happen_in_order_and_once(platform: Platform) -> None:
    await platform.customer("BFC-1")
    items = [{"id": f"e-{n}", "customer_id": "BFC-1", "type": "kyc.completed", "data": {"n": n}} for n in range(300)]
    at = {"occurred_at": "2026-02-12T09:00:00Z"}
    assert await platform.call("POST", "/events/batch", {"items": [item | at for item in items]}) == (200, {"new": 300})
    assert await platform.call("POST", "/events/batch", {"items": [item | at for item in items]}) == (200, {"new": 0})
    _, pulled = await platform.call("GET", "/events", params={"customer_id": "BFC-1", "after": "290"})
    assert [item["id"] for item in pulled["items"]] == [f"e-{n}" for n in range(290, 300)]
    stranger = {"customer_id": "BFC-9", "type": "x", "data": {}}
    status, problem = await platform.call("POST", "/events/batch", {"items": [stranger]})
    assert (status, problem["code"]) == (404, "customer_not_found")


async def test_an_event_id_makes_one_event(platform: Platform) -> None:
    await platform.customer()
    event = {
        "id": "bfc-ev-1",
        "customer_id": "BFC-1001",
        "type": "kyc.completed",
        "data": {"level": "full"},
        "occurred_at": "2026-02-12T14:30:00+05:30",
    }
    status, first = await platform.call("POST", "/events", event)
    assert (status, first["sequence"], first["occurred_at"]) == (201, 1, "2026-02-12T09:00:00Z")
    assert await platform.call("POST", "/events", event) == (200, first)
    status, problem = await platform.call("POST", "/events", event | {"data": {"level": "min"}})
    assert (status, problem["code"]) == (409, "event_id_taken")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/customers", {"customer_id": "BFC-1"}),
        ("/customers", {"customer_id": "", "pin": "1"}),
        ("/customers", {"customer_id": "B F C", "pin": "1"}),
        ("/customers", {"customer_id": "BFC-1", "pin": "1", "admin": True}),
        ("/events", {"customer_id": "BFC-1001", "type": "x", "data": []}),
        (
            "/events",
            {"customer_id": "BFC-1001", "type": "x", "data": {}, "occurred_at": "2026-02-12T09:00:00"},
        ),
        ("/webhooks/secrets", {"secret": "whsec_short"}),
        ("/control/fail", {"status": 200}),
        ("/control/slow", {"delay_s": -1}),
        ("/control/live", {}),
    ],
)
async def test_bad_input_is_a_problem(platform: Platform, path: str, body: object) -> None:
    await platform.customer()
    assert (await platform.call("POST", path, body))[0] == 400


async def test_not_json_unknown_route_and_bad_query_are_problems(platform: Platform) -> None:
    headers = {"Content-Type": "application/json"}
    assert (await platform.call("POST", "/customers", data=b"{", headers=headers))[0] == 400
    assert (await platform.call("GET", "/nowhere"))[0] == 404
    assert (await platform.call("DELETE", "/customers"))[0] == 405
    assert (await platform.call("GET", "/events"))[0] == 400
    assert (await platform.call("GET", "/events", params={"customer_id": "B", "after": "x"}))[0] == 400


def _signed(secret: str, body: bytes) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", now, body.decode()),
    }


async def _deliver(platform: Platform, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    status, _ = await platform.call("POST", "/webhooks", data=body, headers=headers)
    assert status == 200
    _, received = await platform.call("GET", "/webhooks/received")
    return dict(received["items"][-1])


async def test_webhooks_are_listed_with_whether_they_verify(platform: Platform) -> None:
    body = msgspec.json.encode({"type": "ledger.transfer.completed", "data": {"name": "₹"}})
    good = _signed(WEBHOOK_SECRET, body)
    untaught = await _deliver(platform, body, good)
    assert untaught["verified"] is None
    assert untaught["body"] == {"type": "ledger.transfer.completed", "data": {"name": "₹"}}
    assert untaught["webhook_id"] == "msg_1"

    assert (await platform.call("POST", "/webhooks/secrets", {"secret": WEBHOOK_SECRET}))[0] == 204
    assert (await _deliver(platform, body, good))["verified"] is True
    assert (await _deliver(platform, body + b" ", good))["verified"] is False
    other = _signed("whsec_" + base64.b64encode(b"x" * 32).decode(), body)
    assert (await _deliver(platform, body, other))["verified"] is False
    malformed = good | {"webhook-signature": "v1", "webhook-timestamp": "NaN"}
    assert (await _deliver(platform, body, malformed))["verified"] is False
    not_text = await _deliver(platform, b"\xff\xfe", good)
    assert not_text["verified"] is False


async def test_two_taught_secrets_both_verify(platform: Platform) -> None:
    second = "whsec_" + base64.b64encode(b"y" * 32).decode()
    for secret in (WEBHOOK_SECRET, second, second):
        await platform.call("POST", "/webhooks/secrets", {"secret": secret})
    for secret in (WEBHOOK_SECRET, second):
        assert (await _deliver(platform, b"{}", _signed(secret, b"{}")))["verified"] is True


async def test_a_failing_platform_fails_for_sangam_only_and_as_often_as_told(platform: Platform) -> None:
    await platform.customer()
    await platform.call("POST", "/control/fail", {"status": 500, "times": 2})
    assert (await platform.call("POST", "/webhooks", {}))[0] == 500
    assert (await platform.call("GET", "/customers"))[0] == 200
    assert (await platform.call("GET", "/events", params={"customer_id": "BFC-1001"}))[0] == 500
    assert (await platform.call("POST", "/webhooks", {}))[0] == 200
    await platform.call("POST", "/control/fail")
    for _ in range(3):
        assert (await platform.call("GET", "/.well-known/jwks.json"))[0] == 503
    await platform.call("POST", "/control/resume")
    assert (await platform.call("GET", "/.well-known/jwks.json"))[0] == 200


async def test_a_slow_platform_answers_late(platform: Platform) -> None:
    await platform.call("POST", "/control/slow", {"delay_s": 0.5})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(platform.call("GET", "/.well-known/jwks.json"), 0.4)
    assert (await platform.call("GET", "/.well-known/jwks.json"))[0] == 200


async def test_a_restarted_platform_knows_everything_it_knew(platform: Platform, receiver: Receiver) -> None:
    await platform.customer()
    await platform.call("POST", "/webhooks/secrets", {"secret": WEBHOOK_SECRET})
    first = await platform.emit()
    _, keys = await platform.call("GET", "/.well-known/jwks.json")
    await eventually(lambda: len(receiver.taken) == 1)
    await platform.call("POST", "/control/pause")
    second = await platform.emit()
    await platform.stop(signal.SIGKILL)
    await platform.start()
    third = await platform.emit()
    assert [item["sequence"] for item in (first, second, third)] == [1, 2, 3]
    await eventually(lambda: receiver.taken[-2:] == [second, third])
    assert (await platform.call("GET", "/.well-known/jwks.json"))[1] == keys
    assert (await _deliver(platform, b"{}", _signed(WEBHOOK_SECRET, b"{}")))["verified"] is True


async def test_sigterm_ends_it_cleanly_even_while_its_feed_is_down(platform: Platform, receiver: Receiver) -> None:
    await receiver.stop()
    await platform.customer()
    await platform.emit()
    assert await platform.stop(signal.SIGTERM) == 0


async def test_it_does_not_start_without_settings() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulators.platform", "bfc",
        env={"PATH": os.environ["PATH"]}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 2
    assert b"PLATFORM_HTTP_PORT" in output
    assert b"FEED_SECRET" in output
