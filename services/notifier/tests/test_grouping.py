"""Grouping, urgency, throttle and quiet hours: examples, and whatever Hypothesis makes of arrival and restarts."""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from events.contracts import notification
from events.contracts.notification import Day, NotificationRaised, PreferenceChanged, QuietHours
from events.contracts.registry import Event
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from notifier import grouping
from notifier.grouping import (
    EVENT_IDS_MAX,
    LARGE_FACTOR,
    LARGE_FLOOR_MINOR,
    THROTTLE,
    THROTTLE_PERIOD,
    USUAL_FROM,
    USUAL_OF,
    WINDOW,
    Lane,
    is_large,
    lane_key,
)
from notifier.preferences import DEFAULTS, channels, quiet_until
from notifier.rules import Fact, history_of
from notifier.telling import Chapter, woken

sys.path.insert(0, str(Path(__file__).parent))

from deployed import settings_of
from in_memory import Notifier, decode
from samples import EVENTS, opened, posting, risk, trade, transfer
from tellers import AT, USER, fact, number, seconds


def told(*facts: Fact, preferences: PreferenceChanged = DEFAULTS) -> list[Any]:
    desk = Notifier(preferences)
    desk.chunk(facts, max(one.recorded_at for one in facts))
    desk.finish(max(one.recorded_at for one in facts))
    return list(desk.final.values())


def postings(*amounts: int, step_s: float = 0.5) -> list[Fact]:
    return [fact(posting(amount), n=n, at=AT + seconds(n * step_s)) for n, amount in enumerate(amounts)]


# The sentences of the mission.


def test_five_transactions_are_one_sentence() -> None:
    (found,) = told(*postings(10_000_00, -10_000_00, 10_000_00, 10_000_00, -10_000_00))
    assert found.title == "5 Transactions, Total: ₹50,000"
    assert found.body == "₹30,000 in, ₹20,000 out. Latest: ₹10,000 paid"
    assert (found.count, found.total_minor, found.currency) == (5, 50_000_00, "INR")
    assert len(found.event_ids) == 5


def test_three_trades_have_one_profit() -> None:
    pnls = (20_000_00, -8_000_00, 3_000_00)
    (found,) = told(*(fact(trade(realized_pnl_minor=pnl), n=n, at=AT + seconds(n)) for n, pnl in enumerate(pnls)))
    assert found.title == "3 Trades, Total P&L: +₹15,000"
    assert found.total_minor == 15_000_00


def test_a_loss_keeps_its_sign() -> None:
    pnls = (1_000_00, -3_500_50)
    (found,) = told(*(fact(trade(realized_pnl_minor=pnl), n=n, at=AT) for n, pnl in enumerate(pnls)))
    assert found.title == "2 Trades, Total P&L: -₹2,500.50"


def test_trades_that_realised_nothing_have_no_total() -> None:
    (found,) = told(*(fact(trade(side="buy", realized_pnl_minor=None), n=n, at=AT) for n in range(3)))
    assert (found.title, found.total_minor) == ("3 Trades", None)


def test_in_hindi() -> None:
    preferences = PreferenceChanged(language="hi-IN")
    (found,) = told(*postings(10_000_00, 40_000_00), preferences=preferences)
    assert (found.title, found.language) == ("2 लेन-देन, कुल: ₹50,000", "hi-IN")


def test_a_group_of_one_reads_as_a_single_notification() -> None:
    (found,) = told(fact(transfer()))
    assert (found.title, found.count, found.priority) == ("₹50,000 transferred", 1, "medium")


def test_a_group_names_some_of_its_events_and_counts_all() -> None:
    count = EVENT_IDS_MAX + 5
    (one,) = told(*postings(*([-100] * count), step_s=0.001))
    assert (one.count, one.total_minor, len(one.event_ids)) == (count, 100 * count, EVENT_IDS_MAX)


def test_the_window_is_half_open() -> None:
    inside = told(*postings(100, 100, step_s=4.999))
    outside = told(*postings(100, 100, step_s=5.0))
    assert [found.count for found in inside] == [2]
    assert [found.count for found in outside] == [1, 1]


def test_another_currency_is_another_group() -> None:
    dollars = fact(trade(currency="USD"), n=2)
    assert sorted(found.currency for found in told(fact(trade()), dollars)) == ["INR", "USD"]


def test_a_straggler_revises_what_was_told() -> None:
    desk = Notifier()
    first, second = postings(1_000_00, 2_000_00, step_s=1)
    desk.chunk([first], AT)
    desk.tick(AT + WINDOW)
    assert [event.title for event in desk.raised] == ["₹1,000 received"]
    desk.chunk([second], AT + seconds(9))  # recorded in the window, consumed after it
    (found,) = desk.final.values()
    assert (found.title, found.reason) == ("2 Transactions, Total: ₹3,000", "late_member")
    assert found.notification_id == desk.raised[0].notification_id


def test_stragglers_of_one_chunk_are_one_revision() -> None:
    desk = Notifier()
    first, *others = postings(1_000_00, 2_000_00, 3_000_00, step_s=1)
    desk.chunk([first], AT)
    desk.tick(AT + WINDOW)
    desk.chunk(others, AT + seconds(9))
    assert [event.title for _, event in desk.store.values()] == ["₹1,000 received", "3 Transactions, Total: ₹6,000"]


def test_what_was_dropped_is_not_revised() -> None:
    desk = Notifier(PreferenceChanged(categories={"transaction": MUTED}))
    first, second = postings(1_000_00, 2_000_00, step_s=1)
    desk.chunk([first], AT)
    desk.tick(AT + WINDOW)
    desk.chunk([second], AT + seconds(9))
    assert desk.store == {}


def test_critical_is_alone_and_at_once() -> None:
    desk = Notifier(PreferenceChanged(quiet_hours=(ALWAYS_QUIET,), categories={"alert": MUTED}))
    desk.chunk([fact(risk("critical"), n=n) for n in range(3)], AT)
    assert [event.count for event in desk.raised] == [1, 1, 1]
    assert all(set(event.channels) == {"in_app", "email", "web_push", "webhook"} for event in desk.raised)


# Urgency.


def test_large_is_relative_to_the_customer() -> None:
    floor = LARGE_FLOOR_MINOR["INR"]
    modest, rich = [1_000_00] * USUAL_FROM, [5_00_000_00] * USUAL_FROM
    assert not is_large(modest, floor - 1, "INR")  # whatever is usual
    assert is_large(modest, floor, "INR")
    assert not is_large(rich, floor * 10, "INR")
    assert is_large(rich, LARGE_FACTOR * 5_00_000_00, "INR")
    assert not is_large([], LARGE_FACTOR * floor - 1, "INR")  # a newcomer's salary is no alarm
    assert is_large([], LARGE_FACTOR * floor, "INR")


def test_the_floor_is_the_deployments() -> None:
    floors_minor = settings_of(large_floor_minor="INR=10000, USD=500").large_floors_minor
    assert floors_minor == {"INR": 100_00, "USD": 5_00}
    chapter, lane = Chapter(AT, {}, floors_minor), Lane(key="transaction:INR")
    chapter.take(USER, lane, fact(posting(-LARGE_FACTOR * 100_00)), {})
    assert lane.group is not None
    assert lane.group.priority == "high"
    for text in ("INR", "INR=x", "XXX=1", "INR=-1"):
        with pytest.raises(ValueError, match="LARGE_FLOOR_MINOR"):
            settings_of(large_floor_minor=text)


def test_a_large_one_makes_its_group_high() -> None:
    usual = [fact(posting(-1_000_00), n=n, at=AT + seconds(10 * n)) for n in range(USUAL_FROM)]
    large = fact(posting(-90_000_00), n=99, at=AT + seconds(1000))
    found = told(*usual, large)
    assert [event.priority for event in found] == ["medium"] * USUAL_FROM + ["high"]


def test_what_is_usual_is_the_middle_and_not_the_extreme() -> None:
    assert is_large([1_000_00] * 9 + [90_00_000_00], LARGE_FLOOR_MINOR["INR"], "INR")


def test_one_member_that_is_high_makes_its_group_high() -> None:
    (found,) = told(fact(posting(-100), n=1), fact(posting(-100, below_floor=True), n=2), fact(posting(-100), n=3))
    assert (found.count, found.priority) == (3, "high")


def test_a_lane_remembers_no_more_than_it_needs() -> None:
    desk = Notifier()
    for n in range(3 * USUAL_OF):
        at = AT + seconds(600 * n)
        desk.tick(at)
        desk.chunk([fact(posting(-100), n=n, at=at)], at)
    lane = decode(desk.lanes[USER, "transaction:INR"])
    assert len(lane.recent) == USUAL_OF
    assert len(lane.told_at) == THROTTLE_PERIOD / seconds(600)


# De-duplication.


def test_money_between_the_platforms_is_told_once() -> None:
    out = fact(posting(-5_000_00, reference="UTR1"), n=1)
    arrived = fact(posting(5_000_00, reference="UTR1", platform="vyomo"), n=2, at=AT + seconds(1))
    (found,) = told(out, arrived)
    assert (found.title, found.count, found.total_minor) == ("₹5,000 paid", 1, 5_000_00)
    assert set(found.event_ids) == {number(1), number(2)}


def test_the_other_report_joins_what_was_told_of_the_first() -> None:
    desk = Notifier()
    desk.chunk([fact(posting(-5_000_00, reference="A"), n=1)], AT)
    desk.tick(AT + WINDOW)
    desk.chunk([fact(posting(5_000_00, reference="A", platform="vyomo"), n=2, at=AT + seconds(60))], AT + seconds(60))
    (found,) = desk.final.values()
    assert (found.reason, found.count, found.event_ids) == ("seen_by_both", 1, (number(1), number(2)))


def test_the_other_report_joins_no_other_notification() -> None:
    desk = Notifier()
    desk.chunk([fact(posting(-5_000_00, reference="A"), n=1)], AT)
    desk.chunk([fact(posting(-1_00), n=2, at=AT + seconds(60))], AT + seconds(60))
    desk.chunk([fact(posting(5_000_00, reference="A", platform="vyomo"), n=3, at=AT + seconds(61))], AT + seconds(61))
    desk.finish(AT + seconds(61))
    assert [found.event_ids for found in desk.final.values()] == [(number(1),), (number(2),)]


def test_the_same_reference_on_one_platform_is_two_payments() -> None:
    (found,) = told(*(fact(posting(-5_000_00, reference="RENT"), n=n) for n in range(2)))
    assert found.count == 2


def test_a_third_report_is_a_new_fact() -> None:
    reports = [("bfc", -1), ("vyomo", 1), ("vyomo", 1)]
    facts = [fact(posting(sign * 100, reference="U", platform=p), n=n) for n, (p, sign) in enumerate(reports)]
    (found,) = told(*facts)
    assert found.count == 2


def test_a_step_of_loss_is_told_once_a_day() -> None:
    desk = Notifier()
    for n, hours in enumerate((0, 1, 23, 25)):
        at = AT + timedelta(hours=hours)
        desk.tick(at)
        desk.chunk([fact(EVENTS["position_loss"], n=n, at=at)], at)
    desk.tick(AT + timedelta(hours=26))
    # The others are not even revisions: a position ticks every few seconds.
    assert [event.event_ids for _, event in desk.store.values()] == [(number(0),), (number(3),)]


# Throttle, quiet hours, mutes.

ALL_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
ALWAYS_QUIET = QuietHours(days=ALL_DAYS, start="00:00", end="00:00")
NIGHT = QuietHours(days=ALL_DAYS, start="22:00", end="07:00")
MUTED = notification.CategoryPreference(muted=True)


def test_a_throttled_lane_tells_the_rest_in_one() -> None:
    most = THROTTLE["transaction"]
    facts = [fact(posting(100), n=n, at=AT + seconds(10 * n)) for n in range(most + 30)]
    found = told(*facts)
    assert len(found) == most + 1
    assert (found[-1].count, found[-1].held, found[-1].digest_id) == (30, "throttle", None)
    assert sum(event.total_minor for event in found) == 100 * (most + 30)


def test_after_the_throttle_there_is_no_row_of_them() -> None:
    desk = Notifier()
    for n in range(540):  # one every ten seconds, for an hour and a half
        at = AT + seconds(10 * n)
        desk.tick(at)
        desk.chunk([fact(posting(100), n=n, at=at)], at)
    told_at = [at for at, _ in desk.store.values()]
    most = THROTTLE["transaction"]
    gaps = [later - earlier for earlier, later in pairwise(told_at[most:])]
    assert len(gaps) > 3
    assert min(gaps) >= THROTTLE_PERIOD / most


def test_what_is_high_passes_the_throttle() -> None:
    facts = [fact(posting(-100, below_floor=True), n=n, at=AT + seconds(10 * n)) for n in range(30)]
    assert len(told(*facts)) == 30


def ist(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-02-{text}:00+05:30").astimezone(UTC)


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("12T21:59", None),
        ("12T22:00", "13T07:00"),  # start inclusive
        ("12T23:59", "13T07:00"),
        ("13T00:00", "13T07:00"),  # past midnight
        ("13T06:59", "13T07:00"),
        ("13T07:00", None),  # end exclusive
    ],
)
def test_quiet_hours_wrap_at_midnight(at: str, until: str | None) -> None:
    preferences = PreferenceChanged(quiet_hours=(NIGHT,))
    assert quiet_until(preferences, ist(at)) == (None if until is None else ist(until))


def test_quiet_hours_are_of_the_customers_zone_and_days() -> None:
    thursday = QuietHours(days=("thu",), start="22:00", end="07:00")  # 12 February 2026 is one
    preferences = PreferenceChanged(quiet_hours=(thursday,))
    assert quiet_until(preferences, ist("12T23:00")) == ist("13T07:00")
    assert quiet_until(preferences, ist("13T05:00")) == ist("13T07:00")  # began on Thursday
    assert quiet_until(preferences, ist("13T23:00")) is None
    london = msgspec.structs.replace(preferences, timezone="Europe/London")
    assert quiet_until(london, ist("12T23:00")) is None


def test_quiet_hours_that_follow_one_another_are_one() -> None:
    day = QuietHours(days=ALL_DAYS, start="07:00", end="09:30")
    assert quiet_until(PreferenceChanged(quiet_hours=(NIGHT, day)), ist("12T23:00")) == ist("13T09:30")
    assert quiet_until(PreferenceChanged(quiet_hours=(ALWAYS_QUIET,)), ist("12T23:00")) is not None


def test_the_night_is_told_in_the_morning_in_one() -> None:
    facts = [fact(posting(1_000_00), n=n, at=ist("12T23:00") + seconds(600 * n)) for n in range(7)]
    (found,) = told(*facts, preferences=PreferenceChanged(quiet_hours=(NIGHT,)))
    assert (found.title, found.held) == ("7 Transactions, Total: ₹7,000", "quiet_hours")
    assert found.digest_id is not None


def test_a_clock_that_is_behind_tells_nothing_in_quiet_hours() -> None:
    desk = Notifier(PreferenceChanged(quiet_hours=(NIGHT,)))
    facts = [fact(posting(100), n=n, at=ist("12T22:00") + seconds(late)) for n, late in enumerate((-3, 30))]
    desk.chunk(facts, ist("12T21:59"))  # the group is over at 22:00:02
    assert desk.raised == []


def test_a_message_is_not_kept_until_the_night_begins() -> None:
    message = notification.NotificationRequested(category="system", priority="medium", title="t", body="b")
    desk = Notifier(PreferenceChanged(quiet_hours=(NIGHT,)))
    at = ist("12T22:00") - seconds(2)
    desk.chunk([fact(message, at=at)], at)
    assert len(desk.raised) == 1


def test_mutes_and_channels() -> None:
    assert told(fact(posting(100)), preferences=PreferenceChanged(categories={"transaction": MUTED})) == []
    only_high = notification.CategoryPreference(min_priority="high")
    preferences = PreferenceChanged(categories={"transaction": only_high})
    assert told(fact(posting(100)), preferences=preferences) == []
    assert len(told(fact(posting(-100, below_floor=True)), preferences=preferences)) == 1
    no_mail = PreferenceChanged(channels=notification.Channels(email=False, in_app=False))
    assert channels(no_mail, "transfer", "medium") == ("web_push", "webhook")
    assert channels(no_mail, "security", "critical") == ("in_app", "web_push", "webhook")


def test_the_past_that_a_link_brings_is_one_line() -> None:
    past = [history_of(fact(posting(100), n=n, at=AT + seconds(0.01 * n))) for n in range(2_500)]
    (found,) = told(*past)
    assert (found.priority, found.count, found.total_minor) == ("low", 2_500, None)
    assert found.body == "2500 movements from before you linked are in your history."
    assert len(found.event_ids) == grouping.EVENT_IDS_MAX


def test_an_operators_message_waits_for_nobody() -> None:
    message = notification.NotificationRequested(category="system", priority="medium", title="t", body="b")
    desk = Notifier()
    desk.chunk([fact(message, n=1), fact(message, n=2)], AT)
    assert [event.count for event in desk.raised] == [1, 1]


def test_a_snooze_that_ends_at_night_is_over_in_the_morning() -> None:
    (found,) = told(fact(posting(100)))
    fields = notification.Notification.__struct_fields__
    content = msgspec.json.encode({name: getattr(found, name) for name in fields})
    night = Chapter(ist("12T23:00"), {USER: PreferenceChanged(quiet_hours=(NIGHT,))})
    assert woken(night, USER, content, ist("12T22:30")) is None
    morning = Chapter(ist("13T07:00"), {USER: PreferenceChanged(quiet_hours=(NIGHT,))})
    over = [woken(morning, USER, content, ist(f"12T22:{minute}")) for minute in (30, 31)]
    assert len({entry.event_id for entry in over if entry is not None}) == 2  # two snoozes are two tellings
    critical = msgspec.json.encode(msgspec.json.decode(content) | {"priority": "critical"})
    assert woken(night, USER, critical, ist("12T22:30")) is not None


# Whatever comes, whenever.

KINDS: dict[str, Callable[[int], Event]] = {
    "in": lambda n: posting(1_000 + n),
    "out": lambda n: posting(-2_000 - n),
    "pnl": lambda n: trade(realized_pnl_minor=(-1) ** n * (500 + n)),
    "transfer": lambda n: transfer(amount_minor=700 + n),
    "opened": lambda n: opened(number(n)),
    "critical": lambda n: risk("critical"),
}


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Fact], list[tuple[str, float, bool]], bool]:
    """A log, and how it is consumed: chunks and ticks, each so much later than the last, some dying in between."""
    at = AT
    facts = []
    for n in range(draw(st.integers(1, 40))):
        at += seconds(draw(st.sampled_from([0, 0.001, 0.5, 1, 2.5, 4.999, 5, 5.001, 20, 600])))
        # Streams overlap: a later position may have an earlier time, by the length of a transaction.
        early = draw(st.sampled_from([0, 0, 0, 0.05, 0.4]))
        kind = draw(st.sampled_from(sorted(KINDS)))
        facts.append(fact(KINDS[kind](n), n=n, at=at - seconds(early)))
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["chunk", "chunk", "tick"]), st.sampled_from([0, 0.3, 3, 5, 30, 4000]), st.booleans()
            ),
            max_size=60,
        )
    )
    return facts, steps, draw(st.booleans())


def recorded_by(now: datetime, facts: Sequence[Fact]) -> list[Fact]:
    return list(takewhile(lambda one: one.recorded_at <= now, facts))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_every_fact_is_in_exactly_one_notification(
    history: tuple[list[Fact], list[tuple[str, float, bool]], bool],
) -> None:
    facts, steps, has_nights = history
    # 09:00 UTC is 14:30 in India: quiet from then on, or half an hour later.
    quiet = QuietHours(days=ALL_DAYS, start="15:00", end="16:00")
    preferences = PreferenceChanged(quiet_hours=(quiet,) if has_nights else ())
    desk = Notifier(preferences)
    now, done = AT, 0
    for step, later, crash in steps:
        now += seconds(later)
        if step == "tick":
            desk.tick(now, crash=crash)
            continue
        chunk = recorded_by(now, facts[done : done + 7])
        desk.chunk(chunk, now, crash=crash)
        done += 0 if crash else len(chunk)
    now = max(now, facts[-1].recorded_at + seconds(1))
    desk.chunk(facts[done:], now)
    desk.finish(now)

    final = desk.final
    assert len(final) == len(desk.raised)  # nothing is revised that was not raised, nothing is raised twice
    where = defaultdict(list)
    for event in final.values():
        for event_id in event.event_ids:
            where[event_id].append(event.notification_id)
    assert all(len(where[one.event_id]) == 1 for one in facts)
    assert sum(event.count for event in final.values()) == len(facts)
    for category in ("transaction", "trade", "transfer"):
        wanted = sum(one.told.amount_minor or 0 for one in facts if one.category == category)
        assert sum(event.total_minor or 0 for event in final.values() if event.category == category) == wanted
    criticals = {one.event_id for one in facts if one.priority == "critical"}
    for at, event in desk.store.values():
        if isinstance(event, NotificationRaised) and event.priority == "critical":
            assert event.count == 1
            criticals -= set(event.event_ids)
        elif isinstance(event, NotificationRaised):
            assert quiet_until(preferences, at) is None, "told in quiet hours"
    assert not criticals


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.integers(1, 50))
def test_groups_depend_on_the_log_alone(
    history: tuple[list[Fact], list[tuple[str, float, bool]], bool], size: int
) -> None:
    """However the log is cut into chunks, and whenever the clock ticks: the same groups."""
    facts = [one for one in history[0] if one.priority != "critical"][: THROTTLE["trade"]]
    expected: dict[str, list[list[UUID]]] = defaultdict(list)
    ends: dict[str, datetime] = {}
    for one in facts:
        key = lane_key(one)
        if key not in ends or one.recorded_at >= ends[key]:
            expected[key].append([])
            ends[key] = one.recorded_at + WINDOW
        expected[key][-1].append(one.event_id)
    desk = Notifier()
    now = AT
    for start in range(0, len(facts), size):
        chunk = facts[start : start + size]
        now = max(now, *(one.recorded_at for one in chunk))
        desk.chunk(chunk, now)
        desk.tick(now + timedelta(seconds=size % 7))
    desk.finish(now)
    found = {tuple(event.event_ids) for event in desk.final.values()}
    assert found == {tuple(group) for groups in expected.values() for group in groups}
