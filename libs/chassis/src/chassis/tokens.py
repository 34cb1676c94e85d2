"""The one verifier of access tokens (RFC 9068 profile), used by every service.

Strict on purpose: ES256 only, `typ: at+jwt`, a key from our own table by `kid` and no other header
parameter, every claim present with its exact JSON type. Anything else is `InvalidToken`.
"""

import asyncio
import re
import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar
from uuid import UUID

import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from events.envelope import Metadata
from jwt.algorithms import ECAlgorithm

from chassis.request import request_metadata
from chassis.revocations import Revocations

log = structlog.get_logger(__name__)

PLATFORM_AUDIENCES = frozenset({"bfc", "vyomo"})
OPS_AUDIENCE = "sangam-ops"
TOKEN_BYTES_MAX = 8 * 1024
LIFETIME_S_MAX = 3600
LEEWAY_S = 5

_CACHED_TOKENS_MAX = 20_000
_KEYS_REFRESH_S = 5.0
_KEYS_RELOAD_GAP_S = 0.25
_COMPACT_JWS = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)

Seconds = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""Seconds since 1970, an integer in JSON."""


class InvalidToken(Exception):
    """The token must not be trusted. `reason` is for logs; `code` may be told to the caller."""

    def __init__(self, reason: str, *, expired: bool = False, ended: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.expired = expired
        self.code = "token_expired" if expired else "session_ended" if ended else "invalid_token"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole JOSE header. `jku`, `x5u`, `jwk`, `x5c`, `crit`, `b64` are refused by being unknown."""

    alg: Literal["ES256"]
    typ: Literal["at+jwt"]
    kid: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")]


class AnyHeader(Protocol):
    """A JOSE header that names the key."""

    @property
    def kid(self) -> str: ...


H = TypeVar("H", bound=AnyHeader)


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What an access token says. Further claims are ignored."""

    iss: str
    sub: UUID
    """The user, or the ops client."""
    aud: str
    """Exactly one audience: a list is refused."""
    sid: UUID
    """The root session."""
    acr: Annotated[int, msgspec.Meta(ge=0, le=9)]
    jti: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    iat: Seconds
    nbf: Seconds
    exp: Seconds
    scope: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    mfa: bool = False
    """Whether the user has enrolled TOTP."""
    client_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    """The OpenID or ops client that the token was given to."""
    act: dict[str, Any] | None = None
    """Who acts for the user, where the token was exchanged (RFC 8693)."""


class Caller(NamedTuple):
    """Who makes a request: a handler gets it by declaring the parameter `caller: Caller`."""

    user_id: UUID
    """The customer. With an operator's token the one that `?user_id=` names, or nobody's id where none is named."""
    session_id: UUID
    platform: str
    """The audience of the token: `bfc` or `vyomo`, or `sangam-ops`."""
    acr: int
    scopes: frozenset[str]
    mfa: bool = False
    """Whether the customer has enrolled TOTP."""
    operator: str | None = None
    """The ops client whose token it is; None for a customer."""
    for_everyone: bool = False
    """An operator that names no customer, on a route where that means all of them (`ops_may(everyone=True)`)."""

    def metadata(self) -> Metadata:
        """Metadata of the events that the caller's request (the one being handled) causes."""
        if self.operator is not None:
            return request_metadata(f"ops:{self.operator}")
        return request_metadata(f"user:{self.user_id}", self.platform)

    @classmethod
    def of(cls, claims: Claims) -> "Caller":
        """The caller that verified `claims` speak of."""
        operator = (claims.client_id or str(claims.sub)) if claims.aud == OPS_AUDIENCE else None
        scopes = frozenset(claims.scope.split())
        return cls(claims.sub, claims.sid, claims.aud, claims.acr, scopes, claims.mfa, operator)


class _Verified(NamedTuple):
    kid: str
    claims: Claims


class VerificationKeyCache:
    """Public keys by id, from the service's own table.

    Known keys never wait for the database. An unknown id triggers a reload, but at most one per
    `_KEYS_RELOAD_GAP_S` for the whole process: a flood of invented ids costs nothing.
    """

    def __init__(self, load: Callable[[], Awaitable[dict[str, dict[str, str]]]]) -> None:
        self._load = load
        self._keys: dict[str, EllipticCurvePublicKey] = {}
        self._retired: set[str] = set()
        self._had_keys = False
        self._loaded_at = float("-inf")
        self._reload: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> EllipticCurvePublicKey | None:
        """The active key `kid`.

        Raises:
            OSError, asyncpg.PostgresError: the key is not known and the table cannot be read.
        """
        age_s = time.monotonic() - self._loaded_at
        if (key := self._keys.get(kid)) is not None:
            if age_s > _KEYS_REFRESH_S:
                self._start_reload()
            return key
        if self._reload is None or age_s > _KEYS_RELOAD_GAP_S:
            self._start_reload()
        assert self._reload is not None
        # A load under way may bring the key: whoever comes meanwhile waits for it, too. One that has just failed
        # fails them all: a table that cannot be read does not make a key unknown.
        # Shielded: the reload serves every waiting request, not only the one that may be cancelled.
        await asyncio.shield(self._reload)
        if not self._had_keys:
            # A service that has just been born or rebuilt: it cannot tell good tokens from bad ones yet.
            raise ConnectionError("no verification key has been read from the log yet")
        return self._keys.get(kid)

    def is_active(self, kid: str) -> bool:
        """Whether `kid` is known and not retired; keeps the knowledge fresh in the background."""
        if time.monotonic() - self._loaded_at > _KEYS_REFRESH_S:
            self._start_reload()
        return kid in self._keys

    def retire(self, kid: str) -> None:
        """Trusts the key no more, at once: the table may be behind."""
        self._retired.add(kid)
        self._keys.pop(kid, None)

    def _start_reload(self) -> "asyncio.Task[None]":
        if self._reload is None or self._reload.done():
            self._reload = asyncio.create_task(self._refresh(), name="reload verification keys")
            self._reload.add_done_callback(_log_failure)
        return self._reload

    async def _refresh(self) -> None:
        # Counts from the attempt: a database that is down is not asked more often either.
        self._loaded_at = time.monotonic()
        loaded = await self._load()
        self._keys = {kid: _public_key(jwk) for kid, jwk in loaded.items() if kid not in self._retired}
        self._had_keys = self._had_keys or bool(self._keys)


class TokenVerifier:
    """Verifies access tokens offline. Tokens seen before are known by their SHA-256, in a bounded cache."""

    def __init__(
        self,
        issuer: str,
        keys: VerificationKeyCache,
        *,
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.issuer = issuer
        self.revocations = revocations
        """The sessions that have ended; None only in tests that have none."""
        self.now = clock
        self._keys = keys
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, token: str, audiences: Collection[str] = PLATFORM_AUDIENCES) -> Claims:
        """The claims of a token that may be trusted now, for one of `audiences`.

        Raises:
            InvalidToken: for any reason not to trust it.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise InvalidToken("too long")
        if not token.isascii():
            raise InvalidToken("malformed")
        fingerprint = sha256(token.encode("ascii")).digest()
        verified = self._verified.get(fingerprint)
        if verified is None or not self._keys.is_active(verified.kid):
            self._verified.pop(fingerprint, None)
            verified = await self._verify_signature(token)
        self._check(verified.claims, audiences)
        self._verified[fingerprint] = verified
        self._verified.move_to_end(fingerprint)
        if len(self._verified) > _CACHED_TOKENS_MAX:
            self._verified.popitem(last=False)
        return verified.claims

    async def signed_payload(self, token: str, header_decoder: msgspec.json.Decoder[H]) -> bytes:
        """What an active key has signed, under a header of exactly one form.

        Raises:
            InvalidToken
        """
        return (await self._signed(token, header_decoder))[1]

    async def _signed(self, token: str, header_decoder: msgspec.json.Decoder[H]) -> tuple[str, bytes]:
        if len(token) > TOKEN_BYTES_MAX or _COMPACT_JWS.fullmatch(token) is None:
            raise InvalidToken("malformed")
        encoded = token.split(".", 1)[0]
        try:
            header = header_decoder.decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        except (ValueError, RecursionError) as error:
            raise InvalidToken("header refused") from error
        key = await self._keys.find(header.kid)
        if key is None:
            raise InvalidToken("unknown or retired key")
        try:
            payload: bytes = jwt.api_jws.decode_complete(token, key, algorithms=["ES256"])["payload"]
        except jwt.InvalidTokenError as error:
            raise InvalidToken("signature refused") from error
        return header.kid, payload

    async def _verify_signature(self, token: str) -> _Verified:
        kid, payload = await self._signed(token, _header_decoder)
        try:
            return _Verified(kid, _claims_decoder.decode(payload))
        except (ValueError, RecursionError) as error:
            raise InvalidToken("claims refused") from error

    def _check(self, claims: Claims, audiences: Collection[str]) -> None:
        now = self.now()
        if claims.iss != self.issuer:
            raise InvalidToken("wrong issuer")
        if claims.aud not in audiences:
            raise InvalidToken("wrong audience")
        if not 0 < claims.exp - claims.iat <= LIFETIME_S_MAX:
            raise InvalidToken("lives too long")
        if max(claims.iat, claims.nbf) > now + LEEWAY_S:
            raise InvalidToken("not valid yet")
        if claims.exp <= now - LEEWAY_S:
            raise InvalidToken("expired", expired=True)
        if self.revocations is not None and claims.sid in self.revocations:
            raise InvalidToken("of a session that has ended", ended=True)


_header_decoder = msgspec.json.Decoder(Header)
_claims_decoder = msgspec.json.Decoder(Claims)


def _public_key(jwk: dict[str, str]) -> EllipticCurvePublicKey:
    key = ECAlgorithm.from_jwk(dict(jwk))
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("a verification key must be a public P-256 key")
    return key


def _log_failure(reload: "asyncio.Task[None]") -> None:
    if not reload.cancelled() and (error := reload.exception()) is not None:
        log.warning("verification_keys_not_reloaded", error=repr(error))
