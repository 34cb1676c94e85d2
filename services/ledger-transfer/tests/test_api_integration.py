"""The routes over a real event store and read model: right answers, and no harm from wrong questions."""

import asyncio
import itertools
from typing import Any

import pytest
from events.envelope import new_id
from ledger_client import Client

pytestmark = pytest.mark.integration


async def test_a_transfer_and_everything_that_shows_it(client: Client) -> None:
    answer = await client.transfer(client.body(memo="for trading"))
    assert answer.status_code == 201
    body = answer.json()
    assert body | {"transfer_id": 0, "completed_at": 0} == {
        "transfer_id": 0,
        "status": "completed",
        "from_account_id": str(client.savings),
        "to_account_id": str(client.wallet),
        "amount": "400.00",
        "currency": "INR",
        "memo": "for trading",
        "completed_at": 0,
        "from_balance": "600.00",
        "to_balance": "400.00",
        "rule_id": None,
        "reverses": None,
        "reversed_by": None,
    }
    assert body["completed_at"].endswith("Z")
    assert "Idempotent-Replayed" not in answer.headers
    token = answer.headers["X-Consistency-Token"]

    # Not in the read model yet: a read that asks for it is not answered with old balances.
    assert (await client.get("/api/accounts", **{"X-Consistency-Token": token})).status_code == 503
    await client.read_model.catch_up()
    accounts = (await client.get("/api/accounts", **{"X-Consistency-Token": token})).json()
    assert accounts["next_cursor"] is None
    assert [(item["id"], item["kind"], item["balance"], item["available"]) for item in accounts["items"]] == [
        (str(client.savings), "savings", "600.00", "600.00"),
        (str(client.wallet), "trading_wallet", "400.00", "400.00"),
    ]
    assert (await client.get(f"/api/accounts/{client.wallet}")).json() == accounts["items"][1]

    for path in (f"/api/transfers/{body['transfer_id']}", "/api/transfers?idempotency_key=k"):
        assert (await client.get(path)).json() == body
    history = (await client.get("/api/transactions?type=transfer")).json()["items"]
    assert [(item["account_id"], item["direction"], item["balance_after"]) for item in history] == [
        (str(client.wallet), "credit", "400.00"),
        (str(client.savings), "debit", "600.00"),
    ]
    assert {item["transfer_id"] for item in history} == {body["transfer_id"]}
    assert {item["memo"] for item in history} == {"for trading"}


async def test_the_same_request_gets_the_same_answer(client: Client) -> None:
    answers = await asyncio.gather(*(client.transfer(client.body()) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in answers) == 1
    assert len({answer.headers["X-Consistency-Token"] for answer in answers}) == 1
    assert await client.balances() == ["600.00", "400.00"]
    # The same amount in other words is the same request.
    again = await client.transfer(client.body(amount="400"))
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (201, "true")


async def test_a_refusal_is_repeated_too(client: Client) -> None:
    first = await client.transfer(client.body(amount="1000.01"))
    assert first.status_code == 422
    assert first.headers["content-type"] == "application/problem+json"
    problem = first.json()
    assert (problem["code"], problem["available"], problem["currency"]) == ("insufficient_funds", "1000.00", "INR")
    again = await client.transfer(client.body(amount="1000.01"))
    assert (again.status_code, again.headers["Idempotent-Replayed"]) == (422, "true")
    assert again.json()["transfer_id"] == problem["transfer_id"]
    by_key = (await client.get("/api/transfers?idempotency_key=k")).json()
    assert (by_key["status"], by_key["code"]) == ("refused", "insufficient_funds")
    other = await client.transfer(client.body())
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await client.balances() == ["1000.00", "0.00"]


async def test_a_preview_writes_nothing(client: Client) -> None:
    path = "/api/transfers/preview"
    allowed = await client.transfer(client.body(), key=None, path=path)
    assert allowed.status_code == 200
    limits = allowed.json()["limits"]
    assert limits["daily"] | {"resets_at": 0} == {
        "limit": "1000000.00",
        "used": "400.00",
        "remaining": "999600.00",
        "resets_at": 0,
    }
    assert allowed.json() == {
        "allowed": True,
        "amount": "400.00",
        "currency": "INR",
        "from_balance": "600.00",
        "to_balance": "400.00",
        "refusal": None,
        "limits": limits,
    }
    refused = (await client.transfer(client.body(amount="2000"), key=None, path=path)).json()
    assert (refused["allowed"], refused["refusal"]["code"]) == (False, "insufficient_funds")
    assert (await client.transfer(client.body(to_account_id=str(new_id())), path=path)).status_code == 404
    assert await client.balances() == ["1000.00", "0.00"]


async def test_another_customers_objects_do_not_exist(clients: tuple[Client, Client]) -> None:
    mine, theirs = clients
    transfer_id = (await theirs.transfer(theirs.body())).json()["transfer_id"]
    assert (await mine.get(f"/api/accounts/{theirs.savings}")).json()["code"] == "account_not_found"
    assert (await mine.get(f"/api/transfers/{transfer_id}")).json()["code"] == "transfer_not_found"
    assert (await mine.get("/api/transfers?idempotency_key=k")).status_code == 404
    for body in (mine.body(from_account_id=str(theirs.savings)), mine.body(to_account_id=str(theirs.wallet))):
        answer = await mine.transfer(body)
        assert (answer.status_code, answer.json()["code"]) == (404, "account_not_found")
    assert (await mine.get(f"/api/transactions?account_id={theirs.savings}")).json()["items"] == []
    assert await mine.balances() == ["1000.00", "0.00"]
    assert await theirs.balances() == ["600.00", "400.00"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"amount": 400}, "invalid_request"),
        ({"amount": "4.001"}, "invalid_amount"),
        ({"amount": "0"}, "invalid_amount"),
        ({"amount": "-1"}, "invalid_amount"),
        ({"amount": "1e3"}, "invalid_amount"),
        ({"amount": "NaN"}, "invalid_amount"),
        ({"amount": "9" * 30}, "invalid_amount"),
        ({"amount": "9" * 40}, "invalid_request"),
        ({"amount": "9" * 13, "currency": "KWD"}, "invalid_amount"),
        ({"currency": "XXX"}, "invalid_currency"),
        ({"currency": "rupees"}, "invalid_request"),
        ({"currency": None}, "invalid_request"),
        ({"from_account_id": "mine"}, "invalid_request"),
        ({"memo": "x" * 141}, "invalid_request"),
        ({"memo": "a\nb"}, "invalid_request"),
        ({"memo": "a\u0000b"}, "invalid_request"),
        ({"memo": "a\u009bb"}, "invalid_request"),
        ({"status": "completed"}, "invalid_request"),
    ],
)
async def test_a_malformed_transfer_is_refused_and_writes_nothing(
    client: Client, changes: dict[str, Any], code: str
) -> None:
    for path in ("/api/transfers", "/api/transfers/preview"):
        answer = await client.transfer(client.body(**changes), path=path)
        assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert (await client.get("/api/transfers?idempotency_key=k")).status_code == 404


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (None, "idempotency_key_required"),
        ("", "idempotency_key_required"),
        ("k" * 256, "invalid_idempotency_key"),
        ("two words", "invalid_idempotency_key"),
        ("tab\there", "invalid_idempotency_key"),
    ],
)
async def test_a_transfer_needs_a_good_key(client: Client, key: str | None, code: str) -> None:
    answer = await client.transfer(client.body(), key=key)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert await client.balances() == ["1000.00", "0.00"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("colour=red", "invalid_request"),
        ("limit=1&limit=2", "invalid_request"),
        ("limit=0", "invalid_request"),
        ("limit=201", "invalid_request"),
        ("limit=ten", "invalid_request"),
        ("platform=nse", "invalid_request"),
        ("account_id=1", "invalid_request"),
        ("type=gift", "invalid_request"),
        ("direction=up", "invalid_request"),
        ("category=" + "x" * 65, "invalid_request"),
        ("category=a%0Ab", "invalid_request"),
        ("from=yesterday", "invalid_request"),
        ("to=2026-02-30", "invalid_request"),
        ("min_amount=1e3", "invalid_amount"),
        ("max_amount=-1", "invalid_amount"),
        ("cursor=forged", "invalid_cursor"),
    ],
)
async def test_a_bad_filter_is_named(client: Client, query: str, code: str) -> None:
    answer = await client.get(f"/api/transactions?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert answer.json()["errors"][0]["field"] == query.split("=")[0]


async def test_pages_follow_each_other(clients: tuple[Client, Client]) -> None:
    client, other = clients
    for n in range(5):
        await client.transfer(client.body(amount="1"), key=f"k{n}")
    await client.read_model.catch_up()
    for path, expected in (("/api/transactions?limit=3", 11), ("/api/accounts?limit=1", 2)):
        items, cursor = [], ""
        while True:
            page = (await client.get(path + (f"&cursor={cursor}" if cursor else ""))).json()
            items += page["items"]
            if page["next_cursor"] is None:
                break
            cursor = page["next_cursor"]
        assert len({item["id"] for item in items}) == len(items) == expected
        assert (await other.get(f"{path}&cursor={cursor}")).json()["code"] == "invalid_cursor"


async def test_pages_stay_correct_while_new_rows_arrive(client: Client) -> None:
    for amount in range(1, 21):
        await client.bank_posts(amount)
    everything = [item["id"] for item in (await client.get("/api/transactions?limit=200")).json()["items"]]
    assert len(everything) == 21
    seen: list[str] = []
    cursor = ""
    for latest in itertools.count(100):
        page = (await client.get(f"/api/transactions?limit=4{cursor}")).json()
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
        # Ahead of every page, and at the very instant where this one ended.
        await client.bank_posts(latest)
        await client.bank_posts(-round(100 * float(page["items"][-1]["amount"])))
    assert len(set(seen)) == len(seen)
    assert [id_ for id_ in seen if id_ in everything] == everything


async def test_every_filter_filters(clients: tuple[Client, Client]) -> None:
    client, other = clients
    for amount in (10, -20, 30):
        await client.bank_posts(amount)
    await client.transfer(client.body(amount="0.15"))
    await client.read_model.catch_up()
    bank = ["0.30", "-0.20", "0.10", "1000.00"]
    assert await client.history("") == ["0.15", "-0.15", *bank]
    assert await client.history("platform=vyomo") == ["0.15"]
    assert await client.history(f"account_id={client.savings}") == ["-0.15", *bank]
    assert await client.history("type=transfer") == ["0.15", "-0.15"]
    assert await client.history("category=salary&direction=credit") == ["0.30", "0.10"]
    assert await client.history("min_amount=0.15&max_amount=0.20") == ["0.15", "-0.15", "-0.20"]
    assert await client.history("from=2026-02-12T09:20:00Z&to=2026-02-12T09:30:00Z") == ["-0.20"]
    assert await client.history("from=2026-02-12&to=2026-02-12") == bank
    assert await client.history("to=2026-02-11") == []
    assert await other.history("") == ["1000.00"]


async def test_without_a_token_nothing_is_told(client: Client) -> None:
    client._authorization = {}
    for path in ("/api/accounts", "/api/transactions", f"/api/accounts/{client.savings}", "/api/transfers"):
        assert (await client.get(path)).status_code == 401
    assert (await client.transfer(client.body())).status_code == 401
