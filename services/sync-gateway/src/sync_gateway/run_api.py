"""`/api/sync/health`, `pending`, `trigger`, `history`, `stats`: how synchronisation is doing."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.authentication import ops_may
from chassis.consistency import HEADER, CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.problems import Problem, invalid_field
from chassis.tokens import Caller
from events.contracts import sync
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler

from sync_gateway.announcements import endpoint_id
from sync_gateway.deliveries import Deliveries
from sync_gateway.feeds import PLATFORMS, Platform
from sync_gateway.measures import Measures, Sums
from sync_gateway.projections.conflict import open_conflicts
from sync_gateway.projections.feed_status import PlatformStatus, platform_statuses
from sync_gateway.projections.sync_run import RunRow, runs_of

OPS = ops_may("sync:admin")
EVERYONE = ops_may("sync:admin", everyone=True)
HEALTH_WINDOW = timedelta(hours=1)
LAGGING_S = 60.0
_WINDOW = re.compile(r"([1-9][0-9]{0,4})([smh])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600}
WINDOW_MAX = timedelta(hours=24)

ENTITIES = ("profile", "balance", "account", "transaction", "trade", "position")


class PlatformHealth(msgspec.Struct, frozen=True, kw_only=True):
    platform: str
    state: Literal["never_heard", "heard", "lagging"]
    """`lagging`: what we have to tell it waits for more than a minute."""
    items: int
    """Items accepted so far."""
    last_event_at: datetime | None
    """When the latest item was recorded; null before the first."""
    lag_s: float
    """Age of the oldest announcement that the platform has not taken; 0 when there is none."""
    success_rate: float | None
    """Of the items received in the last hour, the share that could be taken; null when none came."""
    open_conflicts: int
    """Conflicts that wait for a person, in which this platform's change came second."""


class SyncHealth(msgspec.Struct, frozen=True):
    items: list[PlatformHealth]


class PendingView(msgspec.Struct, frozen=True, kw_only=True):
    kind: Literal["webhook", "announcement", "sync_run"]
    event_id: UUID
    event_type: str
    target: str
    """The webhook's id, or the platform."""
    age_s: float
    attempt: int
    """Attempts so far."""
    next_attempt_at: datetime | None


class PendingList(msgspec.Struct, frozen=True):
    items: list[PendingView]
    next_cursor: str | None = None


class TriggerBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    platform: Platform | None = None
    """Null: both."""
    entity: Literal["profile", "balance", "account", "transaction", "trade", "position"] | None = None
    """What the caller is after. Items are asked for in any case; balances only where they are meant too."""


class Triggered(msgspec.Struct, frozen=True, kw_only=True):
    sync_id: UUID
    status: Literal["requested"] = "requested"


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    sync_id: UUID
    platform: str | None
    """Null: both."""
    status: Literal["requested", "completed", "failed"]
    requested_at: datetime
    completed_at: datetime | None
    found: int
    applied: int
    duplicates: int
    conflicts: int
    rejected: int
    platforms: list[sync.PlatformOutcome]
    """What each platform brought; empty while it is requested."""


class RunList(msgspec.Struct, frozen=True):
    items: list[RunView]
    next_cursor: str | None


class EventCounts(msgspec.Struct, frozen=True, kw_only=True):
    received: int
    """Items that came in by feeds and runs."""
    applied: int
    """Of those, new and durable."""
    duplicates: int
    delivered: int
    """Frames to WebSockets and messages to webhooks and platforms."""
    failed: int
    """Items refused, and messages that were given up."""


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Null without samples."""

    p50: float | None
    p95: float | None
    p99: float | None


class WebhookStats(msgspec.Struct, frozen=True, kw_only=True):
    delivered: int
    failed_attempts: int
    exhausted: int
    latency_ms: Quantiles


class SyncStats(msgspec.Struct, frozen=True, kw_only=True):
    window: str
    events: EventCounts
    success_rate: float | None
    """Of what was received or sent in the window, the share that succeeded; null when there was nothing."""
    latency_ms: Quantiles
    """From an event's append to its offer to the customer's WebSockets."""
    throughput_per_s: float
    """Items taken from feeds, events offered to WebSockets and messages delivered, per second of the window."""
    websocket_connections: int
    webhooks: WebhookStats


class _Before(msgspec.Struct, frozen=True):
    position: int


def routes(
    database: "asyncpg.Pool[asyncpg.Record]",
    store: EventStore,
    deliveries: Deliveries,
    measures: Measures,
    cursors: CursorCodec,
    connections: Callable[[], int],
    wake_runs: Callable[[], None],
) -> list[ControllerRouterHandler]:
    """The routes of running synchronisation."""

    @get("/api/sync/health", summary="How each platform is doing", opt=EVERYONE)
    async def get_sync_health(caller: NamedDependency[Caller]) -> SyncHealth:
        statuses = await platform_statuses(database)
        sums = await measures.window(HEALTH_WINDOW)
        open_by = await open_conflicts(database)
        lags = await _lags(database)
        return SyncHealth(
            [
                _health(platform, statuses.get(platform), lags.get(platform, 0.0), sums, open_by.get(platform, 0))
                for platform in PLATFORMS
            ]
        )

    @get("/api/sync/pending", summary="The caller's events that are not delivered or applied yet", opt=OPS)
    async def get_pending_events(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> PendingList:
        now = datetime.now(UTC)
        items = [
            PendingView(
                kind="webhook" if row["platform"] is None else "announcement",
                event_id=row["event_id"],
                event_type=row["event_type"],
                target=row["platform"] or str(row["webhook_id"]),
                age_s=round((now - row["recorded_at"]).total_seconds(), 3),
                attempt=row["attempts"],
                next_attempt_at=row["next_attempt_at"],
            )
            for row in await deliveries.pending(caller.user_id, limit)
        ]
        items += [
            PendingView(
                kind="sync_run",
                event_id=run.sync_id,
                event_type="sync.sync_run.requested",
                target=",".join(run.platforms),
                age_s=round((now - run.requested_at).total_seconds(), 3),
                attempt=0,
                next_attempt_at=None,
            )
            for run in await runs_of(database, caller.user_id, before=None, sync_id=None, limit=limit)
            if run.status == "requested"
        ]
        return PendingList(sorted(items, key=lambda item: -item.age_s)[:limit])

    @post("/api/sync/trigger", status_code=202, summary="Ask the platforms for anything missing", opt=OPS)
    async def trigger_sync(
        caller: NamedDependency[Caller], data: JSONBody[TriggerBody | None] = None
    ) -> Response[Triggered]:
        wanted = data or TriggerBody()
        sync_id, event_id = new_id(), new_id()
        requested = sync.SyncRunRequested(
            sync_id=sync_id,
            platforms=PLATFORMS if wanted.platform is None else (wanted.platform,),
            entity=wanted.entity,
        )
        await store.append(
            [StreamAppend(f"sync_run-{sync_id}", (requested,))],
            event_id=event_id,
            subject=caller.user_id,
            metadata=caller.metadata(),
        )
        wake_runs()
        return Response(Triggered(sync_id=sync_id), status_code=202, headers={HEADER: consistency_token(event_id)})

    @get("/api/sync/history", summary="The caller's synchronisation runs, newest first", opt=OPS)
    async def list_sync_runs(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, QueryParameter(max_length=2048)] = None,
    ) -> RunList:
        before = None
        if cursor is not None:
            before = cursors.decode(cursor, _Before, purpose="runs", caller=caller.user_id).position
        rows = await runs_of(database, caller.user_id, before=before, sync_id=None, limit=limit)
        following = None
        if len(rows) == limit:
            following = cursors.encode(_Before(rows[-1].position), purpose="runs", caller=caller.user_id)
        return RunList([_run(row) for row in rows], following)

    @get("/api/sync/history/{sync_id:uuid}", summary="One synchronisation run", opt=OPS)
    async def get_sync_run(
        caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp], sync_id: FromPath[UUID]
    ) -> RunView:
        rows = await runs_of(database, caller.user_id, before=None, sync_id=sync_id, limit=1)
        if not rows:
            raise Problem(404, "sync_run_not_found", "There is no such run, or it is not known here yet")
        return _run(rows[0])

    @get("/api/sync/stats", summary="Counts, latency and throughput over a window", opt=EVERYONE)
    async def get_sync_stats(
        caller: NamedDependency[Caller],
        window: Annotated[str, QueryParameter(max_length=16, description="Such as 90s, 5m or 24h")] = "1h",
    ) -> SyncStats:
        span = _window(window)
        return _stats(window, await measures.window(span), connections())

    return [get_sync_health, get_pending_events, trigger_sync, list_sync_runs, get_sync_run, get_sync_stats]


def _window(text: str) -> timedelta:
    match = _WINDOW.fullmatch(text)
    span = timedelta(seconds=int(match[1]) * _UNIT_S[match[2]]) if match else timedelta(0)
    if not timedelta(0) < span <= WINDOW_MAX:
        raise invalid_field("window", "must be a time up to 24h, such as 90s, 5m or 24h", "invalid_window")
    return span


async def _lags(database: "asyncpg.Pool[asyncpg.Record]") -> dict[str, float]:
    """By platform, the age of the oldest announcement that waits."""
    rows = await database.fetch(
        "SELECT webhook_id, extract(epoch FROM now() - min(recorded_at))::float8 AS lag_s FROM webhook_delivery"
        " WHERE webhook_id = ANY ($1) AND status IN ('pending', 'failed') GROUP BY webhook_id",
        [endpoint_id(platform) for platform in PLATFORMS],
    )
    lags = {UUID(int=row["webhook_id"].int): row["lag_s"] for row in rows}
    return {platform: lags.get(endpoint_id(platform), 0.0) for platform in PLATFORMS}


def _health(platform: str, status: PlatformStatus | None, lag_s: float, sums: Sums, conflicts: int) -> PlatformHealth:
    received = sums.counts.get(f"feed.{platform}.received", 0)
    rejected = sums.counts.get(f"feed.{platform}.rejected", 0)
    return PlatformHealth(
        platform=platform,
        state="lagging" if lag_s > LAGGING_S else "never_heard" if status is None else "heard",
        items=0 if status is None else status.items,
        last_event_at=None if status is None else status.last_event_at,
        lag_s=round(max(0.0, lag_s), 3),
        success_rate=None if not received else round(1 - rejected / received, 6),
        open_conflicts=conflicts,
    )


def _stats(window: str, sums: Sums, connections: int) -> SyncStats:
    def total(name: str) -> int:
        return sum(sums.counts.get(f"feed.{platform}.{name}", 0) for platform in PLATFORMS)

    received, rejected = total("received"), total("rejected")
    delivered = sums.counts.get("webhook.delivered", 0)
    exhausted = sums.counts.get("webhook.exhausted", 0)
    frames = sums.counts.get("websocket.frames", 0)
    offered = sums.counts.get("websocket.events", 0)
    tried = received + delivered + exhausted
    return SyncStats(
        window=window,
        events=EventCounts(
            received=received,
            applied=total("accepted") + total("conflict"),
            duplicates=total("duplicate"),
            delivered=delivered + frames,
            failed=rejected + exhausted,
        ),
        success_rate=None if not tried else round(1 - (rejected + exhausted) / tried, 6),
        latency_ms=Quantiles(**sums.quantiles("latency")),
        throughput_per_s=round((received + delivered + offered) / max(1.0, sums.seconds), 3),
        websocket_connections=connections,
        webhooks=WebhookStats(
            delivered=delivered,
            failed_attempts=sums.counts.get("webhook.failed", 0),
            exhausted=exhausted,
            latency_ms=Quantiles(**sums.quantiles("webhook.latency")),
        ),
    )


def _run(row: RunRow) -> RunView:
    def total(name: str) -> int:
        return sum(getattr(outcome, name) for outcome in row.outcomes)

    status: Any = row.status
    return RunView(
        sync_id=row.sync_id,
        platform=row.platforms[0] if len(row.platforms) == 1 else None,
        status=status,
        requested_at=row.requested_at,
        completed_at=row.completed_at,
        found=total("found"),
        applied=total("applied"),
        duplicates=total("duplicates"),
        conflicts=total("conflicts"),
        rejected=total("rejected"),
        platforms=list(row.outcomes),
    )
