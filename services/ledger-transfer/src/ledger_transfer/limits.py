"""How much a customer may move per day, week and month, counted in India's time. Pure.

India has one time zone without daylight saving (UTC+05:30), so a window is a number: days since 1970, weeks from
Monday to Sunday, months of the calendar. What is in the stream says when it counts; nothing is reset by a clock.
"""

from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
from events.contracts.ledger import LimitWindow

IST: Final = timezone(timedelta(hours=5, minutes=30), "IST")

_IST_OFFSET_S: Final = 19_800
_DAY_S: Final = 86_400


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The most that may be moved per window, in minor units; of each currency by itself."""

    daily_minor: int = 10_00_000_00
    weekly_minor: int = 25_00_000_00
    monthly_minor: int = 1_00_00_000_00


DEFAULT_LIMITS: Final = Limits()


class Windows(NamedTuple):
    """The windows that an instant lies in: days, weeks (from Monday) and months, each counted from 1970 in India."""

    day: int
    week: int
    month: int


def windows_of(at: datetime) -> Windows:
    """The windows of an instant."""
    return _windows_of_day(int((at.timestamp() + _IST_OFFSET_S) // _DAY_S))


@lru_cache(maxsize=4_096)
def _windows_of_day(day: int) -> Windows:
    calendar = date(1970, 1, 1) + timedelta(days=day)
    # 1970-01-01 was a Thursday: three days after the Monday of its week.
    return Windows(day, (day + 3) // 7, (calendar.year - 1970) * 12 + calendar.month - 1)


class Usage(NamedTuple):
    """What has been moved in the windows it was last counted in, in minor units of one currency."""

    windows: Windows
    daily_minor: int
    weekly_minor: int
    monthly_minor: int

    def at(self, now: Windows) -> "Usage":
        """As of later windows: what is over counts no more. A clock that is behind gets no window back."""
        if now is self.windows or now == self.windows:
            return self
        then = self.windows
        return Usage(
            Windows(max(now.day, then.day), max(now.week, then.week), max(now.month, then.month)),
            self.daily_minor if now.day <= then.day else 0,
            self.weekly_minor if now.week <= then.week else 0,
            self.monthly_minor if now.month <= then.month else 0,
        )

    def consumed(self, amount_minor: int, at: Windows) -> "Usage":
        """After a movement."""
        windows, daily, weekly, monthly = self.at(at)
        return Usage(windows, daily + amount_minor, weekly + amount_minor, monthly + amount_minor)

    def restored(self, amount_minor: int, consumed: Windows) -> "Usage":
        """After a movement of that time was taken back: the windows that are over since stay as they are."""
        then = self.windows
        return Usage(
            then,
            self.daily_minor - amount_minor if consumed.day == then.day else self.daily_minor,
            self.weekly_minor - amount_minor if consumed.week == then.week else self.weekly_minor,
            self.monthly_minor - amount_minor if consumed.month == then.month else self.monthly_minor,
        )


UNUSED: Final = Usage(Windows(0, 0, 0), 0, 0, 0)


class Standing(NamedTuple):
    """One window as it is now. `remaining_minor` is never negative, even where the limit was lowered."""

    window: LimitWindow
    limit_minor: int
    used_minor: int
    resets_at: datetime

    @property
    def remaining_minor(self) -> int:
        return max(0, self.limit_minor - self.used_minor)


def standings(limits: Limits, usage: Usage, now: datetime) -> tuple[Standing, Standing, Standing]:
    """The three windows as of `now`, the shortest first."""
    windows, daily, weekly, monthly = usage.at(windows_of(now))
    year, month = divmod(windows.month + 1, 12)
    return (
        Standing("daily", limits.daily_minor, daily, _midnight(windows.day + 1)),
        Standing("weekly", limits.weekly_minor, weekly, _midnight(windows.week * 7 + 4)),
        Standing(
            "monthly",
            limits.monthly_minor,
            monthly,
            datetime.combine(date(1970 + year, month + 1, 1), time(), IST).astimezone(UTC),
        ),
    )


def exceeded(limits: Limits, usage: Usage, amount_minor: int, now: datetime) -> Standing | None:
    """The shortest window whose limit the amount would exceed; None when all allow it."""
    windows = windows_of(now)
    _, daily, weekly, monthly = usage if windows is usage.windows else usage.at(windows)
    if (
        daily + amount_minor <= limits.daily_minor
        and weekly + amount_minor <= limits.weekly_minor
        and monthly + amount_minor <= limits.monthly_minor
    ):
        return None
    return next(s for s in standings(limits, usage, now) if s.used_minor + amount_minor > s.limit_minor)


def _midnight(day: int) -> datetime:
    return datetime.combine(date(1970, 1, 1) + timedelta(days=day), time(), IST).astimezone(UTC)
