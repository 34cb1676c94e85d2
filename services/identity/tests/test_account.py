"""Password, codes, e-mail address, second factor, step-up, export, erasure, unlinking: over HTTP and a real store."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import asyncpg
import jwt
import pyotp
import pytest
from chassis.step_up import StepUp
from events.consumer import Handler
from events.contracts.identity import CodeIssued, UserErased, UserRegistered
from events.sealing import SubjectKeys
from events.store import EventStore
from identity.root_sessions import RootSessions

if TYPE_CHECKING:
    from httpx import Response
    from identity_harness import Client, Person, Platform
    from provision import Cell

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery staple"
NEW = "a quite different passphrase"
MASTER = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
SignUp = Callable[["Client"], Awaitable["Person"]]


@pytest.fixture
async def mail(cell: "Cell", store: EventStore) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Reads the code that was sent last, as notifier's mail channel does: with its role, from the event."""
    keys = await SubjectKeys.connect(cell.keys_url("notifier"), MASTER)

    async def read(person: "Person", purpose: str, to: str | None = None) -> str:
        async with asyncio.timeout(10):
            while True:
                events = [event.payload for event in await store.read_stream(f"user-{person.user_id}")]
                sent = [each for each in events if isinstance(each, CodeIssued) and each.purpose == purpose]
                if sent:
                    assert await keys.open(person.user_id, sent[-1].to_sealed, "to") == (to or person.email)
                    code = await keys.open(person.user_id, sent[-1].code_sealed, "code")
                    assert code is not None
                    return code
                await asyncio.sleep(0.02)

    yield read
    await keys.close()


async def login(client: "Client", email: str, password: str = PASSWORD, **more: str) -> "Response":
    return await client.post("/api/auth/login", json={"email": email, "password": password, "platform": "bfc", **more})


def said(answer: "Response") -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


async def enrolled(person: "Person") -> tuple[pyotp.TOTP, list[str]]:
    """The person's authenticator app and recovery codes. The code of the current step is used up."""
    offered = await person.post("/api/auth/mfa/totp", {})
    assert offered.status_code == 201, offered.text
    assert offered.json()["qr_svg"].startswith("<svg")
    app = pyotp.TOTP(offered.json()["secret"])
    # The step before this one: so that a test has the current code left.
    confirmed = await person.post("/api/auth/mfa/totp/confirm", {"otp": app.at(time.time() - 30)})
    assert confirmed.status_code == 200, confirmed.text
    return app, confirmed.json()["recovery_codes"]


async def test_a_changed_password_ends_all_other_sessions(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    other = type(person)(client, person.email, person.user_id, (await login(client, person.email)).json())
    change = {"current_password": PASSWORD, "new_password": NEW}
    assert said(await person.post("/api/auth/password/change", {**change, "current_password": NEW})) == (
        401, "invalid_credentials"
    )  # fmt: skip
    assert said(await person.post("/api/auth/password/change", {**change, "new_password": "short"})) == (
        400, "weak_password"
    )  # fmt: skip
    assert (await person.post("/api/auth/password/change", change)).json() == {"sessions_ended": 1}
    assert (await person.get("/api/auth/status")).status_code == 200
    assert (await other.get("/api/auth/status")).status_code == 401
    assert said(await login(client, person.email)) == (401, "invalid_credentials")
    assert (await login(client, person.email, NEW)).status_code == 200


async def dies(*_: Any) -> None:
    """Where the process is when it is killed."""
    raise ConnectionAbortedError


async def test_a_password_changes_together_with_the_end_of_the_sessions(
    client: "Client", sign_up: SignUp, mail: Callable[..., Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after the change must not leave those signed in whom it was to sign out."""
    person = await sign_up(client)
    with monkeypatch.context() as patched:
        for method in ("announce", "end"):
            patched.setattr(RootSessions, method, dies)
        elsewhere = (await login(client, person.email)).json()["refresh_token"]
        body = {"current_password": PASSWORD, "new_password": NEW}
        assert (await person.post("/api/auth/password/change", body)).status_code >= 500
        assert said(await client.post("/api/auth/refresh", json={"refresh_token": elsewhere}))[0] == 401
        assert (await person.get("/api/auth/status")).status_code == 200, "the one that changed it stays"
        assert (await login(client, person.email, NEW)).status_code == 200

        await client.post("/api/auth/password/forgot", json={"email": person.email})
        reset = {"email": person.email, "code": await mail(person, "password_reset"), "new_password": PASSWORD}
        assert (await client.post("/api/auth/password/reset", json=reset)).status_code >= 500
        assert said(await person.get("/api/auth/status")) == (401, "session_ended")
    assert (await login(client, person.email)).status_code == 200


async def test_a_login_with_the_old_password_never_survives_its_change(
    replicas: list["Client"], sign_up: SignUp
) -> None:
    """The hash takes 30 ms, and the change may come in between: the session must not outlive it."""
    person = await sign_up(replicas[0])
    change = {"current_password": PASSWORD, "new_password": NEW}
    answers = await asyncio.gather(
        person.post("/api/auth/password/change", change), *(login(replicas[1], person.email) for _ in range(6))
    )
    assert answers[0].status_code == 200
    for each in answers[1:]:
        if each.status_code == 200:
            late = type(person)(replicas[0], person.email, person.user_id, each.json())
            assert (await late.get("/api/auth/status")).status_code == 401


async def test_a_reset_by_code_works_once_and_ends_everything(
    client: "Client", sign_up: SignUp, mail: Callable[..., Awaitable[str]]
) -> None:
    person, stranger = await sign_up(client), await sign_up(client)
    known = await client.post("/api/auth/password/forgot", json={"email": person.email})
    nobody = await client.post("/api/auth/password/forgot", json={"email": "nobody@example.in"})
    assert (
        (known.status_code, known.json()) == (nobody.status_code, nobody.json()) == (202, {"status": "sent_if_known"})
    )
    code = await mail(person, "password_reset")
    reset = {"email": person.email, "code": code, "new_password": NEW}
    for wrong in ({"code": "AAAA-BBBB-CCCC"}, {"email": stranger.email}, {"email": "nobody@example.in"}):
        assert said(await client.post("/api/auth/password/reset", json={**reset, **wrong})) == (422, "invalid_code")
    answers = await asyncio.gather(*(client.post("/api/auth/password/reset", json=reset) for _ in range(5)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 422: 4}
    assert (await person.get("/api/auth/status")).status_code == 401
    assert (await login(client, person.email, NEW)).status_code == 200


async def test_codes_cannot_be_guessed_over_parallel_requests(
    replicas: list["Client"], sign_up: SignUp, mail: Callable[..., Awaitable[str]]
) -> None:
    person = await sign_up(replicas[0])
    await replicas[0].post("/api/auth/password/forgot", json={"email": person.email})
    code = await mail(person, "password_reset")
    guess = {"email": person.email, "code": "AAAA-BBBB-CCCC", "new_password": NEW}
    answers = await asyncio.gather(*(replicas[n % 2].post("/api/auth/password/reset", json=guess) for n in range(30)))
    assert Counter(answer.status_code for answer in answers) == {422: 10, 429: 20}
    right = await replicas[1].post("/api/auth/password/reset", json={**guess, "code": code})
    assert said(right) == (429, "too_many_attempts"), "not even the right one any more"


async def test_an_address_is_proven_and_changed_by_code(
    client: "Client", sign_up: SignUp, mail: Callable[..., Awaitable[str]]
) -> None:
    person, stranger = await sign_up(client), await sign_up(client)
    code = await mail(person, "email_verification")
    assert (await client.post("/api/auth/email/verify", json={"email": person.email, "code": code})).status_code == 200
    assert (await person.get("/api/auth/status")).json()["email_verified"] is True
    again = await client.post("/api/auth/email/verify", json={"email": person.email, "code": code})
    assert said(again) == (422, "invalid_code")
    taken = await person.put("/api/auth/contact", {"password": PASSWORD, "email": stranger.email})
    assert said(taken) == (409, "email_taken")
    new = f"new.{uuid4().hex}@example.in"
    changed = await person.put("/api/auth/contact", {"password": PASSWORD, "email": new, "full_name": "Asha K Rao"})
    assert changed.json() == {"pending": ["email"]}
    assert (await login(client, new)).status_code == 401, "not before it is proven"
    proof = {"email": person.email, "code": await mail(person, "email_change", new)}
    assert (await client.post("/api/auth/email/verify", json=proof)).status_code == 200
    assert (await login(client, new)).status_code == 200
    assert (await login(client, person.email)).status_code == 401
    export = (await person.get("/api/auth/export")).json()
    assert (export["profile"]["email"], export["profile"]["full_name"]) == (new, "Asha K Rao")


async def test_the_second_factor_at_the_login(client: "Client", sign_up: SignUp) -> None:
    person = await sign_up(client)
    app, recovery = await enrolled(person)
    assert said(await person.post("/api/auth/mfa/totp", {})) == (409, "mfa_enrolled")
    assert said(await login(client, person.email)) == (401, "otp_required")
    assert said(await login(client, person.email, "wrong password here", otp=app.now())) == (401, "invalid_credentials")
    good = await login(client, person.email, otp=app.now())
    claims = jwt.decode(good.json()["access_token"], options={"verify_signature": False})
    assert (claims["acr"], claims["mfa"]) == (2, True)
    by_recovery = await login(client, person.email, otp=recovery[0].lower())
    assert by_recovery.status_code == 200
    assert said(await login(client, person.email, otp=recovery[0])) == (401, "invalid_otp")
    assert (await person.delete("/api/auth/mfa/totp", {"otp": recovery[1]})).status_code == 200
    assert (await login(client, person.email)).status_code == 200


async def test_a_code_is_taken_once_in_all_sessions_together(replicas: list["Client"], sign_up: SignUp) -> None:
    """TOTP step replay, in parallel on two replicas: the user's stream decides who was first."""
    person = await sign_up(replicas[0])
    app, _ = await enrolled(person)
    code = app.now()
    answers = await asyncio.gather(*(login(replicas[n % 2], person.email, otp=code) for n in range(5)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 4}
    older = await login(replicas[0], person.email, otp=app.at(time.time() - 30))
    assert older.status_code in (401, 429), "an older step than one that was used"


async def test_otp_codes_cannot_be_guessed_over_parallel_sessions(replicas: list["Client"], sign_up: SignUp) -> None:
    person = await sign_up(replicas[0])
    await enrolled(person)
    others = [type(person)(replicas[n % 2], person.email, person.user_id, person.login) for n in range(20)]
    step_up = {"amount": "1.00", "currency": "INR", "otp": "000000"}
    answers = await asyncio.gather(*(each.post("/api/auth/step-up", step_up) for each in others))
    assert Counter(answer.status_code for answer in answers) == {401: 5, 429: 15}
    assert said(await login(replicas[0], person.email, otp="000000")) == (429, "too_many_attempts")


async def test_step_up_is_bound_to_amount_and_payee(client: "Client", sign_up: SignUp, store: EventStore) -> None:
    person, payee = await sign_up(client), str(uuid4())
    wanted = {"amount": "250000.00", "currency": "INR", "to_account_id": payee}
    assert said(await person.post("/api/auth/step-up", {**wanted, "otp": "123456"})) == (403, "mfa_not_enrolled")
    app, recovery = await enrolled(person)
    assert said(await person.post("/api/auth/step-up", {**wanted, "otp": recovery[0]})) == (401, "invalid_otp")
    assert said(await person.post("/api/auth/step-up", {**wanted, "otp": "12345"})) == (401, "invalid_otp")
    code = app.now()
    answer = await person.post("/api/auth/step-up", {**wanted, "otp": code})
    assert answer.status_code == 200, answer.text
    token = answer.json()["step_up_token"]
    assert jwt.get_unverified_header(token)["typ"] == "step-up+jwt"
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims.keys() == set(StepUp.__struct_fields__)
    assert (claims["amount_minor"], claims["currency"], claims["to_account_id"]) == (250_000_00, "INR", payee)
    assert (claims["sub"], claims["sid"], claims["aud"]) == (
        str(person.user_id), person.login["session_id"], "sangam"
    )  # fmt: skip
    assert claims["exp"] - claims["iat"] == 120
    assert said(await person.post("/api/auth/step-up", {**wanted, "otp": code})) == (401, "invalid_otp")
    types = [event.type for event in await store.read_stream(f"session-{person.login['session_id']}")]
    assert types[-1] == "identity.session.stepped_up"
    as_access = await client.get("/api/auth/status", headers={"Authorization": f"Bearer {token}"})
    assert as_access.status_code == 401


async def test_erasure(client: "Client", sign_up: SignUp, cell: "Cell", store: EventStore, bfc: "Platform") -> None:
    person = await sign_up(client)
    customer = f"BFC-{uuid4().hex[:8]}"
    await link(person, bfc, customer)
    body = {"password": PASSWORD}
    assert said(await person.delete("/api/auth/account", {"password": NEW})) == (401, "invalid_credentials")
    erased = await person.delete("/api/auth/account", body)
    assert (erased.status_code, erased.json()["status"], erased.json()["sessions_ended"]) == (200, "erased", 1)
    assert erased.json()["kept"], "it is told what the law makes us keep"
    assert (await person.get("/api/auth/status")).status_code == 401
    assert said(await login(client, person.email)) == (401, "invalid_credentials")
    events = await store.read_stream(f"user-{person.user_id}")
    assert events[-1].type == "identity.user.erased"
    keys = await SubjectKeys.connect(cell.keys_url("notifier"), MASTER)
    sealed = next(event.payload for event in events if event.type == "identity.user.registered")
    assert await keys.open(person.user_id, sealed.sealed_profile, "profile") is None  # type: ignore[attr-defined]
    await keys.close()
    registration = {"email": person.email, "password": PASSWORD, "full_name": "Asha Rao", "phone": "+919812345678"}
    again = await client.post("/api/auth/register", json=registration)
    assert again.status_code == 201, "the address is free again"
    assert again.json()["user_id"] != str(person.user_id)
    newcomer = await sign_up(client)
    await link(newcomer, bfc, customer)


async def link(person: "Person", bfc: "Platform", customer: str) -> None:
    requested = (await person.post("/api/auth/link-bfc", {"bfc_customer_id": customer})).json()
    confirm = {"link_id": requested["link_id"], "assertion": bfc.assertion(customer, requested["nonce"])}
    answer = await person.post("/api/auth/link-bfc/confirm", confirm)
    assert answer.status_code == 200, answer.text


async def test_an_erasure_that_was_cut_short_is_finished_from_the_log(
    client: "Client",
    sign_up: SignUp,
    cell: "Cell",
    store: EventStore,
    handlers: dict[str, Handler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user is erased, and the process dies before the key is destroyed. Nobody can ask for it again."""
    person = await sign_up(client)
    keys = await SubjectKeys.connect(cell.keys_url("notifier"), MASTER)
    (registered,) = [e.payload for e in await store.read_stream(f"user-{person.user_id}", limit=1)]
    assert isinstance(registered, UserRegistered)

    async def opened() -> str | None:
        keys.forget(person.user_id)
        return await keys.open(person.user_id, registered.sealed_profile, "profile")

    with monkeypatch.context() as patched:
        patched.setattr(SubjectKeys, "erase", dies)
        assert (await person.delete("/api/auth/account", {"password": PASSWORD})).status_code >= 500
    assert await opened() is not None
    assert said(await login(client, person.email))[0] == 401
    assert said(await person.get("/api/auth/status")) == (401, "session_ended"), "in the same append"
    erased = [e for e in await store.read_stream(f"user-{person.user_id}") if isinstance(e.payload, UserErased)]
    assert {e.type for e in erased} <= handlers["erasures"].types
    for _ in range(2):  # delivered again
        await handlers["erasures"].apply(cast(asyncpg.Connection, None), erased)
    assert await opened() is None
    assert said(await person.post("/api/auth/refresh", {"refresh_token": person.login["refresh_token"]}))[0] == 401
    assert len([e for e in await store.read_stream(f"user-{person.user_id}") if isinstance(e.payload, UserErased)]) == 1
    await keys.close()


async def test_an_unlinked_customer_is_free_for_another_user(
    client: "Client", sign_up: SignUp, bfc: "Platform", store: EventStore
) -> None:
    person, other = await sign_up(client), await sign_up(client)
    customer = f"BFC-{uuid4().hex[:8]}"
    assert said(await person.delete("/api/auth/link-bfc")) == (404, "not_linked")
    await link(person, bfc, customer)
    removed = await person.delete("/api/auth/link-bfc")
    assert removed.json() == {"platform": "bfc", "platform_customer_ids": [customer], "status": "unlinked"}
    assert (await person.get("/api/auth/status")).json()["platforms"]["bfc"]["linked"] is False
    last = (await store.read_stream(f"user-{person.user_id}"))[-1]
    assert (last.type, last.public) == ("identity.user.link_removed", True), "announced on both platforms"
    await link(other, bfc, customer)
    assert said(await person.delete("/api/auth/link-bfc")) == (404, "not_linked")
    assert (await other.get("/api/auth/status")).json()["platforms"]["bfc"]["linked"] is True


async def test_export_holds_everything_and_only_ones_own(client: "Client", sign_up: SignUp) -> None:
    person, other = await sign_up(client), await sign_up(client)
    export = await person.get("/api/auth/export")
    assert export.status_code == 200
    body: dict[str, Any] = export.json()
    assert body["profile"]["email"] == person.email
    assert UUID(body["sessions"][0]["session_id"]) == UUID(person.login["session_id"])
    assert [each["type"] for each in body["history"]][:2] == [
        "identity.user.registered", "identity.user.credential_changed"
    ]  # fmt: skip
    assert other.email not in export.text
    assert "argon2" not in export.text
    assert "sealed" not in export.text
