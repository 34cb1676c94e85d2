"""Topic patterns: AMQP's meaning of `*` and `#`, against a matcher that is written down from its definition."""

import pytest
from chassis.topics import PATTERNS_MAX, InvalidTopic, topics
from hypothesis import example, given
from hypothesis import strategies as st


def naive(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(naive(pattern[1:], words[n:]) for n in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and naive(pattern[1:], words[1:])


WORD = st.sampled_from(["a", "b", "ledger", "transfer_2"])
PATTERN = st.lists(WORD | st.sampled_from(["*", "#"]), min_size=1, max_size=6)


@given(PATTERN, st.lists(WORD, min_size=1, max_size=6))
@example(["#", "a", "#", "b"], ["a", "b", "a"])
@example(["a", "#"], ["a"])
@example(["#", "#"], ["a"])
def test_matches_as_defined(pattern: list[str], words: list[str]) -> None:
    assert (".".join(words) in topics([".".join(pattern)])) is naive(pattern, words)


@given(st.lists(PATTERN, min_size=1, max_size=4), st.lists(WORD, min_size=1, max_size=5))
def test_a_set_matches_what_any_of_it_matches(patterns: list[list[str]], words: list[str]) -> None:
    wanted = topics(".".join(pattern) for pattern in patterns)
    for _ in range(2):  # the second answer comes from memory
        assert (".".join(words) in wanted) is any(naive(pattern, words) for pattern in patterns)


@pytest.mark.parametrize(
    ("pattern", "event_type", "matches"),
    [
        ("ledger.#", "ledger.transfer.completed", True),
        ("ledger.*", "ledger.transfer.completed", False),
        ("ledger.*.completed", "ledger.transfer.completed", True),
        ("#", "anything.at.all", True),
        ("ledger.transfer.completed", "ledger.transfer.completed", True),
        ("ledger.transfer.complete", "ledger.transfer.completed", False),
        ("#.completed", "ledger.transfer.completed", True),
    ],
)
def test_examples(pattern: str, event_type: str, matches: bool) -> None:
    assert (event_type in topics([pattern])) is matches


@pytest.mark.parametrize(
    "patterns",
    [
        [],
        [""],
        ["."],
        ["a."],
        [".a"],
        ["a..b"],
        ["a.b*"],
        ["##"],
        ["Ledger.#"],
        ["a b"],
        ["a.#\n"],
        ["a'; DROP TABLE feed"],
        ["x" * 129],
        [".".join(["#"] * 17)],
        [f"t{n}" for n in range(PATTERNS_MAX + 1)],
        ["ledger.#", "bad!"],
    ],
)
def test_invalid_patterns_are_refused(patterns: list[str]) -> None:
    with pytest.raises(InvalidTopic):
        topics(patterns)


def test_equal_sets_share_one_compiled_object() -> None:
    assert topics(["b.#", "a.*"]) is topics(["a.*", "b.#", "a.*"])


def test_many_hashes_do_not_take_long() -> None:
    pattern = ".".join(["#", "a"] * 8)
    assert ".".join(["a"] * 2000 + ["b"]) not in topics([pattern])
