"""What a client holds: access tokens (JWT, verified offline by every service) and refresh tokens (opaque)."""

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import jwt
from chassis import step_up
from chassis.tokens import OPS_AUDIENCE
from events.contracts.identity import Platform
from events.envelope import new_id

from identity.keys import SigningKey
from identity.sealing import IdentityKey

ACCESS_LIFETIME = timedelta(minutes=5)
OPS_LIFETIME = timedelta(minutes=10)

APP_SCOPE = "accounts:read transfers:write sync:read wealth:read notifications:read search:read"
"""What a platform's app may be granted (enforced by `chassis.scopes`)."""

CUSTOMER_SCOPE = f"{APP_SCOPE} account:manage"
"""What a customer may do after a login."""

_GENERATION_BYTES = 4
_ID_BYTES = 16


class InvalidRefreshToken(Exception):
    """Not a refresh token of ours."""


class RefreshToken(NamedTuple):
    """What an authentic refresh token stands for."""

    session_id: UUID
    generation: int


class AccessTokens:
    """Issues access tokens (RFC 9068)."""

    def __init__(
        self, issuer: str, current_key: Callable[[], SigningKey], lifetime: timedelta = ACCESS_LIFETIME
    ) -> None:
        self.issuer = issuer
        self.lifetime = lifetime
        self._current_key = current_key

    def issue(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        platform: Platform,
        acr: int,
        now: datetime,
        mfa: bool = False,
        scope: str = CUSTOMER_SCOPE,
        client_id: str | None = None,
        jti: UUID | None = None,
        expires_at: datetime | None = None,
        act: dict[str, Any] | None = None,
    ) -> str:
        """A token for `platform`, valid until `expires_at` (default: for the usual lifetime).

        `act` says who acts with it, where it was exchanged (RFC 8693, 4.1).
        """
        issued_at = int(now.timestamp())
        claims = {
            "iss": self.issuer,
            "sub": str(user_id),
            "aud": platform,
            "sid": str(session_id),
            "acr": acr,
            "mfa": mfa,
            "scope": scope,
            "iat": issued_at,
            "nbf": issued_at,
            "exp": int((expires_at or now + self.lifetime).timestamp()),
            "jti": str(jti or new_id()),
        }
        if client_id is not None:
            claims["client_id"] = client_id
        if act is not None:
            claims["act"] = act
        return self.signed("at+jwt", claims)

    def issue_step_up(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        jti: UUID,
        amount_minor: int,
        currency: str,
        to_account_id: UUID | None,
        now: datetime,
        lifetime: timedelta,
    ) -> str:
        """A token that confirms one operation (`chassis.step_up`)."""
        issued_at = int(now.timestamp())
        claims = {
            "iss": self.issuer,
            "aud": step_up.AUDIENCE,
            "sub": str(user_id),
            "sid": str(session_id),
            "jti": str(jti),
            "iat": issued_at,
            "exp": issued_at + int(lifetime.total_seconds()),
            "amount_minor": amount_minor,
            "currency": currency,
            "to_account_id": None if to_account_id is None else str(to_account_id),
        }
        return self.signed(step_up.TYPE, claims)

    def issue_ops(self, client_id: str, subject: UUID, scope: str) -> str:
        """A token for an operators' program, valid for `OPS_LIFETIME`. It acts for no one by itself."""
        issued_at = int(datetime.now(UTC).timestamp())
        claims = {
            "iss": self.issuer,
            "sub": str(subject),
            "aud": OPS_AUDIENCE,
            "sid": str(subject),
            "acr": 0,
            "client_id": client_id,
            "scope": scope,
            "iat": issued_at,
            "nbf": issued_at,
            "exp": issued_at + int(OPS_LIFETIME.total_seconds()),
            "jti": str(new_id()),
        }
        return self.signed("at+jwt", claims)

    def signed(self, kind: str, claims: dict[str, Any]) -> str:
        """`claims` under the key that signs now. `kind` is the header's `typ`: what one is, no other is."""
        key = self._current_key()
        return jwt.encode(claims, key.private_key, algorithm="ES256", headers={"typ": kind, "kid": key.kid})


class RefreshTokens:
    """Refresh tokens, computed from session and generation with a key.

    Nothing of them is stored: the successor of a token can be given again within the grace, and the
    event store holds nothing that could be used as a token.
    """

    def __init__(self, identity_key: IdentityKey) -> None:
        self._key = identity_key.mac_key("refresh-token")

    def issue(self, session_id: UUID, generation: int) -> str:
        """The token of a session's generation: always the same text."""
        place = session_id.bytes + generation.to_bytes(_GENERATION_BYTES, "big")
        mac = hmac.new(self._key, place, hashlib.sha256).digest()
        return urlsafe_b64encode(place + mac).rstrip(b"=").decode()

    def read(self, token: str) -> RefreshToken:
        """What the token stands for. Whether it is still good is for the session to say.

        Raises:
            InvalidRefreshToken: malformed or forged.
        """
        try:
            raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
            session_id = UUID(bytes=raw[:_ID_BYTES])
        except ValueError:
            raise InvalidRefreshToken from None
        generation = int.from_bytes(raw[_ID_BYTES : _ID_BYTES + _GENERATION_BYTES], "big")
        if not hmac.compare_digest(self.issue(session_id, generation).encode(), token.encode()):
            raise InvalidRefreshToken
        return RefreshToken(session_id, generation)


class SignedIds:
    """Ids and a number as a text that only we can make, for one purpose. Nothing of it is stored."""

    def __init__(self, identity_key: IdentityKey, purpose: str) -> None:
        self._key = identity_key.mac_key(purpose)

    def issue(self, ids: tuple[UUID, ...], number: int = 0) -> str:
        """Always the same text for the same ids and number."""
        place = b"".join(each.bytes for each in ids) + number.to_bytes(_GENERATION_BYTES, "big")
        mac = hmac.new(self._key, place, hashlib.sha256).digest()
        return urlsafe_b64encode(place + mac).rstrip(b"=").decode()

    def read(self, text: str, count: int) -> tuple[tuple[UUID, ...], int]:
        """The `count` ids and the number.

        Raises:
            InvalidRefreshToken: malformed or forged.
        """
        length = _ID_BYTES * count
        try:
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            ids = tuple(UUID(bytes=raw[at : at + _ID_BYTES]) for at in range(0, length, _ID_BYTES))
        except ValueError:
            raise InvalidRefreshToken from None
        number = int.from_bytes(raw[length : length + _GENERATION_BYTES], "big")
        if not hmac.compare_digest(self.issue(ids, number).encode(), text.encode()):
            raise InvalidRefreshToken
        return ids, number
