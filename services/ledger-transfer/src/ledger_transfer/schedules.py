"""When a scheduled rule is due: the calendar of its own time zone, as instants. Pure.

A month's day that a shorter month lacks is that month's last one: a rule for the 31st runs on 28 February, on the 29th
in a leap year. Local times that clocks skip or repeat follow PEP 495 with fold 0: a skipped one is due as much later
as was skipped, a repeated one at its first pass.
"""

from calendar import monthrange
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from events.contracts.ledger_rules import Scheduled

_A_DAY = timedelta(days=1)


class Due(NamedTuple):
    """The latest occurrence that has come, and how many before it have come as well."""

    at: datetime
    missed: int


def is_timezone(name: str) -> bool:
    """Whether the name is one of the IANA time zone database."""
    return name in _timezones()


def next_after(schedule: Scheduled, after: datetime) -> datetime:
    """The first occurrence later than `after`, in UTC."""
    return next(instant for instant in _occurrences(schedule, after) if instant > after)


def due(schedule: Scheduled, counted_until: datetime, now: datetime) -> Due | None:
    """What has come after `counted_until` and until `now` inclusive: made up for once, however many there were."""
    latest: datetime | None = None
    count = 0
    for instant in _occurrences(schedule, counted_until):
        if instant > now:
            break
        if instant > counted_until and instant != latest:
            latest, count = instant, count + 1
    return None if latest is None else Due(latest, count - 1)


def between(schedule: Scheduled, after: datetime, until: datetime) -> Iterator[datetime]:
    """All occurrences later than `after`, until `until` inclusive."""
    latest = after
    for instant in _occurrences(schedule, after):
        if instant > until:
            return
        if instant > latest:
            latest = instant
            yield instant


def _occurrences(schedule: Scheduled, around: datetime) -> Iterator[datetime]:
    """Instants that never fall, from one at or before the first later than `around` on."""
    zone = ZoneInfo(schedule.timezone)
    hour, minute = schedule.at.split(":")
    at = time(int(hour), int(minute))
    # A day early: the local time of an occurrence may be skipped into the next day.
    for day in _days(schedule, around.astimezone(zone).date() - _A_DAY):
        yield datetime.combine(day, at, zone).astimezone(UTC)


def _days(schedule: Scheduled, first: date) -> Iterator[date]:
    """The local dates of the schedule from `first` on."""
    match schedule.every:
        case "day":
            day, step = first, _A_DAY
        case "week":
            assert schedule.on is not None
            day, step = first + timedelta(days=(schedule.on - first.isoweekday()) % 7), timedelta(days=7)
        case "month":
            assert schedule.on is not None
            yield from _days_of_months(schedule.on, first)
            return
    while True:
        yield day
        day += step


def _days_of_months(on: int, first: date) -> Iterator[date]:
    year, month = first.year, first.month
    while True:
        day = date(year, month, min(on, monthrange(year, month)[1]))
        if day >= first:
            yield day
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)


@lru_cache(maxsize=1)
def _timezones() -> frozenset[str]:
    return frozenset(available_timezones())
