"""`/oauth`: tokens for operators' programs and for the platforms' own apps."""

from typing import Any

import msgspec
import structlog
from chassis.request import AnyRequest
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from identity.clients import InvalidClient, OpsClients
from identity.forms import basic_credentials, form_of, oauth_error
from identity.grants import InvalidGrant
from identity.keyring import KeyRing
from identity.openid import OpenId
from identity.tokens import OPS_LIFETIME, AccessTokens

log = structlog.get_logger(__name__)


class OAuthTokens(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token response (RFC 6749, 5.1)."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str
    refresh_token: str | None = None
    id_token: str | None = None


JWKS_MAX_AGE_S = 60


def routes(
    ops_clients: OpsClients, access_tokens: AccessTokens, ring: KeyRing, openid: OpenId
) -> list[HTTPRouteHandler]:
    """The routes of `/oauth`, and the public keys."""

    @get("/.well-known/jwks.json", summary="Public keys", tags=["discovery"])
    async def get_jwks() -> Response[dict[str, list[dict[str, str]]]]:
        """The keys that tokens are signed with, now and soon (RFC 7517)."""
        return Response({"keys": ring.public_jwks}, headers={"Cache-Control": f"public, max-age={JWKS_MAX_AGE_S}"})

    @post("/oauth/token", status_code=200, summary="Token endpoint", tags=["oauth"])
    async def issue_token(request: AnyRequest) -> OAuthTokens:
        """OAuth 2 token endpoint, form-encoded: `authorization_code` (with `code_verifier`) and `refresh_token` for the
        platforms' apps, `client_credentials` with HTTP Basic for operators. Refusals have `error` as in RFC 6749."""
        form = await form_of(request)
        match form.get("grant_type"):
            case "client_credentials":
                return _client_credentials(request, form)
            case "authorization_code":
                return await _app_tokens(form, "code", "redirect_uri", "code_verifier")
            case "refresh_token":
                return await _app_tokens(form, "refresh_token")
            case None:
                raise oauth_error(400, "invalid_request", "grant_type is required")
            case _:
                raise oauth_error(400, "unsupported_grant_type", "This grant type is not supported")

    async def _app_tokens(form: dict[str, str], *needed: str) -> OAuthTokens:
        for name in ("client_id", *needed):
            if name not in form:
                raise oauth_error(400, "invalid_request", f"{name} is required")
        client_id = form["client_id"]
        try:
            if client_id not in openid.apps:
                raise oauth_error(401, "invalid_client", "There is no such client")
            if "code" in needed:
                tokens = await openid.redeem(client_id, form["code"], form["redirect_uri"], form["code_verifier"])
            else:
                tokens = await openid.refresh(client_id, form["refresh_token"], form.get("scope"))
        except InvalidGrant:
            raise oauth_error(400, "invalid_grant", "The grant is not valid for this client") from None
        return OAuthTokens(
            access_token=tokens.access_token,
            token_type="Bearer",  # noqa: S106 - a type, not a secret
            expires_in=int(access_tokens.lifetime.total_seconds()),
            scope=tokens.scope,
            refresh_token=tokens.refresh_token,
            id_token=tokens.id_token,
        )

    def _client_credentials(request: AnyRequest, form: dict[str, Any]) -> OAuthTokens:
        credentials = basic_credentials(request)
        try:
            if credentials is None:
                raise InvalidClient
            client = ops_clients.authenticated(*credentials)
        except InvalidClient:
            log.info("client_refused")
            raise oauth_error(
                401, "invalid_client", "The client is not authenticated", challenge='Basic realm="sangam"'
            ) from None
        wanted = frozenset(form["scope"].split()) if "scope" in form else client.scopes
        if not wanted <= client.scopes:
            raise oauth_error(400, "invalid_scope", "The client may not have this scope")
        scope = " ".join(sorted(wanted))
        return OAuthTokens(
            access_token=access_tokens.issue_ops(client.client_id, client.subject, scope),
            token_type="Bearer",  # noqa: S106 - a type, not a secret
            expires_in=int(OPS_LIFETIME.total_seconds()),
            scope=scope,
        )

    return [get_jwks, issue_token]
