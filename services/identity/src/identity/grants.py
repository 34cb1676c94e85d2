"""What an app gets under a session: an authorization code, once, against its PKCE verifier (RFC 7636). Pure."""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from events.contracts.identity import AuthorizationCodeIssued, PlatformJoined
from events.contracts.registry import Event
from events.decisions import Refusal

from identity.clients import App
from identity.sessions import Session, SessionEnded, owner, revoke

CODE_LIFETIME = timedelta(seconds=60)
CODE_REUSE = "code_reuse"
GRANTS_MAX = 100
"""Codes and grants under one session. A session that asks for more is not a person's."""

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}", re.ASCII)
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class InvalidGrant(Refusal):
    """The code is unknown, used, expired, another client's or another address's, or its verifier does not fit."""

    code = "invalid_grant"


class TooManyGrants(Refusal):
    """The session holds as many grants as one may."""

    code = "too_many_grants"


def is_challenge(text: str) -> bool:
    """Whether the text can be the S256 challenge of a verifier."""
    return _CHALLENGE.fullmatch(text) is not None


def challenge_of(verifier: str) -> str:
    """S256: base64url of the SHA-256 of the verifier (RFC 7636, 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def issue_code(
    session: Session,
    session_id: UUID,
    grant_id: UUID,
    app: App,
    *,
    redirect_uri: str,
    scope: str,
    nonce: str | None,
    code_challenge: str,
    auth_time: datetime,
    now: datetime,
) -> Sequence[Event]:
    """Grants the app a code.

    Raises:
        SessionEnded, TooManyGrants
    """
    owner(session, now)
    if len(session.grants) >= GRANTS_MAX:
        raise TooManyGrants
    return [
        AuthorizationCodeIssued(
            session_id=session_id,
            grant_id=grant_id,
            client_id=app.client_id,
            platform=app.platform,
            redirect_uri=redirect_uri,
            scope=scope,
            nonce=nonce,
            code_challenge=code_challenge,
            auth_time=auth_time,
            expires_at=now + CODE_LIFETIME,
        )
    ]


def redeem_code(
    session: Session,
    session_id: UUID,
    grant_id: UUID,
    *,
    client_id: str,
    redirect_uri: str,
    code_verifier: str,
    now: datetime,
) -> Sequence[Event]:
    """Uses the (authentic) code of a grant. A code used again ends the session: somebody else holds it.

    Raises:
        InvalidGrant
    """
    try:
        user_id = owner(session, now)
    except SessionEnded:
        raise InvalidGrant from None
    grant = session.grants.get(grant_id)
    if grant is None or grant.client_id != client_id or grant.redirect_uri != redirect_uri:
        raise InvalidGrant
    if grant.redeemed:
        return revoke(session, session_id, CODE_REUSE, now)
    fits = _VERIFIER.fullmatch(code_verifier) is not None and hmac.compare_digest(
        challenge_of(code_verifier).encode(), grant.code_challenge.encode()
    )
    if not fits or now >= grant.code_expires_at:
        raise InvalidGrant
    return [
        PlatformJoined(
            session_id=session_id,
            user_id=user_id,
            platform=grant.platform,
            joined_at=now,
            client_id=client_id,
            grant_id=grant_id,
        )
    ]
