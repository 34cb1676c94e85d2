"""What a customer asks for, in the index's terms: tantivy queries over `index_schema`'s fields.

The steps are the definitions of `scoring.py`, the best first.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import tantivy
from rapidfuzz import process
from rapidfuzz.distance import OSA
from tantivy import Occur

from search.documents import Document
from search.filters import Filters
from search.folding import has_digit
from search.index_schema import own
from search.scoring import BEGINS, BEGINS_WITH_WORDS, EXACT, INSIDE_LETTERS_MIN, Level, Query, typos_allowed
from search.sounds import sound

_EXPANSIONS_MAX = 1_000
"""Words of the caller's that one word of a query may stand for, in one step."""
_NAME_SCORES = (EXACT, BEGINS_WITH_WORDS, BEGINS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Clauses = list[tuple[Occur, tantivy.Query]]
Step = tuple[int, tantivy.Query]
"""A score, and what has it or a better one."""
WordsOf = Callable[[], Sequence[str]]
"""Asks for all words of the customer's documents. Dear, and most queries do without."""


class IndexQueries:
    """Builds the queries of one schema. Every one of them is a customer's, and finds only theirs."""

    def __init__(self, schema: tantivy.Schema) -> None:
        self._schema = schema

    def restriction(self, user_id: UUID, filters: Filters, newer: Mapping[str, Document | None]) -> Clauses:
        """What every result of the files must be: the caller's, which the token tells, what the filters let through,
        and not `newer` in memory.
        """
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
                self.range(
                    "date_us",
                    None if filters.since is None else _us(filters.since),
                    None if filters.until is None else _us(filters.until) - 1,
                )
            )
        if filters.min_amount_minor is not None or filters.max_amount_minor is not None:
            must.append(self.range("paise", filters.min_amount_minor or 0, filters.max_amount_minor))
        clauses = [(Occur.Must, query) for query in must]
        if newer:
            clauses.append((Occur.MustNot, tantivy.Query.term_set_query(self._schema, "key", list(newer))))
        return clauses

    def steps(self, user_id: UUID, query: Query, vocabulary: WordsOf) -> list[Step]:
        """Each step's score and what is in it, the best first. A step may hold documents of better ones, too."""
        if query.is_blank:
            return [(EXACT, tantivy.Query.term_query(self._schema, "user", user_id.hex))]
        if not query.words:
            return []
        exact = [self.term("name", user_id, query.text)]
        if query.amount_minor is not None:
            exact.append(tantivy.Query.term_query(self._schema, "paise", query.amount_minor))
        steps = [
            (EXACT, _or(exact)),
            (BEGINS_WITH_WORDS, self._prefix("name", user_id, query.text + " ")),
            (BEGINS, self._prefix("name", user_id, query.text)),
        ]
        alternatives = [self._alternatives(user_id, word, vocabulary) for word in query.words]
        for level in Level:
            if any(level in each for each in alternatives):
                clauses = [
                    [each[better] for better in Level if better <= level and better in each] for each in alternatives
                ]
                if all(clauses):
                    steps.append((level.score, _and([_or(clause) for clause in clauses])))
        return steps

    def _alternatives(self, user_id: UUID, word: str, vocabulary: WordsOf) -> dict[Level, tantivy.Query]:
        """What a word of the query may be in a document, by level."""
        found = {
            Level.NAME: self.term("name_word", user_id, word),
            Level.WORD: self.term("word", user_id, word),
            Level.BEGINS: self._prefix("word", user_id, word),
        }
        amount = Query(word).amount_minor
        if amount is not None:
            found[Level.WORD] = _or([found[Level.WORD], tantivy.Query.term_query(self._schema, "paise", amount)])
        if has_digit(word):
            return found
        key = sound(word)
        if key is not None:
            found[Level.SOUNDS] = self.term("sound", user_id, key)
        words = vocabulary()
        # As `scoring.inside` has it for words without digits, without a call for each.
        containing = [other for other in words if word in other] if len(word) >= INSIDE_LETTERS_MIN else []
        if containing:
            found[Level.INSIDE] = self._any_of("letters", user_id, containing)
        if allowed := typos_allowed(word):
            typos: dict[int, list[str]] = {1: [], 2: []}
            for other, distance, _ in process.extract(
                word, words, scorer=OSA.distance, processor=None, score_cutoff=allowed, limit=None
            ):
                if distance:
                    typos[int(distance)].append(other)
            for level, others in ((Level.ONE_TYPO, typos[1]), (Level.TWO_TYPOS, typos[2])):
                if others:
                    found[level] = self._any_of("letters", user_id, others)
        return found

    def term(self, field: str, user_id: UUID, text: str) -> tantivy.Query:
        """What has this text in a field of the customer's own words."""
        return tantivy.Query.term_query(self._schema, field, own(user_id, text))

    def _prefix(self, field: str, user_id: UUID, text: str) -> tantivy.Query:
        # A fuzzy query without an error is the cheapest way to ask for a beginning: a regex is ten times dearer.
        return tantivy.Query.fuzzy_term_query(self._schema, field, own(user_id, text), distance=0, prefix=True)

    def _any_of(self, field: str, user_id: UUID, terms: Sequence[str]) -> tantivy.Query:
        some = [own(user_id, term) for term in terms[:_EXPANSIONS_MAX]]
        if len(some) > 64:
            return tantivy.Query.term_set_query(self._schema, field, some)
        return _or([tantivy.Query.term_query(self._schema, field, term) for term in some])

    def range(
        self, field: str, least: int | None, most: int | None, kind: tantivy.FieldType = tantivy.FieldType.Integer
    ) -> tantivy.Query:
        """What has a number between these, both included; None: no bound."""
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


def better(steps: Sequence[Step], number: int) -> list[tantivy.Query]:
    """What has been found before a step. Each level contains those before it, and `BEGINS` what begins with words."""
    last_name = len(_NAME_SCORES) - 1
    before = [0, last_name] if number > last_name else list(range(number))
    if number - 1 > last_name:
        before.append(number - 1)
    return [steps[index][1] for index in before]
