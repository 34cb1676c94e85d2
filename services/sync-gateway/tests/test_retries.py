"""What a retry schedule makes of an answer."""

from datetime import UTC, datetime, timedelta

import pytest
from sync_gateway.retries import Answer, retry_after_s, verdict

NOW = datetime(2026, 2, 12, 9, tzinfo=UTC)


def failed(code: int | None = 503, retry_after: float = 0.0) -> Answer:
    return Answer(code, None if code else "timeout", 1.0, retry_after)


@pytest.mark.parametrize(
    ("answer", "tries", "status", "pause_s"),
    [
        (Answer(200, None, 1), 1, "delivered", None),
        (Answer(204, None, 1), 3, "delivered", None),
        (failed(301), 1, "failed", 10),
        (failed(404), 1, "failed", 10),
        (failed(None), 2, "failed", 100),
        (failed(), 3, "exhausted", None),
        (failed(410), 1, "exhausted", None),
        (failed(429, 50), 1, "failed", 50),
        (failed(429, 5), 1, "failed", 10),
    ],
)
def test_what_follows_from_an_answer(answer: Answer, tries: int, status: str, pause_s: float | None) -> None:
    found = verdict(answer, tries, (10, 100), NOW, 0.5)
    assert found.status == status
    assert found.next_attempt_at == (None if pause_s is None else NOW + timedelta(seconds=pause_s))


def test_a_platform_that_says_gone_is_tried_again() -> None:
    found = verdict(failed(410), 1, (10, 100), NOW, 0.5, gone_ends=False)
    assert found == ("failed", NOW + timedelta(seconds=10))
    assert verdict(failed(410), 3, (10, 100), NOW, 0.5, gone_ends=False).status == "exhausted"


def test_pauses_are_spread() -> None:
    pauses = [verdict(failed(), 1, (10,), NOW, chance).next_attempt_at for chance in (0.0, 0.25, 0.999)]
    seconds = [(pause - NOW).total_seconds() for pause in pauses if pause is not None]
    assert seconds == pytest.approx([8, 9, 12], abs=0.01)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0), ("7", 7), (" 7 ", 7), ("-1", 0), ("1e9", 0), ("99999999999999", 86400), ("soon", 0), ("٣", 0),
        ("Thu, 12 Feb 2026 09:01:00 GMT", 60), ("Thu, 12 Feb 2026 08:00:00 GMT", 0), ("Thu, 99 Foo", 0),
    ],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, NOW) == seconds
