"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from sync_gateway.projections.conflict import ConflictProjection
from sync_gateway.projections.feed import FeedProjection
from sync_gateway.projections.feed_status import FeedStatusProjection
from sync_gateway.projections.platform_customer import PlatformCustomerProjection
from sync_gateway.projections.sync_run import SyncRunProjection
from sync_gateway.projections.webhook import WebhookProjection

PROJECTIONS: tuple[Projection, ...] = (
    FeedProjection(),
    FeedStatusProjection(),
    PlatformCustomerProjection(),
    SyncRunProjection(),
    WebhookProjection(),
    ConflictProjection(),
)
"""All of them: one consumer applies them in one transaction, so that they always agree."""
