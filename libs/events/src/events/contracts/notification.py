"""notification: what a customer is told, on `inbox-<user>` (published by notifier).

A notification is *raised* when it may be told: a group after its five seconds, what quiet hours or a throttle held
back when they end. So whoever follows these events disturbs nobody at night. Texts are in the customer's language,
written when the notification is raised; a replay tells the same. They are personal data: `sealed_text` is the JSON
object `{title, body, actions}`, sealed for the user (place `notification.text`, `events.notification_texts`).
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract

Category = Literal[
    "transaction",
    "transfer",
    "trade",
    "position",
    "account",
    "security",
    "alert",
    "insight",
    "conflict",
    "system",
]
Priority = Literal["critical", "high", "medium", "low"]
Channel = Literal["in_app", "email", "web_push", "webhook"]
Language = Literal["en-IN", "hi-IN"]
Held = Literal["quiet_hours", "throttle"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class Action(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A button: the API call behind it, ready to be made."""

    label: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    href: str
    body: dict[str, Any] | None = None


class Notification(Event, frozen=True, kw_only=True):
    """The whole content, in `raised` and in every later `revised`."""

    notification_id: UUID
    """Derived from the first event that it tells."""
    category: Category
    priority: Priority
    language: Language
    emoji: str
    title: str
    """Empty, as `body` and `actions` are: see `sealed_text`. In the clear in events from before that was there."""
    body: str
    actions: tuple[Action, ...] = ()
    sealed_text: str | None = None
    count: int
    """How many facts it tells. A fact that both platforms reported counts once."""
    total_minor: int | None = None
    """Sum over all of them, in `currency`: of amounts, for trades of realised P&L with its sign. None: no sum."""
    currency: str | None = None
    event_ids: tuple[UUID, ...]
    """The events it tells, at most the first 1,000 of them."""
    channels: tuple[Channel, ...]
    """Where it is told, by the customer's preferences when it was raised."""
    through: int
    """Log position of the last event it tells."""


@contract("notification.notification.requested", public=False)
class NotificationRequested(Event, frozen=True, kw_only=True):
    """An operator's message to one customer. It is raised as any other: at once, or after quiet hours."""

    category: Category
    priority: Priority
    title: str
    body: str
    actions: tuple[Action, ...] = ()
    sealed_text: str | None = None


@contract("notification.notification.raised")
class NotificationRaised(Notification, frozen=True, kw_only=True):
    opened_at: datetime
    """When the first event it tells was recorded."""
    held: Held | None = None
    """What kept it back beyond its group's window."""
    digest_id: UUID | None = None
    """Shared by what was held back together: e-mail and push tell it in one message."""


@contract("notification.notification.revised")
class NotificationRevised(Notification, frozen=True, kw_only=True):
    """A member came late, or a snooze is over: the same notification with its content as it is now."""

    reason: Literal["late_member", "seen_by_both", "snooze_over"]


@contract("notification.notification.read")
class NotificationRead(Event, frozen=True, kw_only=True):
    """One notification, or all that were raised up to a version of this stream. The first reading counts."""

    notification_id: UUID | None = None
    through_version: int | None = None
    read_at: datetime


@contract("notification.notification.snoozed")
class NotificationSnoozed(Event, frozen=True, kw_only=True):
    """Out of the inbox until then; afterwards it is back, unread."""

    notification_id: UUID
    until: datetime


class QuietHours(msgspec.Struct, frozen=True, kw_only=True):
    """Hours on some days of the week in which only what is critical is told, in the customer's time zone."""

    days: tuple[Day, ...]
    """The days on which they start."""
    start: str
    """`HH:MM`, inclusive."""
    end: str
    """`HH:MM`, exclusive; not after `start`: of the next day."""


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    in_app: bool = True
    email: bool = True
    web_push: bool = True
    webhook: bool = True


class CategoryPreference(msgspec.Struct, frozen=True, kw_only=True):
    channels: tuple[Channel, ...] = ("in_app", "email", "web_push", "webhook")
    min_priority: Priority = "low"
    """Anything less urgent is not told."""
    muted: bool = False


@contract("notification.preference.changed")
class PreferenceChanged(Event, frozen=True, kw_only=True):
    """All preferences as they are from now on."""

    timezone: str = "Asia/Kolkata"
    quiet_hours: tuple[QuietHours, ...] = ()
    channels: Channels = Channels()
    categories: dict[str, CategoryPreference] = msgspec.field(default_factory=dict)
    """By category."""
    language: Language = "en-IN"
