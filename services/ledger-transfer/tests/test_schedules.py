"""The calendar: month ends, leap days, midnight in India, clocks that change, and days that nobody was there."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest
from events.contracts.ledger_rules import Scheduled
from hypothesis import given
from hypothesis import strategies as st
from ledger_transfer.schedules import Due, between, due, is_timezone, next_after


def monthly(on: int, at: str = "09:00", zone: str = "Asia/Kolkata") -> Scheduled:
    return Scheduled(every="month", on=on, at=at, timezone=zone)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def india(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+05:30").astimezone(UTC)


def test_a_month_without_that_day_runs_on_its_last() -> None:
    runs = list(between(monthly(31), india("2027-12-31T09:00"), india("2028-06-30T23:59")))
    assert runs == [india(f"2028-{day}T09:00") for day in ("01-31", "02-29", "03-31", "04-30", "05-31", "06-30")]


@pytest.mark.parametrize(
    ("on", "year", "day"),
    [
        (29, 2027, "02-28"),
        (29, 2028, "02-29"),
        (30, 2028, "02-29"),
        (29, 2100, "02-28"),  # a hundredth year is none
        (29, 2000, "02-29"),  # a four-hundredth is one
        (28, 2028, "02-28"),
    ],
)
def test_february(on: int, year: int, day: str) -> None:
    assert next_after(monthly(on), india(f"{year}-02-01T00:00")) == india(f"{year}-{day}T09:00")


def test_a_month_end_does_not_drift() -> None:
    """After the 28th of February comes the 31st of March, not the 28th."""
    assert next_after(monthly(31), india("2027-02-28T09:00")) == india("2027-03-31T09:00")


def test_midnight_in_india_is_half_past_six_the_evening_before() -> None:
    schedule = Scheduled(every="day", at="00:00")
    assert next_after(schedule, utc("2026-03-31T18:29:59+00:00")) == utc("2026-03-31T18:30+00:00")
    assert next_after(schedule, utc("2026-03-31T18:30+00:00")) == utc("2026-04-01T18:30+00:00")
    # The first of a month in India begins on the last of the month before in UTC.
    assert next_after(monthly(1, "00:00"), utc("2026-03-15T00:00+00:00")) == utc("2026-03-31T18:30+00:00")
    assert next_after(monthly(1, "05:29"), utc("2026-03-15T00:00+00:00")) == utc("2026-03-31T23:59+00:00")


@pytest.mark.parametrize("weekday", range(1, 8))
def test_weekdays_are_those_of_iso(weekday: int) -> None:
    schedule = Scheduled(every="week", on=weekday, at="00:10")
    run = next_after(schedule, india("2026-11-22T12:00"))
    assert run.astimezone(ZoneInfo("Asia/Kolkata")).isoweekday() == weekday
    assert next_after(schedule, run) - run == timedelta(days=7)


def test_a_time_that_clocks_skip_is_due_later_and_one_they_repeat_is_due_once() -> None:
    schedule = Scheduled(every="day", at="02:30", timezone="America/New_York")
    assert list(between(schedule, utc("2026-03-07T12:00+00:00"), utc("2026-03-09T12:00+00:00"))) == [
        utc("2026-03-08T07:30+00:00"),  # 02:30 does not exist: 03:30 summer time
        utc("2026-03-09T06:30+00:00"),
    ]
    schedule = Scheduled(every="day", at="01:30", timezone="America/New_York")
    assert list(between(schedule, utc("2026-10-31T12:00+00:00"), utc("2026-11-02T12:00+00:00"))) == [
        utc("2026-11-01T05:30+00:00"),  # 01:30 comes twice that night
        utc("2026-11-02T06:30+00:00"),
    ]


def test_a_day_that_a_place_left_out_is_not_due_twice() -> None:
    """Samoa went from 29 to 31 December 2011."""
    schedule = Scheduled(every="day", at="09:00", timezone="Pacific/Apia")
    runs = list(between(schedule, utc("2011-12-28T00:00+00:00"), utc("2012-01-02T00:00+00:00")))
    assert len(runs) == len(set(runs))
    assert [run.astimezone(ZoneInfo("Pacific/Apia")).day for run in runs] == [28, 29, 31, 1, 2]

    assert due(schedule, runs[0], runs[2]) == Due(runs[2], missed=1)


def test_a_time_that_clocks_skip_over_midnight_is_due_the_next_day() -> None:
    """Toronto went from 23:30 on 30 March 1919 to 00:30 on the 31st."""
    schedule = Scheduled(every="day", at="23:45", timezone="America/Toronto")
    assert next_after(schedule, utc("1919-03-31T04:40+00:00")) == utc("1919-03-31T04:45+00:00")


def test_two_days_without_us_are_made_up_for_once() -> None:
    schedule = Scheduled(every="day", at="09:00")
    last, back = india("2026-11-16T09:00"), india("2026-11-18T21:00")
    assert due(schedule, last, back) == Due(india("2026-11-18T09:00"), missed=1)
    assert due(schedule, india("2026-11-18T09:00"), back) is None
    assert next_after(schedule, india("2026-11-18T09:00")) == india("2026-11-19T09:00")


def test_due_is_inclusive_of_now_and_exclusive_of_what_was_counted() -> None:
    schedule, at = Scheduled(every="day", at="09:00"), india("2026-11-16T09:00")
    assert due(schedule, at - timedelta(seconds=1), at) == Due(at, 0)
    assert due(schedule, at, at) is None
    assert due(schedule, at - timedelta(days=1), at - timedelta(microseconds=1)) is None


@pytest.mark.parametrize(
    "name", ["", "IST", "../etc/passwd", "/etc/passwd", "Asia", "asia/kolkata\0", "x" * 5000, "Asia/Kolkata "]
)
def test_what_is_no_timezone(name: str) -> None:
    assert not is_timezone(name)


def test_timezones() -> None:
    assert is_timezone("Asia/Kolkata")
    assert is_timezone("UTC")


@st.composite
def schedules(draw: Any) -> Scheduled:
    every: Literal["day", "week", "month"] = draw(st.sampled_from(["day", "week", "month"]))
    on = {"day": None, "week": draw(st.integers(1, 7)), "month": draw(st.integers(1, 31))}[every]
    at = f"{draw(st.integers(0, 23)):02}:{draw(st.integers(0, 59)):02}"
    zone = draw(st.sampled_from(["Asia/Kolkata", "UTC", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"]))
    return Scheduled(every=every, on=on, at=at, timezone=zone)


INSTANTS = st.datetimes(datetime(2010, 1, 1), datetime(2032, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive


@given(schedules(), INSTANTS)
def test_the_next_is_later_at_the_right_time_and_none_lies_between(schedule: Scheduled, after: datetime) -> None:
    found = next_after(schedule, after)
    assert found > after
    local = found.astimezone(ZoneInfo(schedule.timezone))
    existing = datetime.combine(local.date(), local.time())
    if schedule.timezone in ("Asia/Kolkata", "UTC"):
        assert f"{existing:%H:%M}" == schedule.at
    longest = {"day": 2, "week": 8, "month": 32}[schedule.every]
    assert found - after <= timedelta(days=longest, hours=2)
    if schedule.every == "month" and schedule.timezone in ("Asia/Kolkata", "UTC"):
        assert schedule.on is not None
        assert local.day == schedule.on or ((local.date() + timedelta(days=1)).day == 1 and local.day < schedule.on)


@given(schedules(), INSTANTS, st.integers(1, 40))
def test_walking_by_next_meets_exactly_what_is_between(schedule: Scheduled, start: datetime, steps: int) -> None:
    walked = [next_after(schedule, start)]
    for _ in range(steps - 1):
        walked.append(next_after(schedule, walked[-1]))
    assert list(between(schedule, start, walked[-1])) == walked
    assert all(earlier < later for earlier, later in pairwise(walked))
    assert due(schedule, start, walked[-1]) == Due(walked[-1], steps - 1)
    assert due(schedule, walked[-1], walked[-1]) is None


@given(st.integers(1, 31), st.dates(date(2020, 1, 1), date(2035, 1, 1)))
def test_every_month_has_exactly_one_run(on: int, start: date) -> None:
    first = datetime(start.year, start.month, 1, tzinfo=ZoneInfo("Asia/Kolkata"))
    runs = list(between(monthly(on), first - timedelta(minutes=1), first + timedelta(days=366)))
    months = [
        (run.astimezone(ZoneInfo("Asia/Kolkata")).year, run.astimezone(ZoneInfo("Asia/Kolkata")).month) for run in runs
    ]
    assert len(months) == len(set(months)) >= 12
