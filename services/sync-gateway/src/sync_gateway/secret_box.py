"""Webhook secrets at rest: AES-GCM with a key that only this service has."""

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_NONCE_BYTES = 12
_SCHEME = "w1"


class SealBroken(Exception):
    """The text was not sealed with this key for this place, or was changed since."""


class SecretBox:
    """Seals and opens. What is sealed for one place does not open in another."""

    def __init__(self, key: str) -> None:
        """`key`: base64 of 32 bytes.

        Raises:
            ValueError: it is something else.
        """
        try:
            raw = base64.b64decode(key, validate=True)
        except binascii.Error:
            raise ValueError("GATEWAY_KEY must be base64") from None
        if len(raw) != KEY_BYTES:
            raise ValueError(f"GATEWAY_KEY must have {KEY_BYTES} bytes")
        derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"sangam/sync-gateway/webhooks").derive(raw)
        self._cipher = AESGCM(derived)

    def seal(self, text: str, place: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, text.encode(), place.encode())
        return f"{_SCHEME}.{base64.b64encode(sealed).decode()}"

    def open(self, sealed: str, place: str) -> str:
        """Raises:
        SealBroken
        """
        scheme, _, encoded = sealed.partition(".")
        try:
            raw = base64.b64decode(encoded, validate=True)
            if scheme != _SCHEME:
                raise SealBroken(place)
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], place.encode()).decode()
        except (binascii.Error, ValueError, InvalidTag):
            raise SealBroken(place) from None
