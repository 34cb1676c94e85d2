"""Which sessions have ended, known in every process: tokens are verified offline and live for minutes, so a service
refuses them by a set in memory that the log and `sangam.control` keep current.

It starts from a snapshot (the read model `RevokedSessions`, and the log from there on) before the service is ready.
It is *stale* while the relay has not been heard for `STALE_S`, or while what it announced has not arrived: then
nobody can say which sessions have ended, and routes that move money (`MOVES_MONEY`) refuse.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Protocol
from uuid import UUID

from events.contracts.identity import SessionRevoked
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

MOVES_MONEY: Final = {"moves_money": True}
"""Route option (`opt=MOVES_MONEY`): refused with 503 while it is not known which sessions have ended."""

STALE_S: Final = 5.0
KEPT_S: Final = 3700.0
"""How long an ended session is remembered: longer than any token of it is accepted (`tokens.LIFETIME_S_MAX`)."""

_REVOKED = contract_of(SessionRevoked).type
_PRUNE_ABOVE = 10_000

Watcher = Callable[[Collection[UUID]], None]


class Progress(Protocol):
    """How far the log has been followed (`events.follower.Follower`)."""

    @property
    def position(self) -> int: ...

    @property
    def current_at_s(self) -> float:
        """A moment, on the monotonic clock, up to which everything that the relay told of is known; 0: none yet."""
        ...


class Revocations:
    """The sessions that have ended, as this process knows them."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: dict[UUID, float] = {}
        """By session, when it may be forgotten (monotonic)."""
        self._watchers: list[Watcher] = []
        self._progress: Progress | None = None

    def __contains__(self, session_id: UUID) -> bool:
        return session_id in self._ended

    def __len__(self) -> int:
        return len(self._ended)

    @property
    def position(self) -> int:
        """The log position up to which revocations are known here."""
        return self._progress.position if self._progress is not None else 0

    def follow(self, progress: Progress) -> None:
        """From now on freshness is judged by this follower, which feeds `apply`."""
        self._progress = progress

    def watch(self, watcher: Watcher) -> None:
        """`watcher` is told, at once and in this thread, of sessions that end: whoever holds a WebSocket closes it.

        A session may end between the verification of its token and the moment when the watcher knows the socket:
        look once more (`session_id in revocations`) after adding it.
        """
        self._watchers.append(watcher)

    def add(self, session_ids: Iterable[UUID]) -> list[UUID]:
        """Refuses these sessions from now on. Returns those that were not known yet."""
        now = self._clock()
        if len(self._ended) > _PRUNE_ABOVE:
            self._ended = {session_id: until for session_id, until in self._ended.items() if until > now}
        new = [session_id for session_id in dict.fromkeys(session_ids) if session_id not in self._ended]
        self._ended.update(dict.fromkeys(new, now + KEPT_S))
        if new:
            for watcher in self._watchers:
                watcher(new)
        return new

    async def apply(self, events: Sequence[RecordedEvent]) -> None:
        """What the log says."""
        self.add(revoked_in(events))

    def fresh(self) -> bool:
        """Whether a session that ended `STALE_S` ago is surely known here to have ended."""
        if self._progress is None:
            return False
        current_at_s = self._progress.current_at_s
        return current_at_s > 0 and self._clock() - current_at_s <= STALE_S


def revoked_in(events: Iterable[RecordedEvent]) -> list[UUID]:
    """The sessions that these events end."""
    return [
        event.payload.session_id
        for event in events
        if event.type == _REVOKED and isinstance(event.payload, SessionRevoked)
    ]
