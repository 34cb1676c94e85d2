"""The search index of one process: a tantivy index in a folder, with the position of the log it contains.

The position is a document of the index, so it is committed with what it stands for: after a crash the index is at its
last commit, and goes on from there. What has come since that commit is kept in memory and answered beside the files,
so that a document can be found at once and commits may be few (docs/decisions/0090). What answers a query is found by
the definitions of `scoring.py`, step by step, the best first; each step is one query that leaves out the ones before
it, sorted by `rank`.

None of this may run in the event loop: it reads and writes files.
"""

import shutil
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

import msgspec
import tantivy
from tantivy import Occur, Order

from search.documents import Document, DocumentType
from search.filters import Filters
from search.index_files import check_files
from search.index_queries import IndexQueries, better
from search.index_schema import (
    SHAPE,
    build_schema,
    document_in,
    indexed,
    key_of,
    kind_in,
    own,
    title_in,
    title_terms,
)
from search.results import Facets, Kind, Place, Result, facets, facets_of, kind_of, page, ranked, scored_of
from search.scoring import Query, Scored, match_of
from search.vocabulary import Vocabularies

WRITER_HEAP_BYTES = 128_000_000
"""What a commit may hold before it is written in pieces. Small pieces are merged again and again while an index is
built; between the commits of a running one there is never that much."""

FRESH_MAX, FRESH_OF_ONE_MAX = 1_000, 100
"""Documents kept beside the files, of all customers and of one, until they are committed."""

_FEW = 32
"""Up to so many results are all read and scored."""
_KINDS_MAX = 5_000
_META = "\x00position"

P = ParamSpec("P")
T = TypeVar("T")


class IndexDamaged(Exception):
    """The index cannot be used: it is missing, broken, of another shape, or its files cannot be written."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What an index was built from. Another origin needs another index."""

    epoch: str
    """Of the log."""
    table: str
    """Which table of the database: another one once the read model was rebuilt."""


class _Meta(msgspec.Struct, frozen=True, kw_only=True):
    shape: int
    origin: Origin
    position: int
    holds_erased: bool = False


class Found(NamedTuple):
    """A page of an answer."""

    results: list[Result]
    next_place: Place | None
    total: int
    facets: Facets
    position: int


class Suggestion(NamedTuple):
    title: str
    type: DocumentType
    documents: int


class _View(NamedTuple):
    """What answers see: one commit, and what has come since. Never changed, only replaced."""

    searcher: tantivy.Searcher
    generation: int
    """Of the commit."""
    fresh: Mapping[UUID, Mapping[str, Document | None]]
    """By customer and key the documents that are newer than the commit; None for what is gone since."""
    position: int


def guarded(action: Callable[P, T]) -> Callable[P, T]:
    """Every failure of the library as `IndexDamaged`, its panics included, which are no `Exception`."""

    @wraps(action)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return action(*args, **kwargs)
        except (ValueError, OSError, KeyError, struct.error, msgspec.MsgspecError) as error:
            raise IndexDamaged(repr(error)) from error
        except BaseException as error:
            if type(error).__name__ == "PanicException":
                raise IndexDamaged(repr(error)) from error
            raise

    return run


class SearchIndex:
    """One index. One thread writes; any number of threads read what was shown last."""

    def __init__(self, path: Path, index: tantivy.Index, meta: _Meta) -> None:
        self.path = path
        self.committed = meta.position
        """The position that a restart would go on from."""
        self.origin = meta.origin
        self.holds_erased = meta.holds_erased
        """Whether somebody was erased since it was built. No answer has them, but files keep what is deleted until they
        are merged."""
        self._queries = IndexQueries(build_schema())
        self._index = index
        # Only a commit of ours changes anything. By itself the reader would look at the folder twice a second, from a
        # thread of its own, and could meet files that are being deleted or mended.
        index.config_reader(reload_policy="manual")
        self._writer = index.writer(WRITER_HEAP_BYTES, 1)
        self._vocabularies = Vocabularies()
        self._touched: set[UUID] = set()
        self._coming: dict[UUID, dict[str, Document | None]] = {}
        self._must_commit = False
        self._view = _View(index.searcher(), 0, {}, meta.position)

    # --- Files ----------------------------------------------------------------------------------------

    @classmethod
    @guarded
    def create(cls, path: Path, origin: Origin) -> "SearchIndex":
        """A new, empty index at position 0; what was in the folder is gone.

        Raises:
            IndexDamaged: it cannot be written there.
        """
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        created = cls(
            path, tantivy.Index(build_schema(), path=str(path)), _Meta(shape=SHAPE, origin=origin, position=0)
        )
        created._commit(0)
        return created

    @classmethod
    @guarded
    def open(cls, path: Path) -> "SearchIndex":
        """The index in the folder, every file of it checked.

        Raises:
            IndexDamaged: there is none, or not a whole one of this shape.
        """
        if not (path / "meta.json").is_file():
            raise IndexDamaged("there is no index")
        check_files(path)
        index = tantivy.Index(build_schema(), path=str(path))
        searcher = index.searcher()
        hits = searcher.search(tantivy.Query.term_query(index.schema, "key", _META), 2).hits
        if len(hits) != 1:
            raise IndexDamaged("its position is not known")
        meta = msgspec.json.decode(bytes(searcher.doc(hits[0][1]).get_first("body")), type=_Meta)  # type: ignore[arg-type]
        if meta.shape != SHAPE:
            raise IndexDamaged(f"its shape is {meta.shape}, and this release's is {SHAPE}")
        return cls(path, index, meta)

    @property
    def position(self) -> int:
        """Everything up to this position of the log can be found."""
        return self._view.position

    @property
    def is_there(self) -> bool:
        """Whether the folder still is. Reading goes on without it, writing does not."""
        return (self.path / "meta.json").is_file()

    @guarded
    def close(self) -> None:
        """Ends the writing threads; what is not committed is gone."""
        self._writer = None  # type: ignore[assignment]

    # --- Writing --------------------------------------------------------------------------------------

    @guarded
    def put(self, user_id: UUID, document: Document) -> None:
        """Adds a document, or replaces the one of the same type and id."""
        key = key_of(user_id, document.type, document.id)
        self._writer.delete_documents_by_term("key", key)
        self._writer.add_document(indexed(user_id, document))
        self._note(user_id, key, document)

    @guarded
    def add(self, user_id: UUID, document: Document) -> None:
        """Adds a document that is not there yet: while an index is built."""
        self._writer.add_document(indexed(user_id, document))
        self._must_commit = True

    @guarded
    def remove(self, user_id: UUID, type_: str, id_: str) -> None:
        """Removes one document."""
        key = key_of(user_id, type_, id_)
        self._writer.delete_documents_by_term("key", key)
        self._note(user_id, key, None)

    @guarded
    def erase(self, user_id: UUID) -> None:
        """Removes everything of a customer, from memory too."""
        self._writer.delete_documents_by_term("user", user_id.hex)
        self.holds_erased = True
        self._touched.add(user_id)
        self._must_commit = True

    def _note(self, user_id: UUID, key: str, document: Document | None) -> None:
        self._touched.add(user_id)
        if self._must_commit:
            return
        mine = self._coming.setdefault(user_id, dict(self._view.fresh.get(user_id, {})))
        mine[key] = document
        self._must_commit = len(mine) > FRESH_OF_ONE_MAX

    @guarded
    def show(self, position: int) -> None:
        """Makes everything so far findable, with the position it stands for. What is too much for memory is committed.

        Raises:
            IndexDamaged: it had to be committed, and could not.
        """
        fresh = {**self._view.fresh, **self._coming}
        if self._must_commit or sum(map(len, fresh.values())) > FRESH_MAX:
            self._commit(position)
        else:
            self._coming.clear()
            self._view = self._view._replace(fresh=fresh, position=position)

    @guarded
    def commit(self, position: int) -> None:
        """Makes everything so far findable and lasting, with the position it stands for.

        Raises:
            IndexDamaged: the disk is full, or the folder is gone. What was shown last is still there to be read.
        """
        self._commit(position)

    def _commit(self, position: int) -> None:
        meta = tantivy.Document()
        meta.add_text("key", _META)
        now = _Meta(shape=SHAPE, origin=self.origin, position=position, holds_erased=self.holds_erased)
        meta.add_bytes("body", msgspec.json.encode(now))
        self._writer.delete_documents_by_term("key", _META)
        self._writer.add_document(meta)
        self._writer.commit()
        self._index.reload()
        generation = self._vocabularies.renew(self._touched)
        self._touched.clear()
        self._coming.clear()
        self._must_commit = False
        self.committed = position
        self._view = _View(self._index.searcher(), generation, {}, position)

    # --- Reading --------------------------------------------------------------------------------------

    @property
    def documents(self) -> int:
        """How many there are in the files, of all customers."""
        return max(self._view.searcher.num_docs - 1, 0)

    @guarded
    def search(self, user_id: UUID, query: Query, filters: Filters, after: Place | None, limit: int) -> Found:
        """The results of `user_id` that stand below `after`, at most `limit`, and counts over all of them."""
        view = self._view
        searcher = view.searcher
        mine = view.fresh.get(user_id, {})
        fresh = [document for document in mine.values() if document is not None and filters.lets_through(document)]
        restriction = self._queries.restriction(user_id, filters, mine)
        steps = self._queries.steps(
            user_id, query, lambda: self._vocabularies.of(user_id, view.searcher, view.generation)
        )
        if not steps:
            return Found([], None, 0, Facets(type={}, platform={}, category={}, state={}), view.position)
        # The last step holds the ones before it.
        every = tantivy.Query.boolean_query([*restriction, (Occur.Must, steps[-1][1])])
        few = searcher.search(every, _FEW + 1, count=False, order_by_field="rank", order=Order.Desc).hits
        if len(few) <= _FEW:
            # Cheaper than to count and to go step by step, and nearly every answer.
            results = ranked(query, [*(document_in(searcher.doc(address)) for _, address in few), *fresh])
            shown, next_place = page(results, after, limit)
            return Found(shown, next_place, len(results), facets(results), view.position)
        committed, kinds = self._kinds(searcher, every)
        hits: list[tuple[Place, Any]] = []
        for number, (points, step) in enumerate(steps):
            if after is not None and points > after.score:
                continue
            clauses = [*restriction, (Occur.Must, step)]
            clauses += [(Occur.MustNot, higher) for higher in better(steps, number)]
            if after is not None and points == after.score:
                clauses.append(
                    (Occur.Must, self._queries.range("rank", None, after.rank - 1, tantivy.FieldType.Unsigned))
                )
            found = searcher.search(
                tantivy.Query.boolean_query(clauses),
                limit + 1 - len(hits),
                count=False,
                order_by_field="rank",
                order=Order.Desc,
            )
            hits += [(Place(points, rank), address) for rank, address in found.hits]
            if len(hits) > limit or (after is None and len(hits) == committed):
                break
        besides = ranked(query, fresh)
        kinds.update(kind_of(result.document) for result in besides)
        results = [self._result(searcher, query, *hit) for hit in hits]
        results += [result for result in besides if after is None or result.place < after]
        results.sort(key=lambda result: result.place, reverse=True)
        shown, next_place = page(results, None, limit)
        return Found(shown, next_place, committed + len(besides), facets_of(kinds), view.position)

    @guarded
    def suggest(self, user_id: UUID, text: str, limit: int) -> list[Suggestion]:
        """Titles of the customer's own documents in which a word begins the text, the most frequent first."""
        searcher, mine = self._view.searcher, self._view.fresh.get(user_id, {})
        # So that what is deleted is not counted.
        still_so = tantivy.Query.boolean_query(self._queries.restriction(user_id, Filters(), mine))
        terms = searcher.terms_with_prefix("title", own(user_id, text), filter_query=still_so, limit=200)
        counts: Counter[str] = Counter()
        for term, count in terms:
            title = title_in(term)
            counts[title] = max(counts[title], count)
        fresh = {}
        for document in mine.values():
            if document is not None and (begun := [t for t in title_terms(document.title) if t.startswith(text)]):
                fresh[title_in(begun[0])] = document
                counts[title_in(begun[0])] += 1
        suggestions = []
        # A word inside of a title counts less than one it begins with.
        for title, count in sorted(counts.items(), key=lambda one: (not one[0].startswith(text), -one[1], one[0])):
            found = fresh.get(title)
            if found is None:
                named = tantivy.Query.boolean_query(
                    [(Occur.Must, still_so), (Occur.Must, self._queries.term("name", user_id, title))]
                )
                hits = searcher.search(named, 1, count=False, order_by_field="rank").hits
                found = document_in(searcher.doc(hits[0][1])) if hits else None
            if found is not None:
                suggestions.append(Suggestion(found.title, found.type, count))
            if len(suggestions) == limit:
                break
        return suggestions

    def _result(self, searcher: tantivy.Searcher, query: Query, place: Place, address: Any) -> Result:
        document = document_in(searcher.doc(address))
        scored = scored_of(query, document)
        if scored is None or scored.score != place.score:  # a word stood for too many others
            highlights = scored.highlights if scored else ()
            scored = Scored(match=match_of(place.score), score=place.score, highlights=highlights)
        return Result(place, document, scored)

    def _kinds(self, searcher: tantivy.Searcher, every: tantivy.Query) -> tuple[int, Counter[Kind]]:
        """How many there are, and how many of each kind."""
        counted = searcher.aggregate(every, {"kinds": {"terms": {"field": "kind", "size": _KINDS_MAX}}})["kinds"]
        kinds = Counter({kind_in(bucket["key"]): int(bucket["doc_count"]) for bucket in counted["buckets"]})
        return kinds.total() + int(counted["sum_other_doc_count"]), kinds
