"""The key that signs access tokens. Stream `signing_key-<uuid of its number>`.

Keys are numbered, and a number always names the same stream: replicas that start at once compete
for one stream, one of them wins, and all of them sign with the winner's key.
"""

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from events.contracts.identity import SigningKeyPublished
from events.contracts.registry import Event
from events.decisions import Streams
from events.envelope import Metadata, derived_id, new_id
from events.store import EventStore

from identity.sealing import IdentityKey

CATEGORY = "signing_key"
_NUMBERS = UUID("0d9f7c2e-57a8-5d0c-8f3d-2b1f5a6c9e40")
_COORDINATE_BYTES = 32


class SigningKey(NamedTuple):
    """A private key with its id and its public half as a JWK."""

    kid: str
    private_key: EllipticCurvePrivateKey
    public_jwk: dict[str, str]


class KeyState(msgspec.Struct, frozen=True, kw_only=True):
    """What a key's stream says."""

    published: SigningKeyPublished | None = None


def publish(state: KeyState, candidate: SigningKeyPublished) -> Sequence[Event]:
    """Publishes the candidate, unless the stream has its key already."""
    return [] if state.published else [candidate]


def evolve(state: KeyState, event: Event) -> KeyState:
    """The key's state after the event."""
    match event:
        case SigningKeyPublished():
            return KeyState(published=event)
        case _:
            return state


def stream_id(number: int) -> UUID:
    """The id of the stream of the `number`-th key."""
    return derived_id(_NUMBERS, number)


def generate(number: int, identity_key: IdentityKey) -> SigningKeyPublished:
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
    )


def opened(published: SigningKeyPublished, number: int, identity_key: IdentityKey) -> SigningKey:
    """The published key, ready to sign.

    Raises:
        SealBroken: it was sealed with another identity key.
    """
    der = identity_key.open(published.sealed_private_key, f"{CATEGORY}-{stream_id(number)}", "sealed_private_key")
    private_key = serialization.load_der_private_key(der, password=None)
    assert isinstance(private_key, EllipticCurvePrivateKey)
    return SigningKey(published.kid, private_key, published.public_jwk)


async def load_or_create(store: EventStore, identity_key: IdentityKey) -> SigningKey:
    """The deployment's key; the first replica that starts creates it.

    Raises:
        SealBroken: `IDENTITY_KEY` is not the one that this store was filled with. Refusing to start
            is the point: with another key no e-mail address or password would be found again.
    """
    number = 1
    keys = Streams(store, CATEGORY, KeyState(), evolve)
    state, _ = await keys.load(stream_id(number))
    if state.published is None:
        candidate = generate(number, identity_key)
        await keys.execute(
            stream_id(number),
            lambda current: publish(current, candidate),
            event_id=new_id(),
            metadata=Metadata(actor="service:identity"),
        )
        state, _ = await keys.load(stream_id(number))
    assert state.published is not None
    return opened(state.published, number, identity_key)


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
