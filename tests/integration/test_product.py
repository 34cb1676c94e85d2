"""The product as its users meet it: over HTTP through the one origin, all processes real."""

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import asyncpg
import pytest
import websockets
from customers import call, make_customer, transfer
from truth import SERVICES

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration


async def test_an_event_of_one_service_is_applied_by_all_six(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)
        moved = await transfer(sangam, http, customer, "50000.00", uuid4().hex)
        admin = await asyncpg.connect(sangam.cell.admin_url())
        position = None
        async with asyncio.timeout(10):
            while position is None:
                position = await admin.fetchval(
                    "SELECT l.position FROM store.log l JOIN store.events e USING (id) WHERE e.event_id = $1::uuid",
                    moved.body["transfer_id"],
                )
        await admin.close()
        for service in SERVICES:
            database = await asyncpg.connect(sangam.cell.admin_url(service))
            async with asyncio.timeout(10):
                while True:
                    rows = await database.fetch("SELECT consumer, position FROM consumed")
                    if rows and all(row["position"] >= position for row in rows):
                        break
                    await asyncio.sleep(0.02)
            await database.close()
        # And each of the five that show it shows it, to a read that says what it must contain.
        headers = {**customer.headers, "X-Consistency-Token": moved.headers["X-Consistency-Token"]}
        accounts = await call(http, "GET", f"{sangam.origin}/api/accounts", headers=headers)
        balances = {account["kind"]: account["balance"] for account in accounts.body["items"]}
        assert balances == {"savings": "950000.00", "trading_wallet": "50000.00"}
        worth = await call(http, "GET", f"{sangam.origin}/api/wealth/net-worth", headers=headers)
        assert (worth.body["total"], worth.body["trading"]["wallet"]) == ("1000000.00", "50000.00")
        # A notification is told when its five seconds are over: more may come that belongs to it.
        async with asyncio.timeout(15):
            while True:
                inbox = await call(http, "GET", f"{sangam.origin}/api/notifications/smart", headers=headers)
                if any(item["title"] == "₹50,000 transferred" for item in inbox.body["items"]):
                    break
                await asyncio.sleep(0.2)
        found = await call(http, "GET", f"{sangam.origin}/api/search?q=transfer", headers=headers)
        assert found.body["total"] > 0
        events = await call(http, "GET", f"{sangam.origin}/api/sync/events?after=0&limit=200", headers=headers)
        assert moved.body["transfer_id"] in {event["id"] for event in events.body["items"]}


async def test_one_key_posted_fifty_times_in_parallel_moves_money_once(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http, savings="100.00")
        key = uuid4().hex
        answers = await asyncio.gather(*(transfer(sangam, http, customer, "60.00", key) for _ in range(50)))
        assert {answer.status for answer in answers} == {201}
        assert len({json.dumps(answer.body, sort_keys=True) for answer in answers}) == 1
        assert Counter(answer.headers.get("Idempotent-Replayed") for answer in answers) == {None: 1, "true": 49}
        assert answers[0].body["from_balance"] == "40.00"
        other = await transfer(sangam, http, customer, "1.00", key)
        assert (other.status, other.body["code"]) == (422, "idempotency_key_reused")


async def test_fifty_transfers_competing_for_one_balance_never_overdraw_it(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http, savings="100.00")
        keys = [uuid4().hex for _ in range(50)]
        answers = await asyncio.gather(*(transfer(sangam, http, customer, "9.00", key) for key in keys))
        outcomes = Counter((answer.status, answer.body.get("code")) for answer in answers)
        assert outcomes == {(201, None): 11, (422, "insufficient_funds"): 39}
        # The same question gets the same answer, also after the balance would allow it.
        back = await transfer(sangam, http, customer, "99.00", uuid4().hex, back=True)
        assert back.status == 201
        again = await asyncio.gather(*(transfer(sangam, http, customer, "9.00", key) for key in keys))
        assert [answer.status for answer in again] == [answer.status for answer in answers]


async def test_another_customers_objects_are_not_there(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        owner, stranger = [await make_customer(sangam, http) for _ in range(2)]
        moved = await transfer(sangam, http, owner, "1.00", uuid4().hex)
        for path in (f"/api/accounts/{owner.savings}", f"/api/transfers/{moved.body['transfer_id']}"):
            mine = await call(http, "GET", sangam.origin + path, headers=owner.headers)
            assert mine.status == 200, mine
            theirs = await call(http, "GET", sangam.origin + path, headers=stranger.headers)
            assert theirs.status == 404, theirs
        stolen = await transfer(sangam, http, stranger._replace(savings=owner.savings), "1.00", uuid4().hex)
        assert (stolen.status, stolen.body["code"]) == (404, "account_not_found")


async def test_the_socket_tells_what_the_command_did(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)
        url = sangam.origin.replace("http", "ws") + "/ws/sync"
        bearer: Any = ["bearer", customer.access_token]
        async with asyncio.timeout(20), websockets.connect(url, subprotocols=bearer) as socket:
            hello = json.loads(await socket.recv())
            assert hello["type"] == "hello"
            await socket.send(json.dumps({"type": "subscribe", "topics": ["ledger.#"]}))
            moved = await transfer(sangam, http, customer, "50000.00", uuid4().hex)
            async for message in socket:
                frame = json.loads(message)
                if frame["type"] == "event" and frame["event"]["type"] == "ledger.transfer.completed":
                    break
            assert frame["event"]["data"]["transfer_id"] == moved.body["transfer_id"]
            assert frame["event"]["subject"] == customer.user_id
