"""`/api/sync` and `/ws/sync`: routes, their shapes, and which refusal is which status."""

from datetime import datetime
from typing import Annotated, Any, Literal

import asyncpg
import msgspec
from chassis.problems import Problem, malformed_json, unavailable
from chassis.request import AnyRequest, invalid_body, metadata_of
from chassis.tokens import Caller
from litestar import WebSocket, get, post, websocket
from litestar.types import ControllerRouterHandler

from sync_gateway.feeds import PLATFORMS, Platform
from sync_gateway.intake import Busy, FeedIntake, ItemResult, Unavailable
from sync_gateway.projections.feed_status import PlatformStatus, platform_statuses
from sync_gateway.signatures import FeedSignatures, InvalidSignature
from sync_gateway.sockets import SyncSockets

BATCH_BYTES_MAX = 1024 * 1024
BATCH_ITEMS_MAX = 1000
_SIGNATURE_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Batch(msgspec.Struct, frozen=True):
    """A feed batch. Items are looked at one by one: a bad one must not cost its neighbours."""

    items: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=BATCH_ITEMS_MAX)]


class BatchResult(msgspec.Struct, frozen=True):
    items: list[ItemResult]
    """One result per item, in the order given."""


class PlatformHealth(msgspec.Struct, frozen=True, kw_only=True):
    platform: str
    state: Literal["never_heard", "heard"]
    """Whether the platform has ever sent an item."""
    items: int
    """Items accepted so far."""
    last_event_at: datetime | None
    """When the latest item was recorded; null before the first."""


class SyncHealth(msgspec.Struct, frozen=True):
    items: list[PlatformHealth]


def routes(
    database: asyncpg.Pool,
    intake: FeedIntake,
    signatures: FeedSignatures,
    sockets: SyncSockets,
) -> list[ControllerRouterHandler]:
    """The routes of this service."""

    @post(
        "/api/sync/feeds/{platform:str}",
        status_code=200,
        request_max_body_size=BATCH_BYTES_MAX,
        summary="A platform's signed batch of events",
        description="Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature` over the body"
        ' `{"items": [...]}` of at most 1,000 items.',
    )
    async def take_batch(request: AnyRequest, platform: str) -> BatchResult:
        known = _platform(platform)
        body = await request.body()
        try:
            headers = {name: request.headers.get(name, "") for name in _SIGNATURE_HEADERS}
            signatures.verify(known, headers, body)
        except InvalidSignature:
            raise Problem(
                401, "invalid_signature", "The batch is not signed by this platform, or not recently"
            ) from None
        try:
            results = await intake.take(
                known, _items(body), metadata_of(request, actor=f"platform:{known}", platform=known)
            )
        except Busy:
            raise Problem(
                429, "too_many_batches", "Earlier batches are still under way", headers={"Retry-After": "1"}
            ) from None
        except Unavailable:
            raise unavailable("The batch could not be stored; send it again") from None
        return BatchResult(results)

    @get("/api/sync/health", summary="What each platform has sent")
    async def get_health(caller: Caller) -> SyncHealth:
        statuses = await platform_statuses(database)
        return SyncHealth([_health(platform, statuses.get(platform)) for platform in PLATFORMS])

    @websocket("/ws/sync")
    async def sync(socket: WebSocket[Any, Any, Any]) -> None:
        await sockets.serve(socket)

    return [take_batch, get_health, sync]


_batches = msgspec.json.Decoder(Batch)


def _items(body: bytes) -> list[Any]:
    try:
        return [_item(item) for item in _batches.decode(body).items]
    except msgspec.ValidationError as error:
        raise invalid_body(error) from None
    except msgspec.DecodeError:
        raise malformed_json() from None
    except RecursionError:
        raise malformed_json("The body is nested too deeply") from None


def _item(item: msgspec.Raw) -> Any:
    """The item decoded; None, which is no item, where it holds a number that nothing can hold, such as 1e999."""
    try:
        return msgspec.json.decode(item)
    except msgspec.DecodeError:
        return None


def _platform(name: str) -> Platform:
    for platform in PLATFORMS:
        if platform == name:
            return platform
    raise Problem(404, "unknown_platform", "There is no such platform")


def _health(platform: str, status: PlatformStatus | None) -> PlatformHealth:
    if status is None:
        return PlatformHealth(platform=platform, state="never_heard", items=0, last_event_at=None)
    return PlatformHealth(platform=platform, state="heard", items=status.items, last_event_at=status.last_event_at)
