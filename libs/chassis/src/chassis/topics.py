"""Subscriptions in AMQP's topic language: words joined by dots, `*` is one word, `#` any number of words.

Pure. A set of patterns is compiled once and shared by everyone who subscribes to the same.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

PATTERNS_MAX = 32
PATTERN_LENGTH_MAX = 128
WORDS_MAX = 16

_PATTERN = re.compile(r"(?:[a-z0-9_]+|\*|#)(?:\.(?:[a-z0-9_]+|\*|#))*", re.ASCII)
_TYPES_REMEMBERED_MAX = 1024


class InvalidTopic(ValueError):
    """The pattern cannot be subscribed to."""


class Topics:
    """A compiled set of patterns. Equal sets share one object (see `topics`)."""

    __slots__ = ("_pattern_words", "_verdicts", "patterns")

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns: Final = patterns
        self._pattern_words = [pattern.split(".") for pattern in patterns]
        # Event types are few and known at build time, so each is matched once in a process's life.
        self._verdicts: dict[str, bool] = {}

    def __contains__(self, event_type: str) -> bool:
        verdict = self._verdicts.get(event_type)
        if verdict is None:
            words = event_type.split(".")
            verdict = any(_matches(pattern, words) for pattern in self._pattern_words)
            if len(self._verdicts) < _TYPES_REMEMBERED_MAX:
                self._verdicts[event_type] = verdict
        return verdict


def topics(patterns: Iterable[str]) -> Topics:
    """The patterns compiled.

    Raises:
        InvalidTopic: none or too many of them, or one that is malformed.
    """
    chosen = tuple(sorted(set(patterns)))
    if not 0 < len(chosen) <= PATTERNS_MAX:
        raise InvalidTopic(f"between 1 and {PATTERNS_MAX} topics are needed")
    for pattern in chosen:
        if len(pattern) > PATTERN_LENGTH_MAX or _PATTERN.fullmatch(pattern) is None or pattern.count(".") >= WORDS_MAX:
            raise InvalidTopic(
                f"a topic is made of at most {WORDS_MAX} words joined by dots; a word is *, # or a-z, 0-9, _"
            )
    return _compiled(chosen)


@lru_cache(maxsize=1024)
def _compiled(patterns: tuple[str, ...]) -> Topics:
    return Topics(patterns)


def _matches(pattern: list[str], words: list[str]) -> bool:
    """Greedy matching that goes back to the latest `#` only: quadratic at worst, whatever the pattern."""
    at, word = 0, 0
    latest_hash, resume = -1, 0
    while word < len(words):
        if at < len(pattern) and pattern[at] == "#":
            latest_hash, resume = at, word
            at += 1
        elif at < len(pattern) and pattern[at] in ("*", words[word]):
            at += 1
            word += 1
        elif latest_hash >= 0:
            resume += 1
            at, word = latest_hash + 1, resume
        else:
            return False
    return all(rest == "#" for rest in pattern[at:])
