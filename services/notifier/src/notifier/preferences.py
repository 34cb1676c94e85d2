"""What a customer wants to be told, where and when. Pure."""

from datetime import datetime, time, timedelta
from functools import lru_cache
from typing import get_args
from uuid import UUID
from zoneinfo import ZoneInfo

from events.contracts.notification import (
    Category,
    CategoryPreference,
    Channel,
    Day,
    PreferenceChanged,
    Priority,
    QuietHours,
)

from notifier.rules import PRIORITIES

DEFAULTS = PreferenceChanged()
CHANNELS: tuple[Channel, ...] = get_args(Channel)
CATEGORIES: tuple[Category, ...] = get_args(Category)
_DAYS: tuple[Day, ...] = get_args(Day)
_EVERYTHING = CategoryPreference()


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo:
    """The time zone of that IANA name.

    Raises:
        ValueError, OSError: there is none (zoneinfo's own errors are of these kinds, or KeyError).
    """
    return ZoneInfo(name)


def channels(preferences: PreferenceChanged, category: Category, priority: Priority) -> tuple[Channel, ...]:
    """Where a notification is told; nowhere: it is not told at all.

    What is critical passes by mutes and categories: it is told everywhere but on channels switched off altogether, and
    in the inbox always.
    """
    switched_on = [channel for channel in CHANNELS if getattr(preferences.channels, channel)]
    if priority == "critical":
        return tuple(channel for channel in CHANNELS if channel == "in_app" or channel in switched_on)
    wanted = preferences.categories.get(category, _EVERYTHING)
    if wanted.muted or PRIORITIES.index(priority) < PRIORITIES.index(wanted.min_priority):
        return ()
    return tuple(channel for channel in switched_on if channel in wanted.channels)


def mailed(priority: Priority) -> bool:
    """Whether a notification is worth an e-mail: an inbox full of mails is no relief."""
    return priority in ("critical", "high")


def pushed(priority: Priority) -> bool:
    """Whether a notification is worth lighting up a screen."""
    return priority != "low"


def quiet_until(preferences: PreferenceChanged, at: datetime) -> datetime | None:
    """When the quiet hours that `at` lies in end; None outside of any.

    Each begins on its days at `start`, inclusive, in the customer's zone, and ends at `end`, exclusive, on the next
    day where `end` is not after `start`. Hours that follow one another or overlap are one. On the night when clocks
    change, a local time that does not exist or exists twice is what zoneinfo makes of it (`fold=0`).
    """
    here = zone(preferences.timezone)
    end: datetime | None = None
    moment = at
    # Each round reaches further or ends; a week is the most that can be quiet without a gap ending it.
    for _ in range(7 * max(1, len(preferences.quiet_hours)) + 1):
        reached = max(
            (until for hours in preferences.quiet_hours for until in _ends(hours, moment, here)), default=None
        )
        if reached is None:
            return end
        end = moment = reached
    return end


def _ends(hours: QuietHours, at: datetime, here: ZoneInfo) -> list[datetime]:
    start, end = time.fromisoformat(hours.start), time.fromisoformat(hours.end)
    found = []
    today = at.astimezone(here).date()
    for day in (today, today - timedelta(days=1)):
        if _DAYS[day.weekday()] not in hours.days:
            continue
        last_day = day if end > start else day + timedelta(days=1)
        # Compared as instants: two times of one zone would be compared by their hands, across a change of clocks too.
        begins = datetime.combine(day, start, here).timestamp()
        ends = datetime.combine(last_day, end, here)
        if begins <= at.timestamp() < ends.timestamp():
            found.append(datetime.fromtimestamp(ends.timestamp(), tz=at.tzinfo))
    return found


def digest_key(user_id: UUID, until: datetime) -> str:
    """What everything held back until the same moment has in common."""
    return f"digest:{user_id}:{until.timestamp():.0f}"
