"""`/api/notifications`: the inbox, what customers want to be told, and where to."""

import base64
import hashlib
import secrets
from datetime import UTC, datetime
from typing import Annotated, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from chassis.authentication import ops_may
from chassis.consistency import HEADER as CONSISTENCY_HEADER
from chassis.consistency import CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.egress import Egress, NotAllowed
from chassis.problems import Problem, invalid_field
from chassis.tokens import Caller
from events.consumer import Consumer
from events.contracts.notification import (
    Category,
    NotificationRead,
    NotificationSnoozed,
    Priority,
)
from events.contracts.registry import Event
from events.envelope import derived_id, new_id
from events.notification_texts import seal_text
from events.sealing import SubjectErased, SubjectKeys
from events.store import EventStore, StreamAppend
from litestar import Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler

from notifier.channels import WebPush
from notifier.deliveries import DeliveryItem, deliveries_of
from notifier.inputs import (
    NewNotification,
    NewPushSubscription,
    NewWebhook,
    OldPushSubscription,
    Preferences,
    Snooze,
    idempotency_key,
    requested,
    snooze_until,
)
from notifier.lanes import held_back
from notifier.preferences import channels, quiet_until
from notifier.projections.contact import sealed_profile
from notifier.projections.inbox import Found, Notification, Place, find, inbox, newest_unread
from notifier.projections.preference import preferences

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
PUSH_SUBSCRIPTIONS_MAX = 20
_REQUESTS = UUID("0f9c8f0e-2a1d-5c53-9c75-3c9b1d1c8a44")
_KNOWN_WAIT_S = 2.0

Key = Annotated[str | None, HeaderParameter(name="Idempotency-Key", description="Names the request")]


class Inbox(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Notification]
    unread_count: int
    """Of all the caller's notifications, whatever the filters."""
    held_count: int
    """Facts that quiet hours or a throttle hold back; they are told later, in as few notifications as can be."""
    next_cursor: str | None


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID


class ReadMark(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    read_at: datetime


class AllRead(msgspec.Struct, frozen=True, kw_only=True):
    unread_count: int


class Snoozed(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    snoozed_until: datetime


class PushSubscriptionView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    endpoint: str
    created_at: datetime


class PushSubscriptions(msgspec.Struct, frozen=True, kw_only=True):
    public_key: str | None
    """What a browser subscribes with (`applicationServerKey`); null where web push is off."""
    items: list[PushSubscriptionView]
    next_cursor: None = None


class WebhookView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: UUID
    url: str
    secret: str | None = None
    """Shown once, when it is made."""


class DeliveryPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[DeliveryItem]
    next_cursor: None = None


class Parts(NamedTuple):
    """What the routes need."""

    database: "asyncpg.Pool[asyncpg.Record]"
    store: EventStore
    keys: SubjectKeys
    cursors: CursorCodec
    read_model: Consumer
    egress: Egress
    web_push: WebPush


def routes(parts: Parts) -> list[ControllerRouterHandler]:
    """The routes of this service."""
    database, store, cursors = parts.database, parts.store, parts.cursors

    async def record(caller: Caller, user_id: UUID, event: Event, event_id: UUID, request_hash: bytes = b"") -> None:
        await store.append(
            [StreamAppend(f"inbox-{user_id}", (event,))],
            event_id=event_id,
            request_hash=request_hash,
            subject=user_id,
            metadata=caller.metadata(),
        )

    async def existing(caller: Caller, notification_id: UUID) -> Found:
        found = await find(database, caller.user_id, notification_id)
        if found is None:
            raise Problem(404, "notification_not_found", "There is no such notification")
        return found

    @get("/api/notifications/smart", summary="The inbox, newest first", tags=["notifications"])
    async def list_notifications(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        unread: FromQuery[bool | None] = None,
        priority: FromQuery[Priority | None] = None,
        category: FromQuery[Category | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT,
        cursor: FromQuery[str | None] = None,
    ) -> Inbox:
        after = None
        if cursor is not None:
            after = cursors.decode(cursor, Place, purpose="inbox", caller=caller.user_id)
        # One more than asked for tells whether there is a next page.
        items, unread_count = await inbox(
            database,
            parts.keys,
            caller.user_id,
            unread=unread,
            priority=priority,
            category=category,
            after=after,
            limit=limit + 1,
            now=datetime.now(UTC),
        )
        next_cursor = None
        if len(items) > limit:
            items = items[:limit]
            place = Place(items[-1].created_at, items[-1].id)
            next_cursor = cursors.encode(place, purpose="inbox", caller=caller.user_id)
        held_count = await held_back(database, caller.user_id)
        return Inbox(items=items, unread_count=unread_count, held_count=held_count, next_cursor=next_cursor)

    @post(
        "/api/notifications/smart",
        status_code=201,
        opt=ops_may("notifications:write", everyone=True, only=True),
        summary="An operator's message to one customer",
        tags=["notifications"],
    )
    async def create_notification(
        caller: NamedDependency[Caller], data: JSONBody[NewNotification], key: Key = None
    ) -> Response[Raised]:
        named = idempotency_key(key)
        if not caller.for_everyone and caller.user_id != data.user_id:
            raise invalid_field("user_id", "is not the customer that the address names", "user_id_mismatch")
        event = requested(data)
        await _must_be_known(parts, data.user_id)
        try:
            event = await seal_text(parts.keys, data.user_id, event)
        except SubjectErased:
            raise _user_not_found() from None
        event_id = new_id() if named is None else derived_id(_REQUESTS, caller.operator, named)
        digest = hashlib.sha256(msgspec.json.encode(data)).digest()
        await record(caller, data.user_id, event, event_id, digest)
        notification_id = derived_id(event_id, "notification")
        # Read your writes: the notification itself, unless it is not told at once.
        chosen = await preferences(database, data.user_id)
        at_once = bool(channels(chosen, data.category, data.priority)) and (
            data.priority == "critical" or quiet_until(chosen, datetime.now(UTC)) is None
        )
        token = consistency_token(notification_id if at_once else event_id)
        return Response(Raised(id=notification_id), headers={CONSISTENCY_HEADER: token})

    @put("/api/notifications/smart/read-all", summary="Mark everything read", tags=["notifications"])
    async def mark_all_read(caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]) -> Response[AllRead]:
        """What is raised after the read model was asked stays unread: nobody has seen it."""
        through = await newest_unread(database, caller.user_id)
        headers = {}
        if through is not None:
            event_id = derived_id(_REQUESTS, "read-all", caller.user_id, through)
            event = NotificationRead(through_version=through, read_at=datetime.now(UTC))
            await record(caller, caller.user_id, event, event_id)
            headers[CONSISTENCY_HEADER] = consistency_token(event_id)
        return Response(AllRead(unread_count=0), headers=headers)

    @put("/api/notifications/smart/{notification_id:uuid}/read", summary="Mark one read", tags=["notifications"])
    async def mark_read(
        caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp], notification_id: FromPath[UUID]
    ) -> Response[ReadMark]:
        found = await existing(caller, notification_id)
        if found.read_at is not None:
            return Response(ReadMark(id=notification_id, read_at=found.read_at))
        now = datetime.now(UTC)
        # Reading is no decision on the stream: it only ever adds a mark, and the first one counts.
        event_id = new_id()
        await record(caller, caller.user_id, NotificationRead(notification_id=notification_id, read_at=now), event_id)
        return Response(
            ReadMark(id=notification_id, read_at=now), headers={CONSISTENCY_HEADER: consistency_token(event_id)}
        )

    @put("/api/notifications/smart/{notification_id:uuid}/snooze", summary="Put one off", tags=["notifications"])
    async def snooze_notification(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        notification_id: FromPath[UUID],
        data: JSONBody[Snooze],
    ) -> Response[Snoozed]:
        until = snooze_until(data, datetime.now(UTC))
        await existing(caller, notification_id)
        event_id = new_id()
        await record(
            caller, caller.user_id, NotificationSnoozed(notification_id=notification_id, until=until), event_id
        )
        return Response(
            Snoozed(id=notification_id, snoozed_until=until),
            headers={CONSISTENCY_HEADER: consistency_token(event_id)},
        )

    @get(
        "/api/notifications/smart/{notification_id:uuid}/deliveries",
        summary="What became of it, target by target",
        tags=["notifications"],
    )
    async def get_notification_deliveries(
        caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp], notification_id: FromPath[UUID]
    ) -> DeliveryPage:
        await existing(caller, notification_id)
        return DeliveryPage(items=await deliveries_of(database, caller.user_id, notification_id))

    @get("/api/notifications/preferences", summary="Preferences", tags=["preferences"])
    async def get_preferences(caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]) -> Preferences:
        return Preferences.of(await preferences(database, caller.user_id))

    @put("/api/notifications/preferences", summary="Replace the preferences", tags=["preferences"])
    async def put_preferences(caller: NamedDependency[Caller], data: JSONBody[Preferences]) -> Response[Preferences]:
        event_id = new_id()
        await record(caller, caller.user_id, data.changed(), event_id)
        return Response(data, headers={CONSISTENCY_HEADER: consistency_token(event_id)})

    @get("/api/notifications/push-subscriptions", summary="Web push targets", tags=["targets"])
    async def get_push_subscriptions(caller: NamedDependency[Caller]) -> PushSubscriptions:
        rows = await database.fetch(
            "SELECT id, endpoint, created_at FROM push_subscription WHERE user_id = $1 ORDER BY created_at, id",
            caller.user_id,
        )
        return PushSubscriptions(
            public_key=parts.web_push.public_key, items=[PushSubscriptionView(**dict(row)) for row in rows]
        )

    @post("/api/notifications/push-subscriptions", status_code=201, summary="Add a web push target", tags=["targets"])
    async def post_push_subscription(
        caller: NamedDependency[Caller], data: JSONBody[NewPushSubscription]
    ) -> PushSubscriptionView:
        _check_url(parts.egress, data.endpoint, "endpoint")
        row = await database.fetchrow(
            # A browser that another customer used now is this one's; the keys prove that it is the same browser.
            "INSERT INTO push_subscription (id, user_id, endpoint, p256dh, auth)"
            " SELECT $1, $2, $3, $4, $5 WHERE (SELECT count(*) FROM push_subscription WHERE user_id = $2) < $6"
            " ON CONFLICT (endpoint) DO UPDATE SET user_id = excluded.user_id, p256dh = excluded.p256dh,"
            "  auth = excluded.auth RETURNING id, endpoint, created_at",
            derived_id(caller.user_id, data.endpoint),
            caller.user_id,
            data.endpoint,
            data.keys.p256dh,
            data.keys.auth,
            PUSH_SUBSCRIPTIONS_MAX,
        )
        if row is None:
            raise Problem(
                422, "too_many_push_subscriptions", f"At most {PUSH_SUBSCRIPTIONS_MAX} browsers can be subscribed"
            )
        return PushSubscriptionView(**dict(row))

    @delete(
        "/api/notifications/push-subscriptions", status_code=204, summary="Remove a web push target", tags=["targets"]
    )
    async def delete_push_subscription(caller: NamedDependency[Caller], data: JSONBody[OldPushSubscription]) -> None:
        gone = await database.fetchval(
            "DELETE FROM push_subscription WHERE user_id = $1 AND endpoint = $2 RETURNING id",
            caller.user_id,
            data.endpoint,
        )
        if gone is None:
            raise Problem(404, "push_subscription_not_found", "There is no such subscription")

    @get("/api/notifications/webhook", summary="The webhook", tags=["targets"])
    async def get_notification_webhook(caller: NamedDependency[Caller]) -> WebhookView:
        row = await database.fetchrow("SELECT id, url FROM webhook_target WHERE user_id = $1", caller.user_id)
        if row is None:
            raise Problem(404, "webhook_not_found", "No webhook is set")
        return WebhookView(**dict(row))

    @put("/api/notifications/webhook", summary="Set the webhook; its new secret is shown once", tags=["targets"])
    async def put_notification_webhook(caller: NamedDependency[Caller], data: JSONBody[NewWebhook]) -> WebhookView:
        _check_url(parts.egress, data.url, "url")
        view = WebhookView(id=new_id(), url=data.url, secret=_webhook_secret())
        await database.execute(
            "INSERT INTO webhook_target (user_id, id, url, secret) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (user_id) DO UPDATE SET id = excluded.id, url = excluded.url, secret = excluded.secret",
            caller.user_id,
            view.id,
            view.url,
            view.secret,
        )
        return view

    @delete("/api/notifications/webhook", status_code=204, summary="Remove the webhook", tags=["targets"])
    async def delete_notification_webhook(caller: NamedDependency[Caller]) -> None:
        await database.execute("DELETE FROM webhook_target WHERE user_id = $1", caller.user_id)

    return [
        list_notifications,
        create_notification,
        mark_all_read,
        mark_read,
        snooze_notification,
        get_notification_deliveries,
        get_preferences,
        put_preferences,
        get_push_subscriptions,
        post_push_subscription,
        delete_push_subscription,
        get_notification_webhook,
        put_notification_webhook,
        delete_notification_webhook,
    ]


async def _must_be_known(parts: Parts, user_id: UUID) -> None:
    """Refuses a message to nobody, after giving a customer who registered just now the time to become known.

    Raises:
        Problem: 404 `user_not_found`.
    """
    if await sealed_profile(parts.database, user_id) is None:
        await parts.read_model.wait_for((await parts.store.head()).position, _KNOWN_WAIT_S)
        if await sealed_profile(parts.database, user_id) is None:
            raise _user_not_found()


def _user_not_found() -> Problem:
    return Problem(404, "user_not_found", "There is no such customer")


def _check_url(egress: Egress, url: str, field: str) -> None:
    try:
        egress.check(url)
    except NotAllowed as error:
        raise Problem(
            422,
            "url_not_allowed",
            f"The address is not allowed: {error}",
            errors=[{"field": field, "message": str(error)}],
        ) from None


def _webhook_secret() -> str:
    """A secret in the form of Standard Webhooks: 192 random bits."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
