"""Events as the log has them, without a log."""

from datetime import UTC, datetime
from uuid import UUID

from events.contracts.registry import Event, contract_of, encode
from events.envelope import Metadata, RecordedEvent, new_id

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)


def recorded(
    payload: Event,
    *,
    position: int = 1,
    stream: str | None = None,
    version: int = 1,
    event_id: UUID | None = None,
    subject: UUID | None = None,
    metadata: Metadata = Metadata(),  # noqa: B008 - immutable
    at: datetime = AT,
) -> RecordedEvent:
    """The event that a consumer would get; where nothing else is said the first of a stream of its own."""
    contract = contract_of(payload)
    event_id = event_id or new_id()
    return RecordedEvent(
        position=position,
        stream=stream or f"test-{event_id}",
        version=version,
        event_id=event_id,
        type=contract.type,
        schema_version=contract.schema_version,
        subject=subject,
        data=encode(payload),
        metadata=metadata,
        recorded_at=at,
    )
