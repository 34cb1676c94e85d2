"""The story of single sign-on by HTTP alone: in once, out everywhere, and every service refuses at once.

How fast is measured by `bench/identity.py`; here only order counts: after the answer of the logout nothing is accepted.
"""

import asyncio
import base64
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import jwt
import pytest
from customers import PASSWORD, call
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

ROUTES = {
    "identity": "/api/auth/status",
    "ledger_transfer": "/api/accounts",
    "sync_gateway": "/api/sync/events",
    "wealth": "/api/wealth/net-worth",
    "notifier": "/api/notifications/smart",
    "search": "/api/search?q=salary",
}
"""One route of each service that needs a token."""

EXCHANGE = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "audience": "vyomo",
}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def signed_in(stack: "Stack", http: aiohttp.ClientSession) -> tuple[str, dict[str, Any]]:
    """A new customer's e-mail address and login."""
    email = f"s{uuid4().hex[:12]}@example.com"
    person = {"email": email, "password": PASSWORD, "full_name": "Chitra Iyer", "phone": "+919800000000"}
    assert (await call(http, "POST", f"{stack.origin}/api/auth/register", json=person)).status == 201
    return email, await logged_in(stack, http, email)


async def logged_in(stack: "Stack", http: aiohttp.ClientSession, email: str, platform: str = "bfc") -> dict[str, Any]:
    credentials = {"email": email, "password": PASSWORD, "platform": platform}
    login = await call(http, "POST", f"{stack.origin}/api/auth/login", json=credentials)
    assert login.status == 200, login
    body: dict[str, Any] = login.body
    return body


async def refusals(stack: "Stack", http: aiohttp.ClientSession, *tokens: str) -> dict[tuple[str, int], str]:
    """By service and token, with which code it is refused; nothing where it is accepted."""

    async def asked(service: str, path: str, number: int, token: str) -> tuple[tuple[str, int], str]:
        async with http.get(stack.origin + path, headers=bearer(token)) as answer:
            body = await answer.json(content_type=None)
            return (service, number), body["code"] if answer.status == 401 else ""

    pairs = await asyncio.gather(
        *(asked(service, path, n, token) for service, path in ROUTES.items() for n, token in enumerate(tokens))
    )
    return {place: code for place, code in pairs if code}


async def close_code(socket: ClientConnection) -> int | None:
    """With which code the server closes the connection, frames before it aside."""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(5):
            async for _ in socket:
                pass
    return socket.close_code


async def test_in_once_out_everywhere(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        email, login = await signed_in(sangam, http)
        bfc = login["access_token"]
        exchanged = await call(
            http,
            "POST",
            f"{sangam.origin}/api/auth/exchange-token",
            json={**EXCHANGE, "subject_token": bfc},
            headers=bearer(bfc),
        )
        vyomo = exchanged.body["access_token"]
        elsewhere = await logged_in(sangam, http, email, "vyomo")
        tokens = (bfc, vyomo, elsewhere["access_token"])
        assert await refusals(sangam, http, *tokens) == {}
        address = f"{sangam.origin.replace('http', 'ws')}/ws/sync"
        sockets = [await connect(address, subprotocols=[Subprotocol("bearer"), Subprotocol(token)]) for token in tokens]
        async with http.post(f"{sangam.origin}/api/auth/logout-all", headers=bearer(bfc)) as out:
            assert out.status == 200
            body = await out.json()
        assert await refusals(sangam, http, *tokens) == {
            (service, n): "session_ended" for service in ROUTES for n in range(3)
        }
        assert body["revoked"] == 2
        verifiers = {line["verifier"].split("/")[0]: line for line in body["receipt"]}
        assert verifiers.keys() >= ROUTES.keys(), "every service answers for itself"
        assert all(line["applied_ms"] is not None for line in verifiers.values())
        assert await asyncio.gather(*(close_code(socket) for socket in sockets)) == [4401] * 3
        assert (await logged_in(sangam, http, email))["session_id"], "a new login is a new session"


async def test_a_service_that_was_down_refuses_from_its_first_answer(sangam: "Stack") -> None:
    """Revoked while the verifier is not there: neither the broadcast nor the queue reaches it, the snapshot does."""
    async with aiohttp.ClientSession() as http:
        _, login = await signed_in(sangam, http)
        token = login["access_token"]
        sangam.pause("wealth")
        try:
            assert (await call(http, "POST", f"{sangam.origin}/api/auth/logout", headers=bearer(token))).status == 200
        finally:
            sangam.resume("wealth")
        await asyncio.to_thread(sangam.wait_ready, ["wealth"])
        async with http.get(sangam.url("wealth") + ROUTES["wealth"], headers=bearer(token)) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (401, "session_ended")


async def test_no_money_moves_while_nobody_can_say_who_is_signed_out(sangam: "Stack") -> None:
    """Both relays are away: the feed of revocations is stale, reads go on, transfers fail closed."""
    async with aiohttp.ClientSession() as http:
        _, login = await signed_in(sangam, http)
        headers = {**bearer(login["access_token"]), "Idempotency-Key": uuid4().hex}
        transfer = {
            "from_account_id": str(uuid4()),
            "to_account_id": str(uuid4()),
            "amount": "1.00",
            "currency": "INR",
        }

        async def tried() -> tuple[int, str]:
            async with http.post(f"{sangam.origin}/api/transfers", json=transfer, headers=headers) as answer:
                return answer.status, (await answer.json(content_type=None))["code"]

        assert await tried() == (404, "account_not_found")
        sangam.pause("relay-1")
        sangam.pause("relay-2")
        try:
            async with asyncio.timeout(20):
                while await tried() == (404, "account_not_found"):
                    await asyncio.sleep(0.25)
            assert await tried() == (503, "revocations_unknown")
            # A revocation still gets through: by the broadcast, which does not wait for the log.
            async with http.get(f"{sangam.origin}/api/accounts", headers=headers) as read:
                assert read.status == 200
            await call(http, "POST", f"{sangam.origin}/api/auth/logout", headers=headers)
            assert (await refusals(sangam, http, login["access_token"])).keys() == {(each, 0) for each in ROUTES}
        finally:
            sangam.resume("relay-1")
            sangam.resume("relay-2")
        await asyncio.to_thread(sangam.wait_ready)
        headers |= bearer((await signed_in(sangam, http))[1]["access_token"])
        async with asyncio.timeout(20):
            while (await tried())[0] == 503:
                await asyncio.sleep(0.25)
        assert await tried() == (404, "account_not_found")


async def test_lockout_is_not_dodged_by_forged_addresses(sangam: "Stack") -> None:
    """What a client says of its own address counts for nothing behind nginx; an account locks for everybody."""
    async with aiohttp.ClientSession() as http:
        email, _ = await signed_in(sangam, http)
        wrong = {"email": email, "password": f"{PASSWORD}!", "platform": "bfc"}
        codes = []
        for n in range(12):
            forged = {
                "X-Forwarded-For": f"203.0.113.{n}",
                "X-Real-IP": f"198.51.100.{n}",
                "Forwarded": f"for=10.0.0.{n}",
            }
            async with http.post(f"{sangam.origin}/api/auth/login", json=wrong, headers=forged) as answer:
                codes.append((await answer.json(content_type=None))["code"])
                if answer.status == 429:
                    assert int(answer.headers["Retry-After"]) > 0
        assert codes == ["invalid_credentials"] * 10 + ["too_many_attempts"] * 2
        async with http.post(f"{sangam.origin}/api/auth/login", json={**wrong, "password": PASSWORD}) as answer:
            assert answer.status == 429, "the right password does not unlock it either"


async def test_an_operator_acts_for_a_customer_on_record(sangam: "Stack") -> None:
    credentials = sangam.credentials
    basic = base64.b64encode(f"{credentials.ops_client_id}:{credentials.ops_client_secret}".encode()).decode()
    async with aiohttp.ClientSession() as http:
        async with http.post(
            f"{sangam.origin}/oauth/token",
            data={"grant_type": "client_credentials"},
            headers={"Authorization": f"Basic {basic}"},
        ) as answer:
            assert answer.status == 200
            token = json.loads(await answer.text())["access_token"]
        for service in ("identity", "ledger_transfer", "wealth", "notifier", "search"):
            async with http.get(sangam.origin + ROUTES[service], headers=bearer(token)) as refused:
                assert refused.status == 401, f"{service}: what is a customer's is not an operator's"
        _, login = await signed_in(sangam, http)
        user_id = jwt.decode(login["access_token"], options={"verify_signature": False})["sub"]
        events = f"{sangam.origin}/api/sync/events?user_id={user_id}"
        async with http.get(events, headers=bearer(token)) as allowed:
            assert allowed.status == 200
        store = await asyncpg.connect(sangam.cell.admin_url())
        audited = await store.fetch(
            "SELECT convert_from(data, 'UTF8') AS data FROM store.events"
            " WHERE type = 'access.ops.used' AND subject = $1",
            UUID(user_id),
        )
        await store.close()
        assert [json.loads(row["data"])["route"] for row in audited] == ["/api/sync/events"]
        async with http.get(events, headers=bearer(login["access_token"])) as forged:
            assert forged.status == 403, "a customer names nobody to act for"


async def test_an_operator_shreds_a_person(sangam: "Stack") -> None:
    """`sangam shred`: the act is in the log, identity ends the user, and the key is gone for everybody."""
    async with aiohttp.ClientSession() as http:
        email, login = await signed_in(sangam, http)
        user_id = jwt.decode(login["access_token"], options={"verify_signature": False})["sub"]
        for arguments in ([user_id, "--reason", "asked by letter"], ["--again"]):
            process = await asyncio.create_subprocess_exec(
                Path(sys.executable).with_name("sangam"),
                *("shred", *arguments, "--yes"),
                env={**os.environ, "EVENT_STORE_URL": sangam.cell.admin_url()},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
            assert process.returncode == 0, output.decode()
            assert b"destroyed" in output
        async with asyncio.timeout(10):
            while len(await refusals(sangam, http, login["access_token"])) < len(ROUTES):
                await asyncio.sleep(0.05)
        vault = await asyncpg.connect(sangam.cell.admin_url("subject_keys"))
        wrapped = await vault.fetchrow("SELECT wrapped FROM vault.subject_key WHERE subject = $1", UUID(user_id))
        await vault.close()
        assert wrapped is not None
        assert wrapped["wrapped"] is None
        person = {"email": email, "password": PASSWORD, "full_name": "Chitra Iyer", "phone": "+919800000000"}
        again = await call(http, "POST", f"{sangam.origin}/api/auth/register", json=person)
        assert again.status == 201, "the address is free again"
