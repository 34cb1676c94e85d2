"""`/api/auth`: registration, login, tokens, sessions and links."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
import structlog
from chassis.request import AnyRequest
from chassis.tokens import Caller, TokenVerifier
from events.contracts.identity import Platform
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from identity import contact
from identity.accounts import Accounts
from identity.assertions import AssertionInvalid
from identity.bodies import PLATFORMS, Body, Fields, Otp, ShortText, address_or_none, answered, command
from identity.linking import Confirmed, Linking, Requested
from identity.origin import Networks, device_of
from identity.sign_in import ExchangeRefused, Grant, SignIn, Status
from identity.tokens import ACCESS_LIFETIME

log = structlog.get_logger(__name__)

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type, not a secret

CustomerId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]


class RegisterBody(Body, frozen=True, kw_only=True):
    email: ShortText
    password: ShortText
    full_name: ShortText
    phone: ShortText


class LoginBody(Body, frozen=True, kw_only=True):
    email: ShortText
    password: ShortText
    platform: Platform
    otp: Otp | None = None
    """Asked for once the user has enrolled TOTP; a recovery code does as well."""


class RefreshBody(Body, frozen=True, kw_only=True):
    refresh_token: ShortText


class ExchangeBody(Body, frozen=True, kw_only=True):
    """RFC 8693, 2.1."""

    grant_type: str
    subject_token: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    subject_token_type: str
    audience: Annotated[str, msgspec.Meta(max_length=64)]
    scope: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    requested_token_type: str | None = None


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


class ExchangeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 8693, 2.2.1. There is no refresh token: the session's own is enough."""

    access_token: str
    issued_token_type: str = ACCESS_TOKEN
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a type, not a secret
    expires_in: int
    scope: str


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


class UnlinkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    platform: Platform
    platform_customer_ids: list[str]
    status: Literal["unlinked"] = "unlinked"


class PlatformStatus(msgspec.Struct, frozen=True, kw_only=True):
    signed_in: bool
    """The root session is good on both platforms."""
    active_at: datetime | None
    """When it was last used there; null if it has not been yet."""
    linked: bool
    platform_customer_ids: list[str]


class StatusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    user_id: UUID
    session_id: UUID
    platform: str
    """The platform of the token that asked."""
    acr: int
    mfa: bool
    """Whether a second factor is enrolled."""
    email_verified: bool
    expires_at: datetime
    """When the session ends, however often it is refreshed."""
    platforms: dict[Platform, PlatformStatus]


def routes(
    sign_in: SignIn, linking: Linking, accounts: Accounts, verifier: TokenVerifier, trusted_proxies: Networks
) -> list[HTTPRouteHandler]:
    """Registration, login, tokens, links."""

    @post("/api/auth/register", status_code=201, summary="Register", tags=["auth"])
    async def register(request: AnyRequest, data: JSONBody[RegisterBody]) -> Response[RegisterAnswer]:
        """Makes a user and sends a code to verify the address. Refusals: 409 `email_taken`, 400 `weak_password`."""
        fields = Fields()
        email = fields.checked("email", contact.email_address, data.email)
        full_name = fields.checked("full_name", contact.full_name, data.full_name)
        phone = fields.checked("phone", contact.phone_number, data.phone)
        fields.password("password", data.password)
        fields.refuse()
        assert email is not None
        assert full_name is not None
        assert phone is not None
        with answered():
            device = device_of(request, trusted_proxies)
            registered = await sign_in.register(email, data.password, full_name, phone, device)
        accounts.send_verification_later(registered.user_id)
        return command(RegisterAnswer(user_id=registered.user_id), registered.event_id)

    @post("/api/auth/login", status_code=200, summary="Log in", tags=["auth"])
    async def login(request: AnyRequest, data: JSONBody[LoginBody]) -> Response[TokenAnswer]:
        """Opens a session that is valid on both platforms. Refusals: 401 `invalid_credentials`, 401 `otp_required`,
        401 `invalid_otp`, 429 `too_many_attempts`."""
        with answered():
            device = device_of(request, trusted_proxies)
            return _tokens(
                await sign_in.login(address_or_none(data.email), data.password, data.platform, data.otp, device)
            )

    @post("/api/auth/refresh", status_code=200, summary="Rotate the refresh token", tags=["auth"])
    async def refresh(data: JSONBody[RefreshBody]) -> Response[TokenAnswer]:
        """Gives new tokens for a refresh token, once. A token used again ends its session, except within
        10 s, when it gives the same successor. Refusal: 401 `invalid_refresh_token`."""
        with answered():
            return _tokens(await sign_in.refresh(data.refresh_token))

    @post("/api/auth/exchange-token", status_code=200, summary="A token for the other platform", tags=["auth"])
    async def exchange_token(data: JSONBody[ExchangeBody], caller: NamedDependency[Caller]) -> Response[ExchangeAnswer]:
        """RFC 8693 token exchange, under the same root session. The subject token is the caller's own; its scope can
        only be narrowed. Refusals: 400 with `error` as in the RFC, 401 `session_ended`."""
        with answered():
            _check_exchange(data)
            exchanged = await sign_in.exchange(caller, verifier, data.subject_token, data.audience, data.scope)
        answer = ExchangeAnswer(
            access_token=exchanged.access_token, expires_in=exchanged.expires_in_s, scope=exchanged.scope
        )
        return command(answer, exchanged.event_id)

    @get("/api/auth/status", summary="Session and links", tags=["auth"])
    async def get_status(caller: NamedDependency[Caller]) -> StatusAnswer:
        """Where the caller is signed in and what is linked. Refusal: 401 `session_ended`."""
        with answered():
            return _status(caller, await sign_in.status(caller))

    @post("/api/auth/sync-session", status_code=200, summary="Bring both platforms to one state", tags=["auth"])
    async def sync_session(caller: NamedDependency[Caller]) -> StatusAnswer:
        """Both platforms' sessions become active now, with one expiry and one assurance. Refusal: 401
        `session_ended`."""
        with answered():
            return _status(caller, await sign_in.synchronise(caller))

    @post("/api/auth/link-bfc", status_code=201, summary="Link a BFC customer", tags=["links"])
    async def link_bfc(data: JSONBody[LinkBfcBody], caller: NamedDependency[Caller]) -> Response[LinkAnswer]:
        """Gives the nonce that the bank must sign once its customer approved."""
        return _requested(await linking.request(caller, "bfc", data.bfc_customer_id))

    @post("/api/auth/link-bfc/confirm", status_code=200, summary="Confirm a BFC link", tags=["links"])
    async def confirm_bfc(data: JSONBody[ConfirmBody], caller: NamedDependency[Caller]) -> Response[ConfirmAnswer]:
        """Refusals: 404 `link_not_found`, 422 `link_expired`, 422 `assertion_invalid`,
        409 `already_linked`, 503 `platform_unavailable`."""
        return await _confirm(linking, caller, "bfc", data)

    @post("/api/auth/link-vyomo", status_code=201, summary="Link a Vyomo client", tags=["links"])
    async def link_vyomo(data: JSONBody[LinkVyomoBody], caller: NamedDependency[Caller]) -> Response[LinkAnswer]:
        """Gives the nonce that the broker must sign once its client approved."""
        return _requested(await linking.request(caller, "vyomo", data.vyomo_client_id))

    @post("/api/auth/link-vyomo/confirm", status_code=200, summary="Confirm a Vyomo link", tags=["links"])
    async def confirm_vyomo(data: JSONBody[ConfirmBody], caller: NamedDependency[Caller]) -> Response[ConfirmAnswer]:
        """Refusals: 404 `link_not_found`, 422 `link_expired`, 422 `assertion_invalid`,
        409 `already_linked`, 503 `platform_unavailable`."""
        return await _confirm(linking, caller, "vyomo", data)

    @delete("/api/auth/link-bfc", status_code=200, summary="Unlink from BFC", tags=["links"])
    async def unlink_bfc(caller: NamedDependency[Caller]) -> Response[UnlinkAnswer]:
        """The history up to here stays. Refusal: 404 `not_linked`."""
        return await _unlink(linking, caller, "bfc")

    @delete("/api/auth/link-vyomo", status_code=200, summary="Unlink from Vyomo", tags=["links"])
    async def unlink_vyomo(caller: NamedDependency[Caller]) -> Response[UnlinkAnswer]:
        """The history up to here stays. Refusal: 404 `not_linked`."""
        return await _unlink(linking, caller, "vyomo")

    return [
        register,
        login,
        refresh,
        exchange_token,
        get_status,
        sync_session,
        link_bfc,
        link_vyomo,
        confirm_bfc,
        confirm_vyomo,
        unlink_bfc,
        unlink_vyomo,
    ]


def _check_exchange(body: ExchangeBody) -> None:
    if body.grant_type != EXCHANGE:
        raise ExchangeRefused("unsupported_grant_type", f"grant_type must be {EXCHANGE}")
    if body.subject_token_type != ACCESS_TOKEN or body.requested_token_type not in (None, ACCESS_TOKEN):
        raise ExchangeRefused("invalid_request", f"Token types must be {ACCESS_TOKEN}")


def _tokens(grant: Grant) -> Response[TokenAnswer]:
    answer = TokenAnswer(
        access_token=grant.access_token, refresh_token=grant.refresh_token, session_id=grant.session_id
    )
    return command(answer, grant.event_id)


def _status(caller: Caller, found: Status) -> StatusAnswer:
    customers = {
        platform: [link.customer_id for link in found.links if link.platform == platform] for platform in PLATFORMS
    }
    return StatusAnswer(
        user_id=caller.user_id,
        session_id=caller.session_id,
        platform=caller.platform,
        acr=found.session.acr,
        mfa=found.user.mfa is not None,
        email_verified=found.user.email_verified,
        expires_at=found.expires_at,
        platforms={
            platform: PlatformStatus(
                signed_in=True,
                active_at=found.session.active.get(platform),
                linked=bool(ids),
                platform_customer_ids=ids,
            )
            for platform, ids in customers.items()
        },
    )


def _requested(request: Requested) -> Response[LinkAnswer]:
    answer = LinkAnswer(link_id=request.link_id, nonce=request.nonce, expires_at=request.expires_at)
    return command(answer, request.event_id)


async def _confirm(linking: Linking, caller: Caller, platform: Platform, body: ConfirmBody) -> Response[ConfirmAnswer]:
    with answered():
        try:
            confirmed: Confirmed = await linking.confirm(caller, platform, body.link_id, body.assertion)
        except AssertionInvalid as error:
            # The caller is told that it is refused, the operator also why.
            log.info("assertion_refused", platform=platform, reason=error.reason)
            raise
    answer = ConfirmAnswer(link_id=confirmed.link_id, platform=platform, platform_customer_id=confirmed.customer_id)
    return command(answer, confirmed.event_id)


async def _unlink(linking: Linking, caller: Caller, platform: Platform) -> Response[UnlinkAnswer]:
    with answered():
        customer_ids, event_id = await linking.remove(caller, platform)
    return command(UnlinkAnswer(platform=platform, platform_customer_ids=customer_ids), event_id)
