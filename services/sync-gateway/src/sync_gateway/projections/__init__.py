"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from sync_gateway.projections.feed import FeedProjection
from sync_gateway.projections.feed_status import FeedStatusProjection

PROJECTIONS: tuple[Projection, ...] = (FeedProjection(), FeedStatusProjection())
"""All of them: one consumer applies them in one transaction, so that they always agree."""
