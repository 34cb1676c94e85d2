"""The deny set, its freshness, step-up tokens, operators' tokens: what the chassis decides before a handler runs."""

import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from chassis.app import create_app
from chassis.authentication import ops_may
from chassis.revocations import MOVES_MONEY, STALE_S, Revocations
from chassis.step_up import StepUp
from chassis.tokens import Caller, InvalidToken, TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from litestar import post
from litestar.di import NamedDependency

KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = "http://localhost:4025"


class Feed:
    """How far the log has been followed, as a test says."""

    def __init__(self) -> None:
        self.position = 7
        self.current_at_s = time.monotonic()


class Log:
    async def position_of(self, event_id: UUID) -> int | None:
        return None


class Host:
    store = Log()

    def __init__(self) -> None:
        async def keys() -> dict[str, dict[str, str]]:
            return {"k1": ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)}

        self.feed = Feed()
        self.revocations = Revocations()
        self.revocations.follow(self.feed)
        self.verifier = TokenVerifier(ISSUER, VerificationKeyCache(keys), revocations=self.revocations)

    def consumer(self, name: str) -> Any:
        raise KeyError(name)

    async def unready(self) -> list[str]:
        return []


@post("/pay", opt=MOVES_MONEY, status_code=200)
async def pay(caller: NamedDependency[Caller], step_up: NamedDependency[StepUp | None]) -> dict[str, Any]:
    given = step_up and (step_up.amount_minor, step_up.currency, step_up.to_account_id)
    return {"user": caller.user_id, "covered": given == (50_000_00, "INR", None)}


@post("/look", status_code=200)
async def look(caller: NamedDependency[Caller]) -> dict[str, Any]:
    return {"user": caller.user_id}


@post("/reverse", opt={**MOVES_MONEY, **ops_may("transfers:reverse")}, status_code=200)
async def reverse(caller: NamedDependency[Caller]) -> dict[str, Any]:
    return {"user": caller.user_id}


@post("/write", opt=ops_may("notifications:write", only=True), status_code=200)
async def write(caller: NamedDependency[Caller]) -> dict[str, Any]:
    return {"user": caller.user_id}


def signed(kind: str, **claims: Any) -> str:
    return jwt.encode(claims, KEY, algorithm="ES256", headers={"typ": kind, "kid": "k1"})


def access(sub: UUID, sid: UUID, **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": str(sub), "aud": "bfc", "sid": str(sid), "acr": 1, "scope": ""}
    return signed("at+jwt", **(claims | {"iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid4())} | changes))


def step_up(sub: UUID, sid: UUID, **changes: Any) -> str:
    now = int(time.time())
    claims: dict[str, Any] = {"iss": ISSUER, "aud": "sangam", "sub": str(sub), "sid": str(sid), "jti": str(uuid4())}
    claims |= {"iat": now, "exp": now + 120, "amount_minor": 50_000_00, "currency": "INR", "to_account_id": None}
    return signed(changes.pop("typ", "step-up+jwt"), **(claims | changes))


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
async def client(host: Host) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(host, [pay, look, reverse, write], "Test"))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


async def test_a_session_that_ended_is_refused_at_once_and_watchers_hear_of_it(host: Host) -> None:
    heard: list[UUID] = []
    host.revocations.watch(heard.extend)
    sid = uuid4()
    token = access(uuid4(), sid)
    await host.verifier.verify(token)
    host.revocations.add([sid])
    host.revocations.add([sid])
    with pytest.raises(InvalidToken) as refused:
        await host.verifier.verify(token)
    assert refused.value.code == "session_ended"
    assert heard == [sid]


async def test_a_stale_feed_fails_closed_for_money_only(host: Host, client: httpx.AsyncClient) -> None:
    headers = bearer(access(uuid4(), uuid4()))
    assert (await client.post("/pay", headers=headers)).status_code == 200
    host.feed.current_at_s -= STALE_S + 1
    refused = await client.post("/pay", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (503, "revocations_unknown")
    assert "Retry-After" in refused.headers
    assert (await client.post("/look", headers=headers)).status_code == 200
    host.feed.current_at_s = time.monotonic()
    assert (await client.post("/pay", headers=headers)).status_code == 200


def test_what_is_not_followed_is_stale() -> None:
    now = [1000.0]
    revocations, feed = Revocations(clock=lambda: now[0]), Feed()
    assert not revocations.fresh(), "nothing is followed yet"
    revocations.follow(feed)
    feed.current_at_s = 0.0
    assert not revocations.fresh(), "nothing was heard yet"
    feed.current_at_s = now[0]
    now[0] += STALE_S
    assert revocations.fresh()
    now[0] += 0.001
    assert not revocations.fresh()


async def test_a_step_up_is_of_this_session_typed_and_short(client: httpx.AsyncClient) -> None:
    user, sid = uuid4(), uuid4()
    token = access(user, sid)

    async def tried(step_up_token: str) -> Any:
        answer = await client.post("/pay", headers=bearer(token, **{"X-Step-Up-Token": step_up_token}))
        return answer.json().get("covered", answer.json().get("code"))

    now = int(time.time())
    assert await tried(step_up(user, sid)) is True
    assert await tried(step_up(user, sid, amount_minor=50_000_01)) is False
    assert await tried(step_up(user, sid, to_account_id=str(uuid4()))) is False
    assert await tried(step_up(user, uuid4())) == "step_up_invalid"
    assert await tried(step_up(uuid4(), sid)) == "step_up_invalid"
    assert await tried(step_up(user, sid, typ="at+jwt")) == "step_up_invalid"
    assert await tried(token) == "step_up_invalid"
    assert await tried(step_up(user, sid, aud="bfc")) == "step_up_invalid"
    assert await tried(step_up(user, sid, exp=now + 900)) == "step_up_invalid"
    assert await tried(step_up(user, sid, iat=now - 130, exp=now - 10)) == "step_up_expired"


async def test_an_operators_token_needs_the_route_the_scope_and_a_customer(client: httpx.AsyncClient) -> None:
    def ops(scope: str) -> dict[str, str]:
        client_id = uuid4()
        return bearer(access(client_id, client_id, aud="sangam-ops", acr=0, scope=scope, client_id="ops-1"))

    async def tried(path: str, headers: dict[str, str]) -> tuple[int, str | None]:
        answer = await client.post(path, headers=headers)
        return answer.status_code, answer.json().get("code")

    reversing = ops("transfers:reverse")
    customer = bearer(access(uuid4(), uuid4()))
    assert await tried("/look", reversing) == (401, "invalid_token")
    assert await tried(f"/reverse?user_id={uuid4()}", ops("sync:admin")) == (403, "insufficient_scope")
    assert await tried("/reverse", reversing) == (400, "user_id_required")
    assert await tried("/reverse?user_id=1", reversing) == (400, "invalid_request")
    assert await tried(f"/reverse?user_id={uuid4()}", customer) == (403, "forbidden")
    assert await tried("/reverse", customer) == (200, None)
    assert await tried("/write", customer) == (403, "insufficient_scope")
