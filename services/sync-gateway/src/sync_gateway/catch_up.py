"""`GET /api/sync/events`: what a subscriber missed, from where it was.

A customer gets their own events of the last 24 hours, from the read model `feed`. An operator's token that names no
customer gets everyone's, of all time, straight from the log: how an outside subscriber catches up whose queue has
overflowed. Either way public contracts only; nothing private ever leaves here.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import msgspec
from chassis import frames
from chassis.authentication import ops_may
from chassis.consistency import CaughtUp
from chassis.problems import Problem, invalid_field
from chassis.tokens import Caller
from chassis.topics import InvalidTopic, topics
from events.envelope import RecordedEvent
from events.store import Head
from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from litestar.types import ControllerRouterHandler

from sync_gateway.hub import Cursors
from sync_gateway.projections.feed import PUBLIC_TYPES, Feed

_PAGE_POSITIONS = 5_000
_POSITIONS_MAX = 50_000
"""How much of the log one request looks through for rare types; `next_cursor` goes on from there."""


class EventList(msgspec.Struct, frozen=True):
    items: list[dict[str, Any]]
    """CloudEvents 1.0, structured JSON, in log order."""
    next_cursor: str | None
    """Null at the end of what there is now; `after` goes on from the last item's `position`."""


class Log(Protocol):
    """What is needed of `EventStore`."""

    async def head(self) -> Head: ...
    async def read_types(self, after: int, up_to: int, types: Sequence[str]) -> list[RecordedEvent]: ...


def catch_up_routes(feed: Feed, cursors: Cursors, log: Log) -> list[ControllerRouterHandler]:
    """The route."""

    @get(
        "/api/sync/events",
        summary="Public events after a position, to catch up",
        description="A customer's token gives the caller's own events of the last 24 hours. An operator's token"
        " (`sync:admin`) gives everyone's, however old, or with `user_id` that customer's.",
        opt=ops_may("sync:admin", everyone=True),
    )
    async def list_events(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        after: Annotated[int, QueryParameter(ge=0, le=2**62, description="Position of the last event known")] = 0,
        types: Annotated[
            str | None, QueryParameter(max_length=1024, description="Topic patterns, separated by commas")
        ] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        cursor: Annotated[
            str | None, QueryParameter(max_length=2048, description="`next_cursor` of the page before")
        ] = None,
    ) -> EventList:
        place = after if cursor is None else cursors.decode(cursor, caller.user_id)
        wanted = _types(types)
        if caller.for_everyone:
            items, last, more = await _everyones(log, place, wanted, limit)
            return EventList(items, cursors.encode(last, caller.user_id) if more else None)
        page = await feed.page(caller.user_id, after=place, upto=None, types=wanted, limit=limit)
        if 0 < place < page.floor:
            raise Problem(410, "events_expired", "Events are kept for 24 hours; start again without `after`")
        return EventList(
            items=[_outward(row.event) for row in page.rows],
            next_cursor=cursors.encode(page.rows[-1].position, caller.user_id) if len(page.rows) == limit else None,
        )

    return [list_events]


async def _everyones(log: Log, after: int, types: Sequence[str], limit: int) -> tuple[list[dict[str, Any]], int, bool]:
    """Events after a position, the position looked at last, and whether the log goes on behind it."""
    head = (await log.head()).position
    found: list[RecordedEvent] = []
    end = min(head, after + _POSITIONS_MAX)
    while after < end and len(found) < limit:
        last = min(after + _PAGE_POSITIONS, end)
        # The type alone does not say it: a newer schema version may be private, or unknown here.
        found += [event for event in await log.read_types(after, last, types) if event.public]
        after = last
    if len(found) >= limit:
        found = found[:limit]
        after = found[-1].position
    return [_outward(frames.cloud_event(event)) for event in found], after, after < head


def _outward(event: bytes) -> dict[str, Any]:
    """A CloudEvent without its sealed fields: nobody outside can open them."""
    told: dict[str, Any] = msgspec.json.decode(event)
    told["data"] = {
        name: value
        for name, value in told["data"].items()
        if not (name.startswith("sealed_") or name.endswith("_sealed"))
    }
    return told


def _types(patterns: str | None) -> list[str]:
    if patterns is None:
        return list(PUBLIC_TYPES)
    try:
        wanted = topics(patterns.split(","))
    except InvalidTopic as error:
        raise invalid_field("types", str(error), "invalid_topic") from None
    return [event_type for event_type in PUBLIC_TYPES if event_type in wanted]
