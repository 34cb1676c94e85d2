"""What a rule's terms amount to: caps where the customer set none, and the worst case. Pure.

The worst case is stated before the customer agrees, and holds whatever happens: a firing never moves more than its
single amount, and never more than is left of its caps. A run of a schedule counts on the day it was due; one that is
made late, after an outage, may fall on the same day as the next.
"""

from typing import Final

import msgspec
from events.contracts.ledger_rules import (
    BalanceBelow,
    FixedAmount,
    Percentage,
    PercentOfTrigger,
    RuleTerms,
    Scheduled,
    ToTarget,
    WorstCase,
)

DAYS_PER_WEEK: Final = 7
DAYS_PER_MONTH_MAX: Final = 31

_RUNS: Final = {"day": (1, DAYS_PER_WEEK, DAYS_PER_MONTH_MAX), "week": (1, 1, 5), "month": (1, 1, 1)}
"""The most runs of a schedule in a day, a week and a month."""


class Unusable(Exception):
    """Terms that can never do what they say. `field` is the one of the request to mend."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def usable(terms: RuleTerms) -> None:
    """Checks what the types cannot say.

    Raises:
        Unusable: the parts contradict each other.
    """
    trigger, amount, caps = terms.trigger, terms.amount, terms.caps
    if isinstance(amount, PercentOfTrigger) and not isinstance(trigger, Percentage):
        raise Unusable("amount.type", "percent_of_trigger needs a percentage trigger")
    if (
        isinstance(amount, ToTarget)
        and isinstance(trigger, BalanceBelow)
        and amount.target_minor < trigger.threshold_minor
    ):
        raise Unusable("amount.target", "is below the threshold: the rule would never close the gap")
    if isinstance(amount, FixedAmount):
        for field, cap_minor in (("per_day", caps.per_day_minor), ("per_month", caps.per_month_minor)):
            if cap_minor is not None and amount.amount_minor > cap_minor:
                raise Unusable(f"caps.{field}", "is below the amount: the rule could never fire")


def with_default_caps(terms: RuleTerms, threshold_minor: int) -> RuleTerms:
    """The terms with a cap per day, where they have none and no calendar bounds how often the rule fires.

    The cap is the step-up threshold, or the rule's single amount where that is more: so the simple rule needs no
    step-up, and whoever wants more says how much.
    """
    caps = terms.caps
    if caps.per_day_minor is not None or isinstance(terms.trigger, Scheduled):
        return terms
    per_day_minor = max(threshold_minor, _single_minor(terms) or 0)
    return msgspec.structs.replace(terms, caps=msgspec.structs.replace(caps, per_day_minor=per_day_minor))


def worst_case(terms: RuleTerms) -> WorstCase:
    """The most the rule takes per day, week and month. Its caps are those of `with_default_caps`."""
    caps, single_minor = terms.caps, _single_minor(terms)
    if isinstance(terms.trigger, Scheduled):
        assert single_minor is not None, "only a percentage has no single amount"
        run_minor = single_minor if caps.per_day_minor is None else min(single_minor, caps.per_day_minor)
        day, week, month = (run_minor * runs for runs in _RUNS[terms.trigger.every])
    else:
        assert caps.per_day_minor is not None, "nothing else bounds how often it fires"
        day = caps.per_day_minor
        if caps.executions_per_day is not None and single_minor is not None:
            day = min(day, single_minor * caps.executions_per_day)
        week, month = day * DAYS_PER_WEEK, day * DAYS_PER_MONTH_MAX
    if (per_month_minor := caps.per_month_minor) is not None:
        # A week may touch two months.
        day, week, month = min(day, per_month_minor), min(week, 2 * per_month_minor), min(month, per_month_minor)
    return WorstCase(per_day_minor=day, per_week_minor=week, per_month_minor=month)


def _single_minor(terms: RuleTerms) -> int | None:
    """The most that one firing moves; None where the credit decides."""
    match terms.amount:
        case FixedAmount(amount_minor=amount):
            return amount
        case ToTarget(target_minor=target):
            return target
        case PercentOfTrigger():
            return None
