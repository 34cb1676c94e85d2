"""Wiring only."""

from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.service import Runtime, run
from litestar import Litestar

from sync_gateway.api import routes
from sync_gateway.catch_up import catch_up_routes
from sync_gateway.event_docs import event_docs_routes
from sync_gateway.hub import Cursors, Hub
from sync_gateway.intake import FeedIntake
from sync_gateway.projections import PROJECTIONS
from sync_gateway.projections.feed import Feed
from sync_gateway.settings import Settings
from sync_gateway.signatures import FeedSignatures
from sync_gateway.sockets import SyncSockets


async def wire(runtime: Runtime[Settings]) -> Litestar:
    settings = runtime.settings
    origins = frozenset(filter(None, (origin.strip() for origin in settings.allowed_origins.split(","))))
    signatures = FeedSignatures({"bfc": settings.feed_secret_bfc, "vyomo": settings.feed_secret_vyomo})
    read_model = runtime.project(PROJECTIONS)
    cursors = Cursors(CursorCodec(settings.cursor_secret))
    hub = Hub(cursors)
    runtime.spawn(hub.start(runtime.follow(hub.on_events)), "hub")
    runtime.revocations.watch(hub.sessions_ended)
    runtime.on_stop(hub.drain)
    feed = Feed(runtime.database)
    sockets = SyncSockets(
        hub,
        feed,
        read_model,
        runtime.verifier,
        allowed_origins=origins,
        frames_max=settings.websocket_frames_max,
    )
    runtime.spawn(feed.prune_forever(), "prune feed")
    return create_app(
        runtime,
        [
            *routes(runtime.database, FeedIntake(runtime.store), signatures, sockets),
            *catch_up_routes(feed, cursors, runtime.store),
            *event_docs_routes(),
        ],
        title="Sangam sync-gateway",
        allowed_origins=origins,
    )


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("sync_gateway", Settings, wire)
