"""Wiring only."""

from collections.abc import Coroutine
from typing import Any
from uuid import UUID

import structlog
from chassis.app import create_app
from chassis.clients import Clients
from chassis.cursors import CursorCodec
from chassis.egress import Egress
from chassis.service import Runtime, run
from chassis.sockets import Sockets
from events.decisions import Streams
from events.envelope import Metadata, new_id
from events.outage import until_it_works
from events.texts import Texts
from litestar import Litestar

from sync_gateway import api, conflict_api, run_api, webhook_api, webhooks
from sync_gateway.announcements import Announcements, PlatformTarget, endpoint_id
from sync_gateway.api_docs import api_docs_routes
from sync_gateway.catch_up import catch_up_routes
from sync_gateway.compose import Composer
from sync_gateway.deliveries import Deliveries, DeliveryLedger
from sync_gateway.dispatch import Dispatcher
from sync_gateway.endpoint import Ending, Limits, Owner
from sync_gateway.event_docs import event_docs_routes
from sync_gateway.feeds import PLATFORMS, Platform
from sync_gateway.hub import Cursors, Hub
from sync_gateway.intake import FeedIntake
from sync_gateway.measures import Measures
from sync_gateway.platforms import Platforms
from sync_gateway.policies import Policies
from sync_gateway.policies import evolve as evolve_policies
from sync_gateway.profiles import ItemSealer, Profiles
from sync_gateway.projections import PROJECTIONS
from sync_gateway.projections.feed import Feed
from sync_gateway.projections.platform_customer import user_of
from sync_gateway.reactions import ProfileReactions
from sync_gateway.secret_box import SecretBox, secret_box
from sync_gateway.settings import Settings
from sync_gateway.signatures import FeedSignatures
from sync_gateway.sync_runs import SyncRuns
from sync_gateway.webhooks import Webhook

log = structlog.get_logger(__name__)

_SERVICE = Metadata(actor="service:sync-gateway")


async def wire(runtime: Runtime[Settings]) -> Litestar:
    settings, database, store = runtime.settings, runtime.database, runtime.store
    origins = frozenset(filter(None, (origin.strip() for origin in settings.allowed_origins.split(","))))
    codec = CursorCodec(settings.cursor_secret)
    keys = runtime.subject_keys
    box = await until_it_works("the gateway's key", lambda: secret_box(settings.gateway_key, database, keys))
    egress = Egress(_listed(settings.webhook_allowed_targets), timeout_s=settings.webhook_timeout_s)
    measures = Measures(database)

    policies = Streams(store, "conflict_policy", Policies(), evolve_policies)
    profiles = Profiles(store, keys, policies)
    sealer = ItemSealer(profiles, Texts(keys), lambda stream: user_of(database, stream))
    intake = FeedIntake(store, sealer, counted=measures.count)
    signatures = FeedSignatures(
        {
            "bfc": [secret for secret in (settings.feed_secret_bfc, settings.feed_secret_bfc_next) if secret],
            "vyomo": [secret for secret in (settings.feed_secret_vyomo, settings.feed_secret_vyomo_next) if secret],
        }
    )

    announcements = Announcements(_platform_targets(settings, box))
    read_model = runtime.project(PROJECTIONS)
    runtime.consume("reactions", ProfileReactions(profiles), pace_s=0.005)
    runtime.consume("webhooks", DeliveryLedger(announcements))

    cursors = Cursors(codec)
    feed = Feed(database)
    clients = Clients()
    hub = Hub(clients, cursors, feed, read_model, measures)
    runtime.spawn(hub.start(runtime.follow(hub.on_events)), "hub")
    runtime.on_stop(clients.drain)
    sockets = Sockets(
        "/ws/sync",
        clients,
        hub,
        runtime.verifier,
        allowed_origins=origins,
        frames_max=settings.websocket_frames_max,
    )

    hooks = Streams(store, "webhook", Webhook(), webhooks.evolve)
    deliveries = Deliveries(database)
    platform_urls = {platform: url for platform in PLATFORMS if (url := _url(settings, platform))}
    platforms = Platforms(platform_urls)
    runs = SyncRuns(database, store, intake, platforms)
    dispatcher = Dispatcher(
        database,
        egress,
        box,
        _owner(hooks, Composer(profiles)),
        Limits(settings.webhook_quarantine_after, settings.webhook_probe_s),
        measures,
    )
    runtime.on_stop(dispatcher.drain)

    async def send() -> None:
        # After the consumers have made their tables.
        await runtime.tables_created.wait()
        await announcements.install(database)
        async with egress:
            await dispatcher.run()

    async def synchronise() -> None:
        await runtime.tables_created.wait()
        async with platforms:
            await runs.run()

    background: dict[str, Coroutine[Any, Any, None]] = {
        "webhooks": send(),
        "sync runs": synchronise(),
        "measures": measures.flush_forever(),
        "prune feed": feed.prune_forever(),
    }
    for name, coroutine in background.items():
        runtime.spawn(coroutine, name)
    return create_app(
        runtime,
        [
            *api.routes(intake, signatures),
            *catch_up_routes(feed, cursors, store),
            *run_api.routes(database, store, deliveries, measures, codec, lambda: len(clients), runs.wake),
            *webhook_api.routes(
                hooks, deliveries, database, box, egress, codec, _delays(settings.webhook_retry_delays_s)
            ),
            *api_docs_routes(),
            *event_docs_routes(),
            *conflict_api.routes(profiles, policies, database, codec),
        ],
        title="Sangam sync-gateway",
        sockets=[sockets],
        allowed_origins=origins,
    )


def _owner(hooks: Streams[Webhook], composer: Composer) -> Owner:
    async def quarantine(webhook_id: UUID, reason: str, failures: int) -> None:
        await hooks.execute(
            webhook_id,
            lambda state: webhooks.quarantine(state, reason, failures),
            event_id=new_id(),
            subject=await owner_of(webhook_id),
            metadata=_SERVICE,
        )

    async def restore(webhook_id: UUID) -> None:
        await hooks.execute(
            webhook_id,
            webhooks.restore,
            event_id=new_id(),
            subject=await owner_of(webhook_id),
            metadata=_SERVICE,
        )

    async def disable(webhook_id: UUID, reason: Ending) -> None:
        await hooks.execute(
            webhook_id,
            lambda state: webhooks.disable(state, reason),
            event_id=new_id(),
            subject=await owner_of(webhook_id),
            metadata=_SERVICE,
        )

    async def owner_of(webhook_id: UUID) -> UUID | None:
        state, _ = await hooks.load(webhook_id)
        return state.owner_id

    return Owner(quarantine, restore, disable, composer.compose)


def _platform_targets(settings: Settings, box: SecretBox) -> list[PlatformTarget]:
    """The platforms that are told what happens here."""
    secrets = {"bfc": settings.announce_secret_bfc, "vyomo": settings.announce_secret_vyomo}
    return [
        PlatformTarget(platform, f"{url}/webhooks", box.seal(secrets[platform], str(endpoint_id(platform))))
        for platform in PLATFORMS
        if (url := _url(settings, platform)) and secrets[platform]
    ]


def _url(settings: Settings, platform: Platform) -> str | None:
    url = settings.bfc_url if platform == "bfc" else settings.vyomo_url
    return url.rstrip("/") if url else None


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _delays(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _listed(text))


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("sync_gateway", Settings, wire)
