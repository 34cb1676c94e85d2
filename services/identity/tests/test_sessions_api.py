"""Logout, sessions, devices, sync, exchange: over HTTP and a real store."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import jwt
import pytest
from events.contracts.identity import SessionRefreshed, SessionRevoked
from events.store import EventStore

if TYPE_CHECKING:
    from identity_harness import Client, Person

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery staple"
EXCHANGE = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
}
SignUp = Callable[["Client"], Awaitable["Person"]]


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


async def another_login(
    person: "Person", client: "Client | None" = None, headers: dict[str, str] | None = None
) -> "Person":
    body = {"email": person.email, "password": PASSWORD, "platform": "vyomo"}
    login = await (client or person.client).post("/api/auth/login", json=body, headers=headers)
    assert login.status_code == 200, login.text
    return type(person)(client or person.client, person.email, person.user_id, login.json())


async def test_logout_ends_this_session_on_both_platforms_and_no_other(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    other = await another_login(person)
    answer = await person.post("/api/auth/logout", {})
    assert (answer.status_code, answer.json()["revoked"]) == (200, 1)
    refused = await person.get("/api/auth/status")
    assert (refused.status_code, refused.json()["code"]) == (401, "session_ended")
    gone = await client.post("/api/auth/refresh", json={"refresh_token": person.login["refresh_token"]})
    assert (gone.status_code, gone.json()["code"]) == (401, "invalid_refresh_token")
    assert (await other.get("/api/auth/status")).status_code == 200


async def test_logout_all_ends_what_began_a_moment_ago_on_another_replica(
    replicas: list["Client"], sign_up: SignUp, store: EventStore
) -> None:
    person = await sign_up(replicas[0])
    logins = [another_login(person, replicas[n % 2]) for n in range(6)]
    others = await asyncio.gather(*logins)
    racing = asyncio.create_task(another_login(person, replicas[1]))
    answer = await person.post("/api/auth/logout-all", {})
    late = await racing
    assert answer.status_code == 200
    ended = answer.json()["revoked"]
    assert ended in (7, 8)
    for each in [person, *others]:
        events = await store.read_stream(f"session-{each.login['session_id']}")
        assert [type(event.payload) for event in events][-1] is SessionRevoked
    # The one that raced is either among the ended, or began afterwards and lives.
    events = await store.read_stream(f"session-{late.login['session_id']}")
    assert (len(events) == 2) == (ended == 8)


async def test_sessions_are_listed_with_their_devices_and_end_one_by_one(
    client: "Client", sign_up: SignUp, store: EventStore
) -> None:
    person = await sign_up(client)
    other = await another_login(person, headers={"User-Agent": "Phone/7", "X-Real-IP": "203.0.113.9"})
    stranger = await sign_up(client)
    listed = (await person.get("/api/auth/sessions")).json()["items"]
    assert [item["session_id"] for item in listed] == [other.login["session_id"], person.login["session_id"]]
    assert [item["current"] for item in listed] == [False, True]
    assert (listed[0]["user_agent"], listed[0]["address"]) == ("Phone/7", "203.0.113.9")
    opened = [event.payload for event in await store.read_stream(f"sign_in-{person.user_id}")]
    assert [event.new_device for event in opened] == [False, True]  # type: ignore[attr-defined]
    assert all("Phone" not in event.data.decode() for event in await store.read_stream(f"sign_in-{person.user_id}"))
    path = f"/api/auth/sessions/{other.login['session_id']}"
    assert (await stranger.delete(path)).status_code == 404
    assert (await other.get("/api/auth/status")).status_code == 200
    assert (await person.delete(path)).json()["revoked"] == 1
    assert (await other.get("/api/auth/status")).status_code == 401
    assert (await person.delete(path)).status_code == 404
    assert len((await person.get("/api/auth/sessions")).json()["items"]) == 1


async def test_too_many_sessions_end_the_oldest(
    client: "Client", sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.sign_ins.OPEN_MAX", 2)
    person = await sign_up(client)
    second = await another_login(person)
    third = await another_login(person)
    assert (await person.get("/api/auth/status")).status_code == 401
    assert [(await each.get("/api/auth/status")).status_code for each in (second, third)] == [200, 200]


async def test_sync_session_brings_both_platforms_to_one_state(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    before = (await person.get("/api/auth/status")).json()
    assert before["platforms"]["vyomo"]["active_at"] is None
    synced = await person.post("/api/auth/sync-session", {})
    assert synced.status_code == 200
    platforms = synced.json()["platforms"]
    assert platforms["bfc"]["active_at"] == platforms["vyomo"]["active_at"] > before["platforms"]["bfc"]["active_at"]
    assert synced.json()["expires_at"] == before["expires_at"], "children never outlive the root"
    assert synced.json()["acr"] == before["acr"]


async def test_exchange_narrows_and_records(client: "Client", sign_up: SignUp, store: EventStore) -> None:
    person = await sign_up(client)
    token = person.login["access_token"]
    await asyncio.sleep(1.1)  # times are in whole seconds: a token of its own time would now end later
    answer = await person.post(
        "/api/auth/exchange-token",
        {**EXCHANGE, "subject_token": token, "audience": "vyomo", "scope": "wealth:read accounts:read"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"access_token", "issued_token_type", "token_type", "expires_in", "scope"}
    subject, claims = claims_of(token), claims_of(answer.json()["access_token"])
    assert (claims["aud"], claims["sid"], claims["sub"]) == ("vyomo", subject["sid"], subject["sub"])
    assert claims["scope"] == "wealth:read accounts:read"
    assert claims["act"] == {"sub": "bfc"}
    assert claims["acr"] <= subject["acr"]
    assert claims["exp"] <= subject["exp"], "going back and forth gains no time"
    events = [event.payload for event in await store.read_stream(f"session-{person.login['session_id']}")]
    assert [type(event).__name__ for event in events] == ["SessionStarted", "PlatformJoined", "TokenExchanged"]
    exchanged = type(person)(client, person.email, person.user_id, answer.json())
    assert (await exchanged.get("/api/auth/status")).json()["platform"] == "vyomo"
    back = {**EXCHANGE, "subject_token": answer.json()["access_token"], "audience": "bfc"}
    widened = await exchanged.post("/api/auth/exchange-token", {**back, "scope": "transfers:write"})
    assert (widened.status_code, widened.json()["error"]) == (400, "invalid_scope")
    again = await exchanged.post("/api/auth/exchange-token", back)
    assert again.json()["scope"] == "wealth:read accounts:read"
    assert claims_of(again.json()["access_token"])["act"] == {"sub": "vyomo", "act": {"sub": "bfc"}}


async def test_exchange_refusals(client: "Client", sign_up: SignUp) -> None:
    person, stranger = await sign_up(client), await sign_up(client)
    token = person.login["access_token"]
    good = {**EXCHANGE, "subject_token": token, "audience": "vyomo"}
    cases = [
        ({**good, "scope": "transfers:reverse"}, "invalid_scope"),
        ({**good, "scope": ""}, "invalid_scope"),
        ({**good, "audience": "bfc"}, "invalid_target"),
        ({**good, "audience": "sangam-ops"}, "invalid_target"),
        ({**good, "grant_type": "password"}, "unsupported_grant_type"),
        ({**good, "subject_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
        ({**good, "subject_token": stranger.login["access_token"]}, "invalid_request"),
        ({**good, "subject_token": person.login["refresh_token"]}, "invalid_request"),
        ({name: value for name, value in good.items() if name != "subject_token"}, "invalid_request"),
    ]
    for body, error in cases:
        answer = await person.post("/api/auth/exchange-token", body)
        assert (answer.status_code, answer.json()["code"]) == (400, error), body
    anonymous = await client.post("/api/auth/exchange-token", json=good)
    assert anonymous.status_code == 401
    assert (await person.post("/api/auth/logout", {})).status_code == 200
    revoked = await person.post("/api/auth/exchange-token", good)
    assert (revoked.status_code, revoked.json()["code"]) == (401, "session_ended")


async def test_refresh_racing_revoke_never_leaves_a_live_family(
    replicas: list["Client"], sign_up: SignUp, store: EventStore
) -> None:
    """Over HTTP on two replicas; `test_races.py` has the 1,000 rounds on the store."""
    for _ in range(10):
        person = await sign_up(replicas[0])
        token = {"refresh_token": person.login["refresh_token"]}
        refreshed, revoked = await asyncio.gather(
            replicas[1].post("/api/auth/refresh", json=token), person.post("/api/auth/logout", {})
        )
        assert revoked.json()["revoked"] == 1
        assert refreshed.status_code in (200, 401)
        events = [event.payload for event in await store.read_stream(f"session-{person.login['session_id']}")]
        assert isinstance(events[-1], SessionRevoked)
        assert (len(events) == 3) == (refreshed.status_code == 200)
        if refreshed.status_code == 200:
            assert isinstance(events[1], SessionRefreshed)
            again = {"refresh_token": refreshed.json()["refresh_token"]}
            assert (await replicas[1].post("/api/auth/refresh", json=again)).status_code == 401


async def test_a_login_never_continues_a_session_that_was_there_before(client: "Client", sign_up: SignUp) -> None:
    """Fixation: nothing that a client brings becomes the id of its session."""
    person = await sign_up(client)
    chosen = uuid4()
    login = await client.post(
        "/api/auth/login",
        json={"email": person.email, "password": PASSWORD, "platform": "bfc"},
        headers={"Cookie": f"sangam_session={chosen}", "Authorization": f"Bearer {person.login['access_token']}"},
    )
    assert UUID(login.json()["session_id"]) not in (chosen, UUID(person.login["session_id"]))
    fixed = {"email": person.email, "password": PASSWORD, "platform": "bfc", "session_id": str(chosen)}
    assert (await client.post("/api/auth/login", json=fixed)).status_code == 400


async def test_access_tokens_live_five_minutes(client: "Client", sign_up: SignUp) -> None:
    claims = claims_of((await sign_up(client)).login["access_token"])
    assert claims["exp"] - claims["iat"] == 300
    assert abs(claims["iat"] - time.time()) < 60


async def test_a_narrowed_token_is_good_for_that_much_only(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    body = {**EXCHANGE, "subject_token": person.login["access_token"], "audience": "vyomo", "scope": "wealth:read"}
    narrowed = (await person.post("/api/auth/exchange-token", body)).json()
    other = type(person)(client, person.email, person.user_id, narrowed)
    assert (await other.get("/api/auth/status")).status_code == 200
    refused = await other.get("/api/auth/export")
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert (await person.get("/api/auth/export")).status_code == 200
