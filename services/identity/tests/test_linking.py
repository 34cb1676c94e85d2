"""Linking over HTTP, with a platform that serves its keys and signs assertions."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from aiohttp import web
from chassis.consistency import event_of
from events.contracts.identity import LinkConfirmed
from events.envelope import platform_stream
from events.store import EventStore

if TYPE_CHECKING:
    from identity_harness import Client, Person, Platform

pytestmark = pytest.mark.integration

SignUp = Callable[["Client"], Awaitable["Person"]]
CUSTOMER = "BFC-1001"


async def requested(person: "Person", customer_id: str = CUSTOMER) -> dict[str, Any]:
    answer = await person.post("/api/auth/link-bfc", {"bfc_customer_id": customer_id})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    assert body.keys() == {"link_id", "nonce", "expires_at"}
    return body


async def confirm(
    person: "Person", link: dict[str, Any], assertion: str, client: "Client | None" = None
) -> tuple[int, str]:
    answer = await person.post(
        "/api/auth/link-bfc/confirm", {"link_id": link["link_id"], "assertion": assertion}, client
    )
    body = answer.json()
    return answer.status_code, body["status"] if answer.status_code == 200 else body["code"]


async def test_link(client: "Client", bfc: "Platform", sign_up: SignUp, store: EventStore) -> None:
    person = await sign_up(client)
    link = await requested(person)
    answer = await person.post(
        "/api/auth/link-bfc/confirm",
        {"link_id": link["link_id"], "assertion": bfc.assertion(CUSTOMER, link["nonce"])},
    )
    assert answer.status_code == 200
    assert answer.json() == {
        "link_id": link["link_id"], "platform": "bfc", "platform_customer_id": CUSTOMER, "status": "linked"
    }  # fmt: skip
    found = await store.find(event_of(answer.headers["X-Consistency-Token"]))
    assert found is not None
    assert found.event.subject == person.user_id
    assert found.event.payload == LinkConfirmed(
        link_id=UUID(link["link_id"]),
        platform="bfc",
        platform_customer_id=CUSTOMER,
        platform_stream=platform_stream("bfc", CUSTOMER),
    )
    status = (await person.get("/api/auth/status")).json()
    assert status["platforms"]["bfc"].pop("active_at") is not None
    assert status["platforms"]["bfc"] == {
        "signed_in": True, "linked": True, "platform_customer_ids": [CUSTOMER]
    }  # fmt: skip
    assert status["platforms"]["vyomo"]["linked"] is False


async def test_link_vyomo(client: "Client", vyomo: "Platform", sign_up: SignUp) -> None:
    person = await sign_up(client)
    link = (await person.post("/api/auth/link-vyomo", {"vyomo_client_id": "VY-7"})).json()
    body = {"link_id": link["link_id"], "assertion": vyomo.assertion("VY-7", link["nonce"])}
    wrong_door = await person.post("/api/auth/link-bfc/confirm", body)
    assert (wrong_door.status_code, wrong_door.json()["code"]) == (404, "link_not_found")
    answer = await person.post("/api/auth/link-vyomo/confirm", body)
    assert (answer.status_code, answer.json()["platform"]) == (200, "vyomo")


async def test_linking_again_changes_nothing(
    client: "Client", bfc: "Platform", sign_up: SignUp, store: EventStore
) -> None:
    person = await sign_up(client)
    link = await requested(person)
    assertion = bfc.assertion(CUSTOMER, link["nonce"])
    assert await confirm(person, link, assertion) == (200, "linked")
    assert await confirm(person, link, assertion) == (200, "linked")
    another = await requested(person)
    assert await confirm(person, another, bfc.assertion(CUSTOMER, another["nonce"])) == (200, "linked")
    types = Counter(event.type for event in await store.read_stream(f"user-{person.user_id}"))
    assert types["identity.user.link_confirmed"] == 1


async def test_a_customer_of_another_user(replicas: list["Client"], bfc: "Platform", sign_up: SignUp) -> None:
    owner, other = await sign_up(replicas[0]), await sign_up(replicas[1])
    link = await requested(owner)
    assert await confirm(owner, link, bfc.assertion(CUSTOMER, link["nonce"])) == (200, "linked")
    taken = await requested(other)
    assert await confirm(other, taken, bfc.assertion(CUSTOMER, taken["nonce"])) == (409, "already_linked")
    assert await confirm(other, link, bfc.assertion(CUSTOMER, link["nonce"])) == (404, "link_not_found")


async def test_of_parallel_claims_to_one_customer_one_user_wins(
    replicas: list["Client"], bfc: "Platform", sign_up: SignUp, store: EventStore
) -> None:
    people = [await sign_up(replicas[n % 2]) for n in range(5)]
    for customer in ("BFC-1", "BFC-2", "BFC-3", "BFC-4"):
        links = [await requested(person, customer) for person in people]
        answers = await asyncio.gather(
            *(
                confirm(person, link, bfc.assertion(customer, link["nonce"]), replicas[n % 2])
                for n in range(4)
                for person, link in zip(people, links, strict=True)
            )
        )
        assert Counter(answers) == {(200, "linked"): 4, (409, "already_linked"): 16}
        claims = await store.read_stream(platform_stream("bfc", customer).replace("bank_customer", "platform_link"))
        assert [event.type for event in claims] == ["identity.platform_link.taken"]
    streams = [await store.read_stream(f"user-{person.user_id}") for person in people]
    assert sum(event.type == "identity.user.link_confirmed" for events in streams for event in events) == 4


async def test_a_refused_assertion_does_not_use_up_the_link(client: "Client", bfc: "Platform", sign_up: SignUp) -> None:
    person = await sign_up(client)
    link = await requested(person)
    refused = {
        "another customer's": bfc.assertion("BFC-1002", link["nonce"]),
        "for another request": bfc.assertion(CUSTOMER, (await requested(person))["nonce"]),
        "an access token of ours": person.login["access_token"],
    }
    for name, assertion in refused.items():
        assert await confirm(person, link, assertion) == (422, "assertion_invalid"), name
    assert await confirm(person, link, bfc.assertion(CUSTOMER, link["nonce"])) == (200, "linked")


async def test_a_platform_that_is_down(client: "Client", bfc: "Platform", sign_up: SignUp) -> None:
    person = await sign_up(client)
    link = await requested(person)
    bfc.answer = lambda: web.Response(status=500)
    body = {"link_id": link["link_id"], "assertion": bfc.assertion(CUSTOMER, link["nonce"])}
    refused = await person.post("/api/auth/link-bfc/confirm", body)
    assert (refused.status_code, refused.json()["code"]) == (503, "platform_unavailable")
    assert int(refused.headers["Retry-After"]) > 0


BAD_INPUT: list[tuple[str, dict[str, Any], int, str]] = [
    ("/api/auth/link-bfc", {"bfc_customer_id": ""}, 400, "invalid_request"),
    ("/api/auth/link-bfc", {"bfc_customer_id": "a b"}, 400, "invalid_request"),
    ("/api/auth/link-bfc", {"bfc_customer_id": "x" * 65}, 400, "invalid_request"),
    ("/api/auth/link-bfc", {"bfc_customer_id": "BFC-1\n"}, 400, "invalid_request"),
    ("/api/auth/link-bfc", {"vyomo_client_id": "V"}, 400, "invalid_request"),
    ("/api/auth/link-bfc/confirm", {"link_id": "x", "assertion": "x"}, 400, "invalid_request"),
    (
        "/api/auth/link-bfc/confirm",
        {"link_id": str(uuid4()), "assertion": "x" * 5000},
        400,
        "invalid_request",
    ),
    ("/api/auth/link-bfc/confirm", {"link_id": str(uuid4()), "assertion": "x"}, 404, "link_not_found"),
    ("/api/auth/link-vyomo/confirm", {"link_id": str(uuid4()), "assertion": "x"}, 404, "link_not_found"),
]


async def test_bad_input(client: "Client", sign_up: SignUp, store: EventStore) -> None:
    person = await sign_up(client)
    before = len(await store.read_stream(f"user-{person.user_id}"))
    for path, body, status, code in BAD_INPUT:
        answer = await person.post(path, body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), body
    assert len(await store.read_stream(f"user-{person.user_id}")) == before


async def test_links_need_a_caller(client: "Client") -> None:
    for path in ("link-bfc", "link-bfc/confirm", "link-vyomo", "link-vyomo/confirm"):
        answer = await client.post(f"/api/auth/{path}", json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
