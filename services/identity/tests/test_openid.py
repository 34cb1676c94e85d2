"""OpenID Connect, judged by others: Authlib is the client, joserfc verifies what we sign."""

import html
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest
from aiohttp import ClientSession, web
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oidc.core import CodeIDToken
from authlib.oidc.discovery import OpenIDProviderMetadata
from events.store import EventStore
from identity.backchannel import EVENT, LogoutNotes, LogoutSender
from identity.clients import App
from identity.keyring import KeyRing
from identity.sealing import IdentityKey
from identity.tokens import AccessTokens
from joserfc import jwt as jose
from joserfc.errors import BadSignatureError
from joserfc.jwk import KeySet

if TYPE_CHECKING:
    from identity_harness import Client, Person
    from provision import Cell

pytestmark = pytest.mark.integration

ISSUER = "https://sangam.test"
PASSWORD = "correct horse battery staple"
CALLBACK = "https://bfc.test/callback"
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # RFC 7636, appendix B
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
SignUp = Callable[["Client"], Awaitable["Person"]]


def authlib_client(browser: "Client", **more: Any) -> AsyncOAuth2Client:
    """The app: a public client with PKCE, on a connection of its own."""
    return AsyncOAuth2Client(
        "bfc-app",
        scope="openid profile email accounts:read",
        redirect_uri=CALLBACK,
        code_challenge_method="S256",
        token_endpoint_auth_method="none",
        transport=browser._transport,
        **more,
    )


async def key_set(client: "Client") -> KeySet:
    return KeySet.import_key_set((await client.get("/.well-known/jwks.json")).json())


def hidden(page: str) -> str:
    found = re.search(r'name="request" value="([^"]+)"', page)
    assert found, page
    return html.unescape(found[1])


async def authorized(browser: "Client", address: str, email: str, **form: str) -> httpx.Response:
    """What the browser gets that opens the address and fills in the form."""
    page = await browser.get(address)
    assert page.status_code == 200, page.text
    fields = {"request": hidden(page.text), "email": email, "password": PASSWORD, **form}
    return await browser.post("/oauth/login", data=fields)


def asked(**changes: str | None) -> dict[str, str]:
    query = {
        "response_type": "code",
        "client_id": "bfc-app",
        "redirect_uri": CALLBACK,
        "scope": "openid",
        "state": "s1",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    }
    return {name: value for name, value in {**query, **changes}.items() if value is not None}


def answered(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 303, response.text
    return {name: values[0] for name, values in parse_qs(urlsplit(response.headers["location"]).query).items()}


async def code_for(browser: "Client", email: str, **changes: str | None) -> str:
    page = await browser.get("/oauth/authorize", params=asked(**changes))
    fields = {"request": hidden(page.text), "email": email, "password": PASSWORD}
    return answered(await browser.post("/oauth/login", data=fields))["code"]


async def redeemed(client: "Client", issued: str, /, **changes: str | None) -> httpx.Response:
    form = {
        "grant_type": "authorization_code",
        "client_id": "bfc-app",
        "code": issued,
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
    }
    return await client.post(
        "/oauth/token", data={name: value for name, value in {**form, **changes}.items() if value is not None}
    )


async def test_an_independent_client_completes_everything(client: "Client", sign_up: SignUp) -> None:
    """Discovery, code + PKCE, ID token, userinfo, refresh, single sign-on, logout: Authlib against us."""
    person = await sign_up(client)
    document = (await client.get("/.well-known/openid-configuration")).json()
    AuthorizationServerMetadata(document).validate()
    # OpenID Connect Discovery asks for RS256 besides, for clients that know nothing else; ours are our own.
    metadata = OpenIDProviderMetadata(
        {
            **document,
            "id_token_signing_alg_values_supported": [*document["id_token_signing_alg_values_supported"], "RS256"],
        }
    )
    metadata.validate()
    assert document["id_token_signing_alg_values_supported"] == ["ES256"]
    app = authlib_client(client)
    address, state = app.create_authorization_url(
        metadata["authorization_endpoint"], code_verifier=VERIFIER, nonce="n1"
    )
    back = await authorized(client, address, person.email)
    assert back.headers["location"].startswith(CALLBACK + "?")
    assert answered(back)["iss"] == ISSUER
    token = await app.fetch_token(
        metadata["token_endpoint"],
        authorization_response=back.headers["location"],
        state=state,
        code_verifier=VERIFIER,
    )
    keys = await key_set(client)
    decoded = jose.decode(token["id_token"], keys, algorithms=["ES256"])
    CodeIDToken(
        decoded.claims,
        decoded.header,
        {"iss": {"value": ISSUER}, "aud": {"value": "bfc-app"}},
        {"nonce": "n1", "access_token": token["access_token"], "client_id": "bfc-app"},
    ).validate()
    assert decoded.header["typ"] == "JWT"
    access = jose.decode(token["access_token"], keys, algorithms=["ES256"])
    assert (access.header["typ"], access.claims["aud"], access.claims["client_id"]) == ("at+jwt", "bfc", "bfc-app")
    assert access.claims["scope"] == "openid profile email accounts:read"

    userinfo = await app.get(metadata["userinfo_endpoint"])
    assert userinfo.json() == {
        "sub": str(person.user_id), "name": "Asha Rao", "email": person.email, "email_verified": False
    }  # fmt: skip
    renewed = await app.refresh_token(metadata["token_endpoint"], refresh_token=token["refresh_token"])
    assert renewed["refresh_token"] != token["refresh_token"]

    # The other platform's app: the browser is signed in already, no form is shown.
    other = await client.get(
        "/oauth/authorize",
        params=asked(client_id="vyomo-app", redirect_uri="https://vyomo.test/callback", prompt="none"),
    )
    second = await redeemed(
        client, answered(other)["code"], client_id="vyomo-app", redirect_uri="https://vyomo.test/callback"
    )
    both = jose.decode(second.json()["access_token"], keys, algorithms=["ES256"])
    assert (both.claims["aud"], both.claims["sid"]) == ("vyomo", access.claims["sid"])
    # An app may ask how fresh the sign-in must be.
    fresh = await client.get("/oauth/authorize", params=asked(prompt="none", max_age="3600"))
    assert "code" in answered(fresh)
    stale = await client.get("/oauth/authorize", params=asked(prompt="none", max_age="0"))
    assert answered(stale)["error"] == "login_required"

    out = await client.get(
        metadata["end_session_endpoint"],
        params={
            "id_token_hint": token["id_token"],
            "post_logout_redirect_uri": "https://bfc.test/",
            "state": "bye",
        },
    )
    assert (out.status_code, out.headers["location"]) == (303, "https://bfc.test/?state=bye")
    for each in (renewed["access_token"], second.json()["access_token"]):
        refused = await client.get("/oauth/userinfo", headers={"Authorization": f"Bearer {each}"})
        assert (refused.status_code, refused.json()["code"]) == (401, "session_ended")
    silent = await client.get("/oauth/authorize", params=asked(prompt="none"))
    assert answered(silent) == {"error": "login_required", "state": "s1", "iss": ISSUER}


async def test_jwks_and_tokens_verify_with_an_independent_library(client: "Client", sign_up: SignUp) -> None:
    person, keys = await sign_up(client), await key_set(client)
    token = person.login["access_token"]
    assert jose.decode(token, keys, algorithms=["ES256"]).claims["sub"] == str(person.user_id)
    head, body, signature = token.split(".")
    with pytest.raises(BadSignatureError):
        jose.decode(f"{head}.{body}.{signature[:-4]}AAAA", keys, algorithms=["ES256"])
    assert all("d" not in key.as_dict(private=False) for key in keys)
    assert all("d" not in key for key in (await client.get("/.well-known/jwks.json")).json()["keys"])


REFUSED_IN_PLACE = [
    {"redirect_uri": f"{CALLBACK}/"},
    {"redirect_uri": f"{CALLBACK}?x=1"},
    {"redirect_uri": CALLBACK.upper()},
    {"redirect_uri": "https://bfc.test.evil.example/callback"},
    {"redirect_uri": "https://bfc.test/callback/../evil"},
    {"redirect_uri": "https://vyomo.test/callback"},
    {"redirect_uri": None},
    {"client_id": "bfc-app2"},
    {"client_id": None},
]
REFUSED_AT_THE_APP = [
    ({"code_challenge": None}, "invalid_request"),
    ({"code_challenge_method": "plain", "code_challenge": VERIFIER}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"code_challenge": "short"}, "invalid_request"),
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_mode": "fragment"}, "invalid_request"),
    ({"scope": "profile"}, "invalid_scope"),
    ({"scope": "openid transfers:reverse"}, "invalid_scope"),
    ({"request": "e30"}, "request_not_supported"),
    ({"max_age": "soon"}, "invalid_request"),
]


async def test_authorization_refusals(client: "Client") -> None:
    for changes in REFUSED_IN_PLACE:
        answer = await client.get("/oauth/authorize", params=asked(**changes))  # type: ignore[arg-type]
        assert answer.status_code == 400, changes
        assert "location" not in answer.headers
    for changes, error in REFUSED_AT_THE_APP:
        answer = await client.get("/oauth/authorize", params=asked(**changes))  # type: ignore[arg-type]
        assert answer.headers["location"].startswith(f"{CALLBACK}?"), changes
        told = answered(answer)
        assert (told["error"], told["state"], "code" in told) == (error, "s1", False), changes
    twice = await client.get("/oauth/authorize", params=[*asked().items(), ("redirect_uri", "https://evil.example")])
    assert twice.status_code == 400


async def test_a_code_is_for_one_client_one_address_one_verifier_once(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    code = await code_for(client, person.email)
    for changes in (
        {"code_verifier": VERIFIER[::-1]},
        {"code_verifier": CHALLENGE},
        {"client_id": "vyomo-app"},
        {"redirect_uri": "https://vyomo.test/callback"},
        {"code": code[:-2] + "AA"},
    ):
        answer = await redeemed(client, code, **changes)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant"), changes
    assert (await redeemed(client, code, code_verifier=None)).json()["error"] == "invalid_request"
    first = await redeemed(client, code)
    assert first.status_code == 200
    userinfo = {"Authorization": f"Bearer {first.json()['access_token']}"}
    assert (await client.get("/oauth/userinfo", headers=userinfo)).status_code == 200
    reused = await redeemed(client, code)
    assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
    # Whoever holds a used code has stolen it, or been stolen from: everything under the session ends.
    assert (await client.get("/oauth/userinfo", headers=userinfo)).status_code == 401
    refresh = {
        "grant_type": "refresh_token",
        "client_id": "bfc-app",
        "refresh_token": first.json()["refresh_token"],
    }
    assert (await client.post("/oauth/token", data=refresh)).json()["error"] == "invalid_grant"


async def test_an_apps_refresh_token_is_its_own_and_is_never_used_twice(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    first = (await redeemed(client, await code_for(client, person.email))).json()

    async def refreshed(token: str, client_id: str = "bfc-app", **more: str) -> httpx.Response:
        form = {"grant_type": "refresh_token", "client_id": client_id, "refresh_token": token, **more}
        return await client.post("/oauth/token", data=form)

    assert (await refreshed(first["refresh_token"], "vyomo-app")).status_code == 400
    assert (await refreshed(first["refresh_token"], scope="openid transfers:write")).status_code == 400
    second = (await refreshed(first["refresh_token"])).json()
    assert (await refreshed(first["refresh_token"])).json()["refresh_token"] == second["refresh_token"], "in the grace"
    third = (await refreshed(second["refresh_token"])).json()
    assert (await refreshed(first["refresh_token"])).status_code == 400
    assert (await refreshed(third["refresh_token"])).status_code == 400, "reuse ended the session"


async def test_the_form_cannot_be_posted_by_another_site(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    page = await client.get("/oauth/authorize", params=asked())
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "httponly" in page.headers["set-cookie"].lower()
    assert "samesite=lax" in page.headers["set-cookie"].lower()
    fields = {"request": hidden(page.text), "email": person.email, "password": PASSWORD}
    client.cookies.clear()
    forged = await client.post("/oauth/login", data=fields)
    assert (forged.status_code, "set-cookie" in forged.headers) == (400, False)
    tampered = await client.post("/oauth/login", data={**fields, "request": "e30.00"})
    assert tampered.status_code == 400
    wrong = await authorized(client, "/oauth/authorize?" + str(httpx.QueryParams(asked())), "<b>x</b>@y.in")
    assert (wrong.status_code, "<b>" in wrong.text) == (200, False)
    assert 'role="alert"' in wrong.text


async def test_logout_by_hint_needs_our_id_token_and_a_registered_address(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    tokens = (await redeemed(client, await code_for(client, person.email))).json()
    bad = [
        {},
        {"id_token_hint": tokens["access_token"]},
        {"id_token_hint": "x.y.z"},
        {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": "https://evil.example/"},
        {"id_token_hint": tokens["id_token"], "post_logout_redirect_uri": "https://vyomo.test/"},
    ]
    for params in bad:
        assert (await client.get("/oauth/logout", params=params)).status_code == 400, params
    userinfo = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert (await client.get("/oauth/userinfo", headers=userinfo)).status_code == 200
    assert (await client.post("/oauth/logout", data={"id_token_hint": tokens["id_token"]})).status_code == 200
    assert (await client.get("/oauth/userinfo", headers=userinfo)).status_code == 401


async def test_apps_are_told_of_a_logout_once_they_listen(
    client: "Client", sign_up: SignUp, store: EventStore, cell: "Cell", own_key: IdentityKey
) -> None:
    """Back-channel logout: the note is made once per event, and told until it is heard."""
    person = await sign_up(client)
    first = (await redeemed(client, await code_for(client, person.email))).json()
    keys, got, statuses = await key_set(client), list[str](), [500, 200]

    async def hear(request: web.Request) -> web.Response:
        got.append(str((await request.post())["logout_token"]))
        return web.Response(status=statuses[len(got) - 1])

    server = web.Application()
    server.router.add_post("/backchannel", hear)
    runner = web.AppRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    uri = f"http://127.0.0.1:{runner.addresses[0][1]}/backchannel"
    app = App(client_id="bfc-app", name="BFC", platform="bfc", redirect_uris=(CALLBACK,), backchannel_logout_uri=uri)
    assert (await client.get("/oauth/logout", params={"id_token_hint": first["id_token"]})).status_code == 200
    sid = jose.decode(first["access_token"], keys, algorithms=["ES256"]).claims["sid"]
    events = await store.read_stream(f"session-{sid}")
    ring = KeyRing(store, own_key)
    await ring.load()
    async with asyncpg.create_pool(cell.database_url("identity")) as database, ClientSession() as http:
        notes = LogoutNotes()
        await database.execute(notes.ddl)
        async with database.acquire() as db:
            for _ in range(2):  # a log that is applied again
                await notes.apply(db, [event for event in events if event.type in notes.types])  # type: ignore[arg-type]
        sender = LogoutSender(database, http, {"bfc-app": app}, AccessTokens(ISSUER, ring.current), notes.noted)
        assert [await sender.tell_due(), await sender.tell_due()] == [1, 0], "refused; not due again yet"
        await database.execute("UPDATE logout_note SET next_at = now()")
        assert [await sender.tell_due(), await sender.tell_due()] == [1, 0], "heard"
    await runner.cleanup()
    told = [jose.decode(token, keys, algorithms=["ES256"]) for token in got]
    assert len({each.claims["jti"] for each in told}) == 1
    assert told[0].header["typ"] == "logout+jwt"
    claims = told[0].claims
    assert (claims["aud"], claims["sid"], claims["sub"]) == ("bfc-app", sid, str(person.user_id))
    assert claims["events"] == {EVENT: {}}
    assert "nonce" not in claims
