"""The search index of one process: a tantivy index in a folder, with the position of the log it contains.

The position is a document of the index, so it is committed with what it stands for: after a crash the index is at its
last commit, and goes on from there. What answers a query is found by the definitions of `scoring.py`, step by step,
the best first; each step is one query that leaves out the ones before it, sorted by `rank`.

None of this may run in the event loop: it reads and writes files.
"""

import json
import shutil
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

import msgspec
import tantivy
from rapidfuzz import process
from rapidfuzz.distance import OSA
from tantivy import Occur, Order

from search.documents import Document, DocumentType
from search.filters import Filters
from search.folding import has_digit
from search.index_schema import SHAPE, build_schema, document_in, indexed, key_of, kind_in, own, title_in
from search.results import Facets, Place, Result, facets, facets_of, page, ranked, scored_of
from search.scoring import (
    BEGINS,
    BEGINS_WITH_WORDS,
    EXACT,
    INSIDE_LETTERS_MIN,
    Level,
    Query,
    Scored,
    match_of,
    typos_allowed,
)
from search.sounds import sound

WRITER_HEAP_BYTES = 32_000_000
VOCABULARIES_MAX = 512
"""Customers whose words are kept at hand."""

_EXPANSIONS_MAX = 1_000
"""Words of the caller's that one word of a query may stand for, in one step."""
_FEW = 32
"""Up to so many results are all read and scored."""
_KINDS_MAX = 5_000
_META = "\x00position"
_FOOTER = struct.Struct("<II")
_FOOTER_MAGIC = 1337
_NAME_SCORES = (EXACT, BEGINS_WITH_WORDS, BEGINS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

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
    """One index. One thread writes; any number of threads read the last commit."""

    def __init__(self, path: Path, index: tantivy.Index, meta: _Meta) -> None:
        self.path = path
        self.position = meta.position
        """Everything up to this position of the log can be found."""
        self.origin = meta.origin
        self._schema = build_schema()
        self._index = index
        # Only a commit of ours changes anything. By itself the reader would look at the folder twice a second, from a
        # thread of its own, and could meet files that are being deleted or mended.
        index.config_reader(reload_policy="manual")
        self._writer = index.writer(WRITER_HEAP_BYTES, 1)
        self._vocabularies: OrderedDict[UUID, list[str]] = OrderedDict()
        self._touched: set[UUID] = set()
        self._generation = 0

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
        _check_files(path)
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
        self._writer.delete_documents_by_term("key", key_of(user_id, document.type, document.id))
        self._writer.add_document(indexed(user_id, document))
        self._touched.add(user_id)

    @guarded
    def add(self, user_id: UUID, document: Document) -> None:
        """Adds a document that is not there yet: while an index is built."""
        self._writer.add_document(indexed(user_id, document))
        self._touched.add(user_id)

    @guarded
    def remove(self, user_id: UUID, type_: str, id_: str) -> None:
        """Removes one document."""
        self._writer.delete_documents_by_term("key", key_of(user_id, type_, id_))

    @guarded
    def erase(self, user_id: UUID) -> None:
        """Removes everything of a customer, from memory too."""
        self._writer.delete_documents_by_term("user", user_id.hex)
        self._touched.add(user_id)

    @guarded
    def commit(self, position: int) -> None:
        """Makes everything since the last commit findable and lasting, with the position it stands for.

        Raises:
            IndexDamaged: the disk is full, or the folder is gone. The last commit is still there to be read.
        """
        self._commit(position)

    def _commit(self, position: int) -> None:
        meta = tantivy.Document()
        meta.add_text("key", _META)
        meta.add_bytes("body", msgspec.json.encode(_Meta(shape=SHAPE, origin=self.origin, position=position)))
        self._writer.delete_documents_by_term("key", _META)
        self._writer.add_document(meta)
        self._writer.commit()
        self._index.reload()
        self._generation += 1  # before the words are dropped: nobody keeps what was read before this commit
        for user_id in self._touched:
            self._vocabularies.pop(user_id, None)
        self._touched.clear()
        self.position = position

    # --- Reading --------------------------------------------------------------------------------------

    @property
    def documents(self) -> int:
        """How many there are, of all customers."""
        return max(self._index.searcher().num_docs - 1, 0)

    @guarded
    def search(self, user_id: UUID, query: Query, filters: Filters, after: Place | None, limit: int) -> Found:
        """The results of `user_id` that stand below `after`, at most `limit`, and counts over all of them."""
        position, generation = self.position, self._generation
        searcher = self._index.searcher()
        restriction = self._restriction(user_id, filters)
        steps = self._steps(searcher, generation, user_id, query)
        if not steps:
            return Found([], None, 0, Facets(type={}, platform={}, category={}, state={}), position)
        # The last step holds the ones before it.
        every = _and([*restriction, steps[-1][1]])
        few = searcher.search(every, _FEW + 1, count=False, order_by_field="rank", order=Order.Desc).hits
        if len(few) <= _FEW:
            # Cheaper than to count and to go step by step, and nearly every answer.
            results = ranked(query, [document_in(searcher.doc(address)) for _, address in few])
            shown, next_place = page(results, after, limit)
            return Found(shown, next_place, len(results), facets(results), position)
        total, found_facets = self._facets(searcher, every)
        hits: list[tuple[Place, Any]] = []
        for number, (points, step) in enumerate(steps):
            if after is not None and points > after.score:
                continue
            clauses = [(Occur.Must, clause) for clause in (*restriction, step)]
            clauses += [(Occur.MustNot, better) for better in _better(steps, number)]
            if after is not None and points == after.score:
                clauses.append((Occur.Must, self._range("rank", None, after.rank - 1, tantivy.FieldType.Unsigned)))
            found = searcher.search(
                tantivy.Query.boolean_query(clauses),
                limit + 1 - len(hits),
                count=False,
                order_by_field="rank",
                order=Order.Desc,
            )
            hits += [(Place(points, rank), address) for rank, address in found.hits]
            if len(hits) > limit or (after is None and len(hits) == total):
                break
        results = [self._result(searcher, query, *hit) for hit in hits[:limit]]
        return Found(results, results[-1].place if len(hits) > limit else None, total, found_facets, position)

    @guarded
    def suggest(self, user_id: UUID, text: str, limit: int) -> list[Suggestion]:
        """Titles of the customer's own documents in which a word begins the text, the most frequent first."""
        searcher = self._index.searcher()
        mine = tantivy.Query.term_query(self._schema, "user", user_id.hex)  # so that what is deleted is not counted
        terms = searcher.terms_with_prefix("title", own(user_id, text), filter_query=mine, limit=200)
        counts: dict[str, int] = {}
        for term, count in terms:
            title = title_in(term)
            counts[title] = max(counts.get(title, 0), count)
        suggestions = []
        # A word inside of a title counts less than one it begins with.
        for title, count in sorted(counts.items(), key=lambda one: (not one[0].startswith(text), -one[1], one[0])):
            hits = searcher.search(self._term("name", user_id, title), 1, count=False, order_by_field="rank").hits
            if hits:
                document = document_in(searcher.doc(hits[0][1]))
                suggestions.append(Suggestion(document.title, document.type, count))
            if len(suggestions) == limit:
                break
        return suggestions

    def _result(self, searcher: tantivy.Searcher, query: Query, place: Place, address: Any) -> Result:
        document = document_in(searcher.doc(address))
        scored = scored_of(query, document)
        if scored is None or scored.score != place.score:  # a word stood for more than _EXPANSIONS_MAX others
            highlights = scored.highlights if scored else ()
            scored = Scored(match=match_of(place.score), score=place.score, highlights=highlights)
        return Result(place, document, scored)

    def _facets(self, searcher: tantivy.Searcher, every: tantivy.Query) -> tuple[int, Facets]:
        """How many there are, and how many of each kind."""
        counted = searcher.aggregate(every, {"kinds": {"terms": {"field": "kind", "size": _KINDS_MAX}}})["kinds"]
        kinds = {kind_in(bucket["key"]): int(bucket["doc_count"]) for bucket in counted["buckets"]}
        return sum(kinds.values()) + int(counted["sum_other_doc_count"]), facets_of(kinds)

    # --- From a query to terms ------------------------------------------------------------------------

    def _restriction(self, user_id: UUID, filters: Filters) -> list[tantivy.Query]:
        """What every result must be. Who the caller is comes from the token, and is always part of it."""
        must = [tantivy.Query.term_query(self._schema, "user", user_id.hex)]
        for field, values in (
            ("type", filters.types),
            ("platform", filters.platforms),
            ("state", filters.states),
            ("category", filters.categories),
        ):
            if values is not None:
                must.append(_or([tantivy.Query.term_query(self._schema, field, value) for value in values]))
        if filters.since is not None or filters.until is not None:
            must.append(
                self._range(
                    "date_us",
                    None if filters.since is None else _us(filters.since),
                    None if filters.until is None else _us(filters.until) - 1,
                )
            )
        if filters.min_amount_minor is not None or filters.max_amount_minor is not None:
            must.append(self._range("paise", filters.min_amount_minor or 0, filters.max_amount_minor))
        return must

    def _steps(
        self, searcher: tantivy.Searcher, generation: int, user_id: UUID, query: Query
    ) -> list[tuple[int, tantivy.Query]]:
        """Each step's score and what is in it, the best first. A step may hold documents of better ones, too."""
        if query.is_blank:
            return [(EXACT, tantivy.Query.term_query(self._schema, "user", user_id.hex))]
        if not query.words:
            return []
        exact = [self._term("name", user_id, query.text)]
        if query.amount_minor is not None:
            exact.append(tantivy.Query.term_query(self._schema, "paise", query.amount_minor))
        steps = [
            (EXACT, _or(exact)),
            (BEGINS_WITH_WORDS, self._prefix("name", user_id, query.text + " ")),
            (BEGINS, self._prefix("name", user_id, query.text)),
        ]
        alternatives = [self._alternatives(searcher, generation, user_id, word) for word in query.words]
        for level in Level:
            if any(level in each for each in alternatives):
                clauses = [
                    [each[better] for better in Level if better <= level and better in each] for each in alternatives
                ]
                if all(clauses):
                    steps.append((level.score, _and([_or(clause) for clause in clauses])))
        return steps

    def _alternatives(
        self, searcher: tantivy.Searcher, generation: int, user_id: UUID, word: str
    ) -> dict[Level, tantivy.Query]:
        """What a word of the query may be in a document, by level."""
        found = {
            Level.NAME: self._term("name_word", user_id, word),
            Level.WORD: self._term("word", user_id, word),
            Level.BEGINS: self._prefix("word", user_id, word),
        }
        amount = Query(word).amount_minor
        if amount is not None:
            found[Level.WORD] = _or([found[Level.WORD], tantivy.Query.term_query(self._schema, "paise", amount)])
        if has_digit(word):
            return found
        key = sound(word)
        if key is not None:
            found[Level.SOUNDS] = self._term("sound", user_id, key)
        vocabulary = self._vocabulary(searcher, generation, user_id)
        # As `scoring.inside` has it for words without digits, without a call for each.
        containing = [other for other in vocabulary if word in other] if len(word) >= INSIDE_LETTERS_MIN else []
        if containing:
            found[Level.INSIDE] = self._any_of("letters", user_id, containing)
        if allowed := typos_allowed(word):
            typos: dict[int, list[str]] = {1: [], 2: []}
            for other, distance, _ in process.extract(
                word, vocabulary, scorer=OSA.distance, processor=None, score_cutoff=allowed, limit=None
            ):
                if distance:
                    typos[int(distance)].append(other)
            for level, others in ((Level.ONE_TYPO, typos[1]), (Level.TWO_TYPOS, typos[2])):
                if others:
                    found[level] = self._any_of("letters", user_id, others)
        return found

    def _vocabulary(self, searcher: tantivy.Searcher, generation: int, user_id: UUID) -> list[str]:
        """The customer's words without digits, in any of their documents."""
        known = self._vocabularies.get(user_id)
        if known is not None:
            with suppress(KeyError):  # a commit has just dropped it
                self._vocabularies.move_to_end(user_id)
            return known
        start = own(user_id, "")
        known = [term[len(start) :] for term, _ in searcher.terms_with_prefix("letters", start)]
        if generation == self._generation:
            self._vocabularies[user_id] = known
            while len(self._vocabularies) > VOCABULARIES_MAX:
                self._vocabularies.popitem(last=False)
        return known

    def _term(self, field: str, user_id: UUID, text: str) -> tantivy.Query:
        return tantivy.Query.term_query(self._schema, field, own(user_id, text))

    def _prefix(self, field: str, user_id: UUID, text: str) -> tantivy.Query:
        # A fuzzy query without an error is the cheapest way to ask for a beginning: a regex is ten times dearer.
        return tantivy.Query.fuzzy_term_query(self._schema, field, own(user_id, text), distance=0, prefix=True)

    def _any_of(self, field: str, user_id: UUID, terms: Sequence[str]) -> tantivy.Query:
        some = [own(user_id, term) for term in terms[:_EXPANSIONS_MAX]]
        if len(some) > 64:
            return tantivy.Query.term_set_query(self._schema, field, some)
        return _or([tantivy.Query.term_query(self._schema, field, term) for term in some])

    def _range(
        self, field: str, least: int | None, most: int | None, kind: tantivy.FieldType = tantivy.FieldType.Integer
    ) -> tantivy.Query:
        if most is not None and most < (least or 0) and kind == tantivy.FieldType.Unsigned:
            return tantivy.Query.empty_query()
        return tantivy.Query.range_query(self._schema, field, kind, least, most)


def _us(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)


def _and(queries: Sequence[tantivy.Query]) -> tantivy.Query:
    return queries[0] if len(queries) == 1 else tantivy.Query.boolean_query([(Occur.Must, query) for query in queries])


def _or(queries: Sequence[tantivy.Query]) -> tantivy.Query:
    if not queries:
        return tantivy.Query.empty_query()
    if len(queries) == 1:
        return queries[0]
    return tantivy.Query.boolean_query([(Occur.Should, query) for query in queries])


def _better(steps: Sequence[tuple[int, tantivy.Query]], number: int) -> list[tantivy.Query]:
    """What has been found before a step. Each level contains those before it, and `BEGINS` what begins with words."""
    last_name = len(_NAME_SCORES) - 1
    before = [0, last_name] if number > last_name else list(range(number))
    if number - 1 > last_name:
        before.append(number - 1)
    return [steps[index][1] for index in before]


def _check_files(path: Path) -> None:
    """Compares every file of the last commit with the checksum that tantivy has written at its end.

    Opening reads only the ends of the files, so damage in the middle of one would show as wrong results.
    """
    meta = json.loads((path / "meta.json").read_text())
    # By segment the file of its deletions, if it has one. A kill may have left files that no commit names.
    deletions = {}
    for segment in meta["segments"]:
        name = segment["segment_id"].replace("-", "")
        deletions[name] = f"{name}.{segment['deletes']['opstamp']}.del" if segment["deletes"] else None
    for file in path.iterdir():
        name = file.name.split(".")[0]
        if name not in deletions or (file.suffix == ".del" and file.name != deletions[name]):
            continue
        data = file.read_bytes()
        length, magic = _FOOTER.unpack(data[-_FOOTER.size :])
        body = data[: -_FOOTER.size - length]
        if magic != _FOOTER_MAGIC or json.loads(data[len(body) : -_FOOTER.size])["crc"] != zlib.crc32(body):
            raise IndexDamaged(f"{file.name} is not what was written")
