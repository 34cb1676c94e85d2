"""The stream of insights: given what was raised, when the customer's money is looked at, then these events."""

from datetime import timedelta
from typing import Any

import pytest
from events.contracts.registry import Event, decode, encode
from events.contracts.wealth import HealthChanged, InsightCleared, InsightDismissed, InsightRaised
from pictures import NOW, USER, computed, share
from wealth.computing import Computed
from wealth.health import Health
from wealth.insights import Thresholds, insight_id, settle
from wealth.noticed import InsightNotFound, WealthState, dismiss, evolve, noticed

QUIET = Health(None, None, 0, ())


def look(mark: int = 130_00, **fields: Any) -> Computed:
    return computed(Thresholds(concentration_percent=101.0), items=[share("ABC", 100, 100_00, mark)], **fields)


def after(*events: Event) -> WealthState:
    state = WealthState()
    for event in events:
        state = evolve(state, event)
    return state


def when(state: WealthState, seen: Computed, health: Health = QUIET, now: Any = NOW) -> list[Event]:
    return noticed(state, USER, seen.found, health, now)


def test_found_is_raised_once() -> None:
    raised = when(WealthState(), look())
    assert [type(event) for event in raised] == [InsightRaised]
    assert decode("wealth.insight.raised", 1, encode(raised[0])) == raised[0]
    assert when(after(*raised), look()) == []


def test_a_little_more_is_no_news() -> None:
    raised = when(WealthState(), look(130_00))
    assert when(after(*raised), look(131_00)) == []
    assert when(after(*raised), look(134_00)) == [], "the next step: the same insight, in case it swings back"


def test_much_more_replaces_it() -> None:
    raised = when(WealthState(), look(130_00))
    events = when(after(*raised), look(190_00))
    assert [type(event) for event in events] == [InsightRaised, InsightCleared]
    assert isinstance(events[1], InsightCleared)
    assert events[1].reason == "superseded"


def test_a_condition_that_ends_clears_it_and_comes_again() -> None:
    raised = when(WealthState(), look())
    cleared = when(after(*raised), look(100_00))
    assert isinstance(cleared[0], InsightCleared)
    assert cleared[0].reason == "condition_ended"
    again = when(after(*raised, *cleared), look())
    assert [type(event) for event in again] == [InsightRaised]
    assert len(after(*raised, *cleared, *again).entries) == 1


def test_its_time_is_over() -> None:
    raised = [event for event in when(WealthState(), look()) if isinstance(event, InsightRaised)]
    from msgspec.structs import replace

    timed = replace(raised[0], expires_at=NOW + timedelta(days=1))
    cleared = when(after(timed), look(100_00), now=NOW + timedelta(days=2))
    assert isinstance(cleared[0], InsightCleared)
    assert cleared[0].reason == "expired"


def test_a_dismissal_sticks_for_the_neighbouring_steps() -> None:
    seen = look()
    raised = when(WealthState(), seen)
    dismissed = dismiss(after(*raised), seen.shown[0].insight_id, seen.shown, NOW)
    assert [type(event) for event in dismissed] == [InsightDismissed]
    state = after(*raised, *dismissed)
    for mark in (125_50, 130_00, 134_00):
        assert when(state, look(mark)) == []
        assert settle(USER, look(mark).found, list(state.entries.values())) == []
    assert dismiss(state, seen.shown[0].insight_id, (), NOW) == [], "again: nothing to do"
    assert [type(event) for event in when(state, look(190_00))] == [InsightRaised], "far beyond it is news"


def test_one_that_is_shown_but_not_recorded_yet_can_be_dismissed() -> None:
    seen = look()
    events = dismiss(WealthState(), seen.shown[0].insight_id, seen.shown, NOW)
    assert [type(event) for event in events] == [InsightRaised, InsightDismissed]
    assert when(after(*events), look()) == []


def test_what_is_not_there_cannot_be_dismissed() -> None:
    with pytest.raises(InsightNotFound):
        dismiss(WealthState(), USER, look().shown, NOW)


def test_the_grade_is_told_when_it_changes() -> None:
    b, still_b, none = Health(72, "B", 80, ()), Health(75, "B", 80, ()), QUIET
    nothing = look(100_00)
    first = when(WealthState(), nothing, b)
    assert first == [HealthChanged(score=72, grade="B", confidence_percent=80, changed_at=NOW)]
    assert when(after(*first), nothing, still_b) == []
    gone = when(after(*first), nothing, none)
    assert isinstance(gone[0], HealthChanged)
    assert (gone[0].grade, gone[0].previous_grade) == (None, "B")


def test_the_same_insight_has_the_same_id_for_ever() -> None:
    seen = look()
    assert seen.shown[0].insight_id == insight_id(USER, seen.shown[0].insight)
    assert str(seen.shown[0].insight_id) == "2424a3e1-12b3-589b-86aa-81cc25a7608c"
