"""All figures of a customer from their picture: net worth, performance, health, insights. Pure, and heavy enough to
be done off the event loop."""

from typing import Any, NamedTuple

from chassis.money import rupees

from wealth import behaviour, generators
from wealth.health import Health, Measured, assess
from wealth.insights import Insight, Shown, Thresholds, settle
from wealth.networth import NetWorth, figures
from wealth.performance import PERIODS, History, Performance, category_performance, history, performance
from wealth.picture import Picture

SAVINGS_RATE_MONTHS = 3


class Computed(NamedTuple):
    """One customer's figures at one position."""

    picture: Picture
    worth: NetWorth
    whole: History
    performance: dict[int, Performance]
    health: Health
    found: tuple[Insight, ...]
    shown: tuple[Shown, ...]
    """What was found without what the customer dismissed."""


def compute(picture: Picture, rules: Thresholds) -> Computed:
    linked: Any = picture.linked
    worth = figures(linked, [item.valued() for item in picture.items], picture.realized)
    whole = history(picture.days, picture.today)
    found = tuple(generators.find(generators.facts_of(picture, worth, rules)))
    return Computed(
        picture=picture,
        worth=worth,
        whole=whole,
        performance={days: performance(whole, days) for days in PERIODS},
        health=assess(measure(picture, whole)),
        found=found,
        shown=tuple(settle(picture.user_id, found, picture.noticed)),
    )


def measure(picture: Picture, whole: History) -> dict[str, Measured]:
    """The figures that the health score rests on."""
    months = behaviour.months_of(picture.months)
    return {
        "savings_rate": _savings_rate(picture, months),
        "debt_to_income": _debt_to_income(picture, months),
        "diversification": _diversification(picture),
        "trading_performance": _trading(picture, whole),
        "emergency_fund": _emergency_fund(picture, months),
    }


def _savings_rate(picture: Picture, months: list[behaviour.Month]) -> Measured:
    recent = behaviour.full_months(months, picture.today)[-SAVINGS_RATE_MONTHS:]
    income = sum(month.income_minor for month in recent)
    expenses = sum(month.expenses_minor for month in recent)
    if income <= 0:
        return Measured(None, "No income has been seen in a full month yet.")
    return Measured(
        100 * (income - expenses) / income,
        f"In the last {_months(len(recent))} {rupees(income)} came in and {rupees(expenses)} went out.",
    )


def _debt_to_income(picture: Picture, months: list[behaviour.Month]) -> Measured:
    income = behaviour.typical_income(months, picture.today)
    if not income or income <= 0:
        return Measured(None, "No income has been seen in a full month yet.")
    loans = [item for item in picture.ours() if item.asset_class == "loan" and item.value_minor < 0]
    emi = sum(int(loan.price) for loan in loans)
    if not loans and (recent := behaviour.full_months(months, picture.today)[-SAVINGS_RATE_MONTHS:]):
        emi = sum(month.emi_minor for month in recent) // len(recent)
    return Measured(100 * emi / income, f"EMIs of {rupees(emi)} a month against a usual income of {rupees(income)}.")


def _diversification(picture: Picture) -> Measured:
    sums: dict[str, int] = {}
    for item in picture.ours():
        if item.asset_class in ("savings", "current", "trading_wallet"):
            name = "cash"
        elif item.asset_class == "fixed_deposit":
            name = "deposits"
        else:
            name = item.underlying or item.label
        if item.asset_class != "loan" and item.value_minor > 0:
            sums[name] = sums.get(name, 0) + item.value_minor
    total = sum(sums.values())
    if total <= 0:
        return Measured(None, "There are no assets to spread.")
    effective = 1 / sum((amount / total) ** 2 for amount in sums.values())
    held = f"{len(sums)} holding{'s' if len(sums) > 1 else ''}"
    return Measured(effective, f"{held}, as spread as {effective:.1f} equal ones.")


def _trading(picture: Picture, whole: History) -> Measured:
    if "vyomo" not in picture.linked:
        return Measured(None, "No trading account is linked.")
    year = PERIODS[-1]
    if not any((picture.now - trade.at).days < year for trade in picture.trades):
        return Measured(None, "There was no trade in the last year.")
    rate = category_performance(whole, "trading", year)
    if rate.value is None:
        return Measured(None, f"There is no return of the trading account: {rate.reason}.")
    return Measured(100 * rate.value, f"Wallet and positions returned {100 * rate.value:.2f}% in the last year.")


def _emergency_fund(picture: Picture, months: list[behaviour.Month]) -> Measured:
    expenses = behaviour.typical_expenses(months, picture.today)
    if not expenses:
        return Measured(None, "No full month of expenses has been seen yet.")
    liquid = picture.sum_of("savings", "current", "fixed_deposit")
    return Measured(
        max(liquid, 0) / expenses,
        f"{rupees(liquid)} in accounts and deposits against usual expenses of {rupees(expenses)} a month.",
    )


def _months(count: int) -> str:
    return f"{count} full months" if count != 1 else "full month"
