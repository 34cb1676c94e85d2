"""The frames of `/ws/sync` and `/ws/notifications`, both ways. Pure.

What goes to a client is made here as it goes over the wire, so that an event is framed once for all who get it.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from events.envelope import RecordedEvent

FRAME_BYTES_MAX = 16 * 1024
"""Largest frame a client may send."""
HEARTBEAT_S = 20


class CloseCode(IntEnum):
    """Why the server closes; `bye` says it in words first. Below 4000: RFC 6455 and its IANA registry."""

    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006
    """Never sent: the client is gone."""
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    UNAUTHENTICATED = 4401
    TOO_SLOW = 4008


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    """Sets the client's topics; with `resume`, sends what was missed since that cursor first."""

    topics: Annotated[list[str], msgspec.Meta(max_length=100)] = []
    """Empty: the service's default, if it has one."""
    resume: str | None = None


class Refresh(msgspec.Struct, frozen=True, tag="refresh"):
    """Goes on with a newer token of the same user."""

    token: str


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Asks for a `pong`."""


Inbound = Subscribe | Refresh | Ping


class InvalidFrame(ValueError):
    """The client sent something that is no frame of the protocol."""


_inbound: Final = msgspec.json.Decoder(Inbound)
_encoder: Final = msgspec.json.Encoder()


def decode(text: str) -> Inbound:
    """A client's frame.

    Raises:
        InvalidFrame: saying what is wrong with it.
    """
    try:
        frame: Inbound = _inbound.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidFrame(str(error)) from None
    except RecursionError:
        raise InvalidFrame("nested too deeply") from None
    return frame


def cloud_event(event: RecordedEvent) -> bytes:
    """The event as CloudEvents JSON: the form it is kept, sent and listed in."""
    return _encoder.encode(event.cloud_event())


def framed(text: bytes) -> bytes:
    """A whole text message as a server sends it: RFC 6455, 5.2 (FIN, opcode 1, no mask, no extension)."""
    length = len(text)
    if length < 126:
        return b"\x81%c%s" % (length, text)
    if length < 1 << 16:
        return b"\x81\x7e%s%s" % (length.to_bytes(2), text)
    return b"\x81\x7f%s%s" % (length.to_bytes(8), text)


def event(cursor: str, event_json: bytes) -> bytes:
    """An event and the cursor to resume after it. Built once per event, however many clients get it."""
    return framed(b'{"type":"event","cursor":"%s","event":%s}' % (cursor.encode(), event_json))


def hello(session_id: UUID, cursor: str) -> bytes:
    return _frame("hello", session_id=session_id, resume=cursor, heartbeat_s=HEARTBEAT_S)


def subscribed(patterns: Iterable[str]) -> bytes:
    return _frame("subscribed", topics=list(patterns))


def resync(reason: str) -> bytes:
    """What was missed cannot be sent any more: reload by HTTP. Live events go on."""
    return _frame("resync", reason=reason)


def error(code: str, detail: str) -> bytes:
    return _frame("error", code=code, detail=detail)


def refreshed(expires_at: datetime) -> bytes:
    return _frame("refreshed", expires_at=expires_at)


def bye(code: int, reason: str, reconnect_in_ms: int | None = None) -> bytes:
    """The last frame before the close with the same code; with the time to come back in, where there is one."""
    slot = {} if reconnect_in_ms is None else {"reconnect_in_ms": reconnect_in_ms}
    return _frame("bye", code=code, reason=reason, **slot)


PONG: Final = framed(b'{"type":"pong"}')


def _frame(type_: str, **members: Any) -> bytes:
    return framed(_encoder.encode({"type": type_, **members}))
