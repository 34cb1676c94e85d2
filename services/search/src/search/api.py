"""`/api/search`: one search box."""

import time
from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.consistency import CaughtUp
from chassis.cursors import CursorCodec
from chassis.money import format_amount
from chassis.problems import invalid_field
from chassis.tokens import Caller
from litestar import delete, get
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, QueryParameter
from prometheus_client import Counter

from search import fallback
from search.actions import Action, actions_of
from search.documents import DocumentType, Platform, State
from search.engine import Found
from search.filters import Filters, read_filters
from search.folding import canonical
from search.grammar import ParsedFilter, parse
from search.recent import RecentSearches
from search.replica import Replica
from search.results import Facets, Place, Result
from search.scoring import Highlight, Match, Query, name_key

LIMIT_DEFAULT = 20
LIMIT_MAX = 200
QUERY_CHARACTERS_MAX = 200
SUGGESTIONS_DEFAULT, SUGGESTIONS_MAX = 8, 20

_CONTAINED_WAIT_S = 1.0

_answers = Counter("search_answers_total", "Answers by what gave them", ["engine"])


class Item(msgspec.Struct, frozen=True, kw_only=True):
    type: DocumentType
    id: str
    platform: Platform | None
    """null for what belongs to no platform alone: a notification, an insight."""
    title: str
    subtitle: str
    amount: str | None
    currency: str
    category: str
    state: State
    date: datetime
    score: int
    """100 exact, from 80 starts_with, from 60 contains, from 40 fuzzy."""
    match: Match
    highlights: tuple[Highlight, ...]
    actions: list[Action]


class Interpretation(msgspec.Struct, frozen=True, kw_only=True):
    """How the query was understood: what of it is looked for, and what restricts the search."""

    text: str
    filters: tuple[ParsedFilter, ...]


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    query: str
    parsed: Interpretation
    took_ms: float
    position: int
    total: int
    items: list[Item]
    facets: Facets
    """Over all results, not only this page."""
    next_cursor: str | None
    truncated: bool = False
    """Present and true when more documents matched than were ranked: `total` counts the newest of them."""


class SuggestedQuery(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    kind: Literal["recent", "title"]
    type: DocumentType | None
    """Of the document it is the title of."""
    count: int
    """How many of the caller's documents are called so."""


class Suggestions(msgspec.Struct, frozen=True, kw_only=True):
    items: list[SuggestedQuery]


class RecentQuery(msgspec.Struct, frozen=True, kw_only=True):
    query: str
    searched_at: datetime


class RecentQueries(msgspec.Struct, frozen=True, kw_only=True):
    items: list[RecentQuery]
    """The last one first."""
    next_cursor: None = None


def routes(database: asyncpg.Pool, replica: Replica, cursors: CursorCodec) -> list[HTTPRouteHandler]:
    """The routes of this service."""
    searches = RecentSearches(database)

    @get("/api/search", summary="Search the caller's own data on both platforms")
    async def search(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        q: Annotated[str, QueryParameter(min_length=1, max_length=QUERY_CHARACTERS_MAX)],
        platforms: FromQuery[str | None] = None,
        types: FromQuery[str | None] = None,
        from_: Annotated[str | None, QueryParameter(name="from")] = None,
        to: FromQuery[str | None] = None,
        min_amount: FromQuery[str | None] = None,
        max_amount: FromQuery[str | None] = None,
        category: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
        cursor: FromQuery[str | None] = None,
    ) -> Answer:
        started = time.perf_counter()
        if not q.strip():
            raise invalid_field("q", "must not be blank", "invalid_query")
        asked = read_filters(
            types=types,
            platforms=platforms,
            from_=from_,
            to=to,
            min_amount=min_amount,
            max_amount=max_amount,
            category=category,
        )
        parsed = parse(canonical(q), datetime.now(UTC))
        query, filters = Query(parsed.text), asked & parsed.filters
        # A cursor is good for the query and the filters it was made for.
        purpose = msgspec.json.encode(["search", query.text, filters]).decode()
        after = None
        if cursor is not None:
            after = cursors.decode(cursor, Place, purpose=purpose, caller=caller.user_id)
        found, truncated = await _answer(caller.user_id, caught_up, query, filters, after, limit)
        if after is None:
            searches.remember(caller.user_id, q.strip())
        next_cursor = None
        if found.next_place is not None:
            next_cursor = cursors.encode(found.next_place, purpose=purpose, caller=caller.user_id)
        return Answer(
            query=q,
            parsed=Interpretation(text=parsed.text, filters=parsed.parsed),
            took_ms=round((time.perf_counter() - started) * 1000, 2),
            position=found.position,
            total=found.total,
            items=[_item(result) for result in found.results],
            facets=found.facets,
            next_cursor=next_cursor,
            truncated=truncated,
        )

    @get("/api/search/suggestions", summary="Completions from the caller's own data")
    async def get_suggestions(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        q: Annotated[str, QueryParameter(max_length=QUERY_CHARACTERS_MAX)] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=SUGGESTIONS_MAX)] = SUGGESTIONS_DEFAULT,
    ) -> Suggestions:
        text = name_key(q)
        items = [
            SuggestedQuery(text=row["query"], kind="recent", type=None, count=0)
            for row in await searches.of(caller.user_id)
            if name_key(row["query"]).startswith(text)
        ][: limit if not text else max(1, limit // 2)]
        if text:
            found = None
            if await _contained(caught_up):
                found = await replica.ask(lambda index: index.suggest(caller.user_id, text, limit))
            if found is None:
                found = await fallback.suggest(database, caller.user_id, text, limit)
            known = {name_key(item.text) for item in items}
            items += [
                SuggestedQuery(text=each.title, kind="title", type=each.type, count=each.documents)
                for each in found
                if name_key(each.title) not in known
            ]
        return Suggestions(items=items[:limit])

    @get("/api/search/recent", summary="The caller's last distinct queries")
    async def get_recent_searches(caller: NamedDependency[Caller]) -> RecentQueries:
        rows = await searches.of(caller.user_id)
        return RecentQueries(items=[RecentQuery(query=row["query"], searched_at=row["searched_at"]) for row in rows])

    @delete("/api/search/recent", summary="Forget the caller's queries")
    async def delete_recent_searches(caller: NamedDependency[Caller]) -> None:
        await searches.forget(caller.user_id)

    async def _answer(
        user_id: UUID, caught_up: CaughtUp, query: Query, filters: Filters, after: Place | None, limit: int
    ) -> tuple[Found, bool]:
        if await _contained(caught_up):
            found = await replica.ask(lambda index: index.search(user_id, query, filters, after, limit))
            if found is not None:
                _answers.labels("index").inc()
                return found, False
        _answers.labels("postgresql").inc()
        return await fallback.search(database, user_id, query, filters, after, limit)

    async def _contained(caught_up: CaughtUp) -> bool:
        """Whether the index contains the write that the request names. The read model does, so that can answer too."""
        if caught_up.position is None:
            return True
        applied = await database.fetchval("SELECT position FROM document_applied")
        return applied is None or await replica.contains(applied, _CONTAINED_WAIT_S)

    return [search, get_suggestions, get_recent_searches, delete_recent_searches]


def _item(result: Result) -> Item:
    document, scored = result.document, result.scored
    return Item(
        type=document.type,
        id=document.id,
        platform=document.platform,
        title=document.title,
        subtitle=document.subtitle,
        amount=None if document.amount_minor is None else format_amount(document.amount_minor, document.currency),
        currency=document.currency,
        category=document.category,
        state=document.state,
        date=document.date,
        score=scored.score,
        match=scored.match,
        highlights=scored.highlights,
        actions=actions_of(document),
    )
