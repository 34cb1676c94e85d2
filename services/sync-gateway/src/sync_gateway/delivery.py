"""One message to one webhook, and the bytes of it that are signed. Pure."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from events.envelope import RecordedEvent

_encoder = msgspec.json.Encoder()


class NewDelivery(NamedTuple):
    """A delivery before it has its numbers."""

    webhook_id: UUID
    kind: str
    """`event`, `test`, `resend` or `replay`; what is announced to a platform is an `event` too."""
    event_id: UUID
    event_type: str
    user_id: UUID | None
    chain: str
    """Deliveries of one chain are sent one after the other: the event's stream."""
    body: bytes
    recorded_at: datetime


def signed_body(event: RecordedEvent, webhook_id: UUID) -> bytes:
    """What is signed and sent: the event as CloudEvents JSON, open at its beginning for the sequence number."""
    cloud = _encoder.encode(event.cloud_event())
    return b'"webhookid":"%s","timestamp":%s,%s' % (
        str(webhook_id).encode(),
        _encoder.encode(event.recorded_at),
        cloud[1:],
    )


def with_sequence(sequence: int | None, body: bytes) -> bytes:
    """The whole body. The number is only known once the row has it, and is the same for every attempt."""
    return b'{"sequence":%s,%s' % (b"null" if sequence is None else b"%d" % sequence, body)
