"""What becomes of a delivery after an attempt. Pure: time and chance are passed in."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

RETRY_AFTER_S_MAX = 24 * 3600.0
JITTER = 0.2
"""A pause is this much shorter or longer, so that many deliveries do not come back at once."""

_GONE = 410
_TOO_MUCH = (429, 503)


class Answer(NamedTuple):
    """How an attempt ended: with a status code, or with an error."""

    code: int | None
    error: str | None
    latency_ms: float
    retry_after_s: float = 0.0

    @property
    def ok(self) -> bool:
        return self.code is not None and 200 <= self.code < 300

    @property
    def gone(self) -> bool:
        return self.code == _GONE

    @property
    def too_much(self) -> bool:
        """Whether nothing at all is wanted for the time that `Retry-After` says: it is not about this message."""
        return self.code in _TOO_MUCH

    @property
    def reason(self) -> str:
        """Why it failed, in one word."""
        return self.error or f"http_{self.code}"


class Verdict(NamedTuple):
    status: Literal["delivered", "failed", "exhausted"]
    """`failed` will be tried again at `next_attempt_at`."""
    next_attempt_at: datetime | None


def verdict(
    answer: Answer, tries: int, delays_s: Sequence[int], now: datetime, chance: float, *, gone_ends: bool = True
) -> Verdict:
    """After the `tries`-th attempt (from 1) of a delivery; `chance` in [0, 1) is the jitter.

    `gone_ends`: 410 ends it, because it ends the webhook too; a platform does not end by an answer.
    """
    if answer.ok:
        return Verdict("delivered", None)
    if (answer.gone and gone_ends) or tries > len(delays_s):
        return Verdict("exhausted", None)
    pause_s = delays_s[tries - 1] * (1 - JITTER + 2 * JITTER * chance)
    return Verdict("failed", now + timedelta(seconds=max(pause_s, answer.retry_after_s)))


def retry_after_s(header: str | None, now: datetime) -> float:
    """Seconds of a `Retry-After` header (RFC 9110: seconds or a date), bounded; 0 where it says nothing usable."""
    if header is None:
        return 0.0
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), RETRY_AFTER_S_MAX)
    try:
        until = parsedate_to_datetime(text)
        if until.tzinfo is None:
            return 0.0
        return min(max(0.0, (until - now).total_seconds()), RETRY_AFTER_S_MAX)
    except (ValueError, OverflowError):
        return 0.0
