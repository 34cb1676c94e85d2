"""Hybrid logical clocks (Kulkarni et al., 2014) as sortable text: `<milliseconds>.<counter>`. Pure.

A clock reads like the time at which something was changed, but is never before a change that whoever made it had seen,
however wrong their own clock was.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

DRIFT_MAX: Final = timedelta(minutes=5)
"""A platform's clock that is further ahead of ours does not win by that: our own time is taken instead."""

ZERO: Final = "0000000000000.00000"
_COUNTER_MAX = 99_999


def clock(changed_at: datetime, recorded_at: datetime, seen: str) -> str:
    """The clock of a change made at `changed_at` by somebody who had seen the clock `seen`."""
    if changed_at > recorded_at + DRIFT_MAX:
        changed_at = recorded_at
    ms = max(0, int((changed_at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)))
    own = f"{ms:013d}.{0:05d}"
    return own if own > seen else _after(seen)


def _after(seen: str) -> str:
    ms, counter = int(seen[:13]), int(seen[14:])
    if counter < _COUNTER_MAX:
        return f"{ms:013d}.{counter + 1:05d}"
    return f"{ms + 1:013d}.{0:05d}"
