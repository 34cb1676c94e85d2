"""The read models of this service: their tables, and how events change them."""

from events.projections import Projection

from wealth.projections.noticed import NoticedProjection
from wealth.projections.timeline import TimelineProjection

PROJECTIONS: tuple[Projection, ...] = (TimelineProjection(), NoticedProjection())
"""All of them: one consumer applies them in one transaction, so that they always agree."""
