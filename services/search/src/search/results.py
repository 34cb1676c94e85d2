"""The order of results, and where a page of them ends. Pure.

Results come by score, then the newer, then by type. The last two, with a piece of the id so that no two documents
share it, are one number, `rank`, which an index can sort by. It depends on the document alone: what else is written
does not shift a page.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zlib import crc32

import msgspec

from search.documents import Document, DocumentType
from search.scoring import EXACT, Query, Scored, match_of, score

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FACET_VALUES_MAX = 100
_MS_BITS, _TYPE_BITS, _ID_BITS = 42, 3, 19
_TYPES_RANKED: tuple[DocumentType, ...] = (
    "position",
    "account",
    "rule",
    "trade",
    "transaction",
    "insight",
    "notification",
)
"""Of two documents of the same moment, what one has goes before what happened, and that before what was said of it."""


class Place(NamedTuple):
    """Where a result stands. A page ends at one, and the next page has what stands below it."""

    score: int
    rank: int


class Result(NamedTuple):
    place: Place
    document: Document
    scored: Scored


class Kind(NamedTuple):
    """What facets count of a document; empty where it has none."""

    type: str
    platform: str
    category: str
    state: str


class Facets(msgspec.Struct, frozen=True, kw_only=True):
    """How many of all results, not of the page, are of each type, platform, category and state."""

    type: dict[str, int]
    platform: dict[str, int]
    category: dict[str, int]
    state: dict[str, int]


def rank_of(document: Document) -> int:
    """Greater is nearer to the top; fits into 64 bits."""
    ms: int = (document.date - _EPOCH) // timedelta(milliseconds=1)
    type_rank = len(_TYPES_RANKED) - _TYPES_RANKED.index(document.type)
    tie = crc32(document.id.encode()) >> (32 - _ID_BITS)
    ms = min(max(ms, 0), (1 << _MS_BITS) - 1)
    return ms << (_TYPE_BITS + _ID_BITS) | type_rank << _ID_BITS | tie


def ranked(query: Query, documents: Iterable[Document]) -> list[Result]:
    """The documents that answer the query, the best first. A blank query is answered by all of them."""
    results = []
    for document in documents:
        scored = scored_of(query, document)
        if scored is not None:
            results.append(Result(Place(scored.score, rank_of(document)), document, scored))
    results.sort(key=lambda result: (result.place, result.document.id), reverse=True)
    return results


def scored_of(query: Query, document: Document) -> Scored | None:
    """How well the document answers; None when it does not."""
    if query.is_blank:
        return Scored(match=match_of(EXACT), score=EXACT, highlights=())
    return score(query, document.fields, document.paise)


def page(results: Sequence[Result], after: Place | None, limit: int) -> tuple[list[Result], Place | None]:
    """Up to `limit` results below `after`, and where the next page begins, if there is one."""
    rest = [result for result in results if after is None or result.place < after]
    shown = rest[:limit]
    return shown, shown[-1].place if len(rest) > limit else None


def kind_of(document: Document) -> Kind:
    """What facets count of the document."""
    return Kind(document.type, document.platform or "", document.category, document.state)


def facets(results: Sequence[Result]) -> Facets:
    """Counts over all results."""
    return facets_of(Counter(kind_of(result.document) for result in results))


def facets_of(kinds: Mapping[Kind, int]) -> Facets:
    """Counts of each value, the most frequent first."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in Kind._fields}
    for kind, count in kinds.items():
        for name, value in zip(Kind._fields, kind, strict=True):
            if value:
                counts[name][value] += count
    return Facets(
        **{
            name: dict(sorted(values.items(), key=lambda one: (-one[1], one[0]))[:_FACET_VALUES_MAX])
            for name, values in counts.items()
        }
    )
