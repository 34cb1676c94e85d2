"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from wealth.projections.holdings import HoldingsProjection

PROJECTIONS: tuple[Projection, ...] = (HoldingsProjection(),)
"""All of them: one consumer applies them in one transaction, so that they always agree."""
