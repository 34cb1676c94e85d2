"""What one transaction tells: facts go into their lanes, groups are settled, and what is said becomes events. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from events.contracts.notification import (
    Notification,
    NotificationRaised,
    NotificationRevised,
    PreferenceChanged,
)
from events.envelope import derived_id

from notifier import grouping
from notifier.grouping import Drop, Group, Hold, Lane, Tell
from notifier.preferences import DEFAULTS, channels, digest_key, quiet_until
from notifier.rules import Fact
from notifier.texts import Names

SEEN_FOR = timedelta(days=3)
"""How long after the first report of a fact the other platform's report is known as the same."""
ONCE_FOR = timedelta(hours=24)


class Sighting(NamedTuple):
    platform: str | None
    lane: str
    notification_id: UUID
    seen_at: datetime


Sightings = dict[tuple[UUID, str], Sighting | None]
"""What was seen before, by customer and name; None: nothing, or what is to be forgotten."""


class Entry(NamedTuple):
    """An event for the outbox."""

    event_id: UUID
    user_id: UUID
    event: Notification
    cause: UUID | None


class Spoken(NamedTuple):
    """What is to be told to whom. Put into words at the end of the chunk, when the group is what it is by then."""

    user_id: UUID
    fact: Fact
    group: Group
    preferences: PreferenceChanged
    reason: str | None
    """Why it is told again; None the first time."""

    def event(self, names: Names) -> Entry:
        group, fact = self.group, self.fact
        language = self.preferences.language
        said = grouping.say(group, language, names)
        content: dict[str, Any] = {
            "notification_id": group.notification_id,
            "category": fact.category,
            "priority": group.priority,
            "language": language,
            "emoji": said.emoji,
            "title": said.title,
            "body": said.body,
            "actions": said.actions,
            "count": group.count,
            "total_minor": group.total_minor,
            "currency": fact.told.currency if group.total_minor is not None else None,
            "event_ids": tuple(group.event_ids),
            "channels": group.channels or (),
            "through": group.through,
        }
        if self.reason is not None:
            return Entry(
                derived_id(group.notification_id, "through", group.through),
                self.user_id,
                NotificationRevised(**content, reason=self.reason),  # type: ignore[arg-type]
                fact.event_id,
            )
        digest = derived_id(self.user_id, digest_key(self.user_id, group.deadline))
        raised = NotificationRaised(
            **content,
            opened_at=group.opened_at,
            held=group.held,
            digest_id=digest if group.held == "quiet_hours" else None,
        )
        return Entry(group.notification_id, self.user_id, raised, fact.event_id)


class Chapter:
    """What one transaction tells."""

    def __init__(
        self,
        now: datetime,
        preferences: Mapping[UUID, PreferenceChanged],
        floors_minor: Mapping[str, int] = grouping.LARGE_FLOOR_MINOR,
    ) -> None:
        self.now = now
        self.spoken: list[Spoken] = []
        self.dropped = 0
        self.same = 0
        self._preferences = preferences
        self._floors_minor = floors_minor
        self._revised: set[UUID] = set()

    def preferences(self, user: UUID) -> PreferenceChanged:
        return self._preferences.get(user, DEFAULTS)

    def tell_at_once(self, user: UUID, fact: Fact) -> None:
        preferences = self.preferences(user)
        group = Group(
            notification_id=derived_id(fact.event_id, "notification"),
            opened_at=fact.recorded_at,
            window_end=fact.recorded_at,
            deadline=fact.recorded_at,
            priority=fact.priority,
            latest=fact,
            channels=channels(preferences, fact.category, fact.priority),
        )
        group.add(fact)
        self.spoken.append(Spoken(user, fact, group, preferences, None))

    def take(self, user: UUID, lane: Lane, fact: Fact, sightings: Sightings) -> None:
        told = fact.told
        name = told.both_report or told.once
        if name is not None and (seen := sightings.get((user, name))) is not None:
            both = told.both_report is not None and seen.platform != told.platform
            once = told.once is not None and fact.recorded_at - seen.seen_at < ONCE_FOR
            if both:
                self._same_again(user, lane, fact, seen)
                sightings[user, name] = None  # each report is matched by one other
            if both or once:
                self.same += 1
                return
        fact = grouping.weigh(lane, fact, self._floors_minor)
        group = lane.group
        if group is not None and group.waits and fact.recorded_at >= group.deadline:
            self.settle(user, lane)
        if group is not None and group.takes(fact):
            group.add(fact)
            if group.channels:
                self._revise(user, group, "late_member")
        else:
            group = grouping.open_group(lane, fact)
            if fact.alone:
                self.settle(user, lane)
        if name is not None:
            sightings[user, name] = Sighting(told.platform, lane.key, group.notification_id, fact.recorded_at)

    def settle(self, user: UUID, lane: Lane) -> None:
        group = lane.group
        assert group is not None
        match grouping.settle(lane, self.preferences(user), self.now):
            case Tell():
                self.spoken.append(Spoken(user, group.latest, group, self.preferences(user), None))
            case Hold():
                pass
            case Drop():
                self.dropped += group.count

    def _same_again(self, user: UUID, lane: Lane, fact: Fact, seen: Sighting) -> None:
        """The second report joins the notification of the first one, if that is still at hand, and is silent."""
        group = lane.group
        if group is not None and lane.key == seen.lane and group.notification_id == seen.notification_id:
            group.name(fact)
            if group.channels:
                self._revise(user, group, "seen_by_both")

    def _revise(self, user: UUID, group: Group, reason: str) -> None:
        # What is revised in this very chunk is put into words at its end, with all members.
        if group.notification_id in self._revised:
            return
        self._revised.add(group.notification_id)
        self.spoken.append(Spoken(user, group.latest, group, self.preferences(user), reason))


def woken(chapter: Chapter, user: UUID, content: bytes, snoozed_until: datetime) -> Entry | None:
    """A notification whose snooze is over, told again; later where its customer has quiet hours now."""
    told = msgspec.json.decode(content, type=dict[str, Any])
    if told["priority"] != "critical" and quiet_until(chapter.preferences(user), chapter.now) is not None:
        return None
    revised = msgspec.convert({**told, "reason": "snooze_over"}, NotificationRevised)
    # Through the instant, so that a second snooze of the same notification is another one.
    event_id = derived_id(revised.notification_id, "snooze", snoozed_until.timestamp())
    return Entry(event_id, user, revised, None)
