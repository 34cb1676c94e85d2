"""How well a document answers a query: a class, a score from 0 to 100, and what to highlight. Pure.

| class         | means                                                            | score      |
|---------------|------------------------------------------------------------------|------------|
| `exact`       | one of the document's names is the query                         | 100        |
| `starts_with` | one of its names starts with the query                           | 80–99      |
| `contains`    | a name or its text contains the query, or each word of the query | 60–79      |
| `fuzzy`       | each word of the query is, but for a typing error, one of its words | 40–59   |

A score depends on the query and the document alone, so it means the same in every answer. Within a class
it grows with the part of the field that the query covers, or, for `fuzzy`, of the word that is spelt right.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
from rapidfuzz.distance import OSA

from search.folding import canonical, fold, words

Match = Literal["exact", "starts_with", "contains", "fuzzy"]

_CLASS_SPAN = 19
"""Each class below `exact` spans 20 points; its best score is its floor plus this."""


class Field(NamedTuple):
    """A piece of a document's text. A name is what the document is called; the rest is said about it."""

    name: str
    value: str
    """Canonical (`folding.canonical`)."""
    is_name: bool


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
    """A query, folded and split once, to be scored against many documents."""

    def __init__(self, text: str) -> None:
        self.folded = fold(canonical(text)).text
        # A query without letters or digits ("₹") has no words; it is looked for as it is.
        self.words = words(self.folded) or [self.folded]
        self._typos = {word: _typos_allowed(word) for word in self.words}
        self._edits: dict[tuple[str, str], int | None] = {}

    @property
    def can_be_misspelt(self) -> bool:
        """Whether any of its words is long enough, and of letters, for a fuzzy match."""
        return any(self._typos.values())

    def edits(self, word: str, other: str) -> int | None:
        """The typing errors between a query's word and a document's, None when they are too many.

        A swap of two neighbours is one error. A word with a digit in it is never taken for another: one
        digit more or less is another amount, date or reference.
        """
        if word == other:
            return 0
        key = (word, other)
        if key not in self._edits:
            allowed = self._typos[word]
            edits: int | None = None
            if allowed and not _has_digit(other):
                distance = OSA.distance(word, other, score_cutoff=allowed)
                edits = distance if distance <= allowed else None
            self._edits[key] = edits
        return self._edits[key]


def score(query: Query, fields: Sequence[Field]) -> Scored | None:
    """How well the document of these fields answers the query; None when it does not."""
    return _literal(query, fields) or _each_word(query, fields) or _fuzzy(query, fields)


def _literal(query: Query, fields: Sequence[Field]) -> Scored | None:
    """The whole query in one field: the best of the first three classes, in the first field that gives it."""
    best: Scored | None = None
    for field in fields:
        folded = fold(field.value)
        start = folded.text.find(query.folded)
        if start < 0:
            continue
        match: Match
        coverage = len(query.folded) / len(folded.text)
        if field.is_name and coverage == 1:
            match, points = "exact", 100
        elif field.is_name and start == 0:
            match, points = "starts_with", 80 + int(_CLASS_SPAN * coverage)
        else:
            # The phrase in one place beats its words here and there: those get at most 69.
            match, points = "contains", 70 + int((_CLASS_SPAN - 10) * coverage)
        if best is None or points > best.score:
            end = start + len(query.folded)
            best = Scored(match=match, score=points, highlights=(_highlight(field, folded.origin, start, end),))
    return best


def _each_word(query: Query, fields: Sequence[Field]) -> Scored | None:
    """Every word of the query somewhere in the document."""
    highlights = []
    covered = total = 0
    for word in query.words:
        for field in fields:
            folded = fold(field.value)
            start = folded.text.find(word)
            if start >= 0:
                highlights.append(_highlight(field, folded.origin, start, start + len(word)))
                covered += len(word)
                total += len(folded.text)
                break
        else:
            return None
    return Scored(match="contains", score=60 + int(9 * min(1, covered / total)), highlights=tuple(highlights))


def _fuzzy(query: Query, fields: Sequence[Field]) -> Scored | None:
    """Every word of the query is a word of the document, but for typing errors."""
    if not query.can_be_misspelt:
        return None
    highlights = []
    errors = 0
    for word in query.words:
        best: tuple[int, Highlight] | None = None
        for field in fields:
            folded = fold(field.value)
            start = 0
            for candidate in words(folded.text):
                start = folded.text.index(candidate, start)
                edits = query.edits(word, candidate)
                if edits is not None and (best is None or edits < best[0]):
                    best = (edits, _highlight(field, folded.origin, start, start + len(candidate)))
                start += len(candidate)
        if best is None:
            return None
        errors += best[0]
        highlights.append(best[1])
    right = 1 - errors / sum(map(len, query.words))
    return Scored(match="fuzzy", score=40 + int(_CLASS_SPAN * right), highlights=tuple(highlights))


def _typos_allowed(word: str) -> int:
    """One from four letters, two from eight, none in anything with a digit."""
    if _has_digit(word) or len(word) < 4:
        return 0
    return 1 if len(word) < 8 else 2


def _has_digit(word: str) -> bool:
    return any(character.isnumeric() for character in word)


def _highlight(field: Field, origin: Sequence[int], start: int, end: int) -> Highlight:
    # One character may fold to several ("ﬁ" to "fi"): the end is after the last one that was matched.
    return Highlight(field=field.name, value=field.value, start=origin[start], end=origin[end - 1] + 1)
