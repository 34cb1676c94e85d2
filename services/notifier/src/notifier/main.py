"""Wiring only."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from chassis.app import create_app
from chassis.clients import Clients
from chassis.cursors import CursorCodec
from chassis.egress import Egress
from chassis.service import Runtime, run
from chassis.sockets import Sockets
from events.follower import Follower
from litestar import Litestar

from notifier.api import Parts, routes
from notifier.channels import Mail, Webhook, WebPush
from notifier.deliveries import DeliveryLedger
from notifier.further import AppriseServices
from notifier.live import DEFAULT_TOPICS, NotificationFeed
from notifier.projections import PROJECTIONS
from notifier.reactions import Grouping
from notifier.sending import Channels, Sender
from notifier.settings import Settings


async def wire(runtime: Runtime[Settings]) -> Litestar:
    settings, database, store, keys = runtime.settings, runtime.database, runtime.store, runtime.subject_keys
    origins = _listed(settings.allowed_origins)
    read_model = runtime.project(PROJECTIONS)
    grouping = Grouping(database, store, keys, settings.large_floors_minor)
    consumer = runtime.consume("grouping", grouping, pace_s=0.005)
    apprise = settings.apprise_urls
    ledger = DeliveryLedger(apprise=apprise is not None)
    runtime.consume("deliveries", ledger)

    targets = _listed(settings.allowed_targets)
    egress = Egress(targets, timeout_s=settings.send_timeout_s)
    web_push = WebPush(settings, egress)
    further = None if apprise is None else AppriseServices(apprise, allowed=targets)
    channels = Channels(Mail(settings), web_push, Webhook(egress), further)
    sender = Sender(database, keys, channels, settings)
    ledger.filled = sender.wake

    cursors = CursorCodec(settings.cursor_secret)
    clients = Clients()
    feed = NotificationFeed(clients, store, database, keys, cursors)
    follower = runtime.follow(feed.on_events)
    feed.follow(follower)
    sockets = Sockets(
        "/ws/notifications",
        clients,
        feed,
        runtime.verifier,
        allowed_origins=origins,
        default_topics=DEFAULT_TOPICS,
    )
    runtime.on_stop(clients.drain)

    for name, loop in (
        ("clock", grouping.close_forever(consumer)),
        ("outbox", grouping.outbox.send_forever(consumer)),
        ("prune", grouping.prune_forever()),
        ("sender", sender.run(egress)),
    ):
        runtime.spawn(_once_started(follower, loop), name)
    return create_app(
        runtime,
        routes(Parts(database, store, keys, cursors, read_model, egress, web_push)),
        title="Sangam notifier",
        sockets=[sockets],
        allowed_origins=origins,
    )


async def _once_started(follower: Follower, loop: Coroutine[Any, Any, None]) -> None:
    """Tables are made after the wiring, and followers start when they are there."""
    try:
        await follower.started.wait()
    except asyncio.CancelledError:
        loop.close()
        raise
    await loop


def _listed(text: str) -> frozenset[str]:
    return frozenset(filter(None, (entry.strip() for entry in text.split(","))))


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("notifier", Settings, wire)
