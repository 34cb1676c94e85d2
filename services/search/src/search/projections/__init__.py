"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection
from events.sealing import SubjectKeys

from search.projections.document import DocumentProjection


def projections(keys: SubjectKeys) -> tuple[Projection, ...]:
    """All of them: one consumer applies them in one transaction, so that they always agree."""
    return (DocumentProjection(keys),)


PROJECTIONS: tuple[Projection, ...] = (DocumentProjection(None),)
"""The same over a log without sealed texts, which need no keys."""
