"""`/api/search`: one search box."""

import time
from datetime import datetime
from typing import Annotated

import asyncpg
import msgspec
from chassis.consistency import CaughtUp
from chassis.cursors import CursorCodec
from chassis.money import format_amount
from chassis.problems import invalid_field
from chassis.tokens import Caller
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter

from search.documents import Action, DocumentType, Platform, actions_of
from search.filters import read_filters
from search.projections.document import candidates
from search.results import Facets, Place, Result, facets, page, rank
from search.scoring import Highlight, Match, Query

LIMIT_DEFAULT = 20
LIMIT_MAX = 200
QUERY_CHARACTERS_MAX = 200


class Item(msgspec.Struct, frozen=True, kw_only=True):
    type: DocumentType
    id: str
    platform: Platform
    title: str
    subtitle: str
    amount: str
    currency: str
    date: datetime
    score: int
    """100 exact, from 80 starts_with, from 60 contains, from 40 fuzzy."""
    match: Match
    highlights: tuple[Highlight, ...]
    actions: list[Action]


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    query: str
    took_ms: float
    position: int
    total: int
    items: list[Item]
    facets: Facets
    """Over all results, not only this page."""
    next_cursor: str | None
    truncated: bool = False
    """Present and true when more documents matched than are ranked: `total` counts the newest of them."""


def routes(database: asyncpg.Pool, cursors: CursorCodec) -> list[HTTPRouteHandler]:
    """The routes of this service."""

    @get("/api/search", summary="Search the caller's own data on both platforms")
    async def get_search(
        caller: Caller,
        caught_up: CaughtUp,
        q: Annotated[str, Parameter(min_length=1, max_length=QUERY_CHARACTERS_MAX)],
        platforms: str | None = None,
        types: str | None = None,
        from_: Annotated[str | None, Parameter(query="from")] = None,
        to: str | None = None,
        min_amount: str | None = None,
        max_amount: str | None = None,
        category: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
        cursor: str | None = None,
    ) -> Answer:
        started = time.perf_counter()
        query = Query(q)
        if not query.folded:
            raise invalid_field("q", "must not be blank", "invalid_query")
        filters = read_filters(
            types=types,
            platforms=platforms,
            from_=from_,
            to=to,
            min_amount=min_amount,
            max_amount=max_amount,
            category=category,
        )
        # A cursor is good for the query and the filters it was made for.
        purpose = msgspec.json.encode(["search", query.folded, filters]).decode()
        after = None
        if cursor is not None:
            after = cursors.decode(cursor, Place, purpose=purpose, caller=caller.user_id)
        found = await candidates(database, caller.user_id, query, filters)
        results = rank(query, found.documents)
        shown, last = page(results, after, limit)
        next_cursor = None
        if last is not None:
            next_cursor = cursors.encode(last, purpose=purpose, caller=caller.user_id)
        return Answer(
            query=q,
            took_ms=round((time.perf_counter() - started) * 1000, 2),
            position=found.position,
            total=len(results),
            items=[_item(result) for result in shown],
            facets=facets(results),
            next_cursor=next_cursor,
            truncated=found.truncated,
        )

    return [get_search]


def _item(result: Result) -> Item:
    document, scored = result.document, result.scored
    return Item(
        type=document.type,
        id=document.id,
        platform=document.platform,
        title=document.title,
        subtitle=document.subtitle,
        amount=format_amount(document.amount_minor, document.currency),
        currency=document.currency,
        date=document.date,
        score=scored.score,
        match=scored.match,
        highlights=scored.highlights,
        actions=actions_of(document.type, document.target),
    )
