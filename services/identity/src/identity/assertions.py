"""Proof of ownership: a short-lived statement signed by a platform that its customer approved our link.

As strict as the verifier of access tokens: ES256 only, a key of the platform's JWKS by `kid`, no
header parameter that could name another key, every claim present with its exact type.
"""

import asyncio
import hmac
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import aiohttp
import jwt
import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from jwt.algorithms import ECAlgorithm

log = structlog.get_logger(__name__)

AUDIENCE = "sangam"
ASSERTION_LENGTH_MAX = 4096
LIFETIME_S_MAX = 600
CLOCK_SKEW_S = 30
"""How far a platform's clock may be ahead of ours."""

JWKS_BYTES_MAX = 64 * 1024
JWKS_TIMEOUT_S = 3.0
JWKS_AGE_S_MAX = 600.0
"""A key that the platform has withdrawn is trusted this much longer at most."""
REFETCH_GAP_S = 5.0
"""An unknown `kid` makes us look again at most this often, however many invented ones arrive."""

_KEYS_MAX = 32


class AssertionInvalid(Exception):
    """The assertion proves nothing. `reason` is for logs."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PlatformUnavailable(Exception):
    """The platform's keys cannot be had at the moment."""

    def __init__(self, platform: str) -> None:
        super().__init__(f"the keys of {platform} cannot be fetched")
        self.platform = platform


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["ES256"]
    kid: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    typ: Literal["JWT"] = "JWT"


class _Claims(msgspec.Struct, frozen=True, kw_only=True):
    iss: str
    sub: str
    aud: str
    nonce: str
    iat: int
    exp: int


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    kid: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    use: str = "sig"
    alg: str = "ES256"


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[_Jwk]


_header_decoder = msgspec.json.Decoder(_Header)
_claims_decoder = msgspec.json.Decoder(_Claims)
_jwks_decoder = msgspec.json.Decoder(_Jwks)


class PlatformKeys:
    """A platform's public keys: fetched when needed, kept for a while, never asked for in a flood."""

    def __init__(
        self,
        platform: str,
        url: str,
        http: aiohttp.ClientSession,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._platform = platform
        self._url = url
        self._http = http
        self._clock = clock
        self._keys: dict[str, EllipticCurvePublicKey] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, kid: str) -> EllipticCurvePublicKey | None:
        """The platform's key of that id.

        Raises:
            PlatformUnavailable: the keys are needed and cannot be fetched.
        """
        if (key := self._fresh(kid)) is not None:
            return key
        # One fetch serves everybody who waits for it.
        async with self._fetching:
            if (key := self._fresh(kid)) is not None:
                return key
            if self._clock() - self._tried_at > REFETCH_GAP_S:
                await self._fetch()
            elif self._tried_at > self._fetched_at:
                # The look a moment ago failed: the key may well be the platform's.
                raise PlatformUnavailable(self._platform)
            return self._keys.get(kid)

    def _fresh(self, kid: str) -> EllipticCurvePublicKey | None:
        return self._keys.get(kid) if self._clock() - self._fetched_at <= JWKS_AGE_S_MAX else None

    async def _fetch(self) -> None:
        self._tried_at = self._clock()
        try:
            timeout = aiohttp.ClientTimeout(total=JWKS_TIMEOUT_S)
            async with self._http.get(self._url, timeout=timeout, allow_redirects=False) as response:
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                body = await _read_at_most(response.content, JWKS_BYTES_MAX)
            keys = _usable_keys(_jwks_decoder.decode(body))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
            log.warning("platform_keys_not_fetched", platform=self._platform, error=repr(error))
            raise PlatformUnavailable(self._platform) from error
        self._keys = keys
        self._fetched_at = self._clock()


class AssertionVerifier:
    """Verifies the assertions of all platforms."""

    def __init__(self, keys: Mapping[str, PlatformKeys], *, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._clock = clock

    async def verify(self, assertion: str, *, platform: str, customer_id: str, nonce: str) -> None:
        """Returns if `platform` says now that `customer_id` approved the link of `nonce`.

        Raises:
            AssertionInvalid: for any reason not to believe it.
            PlatformUnavailable
        """
        claims = await self._signed_claims(assertion, platform)
        if claims.iss != platform:
            raise AssertionInvalid("wrong issuer")
        if claims.aud != AUDIENCE:
            raise AssertionInvalid("wrong audience")
        if claims.sub != customer_id:
            raise AssertionInvalid("another customer")
        if not hmac.compare_digest(claims.nonce.encode(), nonce.encode()):
            raise AssertionInvalid("wrong nonce")
        if not 0 < claims.exp - claims.iat <= LIFETIME_S_MAX:
            raise AssertionInvalid("lives too long")
        now = self._clock()
        if claims.iat > now + CLOCK_SKEW_S:
            raise AssertionInvalid("not valid yet")
        if claims.exp <= now:
            raise AssertionInvalid("expired")

    async def _signed_claims(self, assertion: str, platform: str) -> _Claims:
        if len(assertion) > ASSERTION_LENGTH_MAX or not assertion.isascii():
            raise AssertionInvalid("malformed")
        encoded = assertion.split(".", 1)[0]
        try:
            header = _header_decoder.decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        except (ValueError, RecursionError) as error:
            raise AssertionInvalid("header refused") from error
        key = await self._keys[platform].find(header.kid)
        if key is None:
            raise AssertionInvalid("unknown key")
        try:
            payload = jwt.api_jws.decode_complete(assertion, key, algorithms=["ES256"])["payload"]
        except jwt.InvalidTokenError as error:
            raise AssertionInvalid("signature refused") from error
        try:
            return _claims_decoder.decode(payload)
        except (ValueError, RecursionError) as error:
            raise AssertionInvalid("claims refused") from error


def _usable_keys(jwks: _Jwks) -> dict[str, EllipticCurvePublicKey]:
    """The P-256 signature keys of a key set; others (encryption, RSA) are none of our business."""
    keys: dict[str, EllipticCurvePublicKey] = {}
    for jwk in jwks.keys[:_KEYS_MAX]:
        if (jwk.kty, jwk.crv, jwk.use, jwk.alg) != ("EC", "P-256", "sig", "ES256"):
            continue
        if jwk.kid is None or jwk.x is None or jwk.y is None:
            continue
        try:
            key = ECAlgorithm.from_jwk({"kty": "EC", "crv": "P-256", "x": jwk.x, "y": jwk.y})
        except (jwt.InvalidKeyError, ValueError):
            continue  # a malformed key, or a point that is not on the curve
        if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            keys[jwk.kid] = key
    return keys


async def _read_at_most(content: aiohttp.StreamReader, bytes_max: int) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > bytes_max:
            raise ValueError("the key set is too large")
    return bytes(body)
