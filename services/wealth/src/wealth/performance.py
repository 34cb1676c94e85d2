"""How the customer's money did over a period: gain told apart from money that came in or went out. Pure.

Every category has a value and a flow per day; its gain is what its value changed by beyond its flows. The
whole's value, flows and gain are the sums of the categories', so parts always sum to the whole, exactly:

    gain = end value - start value - net flows        (of each category, and so of the whole)

What counts as a flow of its category, in paise:

- banking: every posting but interest (a gain) and charges (a loss);
- deposits: the principal in, the payout out; the gain is the interest of a deposit that matured;
- trading (wallet and open positions together): payins and payouts; the gain is profit and loss, charges included;
- funds: what was paid for new units; units that leave, at the NAV stated with it;
- loans (negative): what is borrowed, and what is paid; the loss is the interest. An EMI debit pays the loans
  when a statement of a loan follows within `EMI_DAYS`; otherwise it is spending.

A move between two categories is a flow of both and cancels in the whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wealth.ledger_lines import EPOCH_DAY
from wealth.picture import ItemDays
from wealth.returns import InternalRates, Rate, drawdown_max, modified_dietz, time_weighted, xirr

PERIODS = (30, 90, 365)
CATEGORIES = ("banking", "deposits", "trading", "funds", "loans")
CATEGORY_OF = {
    "savings": "banking",
    "current": "banking",
    "fixed_deposit": "deposits",
    "trading_wallet": "trading",
    "option": "trading",
    "future": "trading",
    "equity": "trading",
    "fund": "funds",
    "loan": "loans",
}
"""The category of each class of item."""
EMI_DAYS = 10
"""How long an EMI debit waits for the statement of the loan that it paid."""


class CategoryReturn(NamedTuple):
    category: str
    start_minor: int
    end_minor: int
    net_flows_minor: int

    @property
    def gain_minor(self) -> int:
        return self.end_minor - self.start_minor - self.net_flows_minor


class Performance(NamedTuple):
    """A period's figures. Values and flows in paise, `series` at the end of each day."""

    days: int
    first_day: date
    """The day whose end the period starts from."""
    last_day: date
    categories: tuple[CategoryReturn, ...]
    gain_rate: Rate
    """Modified Dietz over the whole period."""
    twr: Rate
    xirr: InternalRates
    drawdown_max: float | None
    series: tuple[int, ...]

    @property
    def start_minor(self) -> int:
        return sum(category.start_minor for category in self.categories)

    @property
    def end_minor(self) -> int:
        return sum(category.end_minor for category in self.categories)

    @property
    def net_flows_minor(self) -> int:
        return sum(category.net_flows_minor for category in self.categories)

    @property
    def gain_minor(self) -> int:
        return sum(category.gain_minor for category in self.categories)


class History(NamedTuple):
    """Values and flows of every category at the end of each day, dense. Row 0 is the day before the first."""

    first_day: date
    values: Mapping[str, NDArray[np.int64]]
    flows: Mapping[str, NDArray[np.int64]]

    @property
    def days(self) -> int:
        return len(next(iter(self.values.values())))


def history(items: Sequence[ItemDays], today: date, days: int = PERIODS[-1] + EMI_DAYS) -> History:
    """The last `days` days up to and including `today` from sparse rows.

    An item's last row up to the first day gives what it began with. A clock ahead of ours reports of tomorrow:
    that counts today, or the end would not be the net worth.
    """
    first = today - timedelta(days=days)
    first_number = (first - EPOCH_DAY).days
    values = {category: np.zeros(days + 1, dtype=np.int64) for category in CATEGORIES}
    flows = {category: np.zeros(days + 1, dtype=np.int64) for category in CATEGORIES}
    emis = np.zeros(days + 1, dtype=np.int64)
    for category in CATEGORIES:
        held = [item for item in items if CATEGORY_OF[item.asset_class] == category]
        if not held:
            continue
        # All items of a category at once: most have few days, and a call of numpy costs more than ten of them.
        index = np.clip(_joined(item.days for item in held) - first_number, 0, days)
        levels = _joined(item.values for item in held)
        changes = np.diff(levels, prepend=0)
        begins = np.cumsum([0, *(len(item.days) for item in held)])[:-1]
        changes[begins] = levels[begins]  # an item's first value is no change of the item before it
        np.add.at(values[category], index, changes)
        within = index > 0
        np.add.at(flows[category], index[within], _joined(item.flows for item in held)[within])
        np.add.at(emis, index[within], _joined(item.emis for item in held)[within])
    for category in CATEGORIES:
        np.cumsum(values[category], out=values[category])
    flows["loans"] += _repayments(values["loans"], flows["loans"], emis)
    return History(first, values, flows)


def _joined(parts: Iterable[Sequence[int]]) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(parts), dtype=np.int64)


def _repayments(values: NDArray[np.int64], borrowed: NDArray[np.int64], emis: NDArray[np.int64]) -> NDArray[np.int64]:
    """What paid the loans each day their debt fell: the EMIs since the last fall, else the whole fall.

    What a debt grows by beyond what was borrowed is interest: no flow, a loss.
    """
    flows = np.zeros_like(values)
    last = 0
    fell = np.diff(values, prepend=values[0]) - borrowed
    fell[0] = 0
    for index in np.nonzero(fell > 0)[0]:
        paid = -int(emis[max(last, int(index) - EMI_DAYS) + (1 if last else 0) : index + 1].sum())
        flows[index] = paid or fell[index]
        last = int(index)
    return flows


def performance(whole: History, period_days: int) -> Performance:
    """The figures of the last `period_days` days of `whole`."""
    begin = whole.days - 1 - period_days
    first_day = whole.first_day + timedelta(days=begin)
    categories = tuple(
        CategoryReturn(
            category,
            int(whole.values[category][begin]),
            int(whole.values[category][-1]),
            int(whole.flows[category][begin + 1 :].sum()),
        )
        for category in CATEGORIES
    )
    values = _whole(whole.values, begin)
    flows = _whole(whole.flows, begin + 1)
    weighted = [((period_days - 1 - int(index)) / period_days, int(flows[index])) for index in np.nonzero(flows)[0]]
    last_day = first_day + timedelta(days=period_days)
    dated = [(first_day, -int(values[0]))]
    dated += [(first_day + timedelta(days=int(index) + 1), -int(flows[index])) for index in np.nonzero(flows)[0]]
    dated.append((last_day, int(values[-1])))
    gain_rate = modified_dietz(int(values[0]), int(values[-1]), weighted)
    twr = time_weighted(values, flows)
    return Performance(
        days=period_days,
        first_day=first_day,
        last_day=last_day,
        categories=categories,
        gain_rate=gain_rate,
        twr=twr,
        # Of a debt a rate can be computed, but it is the lender's.
        xirr=xirr(dated) if gain_rate.value is not None else InternalRates((), gain_rate.reason),
        drawdown_max=_drawdown(values, flows) if twr.value is not None else None,
        series=tuple(int(value) for value in values),
    )


def _whole(parts: Mapping[str, NDArray[np.int64]], begin: int) -> NDArray[np.int64]:
    """The sum over the categories, from row `begin` on."""
    total = np.zeros_like(parts[CATEGORIES[0]][begin:])
    for category in CATEGORIES:
        total += parts[category][begin:]
    return total


def _drawdown(values: NDArray[np.int64], flows: NDArray[np.int64]) -> float:
    morning = values[:-1].astype(np.float64)
    base = np.where(morning > 0, morning, morning + flows)
    gain = (values[1:] - values[:-1] - flows).astype(np.float64)
    factors = 1.0 + np.divide(gain, base, out=np.zeros_like(gain), where=base > 0)
    return drawdown_max(np.concatenate(([0.0], np.cumprod(factors) - 1.0)).tolist())


def category_performance(whole: History, category: str, period_days: int) -> Rate:
    """Modified Dietz of one category alone, e.g. of trading for the health score."""
    begin = whole.days - 1 - period_days
    values, flows = whole.values[category][begin:], whole.flows[category][begin + 1 :]
    weighted = [((period_days - 1 - int(index)) / period_days, int(flows[index])) for index in np.nonzero(flows)[0]]
    return modified_dietz(int(values[0]), int(values[-1]), weighted)
