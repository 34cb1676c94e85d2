"""OpenID Connect for the platforms' own apps: authorization code with PKCE (S256 only), exact redirect addresses.

OpenID Connect Core 1.0, RFC 6749, RFC 7636 (PKCE), RFC 9207 (`iss` in the answer), RP-Initiated Logout 1.0. The apps
are public clients: what proves a code is the verifier, not a secret.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit
from uuid import UUID

import jwt
import msgspec
from chassis.request import request_metadata
from chassis.tokens import Caller
from events.contracts.identity import PlatformJoined, RefreshReuseDetected
from events.decisions import Streams
from events.envelope import new_id
from jwt.algorithms import ECAlgorithm

from identity import grants, sessions
from identity.clients import App
from identity.grants import InvalidGrant
from identity.keyring import KeyRing
from identity.people import People
from identity.root_sessions import LOGOUT, RootSessions
from identity.sealing import IdentityKey
from identity.sessions import Grant, Session, SessionEnded
from identity.tokens import APP_SCOPE, AccessTokens, InvalidRefreshToken, SignedIds
from identity.users import User

OPENID_SCOPES = ("openid", "profile", "email", "phone")
SCOPES = (*OPENID_SCOPES, *APP_SCOPE.split())
ID_TOKEN_TYPE = "JWT"  # noqa: S105 - a type, not a secret
STATE_LENGTH_MAX = 1024
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)


class NotForRedirect(Exception):
    """The client or its address is not known: the browser is told, and sent nowhere."""


class RedirectError(Exception):
    """The request is refused; the app is told at its own address."""

    def __init__(self, redirect_uri: str, error: str, description: str, state: str | None) -> None:
        super().__init__(description)
        self.redirect_uri = redirect_uri
        self.error = error
        self.description = description
        self.state = state


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An authorization request that may be granted."""

    client_id: str
    redirect_uri: str
    scope: str
    state: str | None
    nonce: str | None
    code_challenge: str
    login: bool
    """Whether the person must show their password even if the browser is signed in."""
    silent: bool
    """Whether no page may be shown."""
    max_age_s: int | None
    """How long ago the password may have been shown at most."""


class Tokens(NamedTuple):
    access_token: str
    refresh_token: str
    id_token: str
    scope: str


def asked(params: Mapping[str, str], apps: Mapping[str, App]) -> Asked:
    """The authorization request that the query describes.

    Raises:
        NotForRedirect, RedirectError
    """
    app = apps.get(params.get("client_id", ""))
    redirect_uri = params.get("redirect_uri", "")
    # Compared as text, as a whole: no prefix, no case, no port is forgiven.
    if app is None or redirect_uri not in app.redirect_uris:
        raise NotForRedirect
    state = params.get("state")

    def refused(error: str, description: str) -> RedirectError:
        return RedirectError(redirect_uri, error, description, state)

    if state is not None and len(state) > STATE_LENGTH_MAX:
        state = None
        raise refused("invalid_request", "state is too long")
    if params.get("response_type") != "code":
        raise refused("unsupported_response_type", "response_type must be code")
    if params.get("response_mode", "query") != "query":
        raise refused("invalid_request", "response_mode must be query")
    if "request" in params or "request_uri" in params:
        raise refused("request_not_supported", "Request objects are not supported")
    scope = params.get("scope", "").split()
    if "openid" not in scope or not set(scope) <= set(SCOPES):
        raise refused("invalid_scope", "scope must contain openid, and nothing unknown")
    challenge = params.get("code_challenge", "")
    if params.get("code_challenge_method") != "S256" or not grants.is_challenge(challenge):
        raise refused("invalid_request", "PKCE with S256 is required")
    nonce = params.get("nonce")
    if nonce is not None and len(nonce) > STATE_LENGTH_MAX:
        raise refused("invalid_request", "nonce is too long")
    max_age = params.get("max_age")
    if max_age is not None and not _SECONDS.fullmatch(max_age):
        raise refused("invalid_request", "max_age must be a number of seconds")
    prompt = params.get("prompt", "").split()
    if not set(prompt) <= {"none", "login", "consent", "select_account"} or ("none" in prompt and len(prompt) > 1):
        raise refused("invalid_request", "prompt is not understood")
    return Asked(
        client_id=app.client_id,
        redirect_uri=redirect_uri,
        scope=" ".join(dict.fromkeys(scope)),
        state=state,
        nonce=nonce,
        code_challenge=challenge,
        login="login" in prompt or "select_account" in prompt,
        silent="none" in prompt,
        max_age_s=int(max_age) if max_age is not None else None,
    )


class OpenId:
    """Codes, tokens and logout of the platforms' own apps."""

    def __init__(
        self,
        apps: Mapping[str, App],
        roots: RootSessions,
        user_streams: Streams[User],
        people: People,
        access_tokens: AccessTokens,
        ring: KeyRing,
        identity_key: IdentityKey,
    ) -> None:
        self.apps = apps
        self.issuer = access_tokens.issuer
        self._roots = roots
        self._users = user_streams
        self._people = people
        self._access_tokens = access_tokens
        self._ring = ring
        self._codes = SignedIds(identity_key, "authorization-code")
        self._refresh_tokens = SignedIds(identity_key, "app-refresh-token")
        self._browsers = SignedIds(identity_key, "browser-session")

    # The browser's session.

    def cookie(self, session_id: UUID) -> str:
        """What the browser keeps: the session's id, signed."""
        return self._browsers.issue((session_id,))

    async def browser_session(self, cookie: str | None, max_age_s: int | None) -> tuple[UUID, UUID] | None:
        """Session and user of a browser that is signed in, since at most `max_age_s`."""
        if cookie is None:
            return None
        try:
            (session_id,), _ = self._browsers.read(cookie, 1)
            now, session = datetime.now(UTC), await self._roots.load(session_id)
            user_id = sessions.owner(session, now)
        except (InvalidRefreshToken, SessionEnded):
            return None
        assert session.expires_at is not None
        age = now - (session.expires_at - sessions.LIFETIME)
        return None if max_age_s is not None and age >= timedelta(seconds=max_age_s) else (session_id, user_id)

    # Codes and tokens.

    async def grant(self, request: Asked, session_id: UUID, user_id: UUID) -> str:
        """Where the browser goes with its code.

        Raises:
            SessionEnded, TooManyGrants
        """
        app, grant_id, now = self.apps[request.client_id], new_id(), datetime.now(UTC)

        def decide(session: Session) -> Any:
            assert session.expires_at is not None
            return grants.issue_code(
                session,
                session_id,
                grant_id,
                app,
                redirect_uri=request.redirect_uri,
                scope=request.scope,
                nonce=request.nonce,
                code_challenge=request.code_challenge,
                auth_time=session.expires_at - sessions.LIFETIME,
                now=now,
            )

        metadata = request_metadata(f"user:{user_id}", app.platform)
        await self._roots.decide(session_id, decide, user_id=user_id, metadata=metadata)
        return self.answer(request.redirect_uri, request.state, code=self._codes.issue((session_id, grant_id)))

    def answer(self, redirect_uri: str, state: str | None, **fields: str) -> str:
        """The app's address with the answer in its query."""
        query = urlencode({**fields, **({"state": state} if state is not None else {}), "iss": self.issuer})
        return redirect_uri + ("&" if urlsplit(redirect_uri).query else "?") + query

    async def redeem(self, client_id: str, code: str, redirect_uri: str, code_verifier: str) -> Tokens:
        """The tokens for a code.

        Raises:
            InvalidGrant: also for a code used again, which ends the session.
        """
        try:
            (session_id, grant_id), _ = self._codes.read(code, 2)
        except InvalidRefreshToken:
            raise InvalidGrant from None
        now, session = datetime.now(UTC), await self._roots.load(session_id)
        if session.user_id is None or client_id not in self.apps:
            raise InvalidGrant
        decided = await self._roots.decide(
            session_id,
            lambda current: grants.redeem_code(
                current,
                session_id,
                grant_id,
                client_id=client_id,
                redirect_uri=redirect_uri,
                code_verifier=code_verifier,
                now=now,
            ),
            user_id=session.user_id,
            metadata=request_metadata(f"user:{session.user_id}", self.apps[client_id].platform),
        )
        if not any(isinstance(event, PlatformJoined) for event in decided.events):
            raise InvalidGrant
        return await self._tokens(session_id, session, grant_id, session.grants[grant_id], 0, now)

    async def refresh(self, client_id: str, refresh_token: str, scope: str | None) -> Tokens:
        """Rotates an app's refresh token.

        Raises:
            InvalidGrant: also for a token used again, which ends the session.
        """
        try:
            (session_id, grant_id), generation = self._refresh_tokens.read(refresh_token, 2)
            session = await self._roots.load(session_id)
            now = datetime.now(UTC)
            user_id = sessions.owner(session, now)
            grant = session.grants.get(grant_id)
            if grant is None or grant.client_id != client_id:
                raise InvalidGrant
            if scope is not None and not set(scope.split()) <= set(grant.scope.split()):
                raise InvalidGrant
            decided = await self._roots.decide(
                session_id,
                lambda current: sessions.refresh(current, session_id, generation, now, grant_id),
                user_id=user_id,
                metadata=request_metadata(f"user:{user_id}", grant.platform),
            )
        except (InvalidRefreshToken, SessionEnded):
            raise InvalidGrant from None
        if any(isinstance(event, RefreshReuseDetected) for event in decided.events):
            raise InvalidGrant
        return await self._tokens(session_id, session, grant_id, grant, generation + 1, now, scope)

    async def _tokens(
        self,
        session_id: UUID,
        session: Session,
        grant_id: UUID,
        grant: Grant,
        generation: int,
        now: datetime,
        scope: str | None = None,
    ) -> Tokens:
        assert session.user_id is not None
        user, _ = await self._users.load(session.user_id)
        scope = " ".join(scope.split()) if scope is not None else grant.scope
        access_token = self._access_tokens.issue(
            user_id=session.user_id,
            session_id=session_id,
            platform=grant.platform,
            acr=session.acr,
            now=now,
            mfa=user.mfa is not None,
            scope=scope,
            client_id=grant.client_id,
        )
        issued_at = int(now.timestamp())
        half = hashlib.sha256(access_token.encode()).digest()[:16]
        id_token = {
            "iss": self.issuer,
            "sub": str(session.user_id),
            "aud": grant.client_id,
            "iat": issued_at,
            "exp": issued_at + int(self._access_tokens.lifetime.total_seconds()),
            "auth_time": int(grant.auth_time.timestamp()),
            "acr": str(session.acr),
            "sid": str(session_id),
            "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(),
            **({"nonce": grant.nonce} if grant.nonce is not None else {}),
        }
        return Tokens(
            access_token,
            self._refresh_tokens.issue((session_id, grant_id), generation),
            self._access_tokens.signed(ID_TOKEN_TYPE, id_token),
            scope,
        )

    async def userinfo(self, caller: Caller) -> dict[str, Any]:
        """What the token's scopes let one know of its user."""
        user, _ = await self._users.load(caller.user_id)
        profile = await self._people.profile(caller.user_id, user)
        told: dict[str, Any] = {"sub": str(caller.user_id)}
        if profile is not None:
            if "profile" in caller.scopes:
                told["name"] = profile.full_name
            if "email" in caller.scopes:
                told |= {"email": profile.email, "email_verified": user.email_verified}
            if "phone" in caller.scopes:
                told["phone_number"] = profile.phone
        return told

    # Logout.

    async def end_session(self, id_token_hint: str, redirect_uri: str | None, state: str | None) -> str | None:
        """Ends the session that the ID token is of. Where the browser goes then; None: it stays.

        Raises:
            NotForRedirect: the hint is none of ours, or the address is not the app's.
        """
        claims = self._hinted(id_token_hint)
        app = self.apps[claims["aud"]]
        if redirect_uri is not None and redirect_uri not in app.post_logout_redirect_uris:
            raise NotForRedirect
        user_id, session_id = UUID(claims["sub"]), UUID(claims["sid"])
        metadata = request_metadata(f"user:{user_id}", app.platform)
        await self._roots.end(user_id, lambda known, _: [session_id], LOGOUT, metadata)
        if redirect_uri is None:
            return None
        query = urlencode({"state": state}) if state is not None else ""
        return redirect_uri + (("&" if urlsplit(redirect_uri).query else "?") + query if query else "")

    def _hinted(self, id_token: str) -> dict[str, Any]:
        """The claims of an ID token of ours, which may have expired."""
        try:
            header = jwt.get_unverified_header(id_token)
            (jwk,) = (jwk for jwk in self._ring.public_jwks if jwk["kid"] == header.get("kid"))
            if header.get("typ") != ID_TOKEN_TYPE:
                raise NotForRedirect
            claims: dict[str, Any] = jwt.decode(
                id_token,
                ECAlgorithm.from_jwk(jwk),  # type: ignore[arg-type]
                algorithms=["ES256"],
                audience=list(self.apps),
                issuer=self.issuer,
                options={"verify_exp": False, "require": ["aud", "sub", "sid", "iss"]},
            )
        except (jwt.InvalidTokenError, ValueError):
            raise NotForRedirect from None
        if not isinstance(claims["aud"], str):
            raise NotForRedirect
        return claims


def discovery(issuer: str) -> dict[str, Any]:
    """The metadata document (OpenID Connect Discovery 1.0, RFC 8414)."""
    return {
        "issuer": issuer,
        "authorization_endpoint": f"{issuer}/oauth/authorize",
        "token_endpoint": f"{issuer}/oauth/token",
        "userinfo_endpoint": f"{issuer}/oauth/userinfo",
        "end_session_endpoint": f"{issuer}/oauth/logout",
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "subject_types_supported": ["public"],
        "scopes_supported": list(SCOPES),
        "claims_supported": [
            *("iss", "sub", "aud", "iat", "exp", "auth_time", "acr", "sid", "nonce", "at_hash"),
            *("name", "email", "email_verified", "phone_number"),
        ],
        "prompt_values_supported": ["none", "login", "consent", "select_account"],
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
        "authorization_response_iss_parameter_supported": True,
        "backchannel_logout_supported": True,
        "backchannel_logout_session_supported": True,
    }
