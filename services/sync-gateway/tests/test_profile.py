"""Merging two platforms' edits: what each rule gives, and that any interleaving ends in one state everywhere."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from events.contracts import customer
from events.contracts.customer import Platform
from events.decisions import Refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from sync_gateway import profile
from sync_gateway.policies import Policies
from sync_gateway.profile import Draft, Edit, Happened, Profile

USER = uuid4()
START = datetime(2026, 2, 12, 9, tzinfo=UTC)
RULES = Policies()


def edit(platform: Platform, base: int, at_s: float = 0, origin: str | None = None, **fields: Any) -> Edit:
    at = START + timedelta(seconds=at_s)
    return Edit(USER, platform, f"item-{uuid4()}", uuid4(), base, at, at, fields, origin)


class Stream:
    """The events of one profile, and the state folded from them."""

    def __init__(self) -> None:
        self.happened: list[Happened] = []
        self.state = Profile()

    def append(self, drafts: list[Draft], at_s: float = 0) -> list[Any]:
        for draft in drafts:
            happened = Happened(draft.event, draft.values, START + timedelta(seconds=at_s), uuid4())
            self.happened.append(happened)
            self.state = profile.evolve(self.state, happened)
        return [type(draft.event) for draft in drafts]

    def merge(self, change: Edit, rules: Policies = RULES) -> list[Any]:
        return self.append(profile.merge(self.state, change, rules))

    @property
    def fields(self) -> dict[str, Any]:
        return self.state.values()


DETECTED, RESOLVED, CHANGED = customer.ConflictDetected, customer.ConflictResolved, customer.ProfileChanged


def test_an_edit_of_the_current_version_applies() -> None:
    stream = Stream()
    assert stream.merge(edit("bfc", 0, phone="1", email="a@b")) == [CHANGED]
    assert stream.merge(edit("vyomo", 1, phone="2")) == [CHANGED]
    assert (stream.state.version, stream.fields) == (2, {"email": "a@b", "phone": "2"})


def test_fields_that_only_one_side_changed_merge_without_a_conflict() -> None:
    stream = Stream()
    stream.merge(edit("bfc", 0, phone="1", email="a@b"))
    stream.merge(edit("bfc", 1, phone="2"))
    assert stream.merge(edit("vyomo", 1, email="c@d")) == [CHANGED]
    # What it sends along unchanged is no change of its own.
    assert stream.merge(edit("vyomo", 1, email="e@f", phone="1")) == [CHANGED]
    assert stream.fields == {"email": "e@f", "phone": "2"}


def test_both_sides_may_agree() -> None:
    stream = Stream()
    stream.merge(edit("bfc", 0, phone="1"))
    stream.merge(edit("bfc", 1, phone="2"))
    assert stream.merge(edit("vyomo", 1, phone="2")) == [CHANGED]
    assert not stream.state.conflicts


@pytest.mark.parametrize(
    ("field", "bfc", "vyomo", "expected", "winner"),
    [
        ("phone", ("b", 5), ("v", 9), "b", "bfc"),
        ("nickname", ("b", 5), ("v", 9), "v", "vyomo"),
        ("nickname", ("b", 9), ("v", 5), "b", "bfc"),
        ("nickname", ("b", 5), ("v", 5), "b", "bfc"),
        ("tags", (["x", "b"], 5), (["x", "v"], 9), ["b", "v", "x"], "merged"),
        ("tags", (["b"], 5), (["x", "v"], 9), ["b", "v"], "merged"),
        ("tags", ("no list", 5), (["v"], 9), ["v"], "vyomo"),
    ],
)
@pytest.mark.parametrize("first", ["bfc", "vyomo"])
def test_policies_decide_whoever_comes_first(
    field: str, bfc: Any, vyomo: Any, expected: Any, winner: str, first: Platform
) -> None:
    stream = Stream()
    known: dict[str, Any] = {field: ["x"]}
    stream.merge(edit("bfc", 0, **known))
    edits = {"bfc": edit("bfc", 1, bfc[1], **{field: bfc[0]}), "vyomo": edit("vyomo", 1, vyomo[1], **{field: vyomo[0]})}
    stream.merge(edits.pop(first))
    (second,) = edits.values()
    assert stream.merge(second) == [DETECTED, RESOLVED, CHANGED]
    (conflict,) = stream.state.conflicts.values()
    assert conflict.decisions[0].winner == winner
    value = stream.fields[field]
    assert (sorted(value) if isinstance(value, list) else value) == expected
    assert conflict.values[field]["base"] == ["x"]
    assert (conflict.values[field]["bfc"], conflict.values[field]["vyomo"]) == (bfc[0], vyomo[0])


def test_an_echo_is_dropped() -> None:
    stream = Stream()
    stream.merge(edit("bfc", 0, phone="1"))
    assert stream.merge(edit("vyomo", 1, phone="1")) == []
    assert stream.merge(edit("vyomo", 0, origin="sangam", phone="other")) == []


def test_an_older_edit_of_the_same_platform_that_comes_late_changes_nothing() -> None:
    stream = Stream()
    stream.merge(edit("bfc", 0, 9, phone="new"))
    stream.merge(edit("bfc", 0, 1, phone="old"))
    assert stream.fields == {"phone": "new"}


def test_a_clock_that_is_ahead_does_not_win_by_that() -> None:
    stream = Stream()
    stream.merge(edit("bfc", 0, 0, nickname="x"))
    ahead = edit("bfc", 1, 10, nickname="b")
    stream.merge(ahead._replace(changed_at=ahead.recorded_at + timedelta(days=1)))
    stream.merge(edit("vyomo", 1, 20, nickname="v"))
    assert stream.fields == {"nickname": "v"}
    # And whoever has seen a change comes after it, however far their own clock is behind.
    assert stream.state.clocks == tuple(sorted(stream.state.clocks))
    late = edit("bfc", stream.state.version, -3600, nickname="seen and changed")
    stream.merge(late)
    assert stream.fields == {"nickname": "seen and changed"}


def nominee_conflict() -> tuple[Stream, UUID]:
    stream = Stream()
    stream.merge(edit("bfc", 0, nominee="x"))
    stream.merge(edit("bfc", 1, nominee="b"))
    assert stream.merge(edit("vyomo", 1, nominee="v", phone="9")) == [DETECTED, CHANGED]
    (conflict_id,) = stream.state.conflicts
    return stream, conflict_id


@pytest.mark.parametrize(("strategy", "value"), [("bfc", "b"), ("vyomo", "v"), ("manual", "m")])
def test_a_manual_field_waits_for_a_person_and_undo_restores(strategy: Any, value: str) -> None:
    stream, conflict_id = nominee_conflict()
    assert stream.fields == {"nominee": "b", "phone": "9"}, "until then it keeps the value it had"
    before = stream.fields
    fields = {"nominee": "m"} if strategy == "manual" else None
    stream.append(profile.resolve(stream.state, conflict_id, strategy, fields, "user:x", START))
    assert stream.fields["nominee"] == value
    stream.append(profile.reopen(stream.state, conflict_id, "user:x", START))
    assert stream.fields == before
    assert stream.state.conflicts[conflict_id].open_fields == ("nominee",)
    stream.append(profile.resolve(stream.state, conflict_id, "vyomo", None, "user:x", START))
    assert stream.fields["nominee"] == "v"


def test_undo_leaves_what_was_changed_since() -> None:
    stream, conflict_id = nominee_conflict()
    stream.append(profile.resolve(stream.state, conflict_id, "vyomo", None, "user:x", START))
    stream.merge(edit("bfc", stream.state.version, 50, nominee="later"))
    stream.append(profile.reopen(stream.state, conflict_id, "user:x", START))
    assert stream.fields["nominee"] == "later"


def test_what_the_policy_decided_can_be_undone() -> None:
    stream = Stream()
    stream.merge(edit("vyomo", 0, phone="x"))
    stream.merge(edit("vyomo", 1, phone="v"))
    stream.merge(edit("bfc", 1, phone="b"))
    (conflict_id,) = stream.state.conflicts
    assert stream.fields == {"phone": "b"}
    stream.append(profile.reopen(stream.state, conflict_id, "user:x", START))
    assert stream.fields == {"phone": "v"}


@pytest.mark.parametrize(
    ("code", "act"),
    [
        ("conflict_not_found", lambda s, c: profile.resolve(s, uuid4(), "bfc", None, "u", START)),
        ("conflict_not_found", lambda s, c: profile.reopen(s, uuid4(), "u", START)),
        ("fields_do_not_match", lambda s, c: profile.resolve(s, c, "manual", None, "u", START)),
        ("fields_do_not_match", lambda s, c: profile.resolve(s, c, "manual", {"phone": "1"}, "u", START)),
        ("fields_do_not_match", lambda s, c: profile.resolve(s, c, "bfc", {"nominee": "1"}, "u", START)),
        ("not_mergeable", lambda s, c: profile.resolve(s, c, "merge", None, "u", START)),
        ("conflict_not_resolved", lambda s, c: profile.reopen(s, c, "u", START)),
    ],
)
def test_refusals(code: str, act: Callable[[Profile, UUID], Any]) -> None:
    stream, conflict_id = nominee_conflict()
    with pytest.raises(Refusal) as refused:
        act(stream.state, conflict_id)
    assert refused.value.code == code
    stream.append(profile.resolve(stream.state, conflict_id, "bfc", None, "u", START))
    with pytest.raises(profile.ConflictNotOpen):
        profile.resolve(stream.state, conflict_id, "bfc", None, "u", START)


# Any interleaving.

VALUES = st.sampled_from(["a", "b", "c", ["x"], ["x", "y"], ["z"]])
FIELDS = st.dictionaries(st.sampled_from(["phone", "nominee", "tags", "nickname"]), VALUES, min_size=1, max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.sampled_from(["bfc", "vyomo"]), FIELDS, st.integers(-30, 30)),
        st.tuples(st.just("arrive"), st.sampled_from(["bfc", "vyomo"]), st.integers(0, 3)),
        st.tuples(st.just("told"), st.sampled_from(["bfc", "vyomo"])),
        st.tuples(st.just("echo"), st.sampled_from(["bfc", "vyomo"]), st.booleans()),
        st.tuples(st.just("decide"), st.sampled_from(["bfc", "vyomo", "reopen"])),
    ),
    max_size=40,
)


class Copy:
    """A platform's own copy of the profile, as `simulators` keeps it."""

    def __init__(self) -> None:
        self.version = 0
        self.fields: dict[str, Any] = {}
        self.sent: list[Edit] = []

    def told(self, state: Profile) -> None:
        if state.version > self.version:
            self.version, self.fields = state.version, state.values()


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_any_interleaving_converges_and_equals_a_rebuild(steps: list[Any]) -> None:
    """Edits on both sides, items out of order, announcements late or left out, echoes, resolutions and undos."""
    stream = Stream()
    copies = {"bfc": Copy(), "vyomo": Copy()}
    now = 0.0

    def arrive(platform: str, place: int) -> None:
        sent = copies[platform].sent
        if sent:
            stream.merge(sent.pop(min(place, len(sent) - 1)))

    for step in steps:
        now += 1
        match step:
            case ("edit", platform, fields, skew):
                copy = copies[platform]
                copy.fields = {**copy.fields, **fields}
                copy.sent.append(edit(platform, copy.version, now + skew, **fields))
            case ("arrive", platform, place):
                arrive(platform, place)
            case ("told", platform):
                copies[platform].told(stream.state)
            case ("echo", platform, tagged):
                copy = copies[platform]
                if copy.fields and not copy.sent:
                    copy.sent.append(edit(platform, copy.version, now, "sangam" if tagged else None, **copy.fields))
            case ("decide", strategy):
                for conflict_id, conflict in stream.state.conflicts.items():
                    if strategy == "reopen" and not conflict.open_fields:
                        before = stream.state
                        stream.append(profile.reopen(before, conflict_id, "u", START))
                        break
                    if strategy != "reopen" and conflict.open_fields:
                        resolved = profile.resolve(stream.state, conflict_id, strategy, None, "u", START)
                        kept = stream.fields
                        stream.append(resolved)
                        undo = Stream()
                        undo.state = stream.state
                        undo.append(profile.reopen(stream.state, conflict_id, "u", START))
                        assert undo.fields == kept, "undo restores"
                        break
    for platform, copy in copies.items():
        while copy.sent:
            arrive(platform, 0)
    for copy in copies.values():
        copy.told(stream.state)
    assert copies["bfc"].fields == copies["vyomo"].fields == stream.fields
    rebuilt = Profile()
    for happened in stream.happened:
        rebuilt = profile.evolve(rebuilt, happened)
    assert rebuilt == stream.state
    for conflict in stream.state.conflicts.values():
        assert conflict.open_fields or conflict.resolution is not None
