"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from notifier.projections.inbox import InboxProjection

PROJECTIONS: tuple[Projection, ...] = (InboxProjection(),)
"""All of them: one consumer applies them in one transaction, so that they always agree."""
