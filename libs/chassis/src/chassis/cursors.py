"""Cursors of lists: opaque, tamper-proof, good only for the list and the caller they were made for."""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from chassis.problems import invalid_field

_MAC_BYTES = 16
_CURSOR = re.compile(r"[A-Za-z0-9_-]{23,2048}", re.ASCII)

T = TypeVar("T")


class CursorCodec:
    """Encodes where a list goes on, signed with HMAC-SHA256."""

    def __init__(self, secret: str) -> None:
        # A key of its own: a MAC of this codec says nothing about other uses of the secret.
        self._key = hmac.digest(secret.encode(), b"sangam cursor v1", sha256)

    def encode(self, obj: Any, *, purpose: str = "", caller: object = "") -> str:
        """The cursor of `obj` (anything msgspec can encode) for the list `purpose` of `caller`."""
        payload = msgspec.json.encode(obj)
        return urlsafe_b64encode(self._mac(payload, purpose, caller) + payload).rstrip(b"=").decode()

    def decode(self, cursor: str, type_: type[T], *, purpose: str = "", caller: object = "") -> T:
        """What was encoded, for the same purpose and caller.

        Raises:
            Problem: 400 `invalid_cursor` when it was not made by us, for this.
        """
        if _CURSOR.fullmatch(cursor) is None or len(cursor) % 4 == 1:
            raise invalid_field("cursor", "The cursor is not valid", "invalid_cursor")
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(payload, purpose, caller)):
            raise invalid_field("cursor", "The cursor is not valid", "invalid_cursor")
        try:
            return msgspec.json.decode(payload, type=type_)
        except msgspec.DecodeError:  # ours, but of another release's shape
            raise invalid_field("cursor", "The cursor is no longer valid", "invalid_cursor") from None

    def _mac(self, payload: bytes, purpose: str, caller: object) -> bytes:
        # JSON keeps the parts apart: no purpose and caller can be shifted into each other.
        context = msgspec.json.encode([purpose, str(caller)])
        return hmac.digest(self._key, context + b"\n" + payload, sha256)[:_MAC_BYTES]
