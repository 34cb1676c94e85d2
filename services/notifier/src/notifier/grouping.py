"""How facts become notifications: grouping, urgency, throttle, holding back. Pure; `reactions.py` stores it.

A *lane* is what one customer is told of one category and currency. In it facts gather in a *group*, from its first
event on for five seconds of recorded time. Then the group is told, held back (quiet hours, throttle) and goes on
gathering until it may be told, or dropped where the customer wants none of it. Which group a fact is in depends on the
log alone, so neither a restart nor a slow consumer changes it. Facts that are critical never come here.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import median_low
from typing import NamedTuple
from uuid import UUID

import msgspec
from events.contracts.notification import (
    Action,
    Category,
    Channel,
    Held,
    Language,
    PreferenceChanged,
    Priority,
)
from events.envelope import derived_id

from notifier import texts
from notifier.preferences import channels, quiet_until
from notifier.rules import HISTORY, HISTORY_ACTION, Fact, actions_of, more_urgent
from notifier.texts import Account, Money, Names, Value

WINDOW = timedelta(seconds=5)
"""From the first event on, start inclusive, end exclusive."""

HISTORY_WINDOW = timedelta(seconds=60)
"""A link brings its past in one go, which may take longer than five seconds."""

EVENT_IDS_MAX = 1_000
"""A notification names this many of its events; its count and total are over all of them."""

LARGE_FACTOR = 4
"""An amount is large from this many times the customer's usual one on."""
LARGE_FLOOR_MINOR: Mapping[str, int] = {"INR": 25_000_00}
LARGE_FLOOR_MINOR_OTHERWISE = 500_00
"""Nothing below the floor is large, however small the usual is. A deployment may set others, by currency."""
USUAL_OF = 32
"""The usual amount is the median of so many in the lane before."""
USUAL_FROM = 5
"""With fewer than these nothing is known of the customer, and large is `LARGE_FACTOR` times the floor."""

ALONE = "alone:"
"""What the keys of lanes begin with that hold one message and never another."""

THROTTLE_PERIOD = timedelta(hours=1)
THROTTLE: dict[Category, int] = {
    "transaction": 12,
    "transfer": 12,
    "trade": 12,
    "position": 6,
    "account": 12,
    "security": 12,
    "alert": 12,
    "insight": 4,
    "conflict": 6,
    "system": 6,
}
"""How many notifications that are neither high nor critical a lane may have per period."""


class Group(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Facts that are told together. `latest` stands for all where it is the only one."""

    notification_id: UUID
    opened_at: datetime
    window_end: datetime
    deadline: datetime
    """When it is to be told; later than `window_end` while it is held back."""
    priority: Priority
    latest: Fact
    count: int = 0
    total_minor: int | None = None
    received_minor: int = 0
    paid_minor: int = 0
    event_ids: list[UUID] = msgspec.field(default_factory=list)
    through: int = 0
    held: Held | None = None
    channels: tuple[Channel, ...] | None = None
    """Where it was told; None while it waits, empty where it was dropped."""

    @property
    def waits(self) -> bool:
        """Whether it is yet to be told."""
        return self.channels is None

    def takes(self, fact: Fact) -> bool:
        """Whether the fact is one of its own: in time while it waits; after it was told, a straggler of its window."""
        return fact.recorded_at < (self.deadline if self.waits else self.window_end)

    def add(self, fact: Fact) -> None:
        told = fact.told
        self.count += 1
        self.latest = fact
        if fact.priority != self.priority:
            self.priority = more_urgent(self.priority, fact.priority)
        if told.amount_minor is not None:
            self.total_minor = (self.total_minor or 0) + told.amount_minor
        self.received_minor += told.received_minor
        self.paid_minor += told.paid_minor
        self.name(fact)

    def name(self, fact: Fact) -> None:
        """Names the event without counting it: the second report of a fact that is in already."""
        self.through = fact.position
        if len(self.event_ids) < EVENT_IDS_MAX:
            self.event_ids.append(fact.event_id)


class Lane(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One customer's lane: its present group, and what is known of its past."""

    key: str
    group: Group | None = None
    recent: list[int] = msgspec.field(default_factory=list)
    """The last sizes, oldest first."""
    told_at: list[datetime] = msgspec.field(default_factory=list)
    """When the last notifications of the period were told."""
    throttled_at: datetime | None = None
    """When a group was last held back by the throttle."""


class Tell(NamedTuple):
    channels: tuple[Channel, ...]


class Hold(NamedTuple):
    until: datetime
    why: Held


class Drop(NamedTuple):
    """The customer wants none of it."""


def lane_key(fact: Fact) -> str:
    """The lane of a fact, among those of its customer."""
    if fact.alone:
        return f"{ALONE}{fact.event_id}"
    if fact.told.text == HISTORY:
        return HISTORY
    return f"{fact.category}:{fact.told.currency or ''}"


def weigh(lane: Lane, fact: Fact, floors_minor: Mapping[str, int] = LARGE_FLOOR_MINOR) -> Fact:
    """The fact with its urgency: high where its amount is large for this customer. Remembers the amount."""
    size = fact.told.size_minor
    if size is None:
        return fact
    recent = lane.recent
    large = is_large(recent, size, fact.told.currency or "", floors_minor)
    recent.append(size)
    if len(recent) > USUAL_OF:
        del recent[0]
    return msgspec.structs.replace(fact, priority=more_urgent(fact.priority, "high")) if large else fact


def is_large(
    recent: Sequence[int], size_minor: int, currency: str, floors_minor: Mapping[str, int] = LARGE_FLOOR_MINOR
) -> bool:
    """Whether an amount is large after `recent` ones."""
    floor_minor = floors_minor.get(currency, LARGE_FLOOR_MINOR_OTHERWISE)
    if size_minor < floor_minor:
        return False
    if len(recent) < USUAL_FROM:
        return size_minor >= LARGE_FACTOR * floor_minor
    return size_minor >= LARGE_FACTOR * median_low(recent)


def open_group(lane: Lane, fact: Fact) -> Group:
    """A new group with the fact as its first member. The lane's former group must have been settled."""
    assert lane.group is None or not lane.group.waits, "a group that waits is settled first"
    window = timedelta() if fact.alone else HISTORY_WINDOW if lane.key == HISTORY else WINDOW
    end = fact.recorded_at + window
    lane.group = Group(
        notification_id=derived_id(fact.event_id, "notification"),
        opened_at=fact.recorded_at,
        window_end=end,
        deadline=end,
        priority=fact.priority,
        latest=fact,
    )
    lane.group.add(fact)
    return lane.group


def settle(lane: Lane, preferences: PreferenceChanged, now: datetime) -> Tell | Hold | Drop:
    """What becomes of the lane's group, whose deadline has come; notes it in the lane."""
    group = lane.group
    assert group is not None
    assert group.waits
    at = max(now, group.deadline)
    decision = _decide(lane, group, preferences, at)
    match decision:
        case Tell(wanted):
            group.channels = wanted
            lane.told_at = [told for told in lane.told_at if told > at - THROTTLE_PERIOD] + [at]
        case Hold(until, why):
            group.deadline, group.held = until, why
            if why == "throttle":
                lane.throttled_at = at
        case Drop():
            group.channels = ()
    return decision


def _decide(lane: Lane, group: Group, preferences: PreferenceChanged, at: datetime) -> Tell | Hold | Drop:
    wanted = channels(preferences, group.latest.category, group.priority)
    if not wanted:
        return Drop()
    if (until := quiet_until(preferences, at)) is not None:
        return Hold(until, "quiet_hours")
    if (until := _throttled_until(lane, group, at)) is not None:
        return Hold(until, "throttle")
    return Tell(wanted)


def _throttled_until(lane: Lane, group: Group, at: datetime) -> datetime | None:
    most = THROTTLE[group.latest.category]
    told = [told for told in lane.told_at if told > at - THROTTLE_PERIOD]
    if group.priority == "high" or not told:
        return None
    until = at
    if len(told) >= most:
        until = told[-most] + THROTTLE_PERIOD
    if len(told) >= most or (lane.throttled_at is not None and at < lane.throttled_at + THROTTLE_PERIOD):
        # As long as there is more than may be told, evenly spread: not as many as came at once an hour ago.
        until = max(until, told[-1] + THROTTLE_PERIOD / most)
    return until if until > at else None


# What is said.


class Said(NamedTuple):
    """A notification in words."""

    title: str
    body: str
    emoji: str
    actions: tuple[Action, ...]


_EMOJI: dict[str, str] = {
    "transaction": "💳",
    "transfer": "💸",
    "trade": "📈",
    "position": "📉",
    "account": "🏦",
    "security": "🔐",
    "alert": "⚠️",
    "insight": "💡",
    "conflict": "⚖️",
    "system": "📣",
}

_ACTIONS: dict[str, Action] = {
    "transaction": HISTORY_ACTION,
    "transfer": HISTORY_ACTION,
    "trade": Action(label="view_net_worth", method="GET", href="/api/wealth/net-worth"),
    "position": Action(label="view_net_worth", method="GET", href="/api/wealth/net-worth"),
    "account": Action(label="view_accounts", method="GET", href="/api/accounts"),
    "security": Action(label="view_session", method="GET", href="/api/auth/sessions"),
    "conflict": Action(label="view_conflict", method="GET", href="/api/sync/conflicts"),
    "insight": Action(label="view_health", method="GET", href="/api/wealth/health"),
}


def say_one(fact: Fact, language: Language, names: Names) -> Said:
    """A notification that tells a single fact."""
    values = {"at": texts.Moment(fact.recorded_at), **fact.told.values}
    return Said(
        texts.single(fact.told.text, "title", values, language, names),
        texts.single(fact.told.text, "body", values, language, names),
        fact.emoji,
        tuple(msgspec.structs.replace(a, label=texts.label(a.label, language)) for a in actions_of(fact)),
    )


def say(group: Group, language: Language, names: Names) -> Said:
    """A group in words; a group of one reads as the fact that it is."""
    if group.count == 1:
        return say_one(group.latest, language, names)
    latest = group.latest
    key = HISTORY if latest.told.text == HISTORY else latest.category
    values: dict[str, Value] = {"count": str(group.count)}
    if key != HISTORY:
        values["latest"] = say_one(latest, language, names).title
    currency = latest.told.currency
    if currency is not None:
        values["in"], values["out"] = Money(group.received_minor, currency), Money(group.paid_minor, currency)
    summed = group.total_minor is not None and currency is not None
    if group.total_minor is not None and currency is not None:
        values["total"] = Money(group.total_minor, currency, latest.category == "trade")
    action = _ACTIONS.get(key)
    return Said(
        texts.several(key, "title" if summed else "title_unsummed", values, language, names),
        texts.several(key, "body", values, language, names),
        "🗂️" if key == HISTORY else _EMOJI[key],
        actions_of(latest)
        if action is None
        else (msgspec.structs.replace(action, label=texts.label(action.label, language)),),
    )


def accounts_of(fact: Fact) -> list[UUID]:
    """The accounts whose names the fact's text needs."""
    return [value.account_id for value in fact.told.values.values() if isinstance(value, Account)]
