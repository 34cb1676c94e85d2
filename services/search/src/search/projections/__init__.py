"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from search.projections.document import DocumentProjection

PROJECTIONS: tuple[Projection, ...] = (DocumentProjection(),)
"""All of them: one consumer applies them in one transaction, so that they always agree."""
