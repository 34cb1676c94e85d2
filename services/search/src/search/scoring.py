"""How well a document answers a query: a class, a score from 0 to 100, and what to highlight. Pure.

| class         | score | means                                                                        |
|---------------|-------|------------------------------------------------------------------------------|
| `exact`       | 100   | one of the document's names, or its amount, is the query                     |
| `starts_with` | 90    | one of its names begins with the query, which ends where a word does         |
|               | 80    | … in the middle of a word                                                    |
| `contains`    | 78    | each word of the query is a word of the names                                |
|               | 72    | … a word of the document, or its amount                                      |
|               | 66    | … at least the beginning of a word                                           |
|               | 60    | … at least inside of a word                                                  |
| `fuzzy`       | 55    | each word matches as above, or sounds like one (`sounds.py`)                 |
|               | 50    | … or is one but for one typing error                                         |
|               | 45    | … or two                                                                     |

A score depends on the query and the document alone, so it means the same in every answer. It is one of ten steps, not
a measure, so that an engine can find and count each step by itself and go on from any place; within a step the newer
comes first. The index (`engine.py`) finds by the same definitions; a test compares the two.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec
from rapidfuzz.distance import OSA

from search.folding import Token, canonical, fold, has_digit, is_number, tokens, words
from search.sounds import sound

Match = Literal["exact", "starts_with", "contains", "fuzzy"]

EXACT, BEGINS_WITH_WORDS, BEGINS = 100, 90, 80
INSIDE_LETTERS_MIN = 3
"""A shorter word is looked for at the beginning of words only."""

QUERY_WORDS_MAX = 12

_RUPEES_DIGITS_MAX = 15


class Level(IntEnum):
    """How a word of a query meets a word of a document; each includes the ones before it."""

    NAME = 0
    WORD = 1
    BEGINS = 2
    INSIDE = 3
    SOUNDS = 4
    ONE_TYPO = 5
    TWO_TYPOS = 6

    @property
    def score(self) -> int:
        """Of a document in which every word of the query is met at this level at least."""
        return (78, 72, 66, 60, 55, 50, 45)[self]


class Field(NamedTuple):
    """A piece of a document's text. A name is what the document is called; the rest is said about it."""

    name: str
    value: str
    """Canonical (`folding.canonical`)."""
    is_name: bool


AMOUNT = "amount"
"""The name of the field that is found by its value in whatever spelling, and by no part of it."""


class Highlight(msgspec.Struct, frozen=True, kw_only=True):
    """Why the document matched: characters `start` to `end` (exclusive) of the field's value."""

    field: str
    value: str
    start: int
    end: int


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    match: Match
    score: int
    highlights: tuple[Highlight, ...]


class Query:
    """A query, cut into words once, to be answered from many documents."""

    def __init__(self, text: str) -> None:
        every = words(text)[:QUERY_WORDS_MAX]
        self.is_blank = not text.strip()
        """It asks for everything. One of signs alone has no words either, but asks for something, and gets nothing."""
        self.text = " ".join(every)
        """What a name has to be, or to begin with."""
        self.words = tuple(dict.fromkeys(every))
        self.amount_minor = amount_of(every[0]) if len(every) == 1 else None
        """What the whole query is an amount of."""

    @property
    def can_be_misspelt(self) -> bool:
        """Whether any of its words is long enough, and of letters, for a typing error."""
        return any(map(typos_allowed, self.words))


def match_of(score: int) -> Match:
    """The class of a score."""
    if score >= EXACT:
        return "exact"
    return "starts_with" if score >= BEGINS else "contains" if score >= Level.INSIDE.score else "fuzzy"


def name_key(name: str) -> str:
    """A name as queries are compared with it: its words, one space apart."""
    return " ".join(words(name))


def amount_of(word: str) -> int | None:
    """The paise that a number in a query stands for; None where it is no amount."""
    if not is_number(word) or len(word) > _RUPEES_DIGITS_MAX:
        return None
    rupees, _, paise = word.partition(".")
    return int(rupees) * 100 + int(paise.ljust(2, "0")) if len(paise) <= 2 else None


def typos_allowed(word: str) -> int:
    """One from four letters, two from eight, none in anything with a digit."""
    if has_digit(word) or len(word) < 4:
        return 0
    return 1 if len(word) < 8 else 2


def edits(word: str, other: str) -> int | None:
    """The typing errors between a query's word and a document's, None when they are too many.

    A swap of two neighbours is one error. A word with a digit in it is never taken for another: one digit more or
    less is another amount, date or reference.
    """
    allowed = typos_allowed(word)
    if word == other or not allowed or has_digit(other):
        return 0 if word == other else None
    distance = OSA.distance(word, other, score_cutoff=allowed)
    return distance if distance <= allowed else None


def inside(word: str, other: str) -> bool:
    """Whether a query's word is somewhere in a document's. Never a part of a number."""
    return len(word) >= INSIDE_LETTERS_MIN and word in other and not has_digit(word) and not has_digit(other)


@lru_cache(maxsize=65536)
def level(word: str, other: str) -> Level | None:
    """How a query's word meets a word of a document's text."""
    if word == other:
        return Level.WORD
    if other.startswith(word):
        return Level.BEGINS
    if inside(word, other):
        return Level.INSIDE
    key = sound(word)
    if key is not None and key == sound(other):
        return Level.SOUNDS
    errors = edits(word, other)
    return None if errors is None else Level.ONE_TYPO if errors == 1 else Level.TWO_TYPOS


def score(query: Query, fields: Sequence[Field], paise: int | None = None) -> Scored | None:
    """How well the document of these fields answers the query; None when it does not.

    `paise` is its amount, None where that is not in rupees.
    """
    if not query.words:
        return None
    return _by_name(query, fields, paise) or _by_words(query, fields, paise)


def _by_name(query: Query, fields: Sequence[Field], paise: int | None) -> Scored | None:
    best: tuple[int, Field] | None = None
    for field in fields:
        if not field.is_name:
            continue
        key = name_key(field.value)
        if not key.startswith(query.text):
            continue
        rest = key[len(query.text) :]
        points = EXACT if not rest else BEGINS_WITH_WORDS if rest[0] == " " else BEGINS
        if best is None or points > best[0]:
            best = points, field
    if (best is None or best[0] < EXACT) and query.amount_minor is not None and query.amount_minor == paise:
        return _scored(EXACT, [_whole(field) for field in fields if field.name == AMOUNT])
    if best is None:
        return None
    return _scored(best[0], [_beginning(best[1], query.text)])


def _by_words(query: Query, fields: Sequence[Field], paise: int | None) -> Scored | None:
    worst = Level.NAME
    highlights = []
    for word in query.words:
        met = _best(word, fields, paise)
        if met is None:
            return None
        worst = max(worst, met[0])
        highlights.append(met[1])
    return _scored(worst.score, highlights)


def _best(word: str, fields: Sequence[Field], paise: int | None) -> tuple[Level, Highlight] | None:
    best: tuple[Level, Highlight] | None = None
    for field in fields:
        if field.name == AMOUNT:
            if paise is not None and amount_of(word) == paise and (best is None or best[0] > Level.WORD):
                best = Level.WORD, _whole(field)
            continue
        folded, origin, places = _read(field.value)
        for token in places:
            found = level(word, token.text)
            if found is None:
                continue
            if found == Level.WORD and field.is_name:
                found = Level.NAME
            if best is None or found < best[0]:
                start, end = token.start, token.end
                if found in (Level.BEGINS, Level.INSIDE) and folded[start:end] == token.text:
                    start += token.text.index(word)
                    end = start + len(word)
                best = found, _highlight(field, origin, start, end)
        if best is not None and best[0] == Level.NAME:
            break
    return best


def _scored(points: int, highlights: list[Highlight]) -> Scored:
    return Scored(match=match_of(points), score=points, highlights=tuple(dict.fromkeys(highlights)))


def _whole(field: Field) -> Highlight:
    return Highlight(field=field.name, value=field.value, start=0, end=len(field.value))


def _beginning(field: Field, text: str) -> Highlight:
    """The part of a name that the query covers: whole words, and the beginning of the last one."""
    folded, origin, places = _read(field.value)
    left = len(text)
    for token in places:
        if left <= len(token.text):
            break
        left -= len(token.text) + 1
    end = token.start + left if folded[token.start : token.end] == token.text else token.end
    return _highlight(field, origin, places[0].start, end)


@lru_cache(maxsize=8192)
def _read(value: str) -> tuple[str, Sequence[int], tuple[Token, ...]]:
    folded = fold(canonical(value))
    return folded.text, folded.origin, tuple(tokens(folded.text))


def _highlight(field: Field, origin: Sequence[int], start: int, end: int) -> Highlight:
    # One character may fold to several ("ﬁ" to "fi"): the end is after the last one that was matched.
    return Highlight(field=field.name, value=field.value, start=origin[start], end=origin[end - 1] + 1)
