"""The read models of this service, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from notifier.projections.contact import ContactProjection
from notifier.projections.inbox import InboxProjection
from notifier.projections.preference import PreferenceProjection

PROJECTIONS: tuple[Projection, ...] = (InboxProjection(), PreferenceProjection(), ContactProjection())
"""All of them: one consumer applies them in one transaction, so that they always agree."""
