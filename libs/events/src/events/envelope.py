"""What surrounds a payload: the recorded event, its metadata, and its CloudEvents form on the wire."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils
import uuid_utils.compat
from opentelemetry import trace

from events.contracts import registry
from events.contracts.registry import Event


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): unique, and ordered by creation time."""
    return uuid_utils.compat.uuid7()


def derived_id(cause: UUID, *discriminator: object) -> UUID:
    """The id that the same cause always gives (UUIDv5): doing something again appends nothing new."""
    # Not uuid_utils.compat.uuid5, which takes twice as long for the same.
    derived = uuid_utils.uuid5(uuid_utils.UUID(int=cause.int), ":".join(map(str, discriminator)))
    return msgspec.convert(derived.bytes, UUID)


PLATFORM_STREAMS = {"bfc": "bank_customer", "vyomo": "broker_client"}
"""The stream category of each platform's customers."""

_PLATFORM_CUSTOMERS = UUID("5a6a3d3e-6f0e-5f0b-9d5b-0f6c1d0b7c11")


def platform_stream(platform: str, customer_id: str) -> str:
    """The stream of everything `platform` tells us of its customer."""
    return f"{PLATFORM_STREAMS[platform]}-{derived_id(_PLATFORM_CUSTOMERS, platform, customer_id)}"


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Where an event came from. Travels with it through the log, the broker and every consumer."""

    correlation_id: str | None = None
    """The request that started it all (`X-Request-Id`)."""
    causation_id: UUID | None = None
    """The event that this one reacts to."""
    actor: str | None = None
    """Who asked: `user:<id>`, `service:<name>`, `platform:<bfc|vyomo>`, `ops:<client>`."""
    platform: str | None = None
    """The platform (token audience) it was asked on."""
    traceparent: str | None = None
    """W3C trace context of the span that appended it."""


_metadata_decoder = msgspec.json.Decoder(Metadata)
encode_metadata = msgspec.json.Encoder().encode


def decode_metadata(data: bytes) -> Metadata:
    """Metadata from its stored bytes."""
    return _metadata_decoder.decode(data)


def current_traceparent() -> str | None:
    """The W3C `traceparent` of the active span, or None outside of one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def with_traceparent(metadata: Metadata) -> Metadata:
    """Adds the active span's trace context where none was given."""
    if metadata.traceparent is None and (traceparent := current_traceparent()):
        return msgspec.structs.replace(metadata, traceparent=traceparent)
    return metadata


class RecordedEvent(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """An event as the store holds it.

    `position` is its dense place in the global log, 0 where it is not known (read from its stream
    before it was sequenced). `version` counts from 1 within `stream`.
    """

    position: int
    stream: str
    version: int
    event_id: UUID
    type: str
    schema_version: int
    subject: UUID | None
    data: bytes
    metadata: Metadata
    recorded_at: datetime

    @property
    def payload(self) -> Event:
        """The decoded payload.

        Raises:
            UnknownContract: this process does not know the type or schema version.
        """
        # Not functools.cached_property, whose lock on Python 3.11 costs as much as decoding.
        decoded: Event | None = self.__dict__.get("payload")
        if decoded is None:
            decoded = self.__dict__["payload"] = registry.decode(self.type, self.schema_version, self.data)
        return decoded

    @property
    def as_stored(self) -> "RecordedEvent":
        """With its texts sealed as they are in the store, where they were opened (`events.texts`)."""
        stored: RecordedEvent = self.__dict__.get("stored", self)
        return stored

    def caused(self, actor: str) -> Metadata:
        """The metadata of what `actor` (`service:<name>`) appends because of this event."""
        return Metadata(
            correlation_id=self.metadata.correlation_id,
            causation_id=self.event_id,
            actor=actor,
            platform=self.metadata.platform,
            traceparent=self.metadata.traceparent,
        )

    @property
    def public(self) -> bool:
        return registry.is_public(self.type, self.schema_version)

    @property
    def stream_id(self) -> str:
        """The part of the stream's name after its category."""
        return self.stream.split("-", 1)[1]

    def cloud_event(self) -> "CloudEvent":
        """CloudEvents 1.0 with our extension attributes."""
        metadata = self.metadata
        return CloudEvent(
            specversion="1.0",
            datacontenttype="application/json",
            id=self.event_id,
            source=f"/sangam/{self.type.split('.', 1)[0]}",
            type=self.type,
            time=self.recorded_at,
            subject=self.subject,
            data=msgspec.Raw(self.data),
            stream=self.stream,
            version=self.version,
            position=self.position,
            schemaversion=self.schema_version,
            correlationid=metadata.correlation_id,
            causationid=metadata.causation_id,
            actor=metadata.actor,
            platform=metadata.platform,
            traceparent=metadata.traceparent,
        )


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An event on the wire: CloudEvents 1.0 JSON format (https://cloudevents.io), structured mode."""

    specversion: str
    id: UUID
    source: str
    type: str
    time: datetime
    subject: UUID | None = None
    datacontenttype: str
    data: msgspec.Raw
    stream: str
    version: int
    position: int
    schemaversion: int = 1
    correlationid: str | None = None
    causationid: UUID | None = None
    actor: str | None = None
    platform: str | None = None
    traceparent: str | None = None

    def recorded(self) -> RecordedEvent:
        """Back from the wire."""
        return RecordedEvent(
            position=self.position,
            stream=self.stream,
            version=self.version,
            event_id=self.id,
            type=self.type,
            schema_version=self.schemaversion,
            subject=self.subject,
            data=bytes(self.data),
            metadata=Metadata(
                correlation_id=self.correlationid,
                causation_id=self.causationid,
                actor=self.actor,
                platform=self.platform,
                traceparent=self.traceparent,
            ),
            recorded_at=self.time,
        )

    def attributes(self) -> dict[str, Any]:
        """The context attributes alone, ids as text, as the binary mode's headers want them."""
        values = {name: getattr(self, name) for name in self.__struct_fields__ if name != "data"}
        return {
            name: str(value) if isinstance(value, UUID) else value
            for name, value in values.items()
            if value is not None
        }
