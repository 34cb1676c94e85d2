"""The platform's signature: ES256 assertions that a customer is theirs, and the key set to check them."""

import base64
import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUDIENCE = "sangam"
LIFETIME = timedelta(minutes=5)


class KeyFileError(Exception):
    """The key file holds something other than an unencrypted ES256 private key."""


def _b64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()


class AssertionSigner:
    """Signs link assertions as one platform."""

    def __init__(self, platform: str, key: EllipticCurvePrivateKey) -> None:
        self._platform = platform
        self._key = key
        numbers = key.public_key().public_numbers()
        public = {"crv": "P-256", "kty": "EC", "x": _b64url(numbers.x), "y": _b64url(numbers.y)}
        # RFC 7638: the required members, sorted, without spaces — the same key always has the same kid.
        thumbprint = hashlib.sha256(json.dumps(public, separators=(",", ":")).encode()).digest()
        self.kid = base64.urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
        self.jwks = {"keys": [{**public, "kid": self.kid, "alg": "ES256", "use": "sig"}]}

    @classmethod
    def from_file(cls, platform: str, path: Path) -> "AssertionSigner":
        """The signer of the key in `path`; a missing key is made there, readable by its owner only.

        Raises:
            KeyFileError: the file exists and is not an unencrypted P-256 private key in PEM form.
        """
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            key = ec.generate_private_key(ec.SECP256R1())
            _write_new(path, key)
            return cls(platform, key)
        try:
            loaded = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise KeyFileError(f"{path} is not an unencrypted private key in PEM form") from error
        if not isinstance(loaded, EllipticCurvePrivateKey) or loaded.curve.name != "secp256r1":
            raise KeyFileError(f"{path} is not a P-256 key, which ES256 needs")
        return cls(platform, loaded)

    def assertion(self, customer_id: str, nonce: str, now: datetime) -> str:
        """That `customer_id` is ours and approved the request `nonce`; good for five minutes."""
        issued = now.astimezone(UTC)
        claims = {
            "iss": self._platform,
            "sub": customer_id,
            "aud": AUDIENCE,
            "nonce": nonce,
            "iat": issued,
            "exp": issued + LIFETIME,
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self.kid})


def _write_new(path: Path, key: EllipticCurvePrivateKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # Whole or not at all: a kill between create and write must not leave an empty key behind.
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
