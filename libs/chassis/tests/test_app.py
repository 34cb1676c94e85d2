"""The HTTP app: every error is a problem, every answer is traced, no input is a 500."""

import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import jwt
import msgspec
import pytest
from aio_pika.exceptions import AMQPConnectionError
from chassis.app import BODY_BYTES_MAX, create_app
from chassis.consistency import CaughtUp, consistency_token
from chassis.problems import Problem
from chassis.request import AnyRequest, metadata_of
from chassis.tokens import Caller, TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from events.decisions import Refusal
from events.envelope import Metadata
from events.store import EventIdReused, VersionConflict
from jwt.algorithms import ECAlgorithm
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.testing import AsyncTestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

ISSUER = "http://localhost:4025"
KEY = ec.generate_private_key(ec.SECP256R1())
EVENT = uuid4()


class InsufficientFunds(Refusal):
    code = "insufficient_funds"


class Payee(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=50)]
    rank: int = 0
    tags: list[dict[str, Any]] = []


@post("/payees")
async def add_payee(data: JSONBody[Payee]) -> Payee:
    return data


@get("/payees")
async def list_payees(
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50, q: FromQuery[str] = ""
) -> dict[str, Any]:
    return {"limit": limit, "q": q}


@get("/payees/{payee_id:uuid}")
async def show_payee(payee_id: FromPath[UUID], caller: NamedDependency[Caller]) -> dict[str, UUID]:
    return {"id": payee_id, "user": caller.user_id}


@post("/private")
async def private(data: JSONBody[Payee], caller: NamedDependency[Caller]) -> Metadata:
    return caller.metadata()


@get("/metadata")
async def metadata(request: AnyRequest) -> Metadata:
    return metadata_of(request, "service:test", "bfc")


@get("/contained")
async def contained(caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]) -> dict[str, int | None]:
    return {"position": caught_up.position}


FAILURES: dict[str, Exception] = {
    "problem": Problem(422, "limit_exceeded", "Too much for today", window="day", remaining="10.00"),
    "refusal": InsufficientFunds("only 10.00 available"),
    "reused": EventIdReused(uuid4()),
    "conflict": VersionConflict("ledger-1", 3, 4),
    "bug": RuntimeError("secret-detail alice@example.com"),
    "refused": ConnectionRefusedError(111, "Connect call failed"),
    "slow": TimeoutError(),
    "starting": asyncpg.CannotConnectNowError("the database system is starting up"),
    "closed": asyncpg.InterfaceError("connection is closed"),
    "full": asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    "broker": AMQPConnectionError(),
    "overflow": asyncpg.NumericValueOutOfRangeError("bigint out of range"),
}


@get("/fail/{how:str}")
async def fail(how: FromPath[str]) -> None:
    if how == "overflow-client":
        # What asyncpg itself raises for a value it cannot send; the class has no public name.
        raise asyncpg.exceptions._base.DataError("invalid input for query argument $1: value out of int64 range")
    raise FAILURES[how]


class Log:
    async def position_of(self, event_id: UUID) -> int | None:
        return 7 if event_id == EVENT else None


class ReadModel:
    async def wait_for(self, position: int, timeout_s: float) -> bool:
        return position <= 7


async def key_table() -> dict[str, dict[str, str]]:
    return {"k1": ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)}


class Host:
    """The runtime of a service without its connections."""

    def __init__(self) -> None:
        self.verifier = TokenVerifier(ISSUER, VerificationKeyCache(key_table))
        self.store = Log()
        self.reasons: list[str] = []

    def consumer(self, name: str) -> ReadModel:
        return {"projections": ReadModel()}[name]

    async def unready(self) -> list[str]:
        return self.reasons


def access_token(**changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": str(uuid4()), "aud": "bfc", "sid": str(uuid4()), "acr": 1, "scope": ""}
    claims |= {"iat": now, "nbf": now, "exp": now + 600, "jti": str(uuid4())}
    return jwt.encode(claims | changes, KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k1"})


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
async def client(host: Host) -> AsyncIterator[AsyncTestClient[Any]]:
    routes = [add_payee, list_payees, show_payee, private, metadata, contained, fail]
    async with AsyncTestClient(create_app(host, routes, "Test")) as client:
        yield client


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body, after checking that it is a complete problem document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"] == f"urn:sangam:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b'{"rank": 1}', "name", "missing required field"),
        (b'{"name": ""}', "name", "length >= 1"),
        (b'{"name": "a", "rank": "1"}', "rank", "Expected `int`, got `str`"),
        (b'{"name": "a", "rank": 1.0}', "rank", "Expected `int`, got `float`"),
        (b'{"name": "a", "rank": true}', "rank", "Expected `int`, got `bool`"),
        (b'{"name": "a", "is_admin": true}', "is_admin", "unknown field"),
        (b'{"name": "a", "tags": [{}, 1]}', "tags[1]", "Expected `object`"),
        (b'{"name": 7}', "name", "Expected `str`"),
        (b"[]", "", "Expected `object`"),
        (b"null", "", "Expected `object`"),
        (b'{"name": "a", "rank": ' + b"9" * 5000 + b"}", "rank", "out of range"),
        (b'{"name": "a", "rank": 1e400}', "rank", "out of range"),
        (b"", "", "is required"),
    ],
)
async def test_body_that_does_not_fit(client: AsyncTestClient[Any], body: bytes, field: str, message: str) -> None:
    document = problem(await client.post("/payees", content=body), 400, "invalid_request")
    assert document["errors"][0]["field"] == field
    assert message in document["errors"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        *[b"{", b'{"name": NaN}', b"{'name': 1}", b'{"name": "\\ud800"}', b"\x00", b"name=a", b'{"name": "a"} x'],
        b'{"name": "a", "tags": [{"a": ' + b"[" * 60_000 + b"]" * 60_000 + b"}]}",
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
async def test_body_that_is_no_json(client: AsyncTestClient[Any], body: bytes) -> None:
    problem(await client.post("/payees", content=body), 400, "malformed_json")


@pytest.mark.parametrize("body", [b'{"name": "\xff\xfe"}', b'{"name": "\xed\xa0\x80"}', b'{"name": "a\x00b"}'])
async def test_body_that_is_no_utf8(client: AsyncTestClient[Any], body: bytes) -> None:
    response = await client.post("/payees", content=body)
    assert response.status_code == 400
    assert response.json()["code"] in ("malformed_json", "invalid_request")


async def test_nul_is_refused_but_text_that_looks_like_it_is_not(client: AsyncTestClient[Any]) -> None:
    problem(await client.post("/payees", content=rb'{"name": "a\u0000b"}'), 400, "invalid_request")
    problem(await client.post("/payees", content=rb'{"name": "a\\\u0000b"}'), 400, "invalid_request")
    response = await client.post("/payees", content=rb'{"name": "a\\u0000b"}')
    assert response.status_code == 201
    assert response.json()["name"] == r"a\u0000b"


async def test_large_bodies(client: AsyncTestClient[Any]) -> None:
    problem(await client.post("/payees", content=b"x" * (BODY_BYTES_MAX + 1)), 413, "payload_too_large")
    padded = b'{"name": "a"}' + b" " * (BODY_BYTES_MAX - 20)
    assert (await client.post("/payees", content=padded)).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [{"content-type": kind} for kind in ("text/xml", "application/x-www-form-urlencoded", "text/plain")]
    + [{"content-encoding": "gzip"}],
)
async def test_media_type(client: AsyncTestClient[Any], headers: dict[str, str]) -> None:
    response = await client.post("/payees", content=b'{"name": "a"}', headers=headers)
    problem(response, 415, "unsupported_media_type")


async def test_json_by_its_other_names(client: AsyncTestClient[Any]) -> None:
    for media_type in ("application/json; charset=utf-8", "application/cloudevents+json"):
        response = await client.post("/payees", content=b'{"name": "a"}', headers={"content-type": media_type})
        assert response.status_code == 201


@pytest.mark.parametrize(
    ("query", "field"), [("limit=0", "limit"), ("limit=201", "limit"), ("limit=x", "limit"), ("limit=", "limit")]
)
async def test_query(client: AsyncTestClient[Any], query: str, field: str) -> None:
    document = problem(await client.get(f"/payees?{query}"), 400, "invalid_request")
    assert document["errors"][0]["field"] == field


@pytest.mark.parametrize(
    "address",
    ["/payees?q=%00", "/payees?q=%ff", "/payees?%C0%80=1", "/payees/%00", "/fail/%ff", "/payees?limit=" + "9" * 5000],
)
async def test_addresses_that_hold_no_text(client: AsyncTestClient[Any], address: str) -> None:
    problem(await client.get(address), 400, "invalid_request")


async def test_unicode_in_the_query_is_fine(client: AsyncTestClient[Any]) -> None:
    response = await client.get("/payees", params={"q": "नमस्ते %"})
    assert response.json()["q"] == "नमस्ते %"


# --- routes and failures ---------------------------------------------------------------------------


async def test_unknown_route_and_method(client: AsyncTestClient[Any]) -> None:
    problem(await client.get("/nope"), 404, "not_found")
    problem(await client.get("/payees/not-a-uuid"), 404, "not_found")
    problem(await client.get("/schema/nope"), 404, "not_found")
    response = await client.delete("/payees")
    problem(response, 405, "method_not_allowed")
    assert "POST" in response.headers["allow"]


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("problem", 422, "limit_exceeded"),
        ("refusal", 422, "insufficient_funds"),
        ("reused", 422, "idempotency_key_reused"),
        ("conflict", 409, "conflict"),
        ("bug", 500, "internal"),
        ("refused", 503, "unavailable"),
        ("slow", 503, "unavailable"),
        ("starting", 503, "unavailable"),
        ("closed", 503, "unavailable"),
        ("full", 503, "unavailable"),
        ("broker", 503, "unavailable"),
        ("overflow", 400, "invalid_request"),
        ("overflow-client", 400, "invalid_request"),
    ],
)
async def test_failures(client: AsyncTestClient[Any], how: str, status: int, code: str) -> None:
    response = await client.get(f"/fail/{how}")
    document = problem(response, status, code)
    assert ("retry-after" in response.headers) == (status == 503)
    assert "secret-detail" not in response.text
    assert "Traceback" not in response.text
    if how == "problem":
        assert (document["window"], document["remaining"]) == ("day", "10.00")


# --- callers -----------------------------------------------------------------------------------------


async def test_caller(client: AsyncTestClient[Any]) -> None:
    user, payee = str(uuid4()), str(uuid4())
    headers = {"Authorization": f"Bearer {access_token(sub=user)}"}
    response = await client.get(f"/payees/{payee}", headers=headers)
    assert response.json() == {"id": payee, "user": user}
    written = (await client.post("/private", json={"name": "a"}, headers=headers)).json()
    assert (written["actor"], written["platform"]) == (f"user:{user}", "bfc")


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "unauthenticated"),
        ("Bearer nonsense", "invalid_token"),
        ("Bearer", "invalid_token"),
        ("Basic YTpi", "invalid_token"),
        (f"Bearer {access_token(aud='sangam')}", "invalid_token"),
        (f"Bearer {access_token(iat=1, nbf=1, exp=3000)}", "token_expired"),
        ("Bearer " + "x" * 9000, "invalid_token"),
    ],
)
async def test_strangers(client: AsyncTestClient[Any], authorization: str | None, code: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await client.get(f"/payees/{uuid4()}", headers=headers)
    problem(response, 401, code)
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_strangers_body_is_not_looked_at(client: AsyncTestClient[Any]) -> None:
    problem(await client.post("/private", content=b"{"), 401, "unauthenticated")


async def test_two_authorization_headers(client: AsyncTestClient[Any]) -> None:
    twice = [("Authorization", f"Bearer {access_token()}")] * 2
    problem(await client.get(f"/payees/{uuid4()}", headers=twice), 401, "invalid_token")


# --- what surrounds a request --------------------------------------------------------------------------


async def test_request_id_is_taken_over_when_sane(client: AsyncTestClient[Any]) -> None:
    response = await client.get("/metadata", headers={"X-Request-Id": "client-request-1"})
    assert response.headers["x-request-id"] == "client-request-1"
    assert response.json()["correlation_id"] == "client-request-1"


@pytest.mark.parametrize(
    "inbound", ["short", "x" * 129, "with space", "<script>alert(1)</script>", "-dash-first", 'a"b"c"d"e']
)
async def test_request_id_is_made_otherwise(client: AsyncTestClient[Any], inbound: str) -> None:
    response = await client.get("/metadata", headers={"X-Request-Id": inbound})
    assert UUID(response.headers["x-request-id"]).version == 7


async def test_trace_goes_on(client: AsyncTestClient[Any]) -> None:
    trace.set_tracer_provider(TracerProvider())
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    inbound = f"00-{trace_id}-b7ad6b7169203331-01"
    response = await client.get("/metadata", headers={"traceparent": inbound})
    outbound = response.headers["traceparent"]
    assert re.fullmatch(rf"00-{trace_id}-[0-9a-f]{{16}}-01", outbound)
    assert outbound != inbound
    assert response.json()["traceparent"] == outbound
    fresh = (await client.get("/metadata", headers={"traceparent": "nonsense"})).headers["traceparent"]
    assert trace_id not in fresh


async def test_no_cors_and_no_caching(client: AsyncTestClient[Any]) -> None:
    for response in (
        await client.get("/payees", headers={"Origin": "https://attacker.example"}),
        await client.options("/payees", headers={"Origin": "https://attacker.example"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"


async def test_consistency(client: AsyncTestClient[Any]) -> None:
    known = {"Authorization": f"Bearer {access_token()}"}
    assert (await client.get("/contained", headers=known)).json() == {"position": None}
    headers = known | {"X-Consistency-Token": consistency_token(EVENT)}
    assert (await client.get("/contained", headers=headers)).json() == {"position": 7}
    for token in ("forged", "x" * 500):
        response = await client.get("/contained", headers=known | {"X-Consistency-Token": token})
        assert response.status_code == 400
    forged = await client.get("/contained", headers=known | {"X-Consistency-Token": "forged"})
    problem(forged, 400, "invalid_consistency_token")
    problem(await client.get("/contained", headers={"X-Consistency-Token": "forged"}), 401, "unauthenticated")


async def test_health_and_readiness(client: AsyncTestClient[Any], host: Host) -> None:
    assert (await client.get("/health/live")).status_code == 200
    assert (await client.get("/health/ready")).status_code == 200
    host.reasons = ["the database does not answer"]
    document = problem(await client.get("/health/ready"), 503, "not_ready")
    assert document["reasons"] == ["the database does not answer"]
    assert (await client.get("/health/live")).status_code == 200


async def test_metrics_know_routes_not_addresses(client: AsyncTestClient[Any]) -> None:
    payee = str(uuid4())
    await client.get(f"/payees/{payee}")
    await client.get(f"/nowhere/{payee}")
    await client.request("BREW", "/payees")
    text = (await client.get("/metrics")).text
    assert 'http_request_duration_seconds_count{method="GET",route="/payees/{payee_id}",status="401"}' in text
    assert 'route="unmatched",status="404"' in text
    assert payee not in text
    assert "BREW" not in text


async def test_openapi(client: AsyncTestClient[Any]) -> None:
    document = (await client.get("/schema")).json()
    assert document["openapi"].startswith("3.1")
    operation = document["paths"]["/payees/{payee_id}"]["get"]
    assert operation["security"] == [{"bearer": []}]
    assert "application/problem+json" in operation["responses"]["4XX"]["content"]
    assert "security" not in document["paths"]["/payees"]["get"]
    assert "400" not in document["paths"]["/payees"]["post"]["responses"]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    parameters = document["paths"]["/contained"]["get"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["X-Consistency-Token"]
    assert "/health/ready" not in document["paths"]
