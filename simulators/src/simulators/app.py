"""The HTTP surface of one platform (`platforms.md`, "Simulators")."""

import hmac
import logging
import uuid
from collections import deque
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import Parameter
from litestar.types import LifespanHook
from standardwebhooks import Webhook

from simulators.assertions import AssertionSigner
from simulators.books import Announced, Books, Profile
from simulators.faults import Faults, FaultState
from simulators.feed import Feed
from simulators.journal import (
    Customer,
    CustomerExists,
    EventIdTaken,
    FeedItem,
    Journal,
    UnknownCustomer,
)
from simulators.live import Live
from simulators.settings import valid_secret

WEBHOOKS_KEPT = 10_000
"""How many received webhooks are listed, newest kept."""
EVENTS_PAGE_MAX = 1_000

log = logging.getLogger(__name__)


class Problem(Exception):
    """An answer that is an RFC 9457 problem."""

    def __init__(self, status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors = status, code, detail, errors

    def response(self) -> Response[dict[str, Any]]:
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.errors:
            body["errors"] = self.errors
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return Response(body, status_code=self.status, media_type="application/problem+json", headers=headers)


Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[\w.:\-]+$")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body; a field nobody knows is an error."""


class NewCustomer(Body, frozen=True, kw_only=True):
    customer_id: Identifier
    pin: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class AssertionRequest(Body, frozen=True, kw_only=True):
    nonce: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    pin: str


class NewEvent(Body, frozen=True, kw_only=True):
    """Something to happen. `data` is not checked: a platform may well report nonsense."""

    customer_id: Identifier
    type: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    data: dict[str, Any]
    occurred_at: datetime | None = None
    id: Identifier | None = None
    """Emitting one id twice makes one event; left out, the platform chooses."""


class NewEvents(Body, frozen=True, kw_only=True):
    items: Annotated[list[NewEvent], msgspec.Meta(min_length=1, max_length=1000)]


class NewSecret(Body, frozen=True, kw_only=True):
    secret: str


class ProfileEdit(Body, frozen=True, kw_only=True):
    fields: Annotated[dict[str, Any], msgspec.Meta(min_length=1, max_length=64)]


class FailRequest(Body, frozen=True, kw_only=True):
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 503
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None


class SlowRequest(Body, frozen=True, kw_only=True):
    delay_s: Seconds = 2.0


class LiveRequest(Body, frozen=True, kw_only=True):
    every_s: Seconds


class ReceivedWebhook(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook as it came in; `verified` is null while no secret was taught."""

    received_at: datetime
    webhook_id: str | None
    webhook_timestamp: str | None
    webhook_signature: str | None
    verified: bool | None
    body: Any


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """`pending`: events not yet taken by the gateway. `rejected`: events it refused for ever."""

    status: str
    platform: str
    pending: int
    rejected: int
    faults: FaultState
    live_every_s: float


async def platform_is_up(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Guard of what Sangam asks of a platform: the injected faults act here."""
    faults: Faults = connection.app.state.faults
    status = await faults.before_answer()
    if status is not None:
        raise Problem(status, "injected_fault", "This platform was told to fail (POST /control/fail).")


def verified(secrets: list[str], body: bytes, headers: dict[str, str]) -> bool | None:
    """Whether any of `secrets` signed this webhook; None when there are none to try."""
    if not secrets:
        return None
    for secret in secrets:
        try:
            Webhook(secret).verify(body, headers, json_parse=False)
        except Exception as error:
            # standardwebhooks 1.1.0 raises other exceptions than its own on malformed headers.
            log.debug("webhook not signed with one of the secrets: %r", error)
        else:
            return True
    return False


@post("/customers")
async def add_customer(data: NewCustomer, journal: Journal) -> Response[dict[str, str]]:
    try:
        new = journal.add_customer(data.customer_id, data.pin)
    except CustomerExists as error:
        raise Problem(409, "customer_exists", "This customer exists with another pin.") from error
    return Response({"customer_id": data.customer_id}, status_code=201 if new else 200)


@get("/customers")
async def list_customers(journal: Journal) -> dict[str, list[Customer]]:
    return {"items": journal.customers()}


@post("/customers/{customer_id:str}/link-assertion", status_code=200, guards=[platform_is_up])
async def link_assertion(
    customer_id: str, data: AssertionRequest, journal: Journal, signer: AssertionSigner
) -> dict[str, str]:
    pin = journal.pin_of(customer_id)
    if pin is None:
        raise Problem(404, "customer_not_found", "No such customer.")
    if not hmac.compare_digest(pin.encode(), data.pin.encode()):
        raise Problem(403, "wrong_pin", "The customer did not approve: wrong pin.")
    return {"assertion": signer.assertion(customer_id, data.nonce, datetime.now(UTC))}


@get("/.well-known/jwks.json", guards=[platform_is_up])
async def jwks(signer: AssertionSigner) -> dict[str, Any]:
    return signer.jwks


@post("/webhooks", status_code=200, guards=[platform_is_up])
async def receive_webhook(
    request: Request[Any, Any, Any],
    journal: Journal,
    books: Books,
    announce_secrets: list[str],
    received: deque[ReceivedWebhook],
) -> dict[str, bool]:
    raw = await request.body()
    headers = {name.lower(): value for name, value in request.headers.items()}
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # What came is listed as it came: it is the sender's test that must see it.
        body = raw.decode(errors="replace")
    announced = verified(announce_secrets, raw, headers) is True
    if announced:
        try:
            books.announced(msgspec.convert(body, Announced))
        except (msgspec.ValidationError, KeyError) as error:
            raise Problem(400, "invalid_announcement", "This is no announcement.") from error
    received.append(
        ReceivedWebhook(
            received_at=datetime.now(UTC),
            webhook_id=headers.get("webhook-id"),
            webhook_timestamp=headers.get("webhook-timestamp"),
            webhook_signature=headers.get("webhook-signature"),
            verified=announced or verified(journal.secrets(), raw, headers),
            body=body,
        )
    )
    return {"received": True}


@get("/webhooks/received")
async def list_webhooks(received: deque[ReceivedWebhook]) -> dict[str, list[ReceivedWebhook]]:
    return {"items": list(received)}


@post("/webhooks/secrets", status_code=204)
async def teach_secret(data: NewSecret, journal: Journal) -> None:
    if not valid_secret(data.secret):
        raise Problem(400, "invalid_secret", "A secret is whsec_<base64 of at least 24 bytes>.")
    journal.teach_secret(data.secret)


@post("/events")
async def emit(data: NewEvent, journal: Journal, feed: Feed, platform: str) -> Response[FeedItem]:
    item, new = _happens(data, journal, platform)
    feed.wake()
    return Response(item, status_code=201 if new else 200)


@post("/events/batch", status_code=200)
async def emit_many(data: NewEvents, journal: Journal, feed: Feed, platform: str) -> dict[str, int]:
    """One after the other; those before one that is refused have happened."""
    try:
        return {"new": sum(_happens(item, journal, platform)[1] for item in data.items)}
    finally:
        feed.wake()


def _happens(event: NewEvent, journal: Journal, platform: str) -> tuple[FeedItem, bool]:
    occurred_at = event.occurred_at or datetime.now(UTC)
    if occurred_at.tzinfo is None:
        message = "must carry an offset, e.g. Z"
        raise Problem(400, "invalid_request", "Bad input.", [{"field": "occurred_at", "message": message}])
    try:
        return journal.emit(
            event_id=event.id or f"{platform}-{uuid.uuid4()}",
            customer_id=event.customer_id,
            type_=event.type,
            occurred_at=msgspec.to_builtins(occurred_at.astimezone(UTC)),
            data=msgspec.json.encode(event.data),
        )
    except UnknownCustomer as error:
        raise Problem(404, "customer_not_found", "No such customer.") from error
    except EventIdTaken as error:
        raise Problem(409, "event_id_taken", "Another event has this id.") from error


@get("/events", guards=[platform_is_up])
async def pull(
    journal: Journal,
    customer_id: str,
    after: Annotated[int, Parameter(ge=0, le=2**63 - 1)] = 0,
    limit: Annotated[int, Parameter(ge=1, le=EVENTS_PAGE_MAX)] = EVENTS_PAGE_MAX,
) -> dict[str, list[FeedItem]]:
    try:
        return {"items": journal.events(customer_id, after, limit)}
    except UnknownCustomer as error:
        raise Problem(404, "customer_not_found", "No such customer.") from error


@get("/balances", guards=[platform_is_up])
async def balances(books: Books, customer_id: str) -> dict[str, list[dict[str, Any]]]:
    try:
        return {"items": books.balances(customer_id, msgspec.to_builtins(datetime.now(UTC)))}
    except UnknownCustomer as error:
        raise Problem(404, "customer_not_found", "No such customer.") from error


@get("/customers/{customer_id:str}/profile")
async def get_profile(customer_id: str, journal: Journal, books: Books) -> Profile:
    if journal.pin_of(customer_id) is None:
        raise Problem(404, "customer_not_found", "No such customer.")
    return books.profile(customer_id)


@post("/customers/{customer_id:str}/profile", status_code=200)
async def edit_profile(
    customer_id: str, data: ProfileEdit, journal: Journal, books: Books, feed: Feed, platform: str
) -> Profile:
    """The customer changes their profile at this platform, which reports it by its feed."""
    if journal.pin_of(customer_id) is None:
        raise Problem(404, "customer_not_found", "No such customer.")
    seen = books.edit(customer_id, data.fields)
    now = msgspec.to_builtins(datetime.now(UTC))
    journal.emit(
        event_id=f"{platform}-{uuid.uuid4()}",
        customer_id=customer_id,
        type_="profile.changed",
        occurred_at=now,
        data=msgspec.json.encode({"base_version": seen.version, "changed_at": now, "fields": data.fields}),
    )
    feed.wake()
    return books.profile(customer_id)


@post("/control/pause", status_code=200)
async def pause(faults: Faults) -> FaultState:
    faults.pause()
    return faults.state


@post("/control/resume", status_code=200)
async def resume(faults: Faults) -> FaultState:
    faults.resume()
    return faults.state


@post("/control/fail", status_code=200)
async def fail(faults: Faults, data: FailRequest | None = None) -> FaultState:
    wanted = data or FailRequest()
    faults.fail(wanted.status, wanted.times)
    return faults.state


@post("/control/slow", status_code=200)
async def slow(faults: Faults, data: SlowRequest | None = None) -> FaultState:
    faults.delay_s = (data or SlowRequest()).delay_s
    return faults.state


@post("/control/duplicate", status_code=200)
async def duplicate(faults: Faults) -> FaultState:
    faults.duplicate = True
    return faults.state


@post("/control/shuffle", status_code=200)
async def shuffle(faults: Faults) -> FaultState:
    faults.shuffle = True
    return faults.state


@post("/control/live", status_code=200)
async def set_live(data: LiveRequest, live: Live) -> LiveRequest:
    live.set_every(data.every_s)
    return data


@get("/health/ready")
async def ready(journal: Journal, faults: Faults, platform: str) -> Readiness:
    counts = journal.counts()
    return Readiness(
        status="ready",
        platform=platform,
        pending=counts.pending,
        rejected=counts.rejected,
        faults=faults.state,
        live_every_s=journal.live_every_s(),
    )


def _as_problem(_: Request[Any, Any, Any], error: Problem) -> Response[dict[str, Any]]:
    return error.response()


def _invalid(_: Request[Any, Any, Any], error: ValidationException) -> Response[dict[str, Any]]:
    extra = error.extra if isinstance(error.extra, list) else []
    errors = [{"field": str(item.get("key", "")), "message": str(item.get("message", ""))} for item in extra]
    return Problem(400, "invalid_request", "Bad input.", errors).response()


def _http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    code = HTTPStatus(error.status_code).name.lower()
    return Problem(error.status_code, code, HTTPStatus(error.status_code).phrase).response()


def _crash(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    log.error("request failed", exc_info=error)
    return Problem(500, "internal_error", "The simulator failed; its log says why.").response()


def _provide(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False)


def create_app(
    *,
    platform: str,
    journal: Journal,
    signer: AssertionSigner,
    faults: Faults,
    feed: Feed,
    live: Live,
    announce_secret: str | None = None,
    on_startup: list[LifespanHook],
    on_shutdown: list[LifespanHook],
) -> Litestar:
    """The application of one platform around its parts."""
    received: deque[ReceivedWebhook] = deque(maxlen=WEBHOOKS_KEPT)
    parts: dict[str, object] = {
        "platform": platform,
        "journal": journal,
        "signer": signer,
        "faults": faults,
        "feed": feed,
        "live": live,
        "received": received,
        "books": Books(journal, platform),
        "announce_secrets": [announce_secret] if announce_secret else [],
    }
    handlers = [
        add_customer, list_customers, link_assertion, jwks, receive_webhook, list_webhooks, teach_secret,
        emit, emit_many, pull, balances, get_profile, edit_profile, pause, resume, fail, slow, duplicate, shuffle,
        set_live, ready,
    ]  # fmt: skip
    app = Litestar(
        route_handlers=handlers,
        dependencies={name: _provide(part) for name, part in parts.items()},
        exception_handlers={
            Problem: _as_problem,
            ValidationException: _invalid,
            HTTPException: _http_error,
            Exception: _crash,
        },
        on_startup=on_startup,
        on_shutdown=on_shutdown,
        logging_config=None,
        openapi_config=None,
        request_max_body_size=2 * 1024 * 1024,
    )
    app.state.faults = faults
    return app
