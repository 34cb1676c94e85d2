"""Decide on a stream and append: the loop every command goes through.

    decide(state) → events          pure: state and command in, events out, or a Refusal raised
    evolve(state, event) → state    pure: folds one event

States are cached per process. A cached state may be stale, so an append carries the version it was decided on,
and a refusal counts only once that version is confirmed: a stale replica must not refuse money that is there.

Commands on one stream do not wait for each other's transactions. Each is decided on the state that the ones before it
will leave, and says so in its append; if one of them turns out not to be appended, those that follow it are not
either, and are decided again. So a busy stream commits all commands at once that came during a transaction.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, TypeVar
from uuid import UUID

import msgspec

from events import metrics
from events.contracts import Event
from events.envelope import Metadata, RecordedEvent, derived_id
from events.snapshots import Snapshots
from events.store import EventIdReused, EventStore, Request, StreamAppend, VersionConflict

S = TypeVar("S")

_REQUEST_PAGE = 16


class Refusal(Exception):
    """A rule says no. Subclasses name the outcome in `code`; the exception's text explains it."""

    code: ClassVar[str] = "refused"


class Decided(msgspec.Struct, frozen=True, gc=False):
    """The outcome of a command.

    `events` is what was appended to the stream, or, for a duplicate, what the first request had appended.
    `event_id` is the id of the first of them; `version` the stream's version after the last.
    """

    events: tuple[Event, ...]
    event_id: UUID
    duplicate: bool
    version: int


class Foreseen(msgspec.Struct, Generic[S], frozen=True, gc=False):
    """Events with the state after them, from a decider that has folded them already."""

    events: tuple[Event, ...]
    state: S


class _Cached(Generic[S]):
    """A stream's state: as it is known to be stored, and as the appends under way will leave it."""

    __slots__ = ("ahead", "epoch", "known", "reading", "state", "stored", "stored_version", "stream", "version")

    def __init__(self, stream: str, state: S) -> None:
        self.stream = stream
        self.state = self.stored = state
        self.version = self.stored_version = 0
        self.known = False
        """Whether the stream has ever been read."""
        self.ahead: Request | None = None
        """The last append under way; None: `state` is `stored`."""
        self.epoch = 0
        """Counts how often what was ahead has been given up."""
        self.reading = asyncio.Lock()

    def advance(self, begun: Request, state: S, added: int) -> None:
        """Goes on to the state after an append that has begun."""
        self.state = state
        self.version += added
        self.ahead = begun
        epoch, version = self.epoch, self.version

        def settle() -> None:
            if epoch != self.epoch:
                return
            if not begun.appended:
                self.give_up()
                return
            self.stored, self.stored_version = state, version
            if self.ahead is begun:
                self.ahead = None

        begun.watch(settle)

    def give_up(self) -> None:
        """Back to what is known to be stored: an append under way has failed, and with it those that follow it."""
        self.epoch += 1
        self.state, self.version, self.ahead = self.stored, self.stored_version, None


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
        snapshots: Snapshots[S] | None = None,
    ) -> None:
        self._store = store
        self._category = category
        self._initial = initial
        self._evolve = evolve
        self._max_cached = max_cached
        self._snapshots = snapshots
        self._cache: OrderedDict[UUID | str, _Cached[S]] = OrderedDict()

    async def load(self, stream_id: UUID | str) -> tuple[S, int]:
        """The stream's state and version as the store holds them now."""
        entry = self._entry(stream_id)
        await self._catch_up(entry)
        return entry.stored, entry.stored_version

    async def execute(
        self,
        stream_id: UUID | str,
        decide: Callable[[S], Sequence[Event] | Foreseen[S]],
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
        entry = self._entry(stream_id)
        stream = entry.stream
        if not entry.known:
            await self._meet(entry)
        while True:
            if entry.reading.locked():  # others have found the state to be stale
                async with entry.reading:
                    pass
            state, version, epoch, ahead = entry.state, entry.version, entry.epoch, entry.ahead
            try:
                decided = decide(state)
            except Refusal:
                if not await self._is_confirmed(entry, version, epoch, ahead):
                    continue
                # Looked for only now: the first request may have been under way, and be what the refusal is about.
                if first := await self._outcome_of(event_id, request_hash):
                    return first
                raise
            if isinstance(decided, Foreseen):
                events, after = decided.events, decided.state
            else:
                events, after = tuple(decided), state
                for event in events:
                    after = self._evolve(after, event)
            if not events:
                if not await self._is_confirmed(entry, version, epoch, ahead):
                    continue
                return Decided((), event_id, False, version)
            begun = self._store.begin(
                (StreamAppend(stream, events, version), *also),
                event_id=event_id,
                request_hash=request_hash,
                subject=subject,
                metadata=metadata,
                follows=ahead,
            )
            entry.advance(begun, after, len(events))
            try:
                appended = await self._store.outcome(begun)
            except VersionConflict as conflict:
                metrics.version_conflicts.labels(self._category).inc()
                if conflict.stream != stream:
                    raise
                await self._catch_up(entry)
                continue
            if appended.duplicate:
                first = await self._outcome_of(event_id, request_hash)
                assert first is not None, "a duplicate's events are in the store"
                return first
            return Decided(events, event_id, False, appended.versions[stream])

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

    def _entry(self, stream_id: UUID | str) -> _Cached[S]:
        entry = self._cache.get(stream_id)
        if entry is None:
            entry = self._cache[stream_id] = _Cached(f"{self._category}-{stream_id}", self._initial)
            while len(self._cache) > self._max_cached:
                # An entry in use may be dropped: whoever holds it goes on with it, and versions decide.
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(stream_id)
        return entry

    async def _meet(self, entry: _Cached[S]) -> None:
        """Reads a stream for the first time: once, however many commands wait for it."""
        if entry.reading.locked():
            async with entry.reading:
                pass
        if not entry.known:
            await self._catch_up(entry)

    async def _is_confirmed(self, entry: _Cached[S], version: int, epoch: int, ahead: Request | None) -> bool:
        """Whether the stream was at the version decided on, some time since the command came."""
        if ahead is not None:
            # An append that was not known to be stored when the command came: where it is now, nothing else of
            # anybody's stood between it and the command.
            await ahead.settled()
            return ahead.appended
        return not await self._catch_up(entry, version) and entry.epoch == epoch

    async def _catch_up(self, entry: _Cached[S], version: int | None = None) -> bool:
        """Folds what others appended. Returns whether there is anything above `version` (of this process's too)."""
        stream = entry.stream
        async with entry.reading:
            while entry.ahead is not None:
                # What is under way is settled first, by its watcher, which runs before this goes on.
                await entry.ahead.settled()
            if (
                entry.stored_version == 0
                and self._snapshots is not None
                and (snapshot := await self._snapshots.latest(stream)) is not None
            ):
                entry.stored, entry.stored_version = snapshot
                entry.give_up()
            after = entry.stored_version if version is None else min(version, entry.stored_version)
            tail: list[RecordedEvent] = await self._store.read_stream(stream, after)
            entry.known = True
            state, at = entry.stored, entry.stored_version
            for event in tail:
                if event.version > at:
                    state, at = self._evolve(state, event.payload), event.version
            if at > entry.stored_version:
                entry.stored, entry.stored_version = state, at
                entry.give_up()
                if self._snapshots is not None:
                    self._snapshots.leave(stream, state, at, folded=len(tail))
            return bool(tail)
