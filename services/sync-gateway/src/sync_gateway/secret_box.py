"""Webhook secrets at rest: AES-GCM with a key that only this service has.

It is kept in the key database and wrapped with `GATEWAY_KEY`, which can be replaced (docs/decisions/0096).
"""

import base64
import binascii
import contextlib
import os

import asyncpg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from events.sealing import KEY_BYTES, SubjectKeys, raw_keys

_NONCE_BYTES = 12
_SCHEME = "w1"


class SealBroken(Exception):
    """The text was not sealed with this key for this place, or was changed since."""


class SecretBox:
    """Seals and opens. What is sealed for one place does not open in another."""

    def __init__(self, key: bytes) -> None:
        derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"sangam/sync-gateway/webhooks").derive(key)
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


async def secret_box(setting: str, database: "asyncpg.Pool[asyncpg.Record]", subject_keys: SubjectKeys) -> SecretBox:
    """The box of this service; `setting` is what its key is wrapped with.

    Raises:
        ValueError: `setting` is not usable.
        MasterKeyWrong: `GATEWAY_KEY` is not the one that the webhooks here were sealed with.
    """
    first: bytes | None = os.urandom(KEY_BYTES)
    row = None
    if await database.fetchval("SELECT to_regclass('webhook_endpoint') IS NOT NULL"):
        row = await database.fetchrow(
            "SELECT webhook_id, sealed_secret FROM webhook_endpoint WHERE sealed_secret <> '' LIMIT 1"
        )
    if row is not None:
        first = None  # it has been made, unless these are of the time when the setting itself was the key
        for raw in raw_keys(setting):
            with contextlib.suppress(SealBroken):
                SecretBox(raw).open(row["sealed_secret"], str(row["webhook_id"]))
                first = raw
    return SecretBox(await subject_keys.own_key(setting, first))
