"""Search as a client gets it, from events alone."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from chassis.consistency import HEADER, consistency_token
from events.envelope import derived_id, new_id
from search import fallback
from search_story import AT, BROKER, customer, linked, position, posted, search, trade, transfer

pytestmark = pytest.mark.integration


async def test_the_example(world: Any, client: httpx.AsyncClient) -> None:
    user = new_id()
    call = trade(at=AT + timedelta(days=1))  # newer, and still after the exact match
    await world.append(BROKER, position(), call)
    await world.append(f"user-{user}", linked())
    await world.deliver()
    found = await search(client, world, user, q="NIFTY", platforms="vyomo", types="trade,position")
    assert found.pop("took_ms") > 0
    assert found == {
        "query": "NIFTY",
        "parsed": {"text": "NIFTY", "filters": []},
        "position": world.position,
        "total": 2,
        "items": [
            {
                "type": "position",
                "id": "P1",
                "platform": "vyomo",
                "title": "NIFTY",
                "subtitle": "50 at ₹22,000, future",
                "amount": "1100000.00",
                "currency": "INR",
                "category": "future",
                "state": "open",
                "date": "2026-02-12T09:00:00Z",
                "score": 100,
                "match": "exact",
                "highlights": [{"field": "title", "value": "NIFTY", "start": 0, "end": 5}],
                "actions": [
                    {"label": "Show trades", "method": "GET", "href": "/api/search?q=NIFTY&types=trade"},
                    {"label": "View net worth", "method": "GET", "href": "/api/wealth/net-worth"},
                    {"label": "Close position", "method": "GET", "href": "vyomo://positions/P1/close"},
                ],
            },
            {
                "type": "trade",
                "id": call.trade_id,
                "platform": "vyomo",
                "title": "NIFTY CALL",
                "subtitle": "Bought 50 at ₹120.50, option",
                "amount": "6025.00",
                "currency": "INR",
                "category": "option",
                "state": "",
                "date": "2026-02-13T09:00:00Z",
                "score": 90,
                "match": "starts_with",
                "highlights": [{"field": "title", "value": "NIFTY CALL", "start": 0, "end": 5}],
                "actions": [{"label": "Show position", "method": "GET", "href": "/api/search?q=NIFTY&types=position"}],
            },
        ],
        "facets": {
            "type": {"position": 1, "trade": 1},
            "platform": {"vyomo": 2},
            "category": {"future": 1, "option": 1},
            "state": {"open": 1},
        },
        "next_cursor": None,
    }
    await world.live_equals_rebuild()


async def test_a_transfer_is_found_from_both_ends(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, wallet = await customer(world)
    moved = transfer(savings, wallet, memo="Margin for Friday")
    event_id = await world.append(f"ledger-{user}", moved)
    await world.deliver()
    found = await search(client, world, user, q="margin for friday")
    assert {(i["platform"], i["title"], i["id"]) for i in found["items"]} == {
        ("bfc", "Transfer to Vyomo trading wallet A-1", str(derived_id(event_id, "leg", 0))),
        ("vyomo", "Transfer from BFC savings account A-1", str(derived_id(event_id, "leg", 1))),
    }
    assert {i["score"] for i in found["items"]} == {100}
    assert found["items"][0]["actions"][0]["href"] == f"/api/transfers/{moved.transfer_id}"
    only = await search(client, world, user, q="transfer", platforms="vyomo")
    assert [item["amount"] for item in only["items"]] == ["50000.00"]
    await world.live_equals_rebuild()


async def test_a_misspelling_is_found_and_a_wrong_digit_is_not(world: Any, client: httpx.AsyncClient) -> None:
    user, _, _ = await customer(
        world,
        lambda account: posted(account, 85_000_00, "Reliance Fresh", "order 778812"),
        lambda account: posted(account, 10, "लक्ष्मी स्टोर", None, "groceries"),
    )
    found = await search(client, world, user, q="relaince frsh")
    assert [(i["title"], i["match"]) for i in found["items"]] == [("Reliance Fresh", "fuzzy")]
    assert [h["value"][h["start"] : h["end"]] for h in found["items"][0]["highlights"]] == ["Reliance", "Fresh"]
    for query, total in (("778812", 1), ("778813", 0), ("85000", 1), ("85,000", 1), ("लक्ष्मी", 1), ("zzz", 0)):
        assert (await search(client, world, user, q=query))["total"] == total, query


async def test_the_cash_of_a_trade_is_found_as_the_trade(world: Any, client: httpx.AsyncClient) -> None:
    user, _, _ = await customer(world, lambda account: posted(account, -5, "NIFTY CALL", type_="trade"))
    assert (await search(client, world, user, q="nifty"))["total"] == 0


async def test_a_position_is_as_last_stated(world: Any, client: httpx.AsyncClient) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked())
    await world.append(BROKER, position(50), position(0, AT + timedelta(hours=1)))
    await world.deliver()
    await world.append(BROKER, position(75, AT + timedelta(minutes=1)))  # late
    await world.deliver()
    found = await search(client, world, user, q="nifty", types="position")
    assert [item["subtitle"] for item in found["items"]] == ["Closed future"]
    await world.live_equals_rebuild()


async def test_filters(world: Any, client: httpx.AsyncClient) -> None:
    user, _, _ = await customer(
        world,
        lambda account: posted(account, 100_00, memo="a", at=datetime(2026, 2, 11, 18, 29, tzinfo=UTC)),
        lambda account: posted(account, -200_00, memo="b", at=datetime(2026, 2, 11, 18, 30, tzinfo=UTC)),
        lambda account: posted(account, 300_00, memo="c", at=datetime(2026, 2, 12, 18, 30, tzinfo=UTC)),
        lambda account: posted(account, 400_00, memo="d", category="rent"),
    )
    for filters, amounts in (
        ({}, {"100.00", "200.00", "300.00", "400.00"}),
        ({"from": "2026-02-12", "to": "2026-02-12"}, {"200.00", "400.00"}),  # a day in India
        ({"from": "2026-02-11T18:30:00Z", "to": "2026-02-11T18:30:00Z"}, {"200.00"}),
        ({"from": "2026-02-13"}, {"300.00"}),
        ({"min_amount": "200.00", "max_amount": "300"}, {"200.00", "300.00"}),
        ({"category": "rent"}, {"400.00"}),
        ({"types": "trade,position"}, set()),
        ({"platforms": "vyomo"}, set()),
    ):
        found = await search(client, world, user, q="acme", **filters)
        assert {item["amount"] for item in found["items"]} == amounts, filters
        assert found["total"] == len(amounts)


async def test_pages_do_not_shift(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, _ = await customer(world, *[lambda a, n=n: posted(a, n) for n in range(1, 12)])
    every = [item["id"] for item in (await search(client, world, user, q="acme"))["items"]]
    assert len(every) == 11
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await search(client, world, user, q="acme", limit=4, **cursor)
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
        await world.append(f"ledger-{user}", posted(savings, 1, at=AT + timedelta(days=1)))
        await world.deliver()
    assert seen == every
    # A cursor is good for its query, its filters and its customer.
    for who, query in ((user, "q=other"), (user, "q=acme&types=transaction"), (new_id(), "q=acme")):
        response = await client.get(f"/api/search?{query}&limit=4&{urlencode(cursor)}", headers=world.bearer(who))
        assert (response.status_code, response.json()["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("client", ["postgresql"], indirect=True)
async def test_a_query_too_wide_says_so(world: Any, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    user, _, _ = await customer(world, *[lambda a, n=n: posted(a, n) for n in range(1, 5)])
    monkeypatch.setattr(fallback, "CANDIDATES_MAX", 3)
    found = await search(client, world, user, q="acme")
    assert (found["total"], found["truncated"]) == (3, True)


async def test_nobody_finds_what_is_another_customers(world: Any, client: httpx.AsyncClient) -> None:
    owner, _, _ = await customer(world, lambda account: posted(account, 5, "Secretary Services"))
    other, _, _ = await customer(world, lambda account: posted(account, 5, "Acme Ltd"))
    assert (await search(client, world, owner, q="secretary"))["total"] == 1
    for query in ("secretary", "secretray", "s", "Services"):
        found = await search(client, world, other, q=query)
        assert not any("Secretary" in item["title"] for item in found["items"])
        assert found["total"] == len(found["items"]) == sum(found["facets"]["type"].values())
    # Not in what it spends either: another's words are not even looked at.
    assert (await search(client, world, other, q="secretray"))["total"] == 0


async def test_any_query_is_answered_as_if_nobody_else_were_there(world: Any, client: httpx.AsyncClient) -> None:
    """Results, totals, facets and suggestions, whatever is asked."""
    dice = random.Random(7)
    secrets = ["".join(dice.choices("aeiklmnrstलक्ष 0123", k=dice.randrange(3, 12))).strip() or "x" for _ in range(40)]
    owner, _, _ = await customer(
        world, *[lambda a, s=s, n=n: posted(a, 500_00 + n, s, s) for n, s in enumerate(secrets)]
    )
    other, _, _ = await customer(world, lambda account: posted(account, 1_23, "Zzyzx", "mine"))
    mine = {item["id"] for item in (await search(client, world, other, q="platform:bfc,vyomo"))["items"]}
    assert len(mine) == 3
    texts = {
        *secrets,
        *(s[: dice.randrange(1, len(s) + 1)] for s in secrets),
        "500",
        "₹500.07",
        "amount>400",
        owner.hex,
    }
    hits = 0
    for text in sorted(filter(str.strip, texts)):
        found = await search(client, world, other, q=text, limit=200)
        assert {item["id"] for item in found["items"]} <= mine, text
        assert found["total"] == len(found["items"]), text
        for name in ("type", "category"):
            assert sum(found["facets"][name].values()) == found["total"], text
        query = urlencode({"q": text})
        answer = await client.get(f"/api/search/suggestions?{query}", headers=world.bearer(other))
        assert not {item["text"] for item in answer.json()["items"] if item["kind"] == "title"} & set(secrets), text
        hits += (await search(client, world, owner, q=text))["total"]
    assert hits > len(secrets)  # which there were to be found


async def test_bad_input(world: Any, client: httpx.AsyncClient) -> None:
    for query, code, field in (
        ("", "invalid_request", "q"),
        ("q=", "invalid_request", "q"),
        ("q=%20%20", "invalid_query", "q"),
        (f"q={'x' * 201}", "invalid_request", "q"),
        ("q=x&types=trades", "invalid_type", "types"),
        ("q=x&types=", "invalid_type", "types"),
        ("q=x&platforms=nse", "invalid_platform", "platforms"),
        ("q=x&from=2026-02-30", "invalid_date", "from"),
        ("q=x&from=0001-01-01", "invalid_date", "from"),
        ("q=x&to=9999-12-31T23:59:59.999999Z", "invalid_date", "to"),
        ("q=x&to=2026-02-12T09:00:00", "invalid_date", "to"),
        ("q=x&to=yesterday!", "invalid_date", "to"),
        ("q=x&from=2026-02-12&to=2026-02-11", "invalid_range", "to"),
        ("q=x&min_amount=-1", "invalid_amount", "min_amount"),
        ("q=x&max_amount=1e3", "invalid_amount", "max_amount"),
        ("q=x&min_amount=2&max_amount=1", "invalid_range", "max_amount"),
        ("q=x&category=", "invalid_category", "category"),
        ("q=x&limit=0", "invalid_request", "limit"),
        ("q=x&cursor=abc", "invalid_cursor", "cursor"),
    ):
        response = await client.get(f"/api/search?{query}", headers=world.bearer(new_id()))
        assert response.status_code == 400, query
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert (problem["code"], problem["errors"][0]["field"]) == (code, field), query


async def test_odd_queries_find_nothing_and_break_nothing(world: Any, client: httpx.AsyncClient) -> None:
    user, _, _ = await customer(world, lambda account: posted(account, 5, "Zulu"))
    for query in ("' OR 7=7 --", "%", "_", "$9", "\\", "a" * 200, " ".join(["abcd"] * 40), "\u200b", "%q"):
        found = await search(client, world, user, q=query)
        assert (found["query"], found["total"]) == (query, 0)
    assert (await search(client, world, user, q="₹"))["total"] == 0  # a query without a word


async def test_a_read_contains_the_write_it_names(world: Any, client: httpx.AsyncClient) -> None:
    user, savings, _ = await customer(world)
    event_id = await world.append(f"ledger-{user}", posted(savings, 5))
    headers = world.bearer(user) | {HEADER: consistency_token(event_id)}
    await world.sequence()
    early = await client.get("/api/search?q=acme", headers=headers)
    assert (early.status_code, early.json()["code"]) == (503, "not_caught_up")
    await world.deliver()
    found = await client.get("/api/search?q=acme", headers=headers)
    assert found.json()["total"] == 1


async def test_needs_a_token(client: httpx.AsyncClient) -> None:
    response = await client.get("/api/search?q=x")
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_suggestions_come_from_the_callers_own(world: Any, client: httpx.AsyncClient) -> None:
    user, _, _ = await customer(
        world, lambda a: posted(a, 1, "Reliance Fresh"), lambda a: posted(a, 2, "Reliance Fresh")
    )
    other, _, _ = await customer(world, lambda a: posted(a, 1, "Reliable Secrets"))
    for of, text, expected in (
        (user, "rel", ["Reliance Fresh"]),
        (user, "fre", ["Reliance Fresh"]),
        (other, "rel", ["Reliable Secrets"]),
        (new_id(), "rel", []),
    ):
        answer = await client.get(f"/api/search/suggestions?q={text}", headers=world.bearer(of))
        assert [item["text"] for item in answer.json()["items"]] == expected
