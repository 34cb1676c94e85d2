"""The read models of this service, each whole in its own module."""

from events.projections import Projection

from sync_gateway.projections.feed import FeedProjection
from sync_gateway.projections.feed_status import FeedStatusProjection


def projections() -> list[Projection]:
    """All of them, in the order they are applied; they share one consumer and one position."""
    return [FeedProjection(), FeedStatusProjection()]
