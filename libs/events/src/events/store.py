"""The event store: append with expected versions, read streams and the log."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Self
from uuid import UUID

import asyncpg
import msgspec
from opentelemetry import trace

from events import pg
from events.batches import Batches
from events.coalescer import Coalescer, Request, StreamAppend, encode_request
from events.envelope import Metadata, RecordedEvent, decode_metadata, with_traceparent
from events.passwords import connect_postgres
from events.wire import decode_events

__all__ = [
    "Appended",
    "EventIdReused",
    "EventStore",
    "Found",
    "Head",
    "Request",
    "StoredSnapshot",
    "StreamAppend",
    "VersionConflict",
    "recorded",
]


_tracer = trace.get_tracer("events.store")

_POSITIONS_PER_ROW = 500

Opener = Callable[[Sequence[RecordedEvent]], Awaitable[list[RecordedEvent]]]


class VersionConflict(Exception):
    """A stream is not at the version the decision was made on. Nothing was appended."""

    def __init__(self, stream: str, expected: int | None, actual: int) -> None:
        super().__init__(f"{stream} is at version {actual}, expected {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class EventIdReused(Exception):
    """The event id is taken by a request with another hash: an idempotency key used for something else."""

    def __init__(self, event_id: UUID) -> None:
        super().__init__(f"event id {event_id} belongs to another request")
        self.event_id = event_id


class Appended(msgspec.Struct, frozen=True, gc=False):
    """A durable append. `versions` holds each stream's version after it.

    For a duplicate nothing was written, and `versions` holds the first stream's version at the
    request's first event.
    """

    event_id: UUID
    duplicate: bool
    versions: dict[str, int]


class StoredSnapshot(NamedTuple):
    """The encoded state of a stream at a version."""

    version: int
    state: bytes


class Found(NamedTuple):
    """An event looked up by id, with the hash of the request that appended it."""

    event: RecordedEvent
    request_hash: bytes


class Head(NamedTuple):
    """The end of the log, and which life of the log it is."""

    epoch: UUID
    position: int


def recorded(row: asyncpg.Record) -> RecordedEvent:
    """A row of the store's read functions as an event."""
    return RecordedEvent(
        position=row["position"],
        stream=row["stream"],
        version=row["version"],
        event_id=_uuid(row["event_id"]),
        type=row["type"],
        schema_version=row["schema_version"],
        subject=_uuid(row["subject"]) if row["subject"] is not None else None,
        data=row["data"],
        metadata=decode_metadata(row["metadata"]),
        recorded_at=row["recorded_at"],
    )


def _uuid(value: UUID) -> UUID:
    """asyncpg's UUID as Python's own. Half of what `UUID(int=value.int)` takes."""
    return msgspec.convert(value.bytes, UUID)


class EventStore:
    """The store as one service sees it: its role appends to and reads its own stream categories,
    and reads the whole log to catch up."""

    def __init__(self, pool: asyncpg.Pool, coalescer: Coalescer) -> None:
        self._pool = pool
        self._coalescer = coalescer
        self._opener: Opener | None = None
        self.batches = Batches(self.opened)
        """What comes from the broker, decoded once for all consumers that share this store."""

    def opens_with(self, opener: "Opener") -> None:
        """From here on what is read from the log has its sealed texts opened (`events.texts`). What is read from a
        stream has not: deciders pass on what is sealed."""
        self._opener = opener

    async def opened(self, events: "list[RecordedEvent]") -> "list[RecordedEvent]":
        """Events of the log as consumers get them.

        Raises:
            OSError, asyncpg.PostgresError: the keys cannot be asked for.
        """
        return events if self._opener is None else await self._opener(events)

    @classmethod
    async def connect(cls, url: str, *, readers: int = 4) -> Self:
        """Opens the store with a role's URL. The server need not be up yet.

        Raises:
            ValueError: the URL is malformed.
        """
        pool = asyncpg.create_pool(
            url,
            connect=connect_postgres,
            min_size=0,
            max_size=readers,
            timeout=5,
            command_timeout=60,
            server_settings={"application_name": "read"},
            reset=pg.keep_session,
        )
        await pool
        return cls(pool, Coalescer(url))

    async def open(self) -> None:
        """Connects what appends go through, for whoever is going to append: the first append need not wait for it.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: the server is not to be had.
        """
        await self._coalescer.open()

    async def close(self) -> None:
        """Finishes the appends under way, then closes."""
        await self._coalescer.close()
        await self._pool.close()

    async def append(
        self,
        parts: Sequence[StreamAppend],
        *,
        event_id: UUID,
        request_hash: bytes = b"",
        subject: UUID | None = None,
        metadata: Metadata = Metadata(),  # noqa: B008 - immutable
    ) -> Appended:
        """Appends all parts or nothing. Concurrent calls share a transaction and keep their order.

        The first event gets `event_id`, the n-th `derived_id(event_id, n)`: a second append with the
        same id and hash writes nothing and is answered as a duplicate, whatever the streams' versions.

        Raises:
            ValueError: there is no event, or a stream is named twice.
            VersionConflict: a stream is not at its expected version.
            EventIdReused: `event_id` was appended with another `request_hash`.
            asyncpg.InsufficientPrivilegeError: a stream's category belongs to another service.
            OSError, asyncpg.PostgresError: the outcome is unknown; appending again is safe.
        """
        return await self.outcome(
            self.begin(parts, event_id=event_id, request_hash=request_hash, subject=subject, metadata=metadata)
        )

    def begin(
        self,
        parts: Sequence[StreamAppend],
        *,
        event_id: UUID,
        request_hash: bytes = b"",
        subject: UUID | None = None,
        metadata: Metadata = Metadata(),  # noqa: B008 - immutable
        follows: Request | None = None,
    ) -> Request:
        """First half of `append`: takes its place in the order of appends, at once. `outcome` is the second.

        `follows` is the append that this one was decided on: if it turns out not to be appended, this one conflicts.

        Raises:
            ValueError: there is no event, or a stream is named twice.
        """
        parts = tuple(parts)
        if len(parts) > 1 and len({part.stream for part in parts}) < len(parts):
            raise ValueError("an append names each stream once")
        rows = encode_request(parts, event_id, request_hash, subject, with_traceparent(metadata))
        return self._coalescer.submit(event_id, request_hash, rows, follows)

    async def outcome(self, request: Request) -> Appended:
        """Waits for an append that was begun. Raises as `append` does."""
        # Not shielded: a caller that goes away cancels what it waits for, and the append goes on.
        if trace.get_current_span().is_recording():
            with _tracer.start_as_current_span("append"):
                verdict = await request.result
        else:
            verdict = await request.result
        parts, versions = request.parts, verdict.versions
        if verdict.outcome == "appended" and len(parts) == 1:
            return Appended(request.event_id, False, {parts[0].stream: versions[0] or 0})
        if verdict.outcome == "reused":
            raise EventIdReused(request.event_id)
        if verdict.outcome == "conflict":
            states = list(zip(parts, versions, strict=True))
            for part, actual in states:
                if part.expected is not None and part.expected != actual:
                    raise VersionConflict(part.stream, part.expected, actual or 0)
            for part, actual in states:
                # At the expected version by another's events, not by those it was decided on.
                if part.expected:
                    raise VersionConflict(part.stream, part.expected, actual or 0)
            raise AssertionError("a conflict without a stream that conflicts")  # never taken for an append
        return Appended(
            request.event_id,
            verdict.outcome == "duplicate",
            {part.stream: version for part, version in zip(parts, versions, strict=True) if version is not None},
        )

    async def read_stream(
        self, stream: str, after_version: int = 0, *, limit: int | None = None
    ) -> list[RecordedEvent]:
        """The stream's events above a version, in order. Its category must be this role's own.

        Raises:
            asyncpg.InsufficientPrivilegeError: it is not.
        """
        rows = await self._pool.fetch("SELECT * FROM store.read_stream($1, $2, $3)", stream, after_version, limit)
        return [recorded(row) for row in rows]

    async def find(self, event_id: UUID) -> Found | None:
        """The event of that id in a stream of this role's own."""
        row = await self._pool.fetchrow("SELECT * FROM store.find_event($1)", event_id)
        return Found(recorded(row), row["request_hash"]) if row else None

    async def read_log(self, after: int, limit: int = 1000) -> list[RecordedEvent]:
        """Events at positions above `after`, in order, at most `limit`."""
        rows = await self._pool.fetch(
            "SELECT events FROM store.read_cloud_events($1, $2, NULL, $3)", after, after + limit, _POSITIONS_PER_ROW
        )
        try:
            return await self.opened([event.recorded() for row in rows for event in decode_events(row["events"])])
        except msgspec.DecodeError:
            # Somebody has damaged one of them. Its payload is taken as it is: whoever decodes it gets the error.
            return await self._read_columns(after, after + limit, None)

    async def read_types(self, after: int, up_to: int, types: Sequence[str]) -> list[RecordedEvent]:
        """The events of `types` at positions above `after` and up to `up_to`, in order: all of them."""
        return await self._read_columns(after, up_to, types)

    async def _read_columns(self, after: int, up_to: int, types: Sequence[str] | None) -> list[RecordedEvent]:
        """Less work in all than CloudEvents, but more of it here: for whom PostgreSQL is as busy as Python."""
        rows = await self._pool.fetch("SELECT * FROM store.read_types($1, $2, $3)", after, up_to, types)
        return await self.opened([recorded(row) for row in rows])

    async def read_positions(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """The events at these positions, in order."""
        rows = await self._pool.fetch("SELECT * FROM store.read_positions($1)", positions)
        return await self.opened([recorded(row) for row in rows])

    async def read_snapshot(self, stream: str, fingerprint: bytes) -> StoredSnapshot | None:
        """The stream's snapshot by the code of that fingerprint (events.snapshots)."""
        row = await self._pool.fetchrow("SELECT * FROM store.read_snapshot($1, $2)", stream, fingerprint)
        return StoredSnapshot(row["version"], row["state"]) if row is not None else None

    async def save_snapshot(self, stream: str, version: int, fingerprint: bytes, state: bytes) -> None:
        """Keeps a snapshot of a stream in a category of this role's own.

        Raises:
            asyncpg.InsufficientPrivilegeError: it is not.
        """
        await self._pool.execute("SELECT store.save_snapshot($1, $2, $3, $4)", stream, version, fingerprint, state)

    async def position_of(self, event_id: UUID) -> int | None:
        """The event's position; None while it has none yet, or does not exist."""
        return (await self.positions_of([event_id])).get(event_id)

    async def positions_of(self, event_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The positions of those events that have one."""
        rows = await self._pool.fetch("SELECT event_id, position FROM store.positions_of($1)", event_ids)
        return {_uuid(row["event_id"]): row["position"] for row in rows}

    async def head(self) -> Head:
        """The log's end and epoch."""
        row = await self._pool.fetchrow("SELECT epoch, position FROM store.head()")
        assert row is not None
        return Head(UUID(int=row["epoch"].int), row["position"])
