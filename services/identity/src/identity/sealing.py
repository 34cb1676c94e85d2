"""What only identity can read: private fields sealed with AES-GCM, and keyed hashes.

One key, which is kept in the key database and wrapped with `IDENTITY_KEY` (`keyring.identity_key`); a key per purpose
is derived from it (HKDF-SHA-256), so that no output of one purpose says anything about another's.
"""

import base64
import binascii
import hashlib
import hmac
import os
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_NONCE_BYTES = 12
_SCHEME = "v1"


class SealBroken(Exception):
    """The value was not sealed with this key in this place, or was changed since."""


class IdentityKey:
    """Seals and opens, and hashes with a key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the identity key must have {KEY_BYTES} bytes")
        self._key = key
        self._cipher = AESGCM(self._derive("seal"))

    def __repr__(self) -> str:
        return "IdentityKey(***)"

    def _derive(self, purpose: str) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"sangam/identity/{purpose}".encode()).derive(self._key)

    def seal(self, plaintext: bytes, stream: str, field: str) -> str:
        """Encrypts a field of an event in `stream`; the text opens in that place only."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, plaintext, _place(stream, field))
        return f"{_SCHEME}.{base64.b64encode(sealed).decode()}"

    def open(self, sealed: str, stream: str, field: str) -> bytes:
        """The plaintext of a sealed field.

        Raises:
            SealBroken
        """
        scheme, _, text = sealed.partition(".")
        if scheme != _SCHEME:
            raise SealBroken(f"unknown sealing scheme in {stream}.{field}")
        try:
            raw = base64.b64decode(text, validate=True)
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _place(stream, field))
        except (binascii.Error, ValueError, InvalidTag):
            raise SealBroken(f"{stream}.{field} does not open") from None

    def mac_key(self, purpose: str) -> bytes:
        """The key of one purpose's keyed hashes."""
        return self._derive(f"mac/{purpose}")


def keyed_uuid(mac_key: bytes, text: str) -> UUID:
    """A UUID that the same text always gives, and that says nothing about it without the key."""
    digest = hmac.new(mac_key, text.encode(), hashlib.sha256).digest()
    return UUID(bytes=digest[:16], version=4)


def _place(stream: str, field: str) -> bytes:
    return f"{stream}#{field}".encode()
