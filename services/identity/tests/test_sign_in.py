"""Registration, login, refresh and status over HTTP and a real event store."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import jwt
import pytest
from chassis.consistency import event_of
from events.store import EventStore
from identity import keys
from identity.keyring import KeyRing
from identity.sealing import IdentityKey, SealBroken
from identity.tokens import RefreshTokens

if TYPE_CHECKING:
    from identity_harness import Client, Person
    from provision import Cell

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery staple"
Registration = Callable[..., dict[str, Any]]
SignUp = Callable[["Client"], Awaitable["Person"]]


def credentials(email: str, **changes: Any) -> dict[str, Any]:
    return {"email": email, "password": PASSWORD, "platform": "bfc"} | changes


async def types_of(store: EventStore, stream: str) -> list[str]:
    return [event.type for event in await store.read_stream(stream)]


async def test_the_way_in(client: "Client", store: EventStore, registration: Registration) -> None:
    body = registration()
    registered = await client.post("/api/auth/register", json=body)
    assert registered.status_code == 201
    user_id = UUID(registered.json()["user_id"])
    found = await store.find(event_of(registered.headers["X-Consistency-Token"]))
    assert found is not None
    assert found.event.type == "identity.user.registered"
    assert found.event.subject == user_id
    assert found.event.metadata.actor == f"user:{user_id}"
    assert found.event.metadata.correlation_id == registered.headers["X-Request-Id"]

    login = await client.post("/api/auth/login", json=credentials(body["email"].upper(), platform="vyomo"))
    assert login.status_code == 200
    answer = login.json()
    assert answer.keys() == {
        "access_token", "refresh_token", "token_type", "expires_in", "session_id", "platforms"
    }  # fmt: skip
    assert (answer["token_type"], answer["expires_in"], answer["platforms"]) == (
        "Bearer",
        300,
        ["bfc", "vyomo"],
    )
    assert login.headers["Cache-Control"] == "no-store"
    assert await types_of(store, f"session-{answer['session_id']}") == ["identity.session.started"]
    claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["aud"], claims["sid"], claims["acr"]) == (
        str(user_id), "vyomo", answer["session_id"], 1
    )  # fmt: skip

    status = await client.get("/api/auth/status", headers={"Authorization": f"Bearer {answer['access_token']}"})
    assert status.status_code == 200
    assert status.json() == {
        "user_id": str(user_id),
        "session_id": answer["session_id"],
        "platform": "vyomo",
        "acr": 1,
        "mfa": False,
        "email_verified": False,
        "expires_at": status.json()["expires_at"],
        "platforms": {
            "bfc": {"signed_in": True, "active_at": None, "linked": False, "platform_customer_ids": []},
            "vyomo": {
                "signed_in": True,
                "active_at": status.json()["platforms"]["vyomo"]["active_at"],
                "linked": False,
                "platform_customer_ids": [],
            },
        },
    }


async def test_jwks_verifies_the_tokens(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    published = await client.get("/.well-known/jwks.json")
    assert published.status_code == 200
    keyset = jwt.PyJWKSet.from_dict(published.json())
    token = person.login["access_token"]
    key = keyset[jwt.get_unverified_header(token)["kid"]]
    assert jwt.decode(token, key, algorithms=["ES256"], audience="bfc")["sub"] == str(person.user_id)


async def test_of_20_parallel_registrations_one_wins(replicas: list["Client"], registration: Registration) -> None:
    email = f"asha.{uuid4().hex}@example.in"
    spellings = [email, email.upper(), email.title()]
    bodies = [
        registration(email=spellings[n % 3], password=f"{PASSWORD} {n}", full_name=f"Asha {n}") for n in range(20)
    ]
    answers = await asyncio.gather(
        *(replicas[n % 2].post("/api/auth/register", json=body) for n, body in enumerate(bodies))
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 19}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"email_taken"}
    winner = [answer.status_code for answer in answers].index(201)
    # As many of the others as the lockout lets one try.
    for n in [*[each for each in range(20) if each != winner][:5], winner]:
        login = await replicas[n % 2].post("/api/auth/login", json=credentials(email, password=bodies[n]["password"]))
        assert login.status_code == (200 if n == winner else 401)
    assert (
        jwt.decode(login.json()["access_token"], options={"verify_signature": False})["sub"]
        == (answers[winner].json()["user_id"])
    )


async def test_wrong_password_unknown_user_and_no_address_look_alike(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    answers = [
        await client.post("/api/auth/login", json=credentials(person.email, password=f"{PASSWORD}!")),
        await client.post("/api/auth/login", json=credentials("nobody@example.in")),
        await client.post("/api/auth/login", json=credentials("no address")),
    ]
    bodies = [
        {name: value for name, value in answer.json().items() if name not in ("instance", "request_id")}
        for answer in answers
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["code"] == "invalid_credentials"


async def test_20_parallel_refreshes_give_one_successor(
    replicas: list["Client"], sign_up: SignUp, store: EventStore
) -> None:
    person = await sign_up(replicas[0])
    old = person.login["refresh_token"]
    answers = await asyncio.gather(
        *(replicas[n % 2].post("/api/auth/refresh", json={"refresh_token": old}) for n in range(20))
    )
    assert Counter(answer.status_code for answer in answers) == {200: 20}
    (successor,) = {answer.json()["refresh_token"] for answer in answers}
    assert successor != old
    stream = f"session-{person.login['session_id']}"
    assert await types_of(store, stream) == ["identity.session.started", "identity.session.refreshed"]
    assert sum("X-Consistency-Token" in answer.headers for answer in answers) == 1
    after = await replicas[1].post("/api/auth/refresh", json={"refresh_token": successor})
    assert after.status_code == 200
    assert jwt.decode(after.json()["access_token"], options={"verify_signature": False})["aud"] == "bfc"


async def test_reuse_ends_the_session_on_every_replica(
    replicas: list["Client"], sign_up: SignUp, store: EventStore
) -> None:
    person = await sign_up(replicas[0])
    tokens = [person.login["refresh_token"]]
    for n in range(2):
        rotated = await replicas[n].post("/api/auth/refresh", json={"refresh_token": tokens[-1]})
        tokens.append(rotated.json()["refresh_token"])
    reused = await replicas[0].post("/api/auth/refresh", json={"refresh_token": tokens[0]})
    assert (reused.status_code, reused.json()["code"]) == (401, "invalid_refresh_token")
    for replica in replicas:
        for token in tokens:
            refused = await replica.post("/api/auth/refresh", json={"refresh_token": token})
            assert (refused.status_code, refused.json()["code"]) == (401, "invalid_refresh_token")
    assert (await types_of(store, f"session-{person.login['session_id']}"))[-2:] == [
        "identity.session.reuse_detected",
        "identity.session.revoked",
    ]
    status = await person.get("/api/auth/status")
    assert (status.status_code, status.json()["code"]) == (401, "session_ended")


async def test_a_forged_refresh_token(client: "Client", own_key: IdentityKey) -> None:
    forged = RefreshTokens(IdentityKey(bytes(32))).issue(uuid4(), 0)
    of_no_session = RefreshTokens(own_key).issue(uuid4(), 0)
    for token in ("x", "A" * 70, "é" * 70, forged, of_no_session):
        refused = await client.post("/api/auth/refresh", json={"refresh_token": token})
        assert (refused.status_code, refused.json()["code"]) == (401, "invalid_refresh_token"), token


async def test_replicas_that_start_at_once_share_one_key(cell: "Cell") -> None:
    identity_key = IdentityKey(bytes(range(32)))
    stores = [await EventStore.connect(cell.store_url("identity")) for _ in range(8)]
    rings = [KeyRing(store, identity_key) for store in stores]
    await asyncio.gather(*(ring.load() for ring in rings))
    assert len({ring.current().kid for ring in rings}) == 1
    assert await types_of(stores[0], f"signing_key-{keys.stream_id(1)}") == ["identity.signing_key.published"]
    with pytest.raises(SealBroken):
        await KeyRing(stores[0], IdentityKey(bytes(32))).load()
    for store in stores:
        await store.close()


BAD_REGISTRATIONS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"email": "secret-no-address"}, "invalid_request", ["email"]),
    ({"phone": "secret-phone"}, "invalid_request", ["phone"]),
    ({"full_name": "secret\nname"}, "invalid_request", ["full_name"]),
    ({"password": "secret-shor"}, "weak_password", ["password"]),
    ({"password": "qwertyuiop123"}, "weak_password", ["password"]),
    (
        {"email": "secret", "phone": "secret", "full_name": " ", "password": "secret"},
        "invalid_request",
        ["email", "full_name", "phone", "password"],
    ),
    ({"email": 7}, "invalid_request", ["email"]),
    ({"user_id": str(uuid4())}, "invalid_request", ["user_id"]),
    ({"email": "x" * 2000}, "invalid_request", ["email"]),
]


async def test_bad_registration(client: "Client", cell: "Cell", registration: Registration) -> None:
    for changes, code, fields in BAD_REGISTRATIONS:
        answer = await client.post("/api/auth/register", json=registration(**changes))
        assert (answer.status_code, answer.json()["code"]) == (400, code), changes
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert [error["field"] for error in answer.json()["errors"]] == fields
        assert "secret" not in answer.text
    assert await count_events(cell, "NOT starts_with(type, 'identity.signing_key')") == 0


BAD_INPUT: list[tuple[str, Any]] = [
    ("login", {"email": "a@b.in", "password": PASSWORD, "platform": "sangam"}),
    ("login", {"email": "a@b.in", "password": PASSWORD}),
    ("login", {"email": "a@b.in", "password": "x" * 2000, "platform": "bfc"}),
    ("login", []),
    ("refresh", {}),
    ("refresh", {"refresh_token": None}),
]


async def test_bad_input(client: "Client") -> None:
    for path, body in BAD_INPUT:
        answer = await client.post(f"/api/auth/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), body
    anonymous = await client.get("/api/auth/status")
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "unauthenticated")


async def test_nothing_personal_is_stored_or_logged_in_clear(
    client: "Client", cell: "Cell", capsys: pytest.CaptureFixture[str], sign_up: SignUp, registration: Registration
) -> None:
    person = await sign_up(client)
    await client.post("/api/auth/register", json=registration(email=person.email))
    await client.post("/api/auth/login", json=credentials(person.email, password=f"{PASSWORD}!"))
    await client.post("/api/auth/refresh", json={"refresh_token": person.login["refresh_token"]})
    private = [
        person.email.split("@")[0], "Asha", "9812345678", PASSWORD,
        person.login["refresh_token"], person.login["access_token"], "argon2id",
    ]  # fmt: skip
    for text in private:
        assert await count_events(cell, "convert_from(data, 'UTF8') LIKE '%' || $1 || '%'", text) == 0
        assert await count_events(cell, "metadata::text LIKE '%' || $1 || '%'", text) == 0
    written = capsys.readouterr()
    logged = written.out + written.err
    assert "/api/auth/login" in logged
    assert [text for text in private if text in logged] == []


async def count_events(cell: "Cell", where: str, *values: str) -> int:
    connection = await asyncpg.connect(cell.admin_url())
    try:
        count: int = await connection.fetchval(f"SELECT count(*) FROM store.events WHERE {where}", *values)
        return count
    finally:
        await connection.close()
