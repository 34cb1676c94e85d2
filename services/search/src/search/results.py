"""From candidates to an answer: scored, sorted, counted, cut into pages. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from search.documents import Document
from search.scoring import Query, Scored, score


class Place(NamedTuple):
    """Where a result stands: by score, then the newer, then by type and id. A page ends at one.

    It depends on the document alone: what others are written does not shift a page.
    """

    falling_score: int
    """The score, negated: places sort ascending."""
    age_us: int
    """Microseconds before the end of time: the newer, the less."""
    type: str
    id: str


class Result(NamedTuple):
    place: Place
    document: Document
    scored: Scored


class Facets(msgspec.Struct, frozen=True, kw_only=True):
    """How many of all results, not of the page, are of each type and platform."""

    type: dict[str, int]
    platform: dict[str, int]


_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)


def rank(query: Query, documents: Iterable[Document]) -> list[Result]:
    """The documents that answer the query, the best first."""
    results = []
    for document in documents:
        scored = score(query, document.fields)
        if scored is not None:
            results.append(Result(_place(document, scored), document, scored))
    results.sort(key=lambda result: result.place)
    return results


def page(results: Sequence[Result], after: Place | None, limit: int) -> tuple[list[Result], Place | None]:
    """Up to `limit` results beyond `after`, and where the next page begins, if there is one."""
    rest = [result for result in results if after is None or result.place > after]
    shown = rest[:limit]
    return shown, shown[-1].place if len(rest) > limit else None


def facets(results: Sequence[Result]) -> Facets:
    """Counts over all results, the most frequent first."""
    return Facets(
        type=dict(Counter(result.document.type for result in results).most_common()),
        platform=dict(Counter(result.document.platform for result in results).most_common()),
    )


def _place(document: Document, scored: Scored) -> Place:
    age_us = (_END_OF_TIME - document.date) // datetime.resolution
    return Place(-scored.score, age_us, document.type, document.id)
