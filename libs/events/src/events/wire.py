"""The log's form on RabbitMQ: batches of CloudEvents over a contiguous range of positions."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from events.envelope import CloudEvent, RecordedEvent

LOG_EXCHANGE = "sangam.log"
EVENTS_EXCHANGE = "sangam.events"
DEAD_EXCHANGE = "sangam.dead"
UNROUTED_EXCHANGE = "sangam.unrouted"

BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"

_epoch = lru_cache(maxsize=8)(UUID)
"""There is one at a time, in each of a thousand messages a second."""

_batch_decoder = msgspec.json.Decoder(list[CloudEvent])


class LogSlice(NamedTuple):
    """Contiguous events of the log as the store hands them out (`store.read_cloud_events`): bytes to pass on."""

    first: int
    last: int
    events: bytes
    """CloudEvents in JSON, a comma between them."""

    def decoded(self) -> list[CloudEvent]:
        """The events.

        Raises:
            msgspec.DecodeError: somebody has damaged one in the store.
        """
        return decode_events(self.events)


def decode_events(events: bytes) -> list[CloudEvent]:
    """The events of `LogSlice.events`.

    Raises:
        msgspec.DecodeError: somebody has damaged one in the store.
    """
    return _batch_decoder.decode(b"[%b]" % events)


class MalformedBatch(ValueError):
    """A message on the log's exchange that is not a batch: somebody else's, or damaged."""


class BatchHeaders(NamedTuple):
    """What a batch says about itself without being decoded.

    A heartbeat has no events: `first` is `last + 1`, and `last` the head of the log when it was sent.
    """

    first: int
    last: int
    epoch: UUID

    @property
    def is_heartbeat(self) -> bool:
        return self.first > self.last


def encode_batch(slices: Sequence[LogSlice], epoch: UUID) -> tuple[bytes, dict[str, Any]]:
    """Body and headers of a batch: of slices that follow each other."""
    body = b"[%b]" % b",".join([each.events for each in slices])
    return body, {"first": slices[0].first, "last": slices[-1].last, "epoch": str(epoch)}


def encode_heartbeat(head: int, epoch: UUID) -> tuple[bytes, dict[str, Any]]:
    """Body and headers of the empty batch that tells the head of the log."""
    return b"[]", {"first": head + 1, "last": head, "epoch": str(epoch)}


def read_headers(headers: Mapping[str, Any]) -> BatchHeaders:
    """The headers of a received batch.

    Raises:
        MalformedBatch: they are missing or of another form.
    """
    try:
        first, last, epoch = headers["first"], headers["last"], _epoch(str(headers["epoch"]))
    except (KeyError, ValueError) as error:
        raise MalformedBatch(f"headers {dict(headers)!r}") from error
    if type(first) is not int or type(last) is not int or first < 1 or last < first - 1:
        raise MalformedBatch(f"headers {dict(headers)!r}")
    return BatchHeaders(first, last, epoch)


def decode_batch(body: bytes, headers: BatchHeaders) -> list[RecordedEvent]:
    """The events of a received batch.

    Raises:
        MalformedBatch: the body is not what the headers announce.
    """
    try:
        events = [event.recorded() for event in _batch_decoder.decode(body)]
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedBatch(str(error)) from error
    if [event.position for event in events] != list(range(headers.first, headers.last + 1)):
        raise MalformedBatch(f"positions do not match {headers.first}–{headers.last}")
    return events
