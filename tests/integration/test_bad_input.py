"""Bad input on every route of every service: refused as a problem, and nothing of it reaches the log.

The routes and their shapes come from each service's own OpenAPI document, so a new route is covered by existing.
"""

import asyncio
import base64
import contextlib
import hmac
import re
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

import asyncpg
import msgspec
import pytest
import requests
import schemathesis
from events.envelope import decode_metadata, new_id
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from rabbitmq import SERVICES
from schemathesis import GenerationMode, schemas
from schemathesis.core.result import Err, Ok

if TYPE_CHECKING:
    from stack import Stack

Case = schemathesis.Case[Any]
Operation = schemas.APIOperation[Any, Any, Any, Any]

pytestmark = pytest.mark.integration

EXAMPLES_PER_ROUTE = 25
PASSWORD = "correct horse battery staple"

_BODIES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("null", b"null"),
    ("not JSON", b"{"),
    ("an array", b"[]"),
    ("a string", b'"x"'),
    ("a number too large", b'{"amount": 1' + b"0" * 400 + b"}"),
    ("NaN", b'{"amount": NaN}'),
    ("nested deeply", b"[" * 50_000 + b"]" * 50_000),
    ("nested deeply in a field", b'{"x": ' * 20_000 + b"1" + b"}" * 20_000),
    ("NUL", b'{"email": "a\\u0000@example.com", "from_account_id": "\\u0000"}'),
    ("no UTF-8", b'{"email": "\xff\xfe"}'),
    ("lone surrogate", b'{"email": "\\ud800"}'),
    ("unknown field", b'{"is_admin": true}'),
    ("over the limit", b'{"x": "' + b"y" * (1 << 21) + b'"}'),
]
_QUERIES = ["%00", "%ff", "limit=-1", "limit=0", "limit=99999999999999999999", "limit=1e3", "limit=abc", "limit="]
_QUERIES += ["cursor=x", "cursor=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "cursor=%27%20OR%201=1--", "cursor=" + "A" * 3000]
_QUERIES += ["from=yesterday", "to=9999-99-99T99:99:99Z", "from=2026-01-01", "min_amount=NaN", "max_amount=1e9"]
_QUERIES += ["platform=hdfc", "as_of=0001-01-01T00:00:00Z", "q=" + quote("' OR 1=1; --"), "q=" + "%F0%9F%92%A9" * 500]
_SEGMENTS = [
    "%00",
    "%ff",
    "..%2f..%2fetc%2fpasswd",
    "' OR 1=1 --",
    "x" * 3000,
    "-1",
    "00000000-0000-0000-0000-000000000000",
]


class Visitor:
    """A logged-in customer who sends nonsense, and remembers which requests were accepted."""

    def __init__(self, stack: "Stack") -> None:
        self._store_url = stack.cell.admin_url()
        self._session = requests.Session()
        self.accepted: set[str] = set()
        self.customers: set[UUID] = set()
        self.first_id = self._last_id()
        self._identity = stack.url("identity") + "/api/auth"
        self.sign_in()

    def sign_in(self) -> None:
        """As a new customer, from an address that nobody has tried anything from."""
        address = ".".join(["10", *(str(octet) for octet in secrets.token_bytes(3))])
        self._session.headers["X-Real-IP"] = address
        email = f"visitor-{new_id()}@example.com"
        registration = {"email": email, "password": PASSWORD, "full_name": "A Visitor", "phone": "+919812345678"}
        registered = self.send("POST", f"{self._identity}/register", json=registration)
        assert registered.status_code == 201, registered.text
        self.customers.add(UUID(registered.json()["user_id"]))
        credentials = {"email": email, "password": PASSWORD, "platform": "bfc"}
        login = self.send("POST", f"{self._identity}/login", json=credentials)
        assert login.status_code in (200, 201), login.text
        self._session.headers["Authorization"] = f"Bearer {login.json()['access_token']}"

    def stay_signed_in(self) -> None:
        """Some routes end the session, or the customer: what comes after them is tried as somebody new."""
        if self.send("GET", f"{self._identity}/status").status_code == 401:
            self.sign_in()

    def send(self, method: str, url: str, **options: Any) -> requests.Response:
        """The response, after checking everything that must hold for any answer."""
        request_id = str(new_id())
        headers = {"X-Request-Id": request_id, **options.pop("headers", {})}
        response = self._session.request(method, url, headers=headers, timeout=20, **options)
        self.check(response, request_id)
        return response

    def send_case(self, case: Case, mode: GenerationMode) -> None:
        """Sends what schemathesis made up, and checks the answer."""
        request_id = str(new_id())
        case.headers["Authorization"] = self._session.headers["Authorization"]
        case.headers["X-Request-Id"] = request_id
        case.headers.setdefault("Idempotency-Key", request_id)
        if mode is GenerationMode.POSITIVE:
            # No made-up token names an event: with one, nothing behind it would be tried.
            case.headers.pop("X-Consistency-Token", None)
        try:
            response = case.call(session=requests.Session(), timeout=20)
        except requests.exceptions.InvalidHeader:
            return  # not even a client can send it
        if response.status_code == 401:
            assert response.json()["code"] not in ("unauthenticated", "invalid_token"), response.request.url
        self.check(response, request_id)

    def check(self, response: Any, request_id: str) -> None:
        """No 5xx but an honest 503, no success that is not one, every refusal a problem with a code."""
        if response.status_code < 400:
            self.accepted.add(request_id)
            return
        what = f"{response.request.method} {response.request.url[:300]}: {response.status_code} {response.text[:500]}"
        content_type = response.headers["content-type"]
        content_type = content_type if isinstance(content_type, str) else content_type[0]
        assert response.status_code < 500 or response.status_code == 503, what
        if response.request.method == "HEAD":
            return
        if content_type.startswith("text/html") and "/oauth/" in response.request.url:
            assert "Traceback" not in response.text, what
            return  # what a browser is shown where it may not be sent back
        assert content_type.startswith("application/problem+json"), what
        document = response.json()
        assert document["status"] == response.status_code, what
        assert document["code"].replace("_", "").isalnum(), what
        assert document["code"] != "internal", what
        assert "Traceback" not in response.text, what

    def foreign_events(self) -> list[str]:
        """Events in the log that none of the accepted requests caused."""
        rows = _fetch(
            self._store_url,
            "SELECT event_id, type, subject, metadata FROM store.events WHERE id > $1 ORDER BY id",
            self.first_id,
        )
        explained: set[Any] = set()
        foreign = []
        for row in rows:
            if row["subject"] not in (None, *self.customers):
                continue  # a customer of another test's, to whom things go on happening
            metadata = decode_metadata(row["metadata"])
            if metadata.correlation_id in self.accepted or metadata.causation_id in explained:
                explained.add(row["event_id"])
            else:
                foreign.append(f"{row['type']} by {metadata}")
        assert explained, "not even the registration is in the log: this check sees nothing"
        return foreign

    def _last_id(self) -> int:
        last: int = _fetch(self._store_url, "SELECT coalesce(max(id), 0) AS id FROM store.events")[0]["id"]
        return last


def _fetch(url: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(fetch())


@pytest.fixture(scope="module")
def visitor(sangam: "Stack") -> Visitor:
    return Visitor(sangam)


@pytest.fixture(params=SERVICES)
def document(request: pytest.FixtureRequest, sangam: "Stack") -> dict[str, Any]:
    """The OpenAPI document of one service, with its address."""
    url = sangam.url(request.param)
    document: dict[str, Any] = requests.get(url + "/schema", timeout=20).json()
    assert document["paths"], f"{request.param} documents no route"
    return document | {"servers": [{"url": url}]}


@pytest.fixture
def operations(document: dict[str, Any]) -> list[Operation]:
    """Every operation of one service, without its need of a token: made-up ones would hide everything behind."""
    open_document = msgspec.json.decode(msgspec.json.encode(document))
    for item in open_document["paths"].values():
        for operation in item.values():
            operation.pop("security", None)
    schema = schemathesis.openapi.from_dict(open_document)
    schema.config.update(base_url=document["servers"][0]["url"])
    results = list(schema.get_all_operations())
    assert not [result.err() for result in results if isinstance(result, Err)]
    return [result.ok() for result in results if isinstance(result, Ok)]


def test_made_up_requests(visitor: Visitor, operations: list[Operation]) -> None:
    """Requests that nearly fit, and requests that do, generated from the schemas."""
    for operation in operations:
        visitor.stay_signed_in()
        send_made_up(visitor, operation, GenerationMode.POSITIVE)
        # A route without any parameter has no request that nearly fits.
        with contextlib.suppress(Unsatisfiable):
            send_made_up(visitor, operation, GenerationMode.NEGATIVE)
    assert visitor.foreign_events() == []


def send_made_up(visitor: Visitor, operation: Operation, mode: GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES_PER_ROUTE,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def attack(case: Case) -> None:
        visitor.send_case(case, mode)

    attack()


def _may_say_nothing(operation: Operation) -> bool:
    """Whether the body is optional: Litestar calls it required, and lets it be null."""
    return any({"type": "null"} in body.definition["schema"].get("oneOf", ()) for body in operation.body)


def test_requests_that_break_parsers(visitor: Visitor, operations: list[Operation]) -> None:
    """Bodies, queries and paths that no schema describes."""
    for operation in operations:
        visitor.stay_signed_in()
        for url in _addresses(operation):
            for query in _QUERIES:
                visitor.send(operation.method.upper(), f"{url}?{query}")
        url = next(_addresses(operation))
        if operation.method.upper() in ("POST", "PUT", "PATCH"):
            for name, body in _BODIES:
                response = visitor.send(operation.method.upper(), url, data=body, headers=_json_headers())
                if operation.body and not (_may_say_nothing(operation) and name in ("empty", "null")):
                    assert 400 <= response.status_code < 500, f"{operation.label} accepts a body that is {name}"
            response = visitor.send(operation.method.upper(), url, data=b"<x/>", headers={"Content-Type": "text/xml"})
            if operation.body:
                assert response.status_code in (403, 415), operation.label  # 403: not with a customer's token
        wrong = {"GET": "PATCH", "POST": "DELETE"}.get(operation.method.upper(), "TRACE")
        assert visitor.send(wrong, url).status_code in (400, 401, 404, 405)  # 400: the address has that method too
    assert visitor.foreign_events() == []


def test_nobody_gets_in_without_a_token(document: dict[str, Any]) -> None:
    """Routes that ask for a bearer token refuse every request without a good one, before looking at it."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "security" not in operation:
                continue
            url = document["servers"][0]["url"] + re.sub(r"\{\w+\}", str(new_id()), path)
            for token in (None, "Bearer x", "Bearer " + "x" * 7000):
                headers = _json_headers() | ({} if token is None else {"Authorization": token})
                response = requests.request(method, url, headers=headers, data=b"{", timeout=20)
                assert response.status_code == 401, (method, path)
                assert response.json()["code"] in ("unauthenticated", "invalid_token")
                assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("name", "body"), _BODIES, ids=[name for name, _ in _BODIES])
def test_signed_nonsense(visitor: Visitor, sangam: "Stack", name: str, body: bytes) -> None:
    """A platform's signature makes a batch authentic, not sensible."""
    key = base64.b64decode(sangam.env["FEED_SECRET_BFC"].removeprefix("whsec_"))
    message_id, timestamp = f"msg_{new_id()}", str(int(time.time()))
    signature = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        "Content-Type": "application/json",
    }
    url = sangam.url("sync_gateway") + "/api/sync/feeds/bfc"
    response = visitor.send("POST", url, data=body, headers=headers)
    # 401: what is no text was not signed by the rules of Standard Webhooks either.
    assert response.status_code in (400, 401, 413), f"a signed body that is {name}: {response.text[:200]}"
    assert visitor.foreign_events() == []


def _json_headers() -> dict[str, str]:
    return {"Content-Type": "application/json", "Idempotency-Key": str(new_id())}


def _addresses(operation: Operation) -> Iterator[str]:
    """The operation's address with a plausible parameter first, then with implausible ones."""
    base = str(operation.base_url).rstrip("/")
    names = [parameter.name for parameter in operation.path_parameters]
    for segment in [str(new_id()), *(_SEGMENTS if names else [])]:
        path = operation.path
        for name in names:
            path = path.replace("{" + name + "}", segment)
        yield base + path
