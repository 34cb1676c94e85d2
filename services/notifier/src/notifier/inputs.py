"""What clients may ask of the notifier, checked: bodies of requests, and what is wrong with them. Pure."""

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from chassis.problems import Problem, invalid_field
from events.contracts.notification import (
    Action,
    Category,
    CategoryPreference,
    Channels,
    Language,
    NotificationRequested,
    PreferenceChanged,
    Priority,
    QuietHours,
)

from notifier.preferences import CATEGORIES, zone

SNOOZE_MAX = timedelta(days=365)
_TIME = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_HREF = re.compile(r"/api/[!-~]{1,500}", re.ASCII)
_TIMEZONE = re.compile(r"[A-Za-z0-9_+\-/]{1,64}", re.ASCII)
_KEY = re.compile(r"[!-~]{1,128}", re.ASCII)
QUIET_HOURS_MAX = 14

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
LongText = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


class NewAction(msgspec.Struct, frozen=True, kw_only=True):
    label: Annotated[str, msgspec.Meta(min_length=1, max_length=60)]
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    href: str
    body: dict[str, Any] | None = None


class NewNotification(msgspec.Struct, frozen=True, kw_only=True):
    """POST `/smart`: an operator's message to one customer."""

    user_id: UUID
    category: Category
    priority: Priority
    title: Text
    body: LongText
    actions: Annotated[list[NewAction], msgspec.Meta(max_length=4)] = []


class Snooze(msgspec.Struct, frozen=True, kw_only=True):
    until: datetime


class PushKeys(msgspec.Struct, frozen=True, kw_only=True):
    p256dh: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{80,100}=*\Z")]
    auth: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{20,30}=*\Z")]


class NewPushSubscription(msgspec.Struct, frozen=True, kw_only=True):
    """A `PushSubscription` as browsers give it; further members are ignored."""

    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    keys: PushKeys


class OldPushSubscription(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


class NewWebhook(msgspec.Struct, frozen=True, kw_only=True):
    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


class Preferences(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """GET and PUT `/preferences`. What a PUT leaves out has its default."""

    timezone: str = "Asia/Kolkata"
    quiet_hours: Annotated[list[QuietHours], msgspec.Meta(max_length=QUIET_HOURS_MAX)] = []
    channels: Channels = Channels()
    categories: dict[str, CategoryPreference] = {}
    language: Language = "en-IN"

    def changed(self) -> PreferenceChanged:
        """The event that makes these the customer's preferences.

        Raises:
            Problem: 400, naming the field.
        """
        if _TIMEZONE.fullmatch(self.timezone) is None:
            raise invalid_field("timezone", "is no IANA time zone", "invalid_timezone")
        try:
            zone(self.timezone)
        except (ValueError, OSError, KeyError):
            raise invalid_field("timezone", "is no IANA time zone", "invalid_timezone") from None
        for hours in self.quiet_hours:
            if not hours.days:
                raise invalid_field("quiet_hours", "needs at least one day", "invalid_quiet_hours")
            if _TIME.fullmatch(hours.start) is None or _TIME.fullmatch(hours.end) is None:
                raise invalid_field("quiet_hours", "start and end are HH:MM", "invalid_quiet_hours")
        if unknown := sorted(set(self.categories) - set(CATEGORIES)):
            raise invalid_field("categories", f"there is no category {unknown[0][:40]}", "invalid_category")
        return PreferenceChanged(
            timezone=self.timezone,
            quiet_hours=tuple(self.quiet_hours),
            channels=self.channels,
            categories=self.categories,
            language=self.language,
        )

    @classmethod
    def of(cls, event: PreferenceChanged) -> "Preferences":
        return cls(
            timezone=event.timezone,
            quiet_hours=list(event.quiet_hours),
            channels=event.channels,
            categories=event.categories,
            language=event.language,
        )


def requested(new: NewNotification) -> NotificationRequested:
    """The event of an operator's message.

    Raises:
        Problem: 400, naming the field.
    """
    for action in new.actions:
        # A button calls our own API: never a page of somebody else.
        if _HREF.fullmatch(action.href) is None or "//" in action.href or ".." in action.href:
            raise invalid_field("actions", "href is a path under /api/", "invalid_href")
    return NotificationRequested(
        category=new.category,
        priority=new.priority,
        title=new.title,
        body=new.body,
        actions=tuple(Action(label=a.label, method=a.method, href=a.href, body=a.body) for a in new.actions),
    )


def snooze_until(snooze: Snooze, now: datetime) -> datetime:
    """When the notification is to come back.

    Raises:
        Problem: 400, naming the field.
    """
    if snooze.until.tzinfo is None:
        raise invalid_field("until", "needs an offset or Z", "invalid_until")
    if not now < snooze.until <= now + SNOOZE_MAX:
        raise invalid_field("until", "lies in the future, within a year", "invalid_until")
    return snooze.until


def idempotency_key(key: str | None) -> str | None:
    """The key of a request, if it has one.

    Raises:
        Problem: 400 `invalid_idempotency_key`.
    """
    if key is not None and _KEY.fullmatch(key) is None:
        raise Problem(400, "invalid_idempotency_key", "The idempotency key is 1 to 128 visible ASCII characters")
    return key
