"""`/api/sync/feeds`: its route, their shapes, and which refusal is which status."""

from typing import Annotated, Any

import msgspec
from chassis.problems import Problem, invalid_field, malformed_json, unavailable
from chassis.request import AnyRequest, invalid_body, metadata_of
from litestar import post
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from sync_gateway.batches import split_items
from sync_gateway.feeds import PLATFORMS, Platform
from sync_gateway.intake import Busy, FeedIntake, ItemResult, Unavailable
from sync_gateway.signatures import FeedSignatures, InvalidSignature

BATCH_BYTES_MAX = 1024 * 1024
BATCH_ITEMS_MAX = 1000
_SIGNATURE_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


class Batch(msgspec.Struct, frozen=True):
    """A feed batch. Items are looked at one by one: a bad one must not cost its neighbours."""

    items: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=BATCH_ITEMS_MAX)]


class BatchResult(msgspec.Struct, frozen=True):
    items: list[ItemResult]
    """One result per item, in the order given."""


def routes(
    intake: FeedIntake,
    signatures: FeedSignatures,
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
    async def take_feed_batch(request: AnyRequest, platform: FromPath[str]) -> BatchResult:
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

    return [take_feed_batch]


_batches = msgspec.json.Decoder(Batch)


def _items(body: bytes) -> list[Any]:
    try:
        return [_item(item) for item in _batches.decode(body).items]
    except msgspec.ValidationError as error:
        raise invalid_body(error) from None
    except msgspec.DecodeError:
        raise malformed_json() from None
    except RecursionError:
        # Somewhere it is nested too deeply. That is the fault of one item, not of its neighbours.
        try:
            items = split_items(body)
        except ValueError as error:
            raise malformed_json(str(error)) from None
        if len(items) > BATCH_ITEMS_MAX:
            raise invalid_field("items", f"at most {BATCH_ITEMS_MAX} items are possible") from None
        return [_item(item) for item in items]


def _item(item: msgspec.Raw | bytes) -> Any:
    """The item decoded; None, which is no item, where it holds what nothing can hold: 1e999, or a thousand levels."""
    try:
        return msgspec.json.decode(item)
    except (msgspec.DecodeError, RecursionError):
        return None


def _platform(name: str) -> Platform:
    for platform in PLATFORMS:
        if platform == name:
            return platform
    raise Problem(404, "unknown_platform", "There is no such platform")
