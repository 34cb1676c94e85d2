"""The notifier without a database, driven step by step."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from events.contracts.notification import NotificationRaised, PreferenceChanged
from notifier.grouping import Lane, lane_key
from notifier.preferences import DEFAULTS
from notifier.rules import Fact
from notifier.telling import Chapter, Sighting

sys.path.insert(0, str(Path(__file__).parent))

from samples import ACCOUNTS
from tellers import USER

Lanes = dict[tuple[UUID, str], Lane]
_encode, decode = msgspec.msgpack.encode, msgspec.msgpack.Decoder(Lane).decode


class Notifier:
    """The consumer, its clock and its outbox, without a database: what is stored is stored as bytes."""

    def __init__(self, preferences: PreferenceChanged = DEFAULTS) -> None:
        self.preferences = preferences
        self.lanes: dict[tuple[UUID, str], bytes] = {}
        self.sightings: dict[tuple[UUID, str], Sighting | None] = {}
        self.store: dict[UUID, tuple[datetime, Any]] = {}
        """By event id, as the event store keeps them: the first append counts."""

    def chunk(self, facts: Sequence[Fact], now: datetime, *, crash: bool = False) -> None:
        chapter = Chapter(now, {USER: self.preferences})
        lanes = {key: decode(state) for key, state in self.lanes.items()}
        sightings = dict(self.sightings)
        for one in facts:
            if one.priority == "critical":
                chapter.tell_at_once(USER, one)
                continue
            lane = lanes.setdefault((USER, lane_key(one)), Lane(key=lane_key(one)))
            chapter.take(USER, lane, one, sightings)
        if not crash:  # a transaction that does not commit leaves nothing
            self._commit(chapter, lanes, sightings)

    def tick(self, now: datetime, *, crash: bool = False) -> None:
        chapter = Chapter(now, {USER: self.preferences})
        lanes = {key: decode(state) for key, state in self.lanes.items()}
        for lane in lanes.values():
            if lane.group is not None and lane.group.waits and lane.group.deadline <= now:
                chapter.settle(USER, lane)
        if not crash:
            self._commit(chapter, lanes, self.sightings)

    def _commit(self, chapter: Chapter, lanes: Lanes, sightings: dict[tuple[UUID, str], Sighting | None]) -> None:
        self.lanes = {key: _encode(lane) for key, lane in lanes.items()}
        self.sightings = sightings
        entries = [spoken.event(ACCOUNTS) for spoken in chapter.spoken]
        assert len({entry.event_id for entry in entries}) == len(entries), "one chunk tells a thing once"
        for entry in entries:
            for _ in range(2):  # by two replicas
                self.store.setdefault(entry.event_id, (chapter.now, entry.event))

    def finish(self, now: datetime) -> None:
        """Ticks until nothing waits."""
        while deadlines := [
            lane.group.deadline
            for state in self.lanes.values()
            if (lane := decode(state)).group is not None and lane.group.waits
        ]:
            now = max(now, min(deadlines))
            self.tick(now)

    @property
    def raised(self) -> list[NotificationRaised]:
        return [event for _, event in self.store.values() if isinstance(event, NotificationRaised)]

    @property
    def final(self) -> dict[UUID, Any]:
        """Each notification as its last revision has it."""
        return {event.notification_id: event for _, event in self.store.values()}
