"""`/api/sync/webhooks`: routes, their shapes, and which refusal is which status."""

import base64
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.authentication import ops_may
from chassis.consistency import HEADER, CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.egress import Egress, NotAllowed
from chassis.problems import Problem, invalid_field
from chassis.tokens import Caller
from chassis.topics import PATTERNS_MAX, InvalidTopic, topics
from events.decisions import Streams
from events.envelope import new_id
from litestar import Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler

from sync_gateway import webhooks
from sync_gateway.deliveries import Attempt, Deliveries, DeliveryRow
from sync_gateway.projections.webhook import WebhookRow, webhooks_of
from sync_gateway.secret_box import SecretBox
from sync_gateway.webhooks import Settings, Webhook, WebhookNotFound

OPS = ops_may("sync:admin", everyone=True)
RATE_PER_S = 100
CONCURRENCY = 8
OVERLAP_S = 24 * 3600
OVERLAP_S_MAX = 30 * 24 * 3600

RetryDelay = Annotated[int, msgspec.Meta(ge=0, le=webhooks.RETRY_DELAY_S_MAX)]


class WebhookBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A webhook as its owner wants it."""

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    events: Annotated[list[str], msgspec.Meta(min_length=1, max_length=PATTERNS_MAX)]
    """Patterns of event types as in AMQP topics: `*` is one word, `#` any number of words."""
    description: Annotated[str, msgspec.Meta(max_length=500)] | None = None
    active: bool = True
    retry_delays_s: Annotated[list[RetryDelay], msgspec.Meta(max_length=webhooks.RETRY_DELAYS_MAX)] | None = None
    """Seconds before each attempt after the first; null: the default of three attempts."""
    concurrency_max: Annotated[int, msgspec.Meta(ge=1, le=webhooks.CONCURRENCY_MAX)] = CONCURRENCY
    rate_per_s: Annotated[int, msgspec.Meta(ge=1, le=webhooks.RATE_PER_S_MAX)] = RATE_PER_S


class WebhookView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: UUID
    url: str
    events: list[str]
    description: str | None
    active: bool
    state: str
    """`active`, `inactive`, `quarantined` (only probed), or `disabled` (it answered 410, or not for days)."""
    retry_delays_s: list[int]
    concurrency_max: int
    rate_per_s: int
    secret: str | None = None
    """Shown once: when the webhook is registered."""


class WebhookList(msgspec.Struct, frozen=True):
    items: list[WebhookView]
    next_cursor: str | None = None


class RotateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_S_MAX)] = OVERLAP_S
    """How long messages are signed with the former secret too."""


class Rotated(msgspec.Struct, frozen=True, kw_only=True):
    secret: str
    previous_valid_until: datetime


class ReplayBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    since: Annotated[datetime, msgspec.Meta(tz=True)]


class Replaying(msgspec.Struct, frozen=True, kw_only=True):
    queued: int


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    delivery_id: UUID
    status: Literal["pending"] = "pending"


class DeliveryView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    event_id: UUID
    """Also the message's `webhook-id`."""
    event_type: str
    kind: str
    """`event`, or what it was sent once more for: `test`, `resend`, `replay`."""
    sequence: int | None
    """The number in the signed body: gap-free per webhook over its events."""
    status: Literal["pending", "delivered", "failed", "exhausted"]
    """`failed` will be tried again."""
    attempts: list[Attempt]
    next_attempt_at: datetime | None


class DeliveryList(msgspec.Struct, frozen=True):
    items: list[DeliveryView]
    next_cursor: str | None


class _Before(msgspec.Struct, frozen=True):
    n: int


def owner_of(caller: Caller) -> UUID | None:
    """Whose events the caller may have sent: one customer's, or everyone's (None)."""
    return None if caller.for_everyone else caller.user_id


def routes(
    streams: Streams[Webhook],
    deliveries: Deliveries,
    database: asyncpg.Pool,
    box: SecretBox,
    egress: Egress,
    cursors: CursorCodec,
    default_delays_s: tuple[int, ...],
) -> list[ControllerRouterHandler]:
    """The routes of webhooks."""

    async def settings_of(body: WebhookBody) -> Settings:
        await _check_url(body.url, egress)
        try:
            topics(body.events)
        except InvalidTopic as error:
            raise invalid_field("events", str(error), "invalid_topic") from None
        delays = default_delays_s if body.retry_delays_s is None else tuple(body.retry_delays_s)
        return Settings(
            url=body.url,
            events=tuple(dict.fromkeys(body.events)),
            description=body.description,
            active=body.active,
            retry_delays_s=delays,
            concurrency_max=body.concurrency_max,
            rate_per_s=body.rate_per_s,
        )

    async def own(webhook_id: UUID, caller: Caller) -> Webhook:
        state, _ = await streams.load(webhook_id)
        try:
            return webhooks.owned(state, owner_of(caller))
        except WebhookNotFound:
            raise _not_found() from None

    @post("/api/sync/webhooks", summary="Register a webhook; its secret is shown once", opt=OPS)
    async def create_webhook(caller: NamedDependency[Caller], data: JSONBody[WebhookBody]) -> Response[WebhookView]:
        owner_id = owner_of(caller)
        settings = await settings_of(data)
        if len(await webhooks_of(database, owner_id)) >= webhooks.PER_OWNER_MAX:
            raise Problem(422, "too_many_webhooks", f"At most {webhooks.PER_OWNER_MAX} webhooks are possible")
        webhook_id, secret = new_id(), _new_secret()
        sealed = box.seal(secret, str(webhook_id))
        decided = await streams.execute(
            webhook_id,
            lambda state: webhooks.register(state, webhook_id, owner_id, settings, sealed),
            event_id=new_id(),
            subject=owner_id,
            metadata=caller.metadata(),
        )
        state = "active" if settings.active else "inactive"
        view = _view(WebhookRow(webhook_id, owner_id, state, settings), secret=secret)
        return Response(view, status_code=201, headers={HEADER: consistency_token(decided.event_id)})

    @get("/api/sync/webhooks", summary="The caller's webhooks", opt=OPS)
    async def list_webhooks(caller: NamedDependency[Caller], caught_up: NamedDependency[CaughtUp]) -> WebhookList:
        return WebhookList([_view(row) for row in await webhooks_of(database, owner_of(caller))])

    @get("/api/sync/webhooks/{webhook_id:uuid}", summary="One webhook", opt=OPS)
    async def get_webhook(caller: NamedDependency[Caller], webhook_id: FromPath[UUID]) -> WebhookView:
        return _view_of(await own(webhook_id, caller))

    @put("/api/sync/webhooks/{webhook_id:uuid}", summary="Change a webhook", opt=OPS)
    async def change_webhook(
        caller: NamedDependency[Caller], webhook_id: FromPath[UUID], data: JSONBody[WebhookBody]
    ) -> Response[WebhookView]:
        await own(webhook_id, caller)
        settings = await settings_of(data)
        event_id = new_id()
        try:
            await streams.execute(
                webhook_id,
                lambda state: webhooks.change(state, owner_of(caller), settings),
                event_id=event_id,
                subject=owner_of(caller),
                metadata=caller.metadata(),
            )
        except WebhookNotFound:
            raise _not_found() from None
        return Response(_view_of(await own(webhook_id, caller)), headers={})

    @delete("/api/sync/webhooks/{webhook_id:uuid}", summary="Delete a webhook", opt=OPS)
    async def delete_webhook(caller: NamedDependency[Caller], webhook_id: FromPath[UUID]) -> None:
        await own(webhook_id, caller)
        try:
            await streams.execute(
                webhook_id,
                lambda state: webhooks.delete(state, owner_of(caller)),
                event_id=new_id(),
                subject=owner_of(caller),
                metadata=caller.metadata(),
            )
        except WebhookNotFound:
            raise _not_found() from None

    @post(
        "/api/sync/webhooks/{webhook_id:uuid}/rotate-secret",
        status_code=200,
        summary="A new secret, shown once; the former one signs along for a while",
        opt=OPS,
    )
    async def rotate_webhook_secret(
        caller: NamedDependency[Caller], webhook_id: FromPath[UUID], data: JSONBody[RotateBody | None] = None
    ) -> Rotated:
        await own(webhook_id, caller)
        secret = _new_secret()
        until = datetime.now(UTC) + timedelta(seconds=(data or RotateBody()).overlap_s)
        sealed = box.seal(secret, str(webhook_id))
        try:
            await streams.execute(
                webhook_id,
                lambda state: webhooks.rotate(state, owner_of(caller), sealed, until),
                event_id=new_id(),
                subject=owner_of(caller),
                metadata=caller.metadata(),
            )
        except WebhookNotFound:
            raise _not_found() from None
        return Rotated(secret=secret, previous_valid_until=until)

    @get(
        "/api/sync/webhooks/{webhook_id:uuid}/deliveries",
        summary="What was sent or is to be sent, newest first",
        opt=OPS,
    )
    async def list_deliveries(
        caller: NamedDependency[Caller],
        webhook_id: FromPath[UUID],
        status: FromQuery[Literal["pending", "delivered", "failed", "exhausted"] | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, QueryParameter(max_length=2048)] = None,
    ) -> DeliveryList:
        await own(webhook_id, caller)
        purpose = f"deliveries:{webhook_id}:{status}"
        before = None
        if cursor is not None:
            before = cursors.decode(cursor, _Before, purpose=purpose, caller=caller.user_id).n
        rows = await deliveries.page(webhook_id, before=before, status=status, limit=limit)
        following = None
        if len(rows) == limit:
            following = cursors.encode(_Before(rows[-1].n), purpose=purpose, caller=caller.user_id)
        return DeliveryList([_delivery(row) for row in rows], following)

    @post("/api/sync/webhooks/{webhook_id:uuid}/test", status_code=202, summary="Send a test message", opt=OPS)
    async def test_webhook(caller: NamedDependency[Caller], webhook_id: FromPath[UUID]) -> Queued:
        await own(webhook_id, caller)
        event_id = new_id()
        body = msgspec.json.encode(
            {
                "webhookid": str(webhook_id),
                "timestamp": datetime.now(UTC),
                "specversion": "1.0",
                "id": str(event_id),
                "source": "/sangam/sync",
                "type": "webhook.test",
                "data": {"webhook_id": str(webhook_id)},
            }
        )[1:]
        return _queued(await deliveries.test(webhook_id, event_id, body))

    @post(
        "/api/sync/webhooks/{webhook_id:uuid}/deliveries/{delivery_id:uuid}/resend",
        status_code=202,
        summary="Send one delivery again, under the same message id",
        opt=OPS,
    )
    async def resend_delivery(
        caller: NamedDependency[Caller], webhook_id: FromPath[UUID], delivery_id: FromPath[UUID]
    ) -> Queued:
        await own(webhook_id, caller)
        return _queued(await deliveries.resend(webhook_id, delivery_id))

    @post(
        "/api/sync/webhooks/{webhook_id:uuid}/replay",
        status_code=202,
        summary="Send everything since then again, in order",
        opt=OPS,
    )
    async def replay_webhook(
        caller: NamedDependency[Caller], webhook_id: FromPath[UUID], data: JSONBody[ReplayBody]
    ) -> Replaying:
        await own(webhook_id, caller)
        queued = await deliveries.replay(webhook_id, data.since)
        if queued is None:
            raise Problem(409, "replay_under_way", "The replay before this one has not come to its end")
        return Replaying(queued=queued)

    return [
        create_webhook,
        list_webhooks,
        get_webhook,
        change_webhook,
        delete_webhook,
        rotate_webhook_secret,
        list_deliveries,
        test_webhook,
        resend_delivery,
        replay_webhook,
    ]


async def _check_url(url: str, egress: Egress) -> None:
    """Refuses early what would be refused when connecting.

    Raises:
        Problem: 422 `url_not_allowed`.
    """
    try:
        await egress.check_host(url)
    except NotAllowed as error:
        raise Problem(
            422,
            "url_not_allowed",
            "Webhooks are sent to public addresses by https",
            errors=[{"field": "url", "message": str(error)}],
        ) from None


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _queued(delivery_id: UUID | None) -> Queued:
    if delivery_id is None:
        raise Problem(404, "delivery_not_found", "There is no such delivery")
    return Queued(delivery_id=delivery_id)


def _not_found() -> Problem:
    return Problem(404, "webhook_not_found", "There is no such webhook")


def _view_of(webhook: Webhook) -> WebhookView:
    assert webhook.webhook_id is not None
    assert webhook.settings is not None
    return _view(WebhookRow(webhook.webhook_id, webhook.owner_id, webhook.state, webhook.settings))


def _view(row: WebhookRow, secret: str | None = None) -> WebhookView:
    settings = row.settings
    return WebhookView(
        id=row.webhook_id,
        url=settings.url,
        events=list(settings.events),
        description=settings.description,
        active=settings.active,
        state=row.state,
        retry_delays_s=list(settings.retry_delays_s),
        concurrency_max=settings.concurrency_max,
        rate_per_s=settings.rate_per_s,
        secret=secret,
    )


def _delivery(row: DeliveryRow) -> DeliveryView:
    return DeliveryView(
        id=row.delivery_id,
        event_id=row.event_id,
        event_type=row.event_type,
        kind=row.kind,
        sequence=row.sequence,
        status=row.status,  # type: ignore[arg-type]
        attempts=row.attempts,
        next_attempt_at=row.next_attempt_at,
    )
