"""What is usual for this customer, from their own history, by statistics that a few odd months do not move. Pure.

Median and median absolute deviation (MAD); a value's robust z-score is (x - median) / (1.4826 × MAD), and
3.5 is the mark of an outlier (Iglewicz and Hoaglin, *How to Detect and Handle Outliers*, ASQC 1993). 1.4826
makes the MAD of normally distributed values their standard deviation.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from statistics import median
from typing import NamedTuple

from wealth.picture import MonthFlow

MAD_TO_SIGMA = 1.4826
SPREAD_MIN = 0.2
INCOME = frozenset({"salary", "interest", "other"})
"""Categories whose credits are income. A credit of `other` may be a refund; it is small where it is."""
NOT_EXPENSES = frozenset({"transfer", "investment"})
"""Categories whose debits move the customer's own money."""


class Usual(NamedTuple):
    """A series' centre and spread, in paise."""

    centre: float
    sigma: float
    months: int

    def z(self, value: float) -> float:
        """How many robust standard deviations above the centre."""
        return (value - self.centre) / self.sigma


class Month(NamedTuple):
    """What came in and went out of the bank accounts in a month, own money's moves left out."""

    month: date
    income_minor: int
    expenses_minor: int
    emi_minor: int
    salary_minor: int


def robust(values: Sequence[int], *, spread_min: float) -> Usual:
    """Centre and spread of `values`. `spread_min` keeps a series without any spread from making every rupee odd."""
    centre = median(values)
    deviation = median(abs(value - centre) for value in values)
    return Usual(float(centre), max(MAD_TO_SIGMA * deviation, spread_min), len(values))


def months_of(flows: Sequence[MonthFlow]) -> list[Month]:
    """One row per month from the first with postings to the last, in order; months without any are zero."""
    if not flows:
        return []
    sums: dict[date, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for flow in flows:
        month = sums[flow.month]
        if flow.category in INCOME:
            month[0] += flow.in_minor
        if flow.category not in NOT_EXPENSES:
            month[1] += flow.out_minor
        if flow.category == "emi":
            month[2] += flow.out_minor
        if flow.category == "salary":
            month[3] += flow.in_minor
    found = []
    month_day, last = min(sums), max(sums)
    while month_day <= last:
        found.append(Month(month_day, *sums[month_day]))
        month_day = next_month(month_day)
    return found


def next_month(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def month_before(month: date) -> date:
    return date(month.year - (month.month == 1), (month.month - 2) % 12 + 1, 1)


def full_months(months: Sequence[Month], today: date) -> list[Month]:
    """Without the month that is under way."""
    return [month for month in months if month.month < today.replace(day=1)]


def typical_expenses(months: Sequence[Month], today: date, window: int = 6) -> int | None:
    """The median month's expenses over the last full months; None before there is one."""
    recent = [month.expenses_minor for month in full_months(months, today)[-window:]]
    return int(median(recent)) if recent else None


def typical_income(months: Sequence[Month], today: date, window: int = 6) -> int | None:
    """The median month's income over the last full months; None before there is one."""
    recent = [month.income_minor for month in full_months(months, today)[-window:]]
    return int(median(recent)) if recent else None


class Anomaly(NamedTuple):
    """A month's spending in a category that is far from the customer's own usual."""

    month: date
    category: str
    spent_minor: int
    usual_minor: int
    z: float


def spending_anomalies(
    flows: Sequence[MonthFlow],
    month: date,
    *,
    z_min: float = 3.5,
    months_min: int = 3,
    material_share: float = 0.15,
    excess_minor_min: int = 2_000_00,
    window: int = 12,
) -> list[Anomaly]:
    """The categories whose spending in `month` is anomalous against the months before it.

    Besides being an outlier, the excess must be material: a share of the customer's usual expenses in all, and a sum
    worth their attention. A MAD of a few months is itself uncertain, so the spread is never taken below
    `SPREAD_MIN` of the centre.
    """
    by_category: dict[str, dict[date, int]] = defaultdict(dict)
    for flow in flows:
        if flow.category not in NOT_EXPENSES:
            by_category[flow.category][flow.month] = flow.out_minor
    known = sorted({flow.month for flow in flows if flow.month < month})[-window:]
    total = median(sum(spent.get(m, 0) for spent in by_category.values()) for m in known) if known else 0
    found = []
    for category, spent in by_category.items():
        now = spent.get(month, 0)
        if not now or len(known) < months_min:
            continue
        before = [spent.get(m, 0) for m in known]
        usual = robust(before, spread_min=SPREAD_MIN * median(before) + 1)
        excess = now - usual.centre
        if usual.z(now) >= z_min and excess >= material_share * total and excess >= excess_minor_min:
            found.append(Anomaly(month, category, now, int(usual.centre), usual.z(now)))
    return sorted(found, key=lambda anomaly: -anomaly.z)


def salary_streak(months: Sequence[Month], today: date) -> int:
    """For how many months without a gap a salary has come, up to the last full month (or this one)."""
    streak = 0
    for month in reversed(months):
        if month.salary_minor > 0:
            streak += 1
        elif month.month < today.replace(day=1):
            break
    return streak
