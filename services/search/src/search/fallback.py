"""Answers from PostgreSQL, while this process has no index to answer from: the same results, slower.

Candidates are found by the rows' words and scored one by one; of too many only the newest are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from search.documents import Document
from search.engine import Found, Suggestion
from search.filters import Filters
from search.projections.document import document_in
from search.results import Place, facets, page, ranked
from search.scoring import Query, amount_of, level, name_key

CANDIDATES_MAX = 1_000
"""How many documents are scored for one answer, the newest first. Scoring a thousand takes some tens of
milliseconds; a query that more of the caller's documents match is too wide to be ranked usefully here, and
the answer says so."""

VOCABULARY_MAX = 20_000
"""How many different words of the caller's documents are compared with a query's words."""

# Who the caller is comes from the token, and everything is asked for the caller only.
_CALLERS_FILTERED = """
    user_id = $1
    AND ($2::text[] IS NULL OR type = ANY($2)) AND ($3::text[] IS NULL OR platform = ANY($3))
    AND ($4::timestamptz IS NULL OR date >= $4) AND ($5::timestamptz IS NULL OR date < $5)
    AND ($6::bigint IS NULL OR paise >= $6) AND ($7::bigint IS NULL OR paise <= $7)
    AND ($8::text[] IS NULL OR category = ANY($8)) AND ($9::text[] IS NULL OR state = ANY($9))
"""


class Candidates(NamedTuple):
    """The documents worth scoring, of one state of the read model."""

    position: int
    """The position of the last event applied to the read model; 0 before the first."""
    documents: list[Document]
    truncated: bool
    """There were more than `CANDIDATES_MAX`: only the newest are here."""


async def search(
    database: asyncpg.Pool, user_id: UUID, query: Query, filters: Filters, after: Place | None, limit: int
) -> tuple[Found, bool]:
    """What the index would find, and whether only the newest of what matched were looked at."""
    found = await _candidates(database, user_id, query, filters)
    results = ranked(query, found.documents)
    shown, last = page(results, after, limit)
    return Found(shown, last, len(results), facets(results), found.position), found.truncated


async def suggest(database: asyncpg.Pool, user_id: UUID, text: str, limit: int) -> list[Suggestion]:
    """Titles of the customer's own documents in which a word begins the text, the most frequent first."""
    rows = await database.fetch(
        "SELECT document, state FROM search_document"
        " WHERE user_id = $1 AND EXISTS (SELECT FROM unnest(words) AS word WHERE starts_with(word, $2))"
        f" ORDER BY date DESC LIMIT {CANDIDATES_MAX}",
        user_id,
        text.split(" ")[0],
    )
    counts: dict[str, tuple[int, Document]] = {}
    for document in map(document_in, rows):
        title = name_key(document.title)
        if f" {title}".find(f" {text}") >= 0:
            count, newest = counts.get(title, (0, document))
            counts[title] = count + 1, newest
    best = sorted(counts.items(), key=lambda one: (not one[0].startswith(text), -one[1][0], one[0]))
    return [Suggestion(newest.title, newest.type, count) for _, (count, newest) in best[:limit]]


async def _candidates(database: asyncpg.Pool, user_id: UUID, query: Query, filters: Filters) -> Candidates:
    restriction = (
        user_id,
        filters.types,
        filters.platforms,
        filters.since,
        filters.until,
        filters.min_amount_minor,
        filters.max_amount_minor,
        filters.categories,
        filters.states,
    )
    meant = await _meant(database, restriction, query.words)
    conditions = [
        f"(words && ${10 + 2 * index}::text[] OR paise = ${11 + 2 * index}::bigint)"
        for index in range(len(query.words))
    ]
    if not query.words:
        conditions = ["true" if query.is_blank else "false"]
    values = [value for word in query.words for value in (meant[word], amount_of(word))]
    # The only text put into the statement are the numbers of its own parameters.
    statement = f"""
        SELECT coalesce(applied.position, 0) AS applied_position, found.*
        FROM (SELECT 1) AS one
        LEFT JOIN document_applied AS applied ON true
        LEFT JOIN (
            SELECT document, state FROM search_document
            WHERE {_CALLERS_FILTERED} AND {" AND ".join(conditions)}
            ORDER BY date DESC, type, id
            LIMIT ${10 + len(values)}
        ) AS found ON true
        """
    rows = await database.fetch(statement, *restriction, *values, CANDIDATES_MAX + 1)
    documents = [document_in(row) for row in rows if row["document"] is not None]
    return Candidates(
        position=rows[0]["applied_position"],
        documents=documents[:CANDIDATES_MAX],
        truncated=len(documents) > CANDIDATES_MAX,
    )


async def _meant(
    database: asyncpg.Pool, restriction: tuple[Any, ...], query_words: Sequence[str]
) -> dict[str, list[str]]:
    """For each word of the query, the words of the caller's documents that it may stand for."""
    if not query_words:
        return {}
    statement = f"""
        SELECT DISTINCT word FROM search_document, unnest(words) AS word
        WHERE {_CALLERS_FILTERED}
        ORDER BY word
        LIMIT {VOCABULARY_MAX}
        """
    rows = await database.fetch(statement, *restriction)
    return {word: [row["word"] for row in rows if level(word, row["word"]) is not None] for word in query_words}
