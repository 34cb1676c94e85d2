"""What the ledger answers to commands and to questions about a transfer."""

from typing import NamedTuple
from uuid import UUID

from events.contracts.ledger import (
    TransferCaptured,
    TransferCompleted,
    TransferHeld,
    TransferRefused,
    TransferReversed,
    TransferVoided,
)
from events.contracts.registry import Event


class TransferOutcome(NamedTuple):
    """What became of a request: the event that records it, and whether an earlier request had recorded it."""

    event: TransferCompleted | TransferHeld | TransferRefused
    replayed: bool


class BulkOutcome(NamedTuple):
    """What became of a bulk request: one event per item that wrote anything, in order."""

    events: tuple[TransferCompleted | TransferHeld | TransferRefused, ...]
    event_id: UUID
    replayed: bool


class Outcome(NamedTuple):
    """What a command on an existing transfer appended, and whether an earlier request had."""

    events: tuple[Event, ...]
    event_id: UUID
    replayed: bool


class FoundTransfer(NamedTuple):
    """A transfer with all that became of it so far."""

    first: TransferCompleted | TransferHeld | TransferRefused
    """What recorded the request."""
    completed: TransferCompleted | None
    """What moved the money, at once or by capturing the hold."""
    ended: TransferCaptured | TransferVoided | None
    """How a hold ended."""
    open: bool
    """A hold that is neither captured, voided nor expired."""
    reversed: TransferReversed | None
