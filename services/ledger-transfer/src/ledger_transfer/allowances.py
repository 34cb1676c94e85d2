"""Changing the limits: lower at once, higher with step-up. Pure decider."""

from datetime import datetime

import msgspec
from events.contracts.ledger import LimitsChanged
from events.contracts.registry import Event

from ledger_transfer.limits import Limits
from ledger_transfer.state import LedgerState
from ledger_transfer.transfers import Clearance, StepUp, StepUpRequired, cleared

CURRENCY = "INR"
"""What limits are stated in. A transfer in another currency counts against the same numbers of its own minor units."""


class NewLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Minor units; what is None stays as it is. Zero lets nothing move."""

    daily_minor: int | None = None
    weekly_minor: int | None = None
    monthly_minor: int | None = None


def change_limits(state: LedgerState, wanted: NewLimits, step_up: StepUp | None, now: datetime) -> list[Event]:
    """The new limits; nothing where they are as wanted.

    Raises:
        StepUpRequired: a limit is raised without a token made out for the largest limit raised.
    """
    old = state.limits
    new = Limits(
        daily_minor=old.daily_minor if wanted.daily_minor is None else wanted.daily_minor,
        weekly_minor=old.weekly_minor if wanted.weekly_minor is None else wanted.weekly_minor,
        monthly_minor=old.monthly_minor if wanted.monthly_minor is None else wanted.monthly_minor,
    )
    if new == old:
        return []
    raised = [
        after
        for before, after in zip(msgspec.structs.astuple(old), msgspec.structs.astuple(new), strict=True)
        if after > before
    ]
    return [
        LimitsChanged(
            daily_minor=new.daily_minor,
            weekly_minor=new.weekly_minor,
            monthly_minor=new.monthly_minor,
            currency=CURRENCY,
            step_up_jti=_raise_cleared(state, max(raised), step_up) if raised else None,
            changed_at=now,
        )
    ]


def _raise_cleared(state: LedgerState, largest_minor: int, step_up: StepUp | None) -> str | None:
    payee = step_up.to_account_id if step_up is not None else None
    if payee is not None and payee not in state.accounts:
        raise StepUpRequired(largest_minor, CURRENCY, None, "mismatch")
    return cleared(state, largest_minor, CURRENCY, payee, Clearance(threshold_minor=0, step_up=step_up))
