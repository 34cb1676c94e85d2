"""A key that signs tokens. Stream `signing_key-<uuid of its number>`.

Keys are numbered, and a number always names the same stream: replicas that start at once compete
for one stream, one of them wins, and all of them sign with the winner's key.
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from events.contracts.identity import SigningKeyPublished, SigningKeyRetired
from events.contracts.registry import Event
from events.envelope import derived_id

from identity.sealing import IdentityKey

CATEGORY = "signing_key"
_NUMBERS = UUID("0d9f7c2e-57a8-5d0c-8f3d-2b1f5a6c9e40")
_COORDINATE_BYTES = 32


class SigningKey(NamedTuple):
    """A private key with its id and its public half as a JWK."""

    kid: str
    private_key: EllipticCurvePrivateKey
    public_jwk: dict[str, str]
    published_at: datetime | None = None
    signs_from: datetime | None = None
    """From when on it signs; None: at once."""


class KeyState(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's stream says."""

    published: SigningKeyPublished | None = None
    retired: bool = False


def publish(state: KeyState, candidate: SigningKeyPublished) -> Sequence[Event]:
    """Publishes the candidate, unless the stream has its key already."""
    return [] if state.published else [candidate]


def evolve(state: KeyState, event: Event) -> KeyState:
    """The key's state after the event."""
    match event:
        case SigningKeyPublished():
            return KeyState(published=event)
        case SigningKeyRetired():
            return msgspec.structs.replace(state, retired=True)
        case _:
            return state


def stream_id(number: int) -> UUID:
    """The id of the stream of the `number`-th key."""
    return derived_id(_NUMBERS, number)


def generate(
    number: int,
    identity_key: IdentityKey,
    *,
    published_at: datetime | None = None,
    signs_from: datetime | None = None,
) -> SigningKeyPublished:
    """A fresh P-256 key, its private half sealed for its stream."""
    private_key = generate_private_key(SECP256R1())
    der = private_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    jwk = _public_jwk(private_key)
    return SigningKeyPublished(
        kid=jwk["kid"],
        public_jwk=jwk,
        sealed_private_key=identity_key.seal(der, f"{CATEGORY}-{stream_id(number)}", "sealed_private_key"),
        published_at=published_at,
        signs_from=signs_from,
    )


def opened(published: SigningKeyPublished, number: int, identity_key: IdentityKey) -> SigningKey:
    """The published key, ready to sign.

    Raises:
        SealBroken: it was sealed with another identity key.
    """
    der = identity_key.open(published.sealed_private_key, f"{CATEGORY}-{stream_id(number)}", "sealed_private_key")
    private_key = serialization.load_der_private_key(der, password=None)
    assert isinstance(private_key, EllipticCurvePrivateKey)
    return SigningKey(published.kid, private_key, published.public_jwk, published.published_at, published.signs_from)


def _public_jwk(private_key: EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = private_key.public_key().public_numbers()
    required = {"crv": "P-256", "kty": "EC", "x": _coordinate(numbers.x), "y": _coordinate(numbers.y)}
    # RFC 7638: the hash of the required members in alphabetical order names the key.
    kid = _base64url(hashlib.sha256(msgspec.json.encode(required)).digest())
    return required | {"use": "sig", "alg": "ES256", "kid": kid}


def _coordinate(value: int) -> str:
    return _base64url(value.to_bytes(_COORDINATE_BYTES, "big"))


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
