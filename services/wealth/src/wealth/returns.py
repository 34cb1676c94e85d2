"""Returns of a portfolio: time-weighted, money-weighted, and how deep it fell. Pure.

Amounts are integers of paise; rates are floats, because a rate is no money. Where a rate does not exist the
answer is None with the reason, never 0.

Sources: GIPS Standards for Firms (CFA Institute, 2020) and its guidance statement on calculation methodology
for time-weighted returns; Dietz, *Pension Funds: Measuring Investment Performance* (1966) and the
time-weighted variant of the Bank Administration Institute (1968), known as Modified Dietz; Microsoft's
definition of XIRR (actual days over 365), solved by Newton's method with bisection as its net.
"""

from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyxirr
from numpy.typing import NDArray

DAYS_OF_A_YEAR = 365.0
"""Excel's XIRR counts every year as 365 days; we do the same, so that a reader can check us with a spreadsheet."""

_GRID = np.linspace(np.log(1e-9), np.log(1e7), 1_200)
"""Where several roots are possible they are looked for between a loss of all but a billionth and 10⁷ a year."""
_BISECTIONS = 52


class Rate(NamedTuple):
    """A rate as a fraction (0.05 is 5 %), or None and why there is none."""

    value: float | None
    reason: str | None = None


class InternalRates(NamedTuple):
    """Every annual rate at which the flows are worth nothing today, rising. Empty with a reason."""

    roots: tuple[float, ...]
    reason: str | None = None

    @property
    def ambiguous(self) -> bool:
        """Several rates explain the same flows: none of them is *the* return."""
        return len(self.roots) > 1

    @property
    def rate(self) -> float | None:
        """The one rate; None when there is none or several."""
        return self.roots[0] if len(self.roots) == 1 else None


def modified_dietz(start: int, end: int, flows: Sequence[tuple[float, int]]) -> Rate:
    """The gain over the average capital: (end - start - Σ flow) / (start + Σ weight × flow).

    A flow's weight is the share of the period it was there for: (days in period - day of flow) / days in
    period, with flows at the end of their day (GIPS, calculation methodology; BAI 1968).
    """
    capital = start + sum(weight * flow for weight, flow in flows)
    if capital <= 0:
        return Rate(None, "the average capital of the period was not positive")
    return Rate((end - start - sum(flow for _, flow in flows)) / capital)


def link(returns: Sequence[float]) -> float:
    """Returns of successive periods as one: Π (1 + r) - 1 (GIPS: periodic returns are geometrically linked)."""
    return float(np.prod(1.0 + np.asarray(returns, dtype=np.float64)) - 1.0)


def time_weighted(values: NDArray[np.int64], flows: NDArray[np.int64]) -> Rate:
    """The true time-weighted return of daily valuations, linked over the days (GIPS).

    `values[0]` is the value before the first day; `flows[i]` came in on the day that ended at `values[i + 1]`.
    Flows count at the end of their day: what was there in the morning earns the day's gain. Where nothing was
    there in the morning, the day's flow was what could earn (otherwise the first day could have no return).
    """
    if len(values) < 2 or not values.any():
        return Rate(None, "there was nothing to earn a return")
    morning = values[:-1].astype(np.float64)
    gain = (values[1:] - values[:-1] - flows).astype(np.float64)
    base = np.where(morning > 0, morning, morning + flows)
    lost = (base <= 0) & ((gain != 0) | (values[1:] != 0))
    if lost.any():
        return Rate(None, "the value was zero or negative on some day of the period")
    factors = 1.0 + np.divide(gain, base, out=np.zeros_like(gain), where=base > 0)
    if (factors < 0).any():
        return Rate(None, "more was lost on some day than was there")
    return Rate(float(np.prod(factors) - 1.0))


def drawdown_max(cumulative: Sequence[float]) -> float:
    """The deepest fall from a peak, as a share of that peak, of a series of cumulative returns.

    max over t of (peak(t) - w(t)) / peak(t), with w = 1 + cumulative return and peak(t) the highest w up to t
    (Bacon, *Practical Portfolio Performance Measurement and Attribution*, 2nd ed., 4.3). Above 1 when more
    than everything was lost.
    """
    wealth = 1.0 + np.asarray(cumulative, dtype=np.float64)
    if len(wealth) == 0:
        return 0.0
    peaks = np.maximum.accumulate(np.maximum(wealth, 0.0))
    falls = np.divide(peaks - wealth, peaks, out=np.zeros_like(wealth), where=peaks > 0)
    return float(falls.max())


def xirr(flows: Sequence[tuple[date, int]]) -> InternalRates:
    """The annual rates r with Σ flow / (1 + r)^(days / 365) = 0: money put in negative, taken out positive.

    Flows of one day are taken together. By Descartes' rule of signs there is exactly one rate above -100 % when
    the flows change their sign once in order of time: pyxirr finds it (Newton's method from several starts, then
    Brent's). Otherwise every root on a logarithmic grid of 1 + r is bracketed and bisected, and all are given.
    """
    by_day: dict[date, int] = {}
    for day, amount in flows:
        by_day[day] = by_day.get(day, 0) + amount
    ordered = [(day, amount) for day, amount in sorted(by_day.items()) if amount]
    signs = [amount > 0 for _, amount in ordered]
    if len(set(signs)) < 2:
        return InternalRates((), "money went one way only")
    changes = sum(a != b for a, b in pairwise(signs))
    if changes == 1:
        found = pyxirr.xirr([day for day, _ in ordered], [float(amount) for _, amount in ordered], silent=True)
        if found is not None and np.isfinite(found):
            return InternalRates((float(found),))
    roots = _all_roots(ordered)
    return InternalRates(roots, None if roots else "no rate between -100 % and 10⁹ % explains these flows")


def _all_roots(flows: Sequence[tuple[date, int]]) -> tuple[float, ...]:
    first = flows[0][0]
    years = np.array([(day - first).days for day, _ in flows], dtype=np.float64) / DAYS_OF_A_YEAR
    amounts = np.array([amount for _, amount in flows], dtype=np.float64)
    # Discounted to the middle, or (1 + r)^-12 would drown everything at the ends of the grid.
    middle = years[-1] / 2

    def worth(log_rate: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = np.exp(np.outer(log_rate, middle - years)) @ amounts
        return product

    at = worth(_GRID)
    roots = [float(np.expm1(_GRID[i])) for i in np.nonzero(at == 0)[0]]
    for index in np.nonzero(at[:-1] * at[1:] < 0)[0]:
        low, high = _GRID[index], _GRID[index + 1]
        low_positive = at[index] > 0
        for _ in range(_BISECTIONS):
            centre = (low + high) / 2
            if (worth(np.array([centre]))[0] > 0) == low_positive:
                low = centre
            else:
                high = centre
        roots.append(float(np.expm1((low + high) / 2)))
    return tuple(sorted(roots))
