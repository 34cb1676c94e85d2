"""`/api/auth` and `/.well-known/jwks.json`: routes, their bodies, and the one table from error to answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, Literal, TypeVar
from uuid import UUID

import msgspec
import structlog
from chassis.consistency import HEADER, consistency_token
from chassis.problems import Problem
from chassis.tokens import Caller
from events.contracts.identity import Platform
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from identity import contact, passwords
from identity.assertions import AssertionInvalid, PlatformUnavailable
from identity.keys import SigningKey
from identity.linking import AlreadyLinked, Confirmed, Linking, Requested
from identity.passwords import Overloaded
from identity.sessions import SessionEnded
from identity.sign_in import EmailTaken, Grant, InvalidCredentials, SignIn
from identity.tokens import ACCESS_LIFETIME, InvalidRefreshToken
from identity.users import LinkExpired, LinkNotFound

log = structlog.get_logger(__name__)

PLATFORMS: tuple[Platform, ...] = ("bfc", "vyomo")

JWKS_MAX_AGE_S = 60

ShortText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
CustomerId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request says. An unknown field is refused: it is a misspelt one or an attempt."""


class RegisterBody(Body, frozen=True, kw_only=True):
    email: ShortText
    password: ShortText
    full_name: ShortText
    phone: ShortText


class LoginBody(Body, frozen=True, kw_only=True):
    email: ShortText
    password: ShortText
    platform: Platform
    otp: Annotated[str, msgspec.Meta(max_length=16)] | None = None
    """Asked for once the user has enrolled TOTP."""


class RefreshBody(Body, frozen=True, kw_only=True):
    refresh_token: ShortText


class LinkBfcBody(Body, frozen=True, kw_only=True):
    bfc_customer_id: CustomerId


class LinkVyomoBody(Body, frozen=True, kw_only=True):
    vyomo_client_id: CustomerId


class ConfirmBody(Body, frozen=True, kw_only=True):
    link_id: UUID
    assertion: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class RegisterAnswer(msgspec.Struct, frozen=True, kw_only=True):
    user_id: UUID


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Named as in RFC 6749. `expires_in` is the access token's lifetime in seconds."""

    access_token: str
    refresh_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a type, not a secret
    expires_in: int = int(ACCESS_LIFETIME.total_seconds())
    session_id: UUID
    platforms: tuple[Platform, ...] = PLATFORMS
    """Where the session is valid: one login serves both."""


class LinkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    link_id: UUID
    nonce: str
    """What the platform must sign."""
    expires_at: datetime


class ConfirmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    link_id: UUID
    platform: Platform
    platform_customer_id: str
    status: Literal["linked"] = "linked"


class PlatformStatus(msgspec.Struct, frozen=True, kw_only=True):
    signed_in: bool
    linked: bool
    platform_customer_ids: list[str]


class StatusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    user_id: UUID
    session_id: UUID
    platform: str
    """The platform of the token that asked."""
    acr: int
    expires_at: datetime
    """When the session ends, however often it is refreshed."""
    platforms: dict[Platform, PlatformStatus]


_PROBLEMS: dict[type[Exception], Callable[[], Problem]] = {
    EmailTaken: partial(Problem, 409, "email_taken", "This e-mail address is registered already"),
    InvalidCredentials: partial(Problem, 401, "invalid_credentials", "E-mail address or password is wrong"),
    InvalidRefreshToken: partial(
        Problem, 401, "invalid_refresh_token", "The refresh token is not valid any more; log in again"
    ),
    SessionEnded: partial(
        Problem,
        401,
        "session_ended",
        "The session has ended; log in again",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    ),
    LinkNotFound: partial(Problem, 404, "link_not_found", "There is no such link request"),
    LinkExpired: partial(Problem, 422, "link_expired", "The link was not confirmed in time; request it again"),
    AssertionInvalid: partial(
        Problem, 422, "assertion_invalid", "The assertion does not prove ownership for this link request"
    ),
    AlreadyLinked: partial(Problem, 409, "already_linked", "This platform customer is linked to another user"),
    PlatformUnavailable: partial(
        Problem,
        503,
        "platform_unavailable",
        "The platform does not answer at the moment",
        headers={"Retry-After": "5"},
    ),
    Overloaded: partial(Problem, 503, "overloaded", "Too many logins at once", headers={"Retry-After": "1"}),
}


def routes(sign_in: SignIn, linking: Linking, signing_key: SigningKey) -> list[HTTPRouteHandler]:
    """The service's routes."""

    @post("/api/auth/register", status_code=201, summary="Register", tags=["auth"])
    async def register(data: RegisterBody) -> Response[RegisterAnswer]:
        """Makes a user. Refusals: 409 `email_taken`, 400 `weak_password`."""
        email, full_name, phone = _contact(data)
        with _answered():
            registered = await sign_in.register(email, data.password, full_name, phone)
        return _command(RegisterAnswer(user_id=registered.user_id), registered.event_id)

    @post("/api/auth/login", status_code=200, summary="Log in", tags=["auth"])
    async def login(data: LoginBody) -> Response[TokenAnswer]:
        """Opens a session that is valid on both platforms. Refusal: 401 `invalid_credentials`."""
        try:
            email = contact.email_address(data.email)
        except ValueError:
            email = None
        with _answered():
            return _tokens(await sign_in.login(email, data.password, data.platform))

    @post("/api/auth/refresh", status_code=200, summary="Rotate the refresh token", tags=["auth"])
    async def refresh(data: RefreshBody) -> Response[TokenAnswer]:
        """Gives new tokens for a refresh token, once. A token used again ends its session, except within
        10 s, when it gives the same successor. Refusal: 401 `invalid_refresh_token`."""
        with _answered():
            return _tokens(await sign_in.refresh(data.refresh_token))

    @get("/api/auth/status", summary="Session and links", tags=["auth"])
    async def status(caller: Caller) -> StatusAnswer:
        """Where the caller is signed in and what is linked. Refusal: 401 `session_ended`."""
        with _answered():
            found = await sign_in.status(caller)
        customers = {
            platform: [link.customer_id for link in found.links if link.platform == platform] for platform in PLATFORMS
        }
        return StatusAnswer(
            user_id=caller.user_id,
            session_id=caller.session_id,
            platform=caller.platform,
            acr=found.session.acr,
            expires_at=found.expires_at,
            platforms={
                platform: PlatformStatus(signed_in=True, linked=bool(ids), platform_customer_ids=ids)
                for platform, ids in customers.items()
            },
        )

    @post("/api/auth/link-bfc", status_code=201, summary="Link a BFC customer", tags=["links"])
    async def link_bfc(data: LinkBfcBody, caller: Caller) -> Response[LinkAnswer]:
        """Gives the nonce that the bank must sign once its customer approved."""
        return _requested(await linking.request(caller, "bfc", data.bfc_customer_id))

    @post("/api/auth/link-bfc/confirm", status_code=200, summary="Confirm a BFC link", tags=["links"])
    async def confirm_bfc(data: ConfirmBody, caller: Caller) -> Response[ConfirmAnswer]:
        """Refusals: 404 `link_not_found`, 422 `link_expired`, 422 `assertion_invalid`,
        409 `already_linked`, 503 `platform_unavailable`."""
        return await _confirm(linking, caller, "bfc", data)

    @post("/api/auth/link-vyomo", status_code=201, summary="Link a Vyomo client", tags=["links"])
    async def link_vyomo(data: LinkVyomoBody, caller: Caller) -> Response[LinkAnswer]:
        """Gives the nonce that the broker must sign once its client approved."""
        return _requested(await linking.request(caller, "vyomo", data.vyomo_client_id))

    @post("/api/auth/link-vyomo/confirm", status_code=200, summary="Confirm a Vyomo link", tags=["links"])
    async def confirm_vyomo(data: ConfirmBody, caller: Caller) -> Response[ConfirmAnswer]:
        """Refusals: 404 `link_not_found`, 422 `link_expired`, 422 `assertion_invalid`,
        409 `already_linked`, 503 `platform_unavailable`."""
        return await _confirm(linking, caller, "vyomo", data)

    @get("/.well-known/jwks.json", summary="Public keys", tags=["discovery"])
    async def jwks() -> Response[dict[str, list[dict[str, str]]]]:
        """The keys that access tokens are signed with (RFC 7517)."""
        return Response(
            {"keys": [signing_key.public_jwk]}, headers={"Cache-Control": f"public, max-age={JWKS_MAX_AGE_S}"}
        )

    return [
        register,
        login,
        refresh,
        status,
        link_bfc,
        confirm_bfc,
        link_vyomo,
        confirm_vyomo,
        jwks,
    ]


T = TypeVar("T")


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except tuple(_PROBLEMS) as error:
        raise _PROBLEMS[type(error)]() from None


def _command(content: T, event_id: UUID | None) -> Response[T]:
    return Response(content, headers={HEADER: consistency_token(event_id)} if event_id else None)


def _tokens(grant: Grant) -> Response[TokenAnswer]:
    answer = TokenAnswer(
        access_token=grant.access_token, refresh_token=grant.refresh_token, session_id=grant.session_id
    )
    return _command(answer, grant.event_id)


def _requested(request: Requested) -> Response[LinkAnswer]:
    answer = LinkAnswer(link_id=request.link_id, nonce=request.nonce, expires_at=request.expires_at)
    return _command(answer, request.event_id)


async def _confirm(linking: Linking, caller: Caller, platform: Platform, body: ConfirmBody) -> Response[ConfirmAnswer]:
    with _answered():
        try:
            confirmed: Confirmed = await linking.confirm(caller, platform, body.link_id, body.assertion)
        except AssertionInvalid as error:
            # The caller is told that it is refused, the operator also why.
            log.info("assertion_refused", platform=platform, reason=error.reason)
            raise
    answer = ConfirmAnswer(link_id=confirmed.link_id, platform=platform, platform_customer_id=confirmed.customer_id)
    return _command(answer, confirmed.event_id)


def _contact(body: RegisterBody) -> tuple[contact.EmailAddress, str, str]:
    """The fields of a registration in the form they are kept.

    Raises:
        Problem: 400 naming every refused field; `weak_password` when it is the password alone.
    """
    errors: list[dict[str, str]] = []

    def checked(field: str, check: Callable[[str], T], text: str) -> T | None:
        try:
            return check(text)
        except ValueError as error:
            errors.append({"field": field, "message": str(error)})
            return None

    email = checked("email", contact.email_address, body.email)
    full_name = checked("full_name", contact.full_name, body.full_name)
    phone = checked("phone", contact.phone_number, body.phone)
    if weakness := passwords.weakness(body.password):
        errors.append({"field": "password", "message": weakness})
    if email is None or full_name is None or phone is None:
        raise Problem(400, "invalid_request", "The body is not valid", errors=errors)
    if errors:
        raise Problem(400, "weak_password", f"The password {weakness}", errors=errors)
    return email, full_name, phone
