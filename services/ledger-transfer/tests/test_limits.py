"""Windows of India's calendar: what counts in them, and what is given back."""

from datetime import UTC, datetime

import pytest
from ledger_transfer.limits import DEFAULT_LIMITS, UNUSED, Limits, exceeded, standings, windows_of

SUNDAY_NIGHT = datetime(2026, 5, 31, 18, 29, 59, tzinfo=UTC)
MONDAY = datetime(2026, 5, 31, 18, 30, tzinfo=UTC)
"""Midnight in India: the first second of a day, of a week and of June."""


def test_midnight_in_india_begins_a_day_a_week_and_a_month() -> None:
    used = UNUSED.consumed(7_00, windows_of(SUNDAY_NIGHT))
    assert [s.used_minor for s in standings(DEFAULT_LIMITS, used, SUNDAY_NIGHT)] == [7_00] * 3
    assert {s.resets_at for s in standings(DEFAULT_LIMITS, used, SUNDAY_NIGHT)} == {MONDAY}
    assert [s.used_minor for s in standings(DEFAULT_LIMITS, used, MONDAY)] == [0] * 3


@pytest.mark.parametrize("day", [1, 2, 8, 30])
def test_only_the_windows_of_its_time_get_something_back(day: int) -> None:
    """What was taken back leaves what was moved later: never less, whichever windows have begun since."""
    first, later = datetime(2026, 6, 1, 6, tzinfo=UTC), datetime(2026, 6, day, 12, tzinfo=UTC)
    used = UNUSED.consumed(1_00, windows_of(first)).consumed(3_00, windows_of(later))
    after = standings(DEFAULT_LIMITS, used.restored(1_00, windows_of(first)), later)
    assert [standing.used_minor for standing in after] == [3_00, 3_00, 3_00]


def test_the_shortest_window_that_forbids_is_named() -> None:
    limits = Limits(daily_minor=10, weekly_minor=10, monthly_minor=5)
    assert exceeded(limits, UNUSED, 5, MONDAY) is None
    standing = exceeded(limits, UNUSED, 6, MONDAY)
    assert standing is not None
    assert (standing.window, standing.remaining_minor) == ("monthly", 5)
