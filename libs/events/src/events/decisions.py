"""Decide on a stream and append: the loop every command goes through.

    decide(state) → events          pure: state and command in, events out, or a Refusal raised
    evolve(state, event) → state    pure: folds one event

States are cached per process. A cached state may be stale, so an append carries the version it was decided on,
and a refusal counts only once that version is confirmed: a stale replica must not refuse money that is there.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, NamedTuple, TypeVar
from uuid import UUID

from events import metrics
from events.contracts import Event
from events.envelope import Metadata, RecordedEvent, derived_id
from events.store import EventIdReused, EventStore, StreamAppend, VersionConflict

S = TypeVar("S")

_REQUEST_PAGE = 16


class Refusal(Exception):
    """A rule says no. Subclasses name the outcome in `code`; the exception's text explains it."""

    code: ClassVar[str] = "refused"


class Decided(NamedTuple):
    """The outcome of a command.

    `events` is what was appended to the stream, or, for a duplicate, what the first request had appended.
    `event_id` is the id of the first of them; `version` the stream's version after the last.
    """

    events: tuple[Event, ...]
    event_id: UUID
    duplicate: bool
    version: int


class _Cached(Generic[S]):
    """A stream's state as of a version. `turn` makes this process decide on it one command at a time."""

    __slots__ = ("state", "turn", "version")

    def __init__(self, state: S) -> None:
        self.state = state
        self.version = 0
        self.turn = asyncio.Lock()


class Streams(Generic[S]):
    """The streams of one category, with their states."""

    def __init__(
        self,
        store: EventStore,
        category: str,
        initial: S,
        evolve: Callable[[S, Event], S],
        *,
        max_cached: int = 10_000,
    ) -> None:
        self._store = store
        self._category = category
        self._initial = initial
        self._evolve = evolve
        self._max_cached = max_cached
        self._cache: OrderedDict[str, _Cached[S]] = OrderedDict()

    async def load(self, stream_id: UUID | str) -> tuple[S, int]:
        """The stream's state and version as the store holds them now."""
        entry = self._entry(f"{self._category}-{stream_id}")
        async with entry.turn:
            await self._catch_up(f"{self._category}-{stream_id}", entry)
            return entry.state, entry.version

    async def execute(
        self,
        stream_id: UUID | str,
        decide: Callable[[S], Sequence[Event]],
        *,
        event_id: UUID,
        request_hash: bytes = b"",
        subject: UUID | None = None,
        metadata: Metadata = Metadata(),  # noqa: B008 - immutable
        also: Sequence[StreamAppend] = (),
    ) -> Decided:
        """Decides on the stream and appends, exactly once per `event_id`.

        `also` names parts on further streams, appended in the same transaction. Where decide() returns
        no events, nothing is appended and the answer has no events.

        Raises:
            Refusal: as decide() raised it, on a confirmed version and for an id that nothing was appended with.
            EventIdReused: the id was used by a request with another hash.
            VersionConflict: a part of `also` does not hold.
            OSError, asyncpg.PostgresError: the outcome is unknown; executing again is safe.
        """
        stream = f"{self._category}-{stream_id}"
        entry = self._entry(stream)
        async with entry.turn:
            if entry.version == 0:
                await self._catch_up(stream, entry)
            while True:
                try:
                    events = tuple(decide(entry.state))
                except Refusal:
                    if first := await self._outcome_of(event_id, request_hash):
                        return first
                    if await self._catch_up(stream, entry):
                        continue
                    raise
                if not events:
                    if await self._catch_up(stream, entry):
                        continue
                    return Decided((), event_id, False, entry.version)
                try:
                    appended = await self._store.append(
                        (StreamAppend(stream, events, entry.version), *also),
                        event_id=event_id,
                        request_hash=request_hash,
                        subject=subject,
                        metadata=metadata,
                    )
                except VersionConflict as conflict:
                    metrics.version_conflicts.labels(self._category).inc()
                    if conflict.stream != stream:
                        raise
                    await self._catch_up(stream, entry)
                    continue
                if appended.duplicate:
                    first = await self._outcome_of(event_id, request_hash)
                    assert first is not None, "a duplicate's events are in the store"
                    return first
                state = entry.state
                for event in events:
                    state = self._evolve(state, event)
                entry.state, entry.version = state, appended.versions[stream]
                return Decided(events, event_id, False, entry.version)

    async def outcome_of(self, event_id: UUID) -> Decided | None:
        """What the request with that id appended to its stream of this category; None if nothing."""
        return await self._outcome_of(event_id, None)

    async def _outcome_of(self, event_id: UUID, request_hash: bytes | None) -> Decided | None:
        found = await self._store.find(event_id)
        if found is None:
            return None
        if request_hash is not None and found.request_hash != request_hash:
            raise EventIdReused(event_id)
        request = [found.event]
        # The rest of the request follows its first event; read on until something else does.
        while True:
            page = await self._store.read_stream(found.event.stream, request[-1].version, limit=_REQUEST_PAGE)
            for event in page:
                if event.event_id != derived_id(event_id, len(request)):
                    break
                request.append(event)
            else:
                if len(page) == _REQUEST_PAGE:
                    continue
            return Decided(tuple(event.payload for event in request), event_id, True, request[-1].version)

    def _entry(self, stream: str) -> _Cached[S]:
        entry = self._cache.get(stream)
        if entry is None:
            entry = self._cache[stream] = _Cached(self._initial)
            while len(self._cache) > self._max_cached:
                # An entry in use may be dropped: whoever holds it goes on with it, and versions decide.
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(stream)
        return entry

    async def _catch_up(self, stream: str, entry: _Cached[S]) -> bool:
        """Folds what others appended since. Returns whether there was anything."""
        tail: list[RecordedEvent] = await self._store.read_stream(stream, entry.version)
        for event in tail:
            entry.state, entry.version = self._evolve(entry.state, event.payload), event.version
        return bool(tail)
