"""The one way every decision on a customer's ledger is made. Pure."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from events.contracts.registry import Event
from events.decisions import Foreseen

from ledger_transfer import replenish
from ledger_transfer.holds import lapsed
from ledger_transfer.state import Decision, LedgerState, fold


def decide(
    state: LedgerState, event_id: UUID, now: datetime, step: Callable[[Decision], None]
) -> Foreseen[LedgerState]:
    """The events of one append: what `step` records, what the rules make of it, and the holds that have expired.

    Holds that have expired count as voided already, and their voiding is recorded with what was decided on it:
    another replica, whose clock is behind, cannot capture one of them any more.
    """
    decision = Decision(state, event_id=event_id, now=now, beforehand=lapsed(state, now))
    step(decision)
    if not decision.events:
        return Foreseen((), state)
    if decision.state.rules.rules:
        replenish.consequences(decision)
    if not decision.beforehand:
        return Foreseen(tuple(decision.events), decision.state)
    events = (*decision.events, *decision.beforehand)
    return Foreseen(events, fold(events, state))


def expire(state: LedgerState, event_id: UUID, now: datetime) -> list[Event]:
    """The events of the append that records expired holds; none where there are none."""
    decision = Decision(state, event_id=event_id, now=now)
    decision.record(*lapsed(state, now))
    if decision.events:
        replenish.consequences(decision)
    return decision.events
