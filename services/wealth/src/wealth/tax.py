"""Indian tax rules by the date they take effect, and what a customer's trades mean under them. Pure.

Sources: Income-tax Act 1961, s. 112A and s. 111A as amended by the Finance (No. 2) Act 2024 (12.5 % above
₹1,25,000 and 20 % from 23 July 2024; before: 10 % above ₹1,00,000 and 15 %), s. 2(42A) (12 months for listed
shares and equity funds), s. 43(5) (derivatives are non-speculative business), s. 44AB (audit limits; ₹10 crore
where receipts and payments are digital), s. 211 (instalments of advance tax) and s. 208 (from ₹10,000);
ICAI's Guidance Note on Tax Audit (2022) for the turnover of derivatives: the sum of profits and losses, each
taken as positive. The Income-tax Act 2025 keeps these rates for tax years from 1 April 2026.
General information from rules, not tax advice: it knows nothing of income outside of Sangam.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from wealth.ledger_lines import local_day, units_value_minor
from wealth.picture import FundPurchase, ItemNow, Trade


class CapitalGainsRule(NamedTuple):
    """Listed shares and equity funds."""

    since: date
    exempt_minor: int
    """Long-term gains up to this sum a financial year are free of tax."""
    long_term_percent: Decimal
    short_term_percent: Decimal


CAPITAL_GAINS: tuple[CapitalGainsRule, ...] = (
    CapitalGainsRule(date(2018, 4, 1), 1_00_000_00, Decimal(10), Decimal(15)),
    CapitalGainsRule(date(2024, 7, 23), 1_25_000_00, Decimal("12.5"), Decimal(20)),
)


class AuditRule(NamedTuple):
    """From which turnover accounts must be audited."""

    since: date
    turnover_minor: int


AUDIT: tuple[AuditRule, ...] = (
    AuditRule(date(2020, 4, 1), 5_00_00_000_00),
    AuditRule(date(2021, 4, 1), 10_00_00_000_00),
)


class Instalment(NamedTuple):
    """An advance-tax date: which cumulative share of the year's tax is due."""

    month: int
    day: int
    percent: int


ADVANCE_TAX: tuple[tuple[date, tuple[Instalment, ...]], ...] = (
    (
        date(2016, 4, 1),
        (Instalment(6, 15, 15), Instalment(9, 15, 45), Instalment(12, 15, 75), Instalment(3, 15, 100)),
    ),
)
ADVANCE_TAX_FROM_MINOR = 10_000_00
LONG_TERM_DAYS = 365
"""Held for more than twelve months: sold after the same date a year later."""


class Lot(NamedTuple):
    """What is left of a purchase, first in first out."""

    item: str
    label: str
    bought_on: date
    quantity: Decimal
    cost_minor: int
    value_minor: int

    @property
    def gain_minor(self) -> int:
        return self.value_minor - self.cost_minor


class YearGains(NamedTuple):
    """Realised in a financial year, in paise; losses are negative."""

    long_term_minor: int
    short_term_minor: int
    derivative_profit_minor: int
    derivative_turnover_minor: int
    """Σ |profit or loss| of each closing trade."""


def rule_on(day: date) -> CapitalGainsRule:
    return [rule for rule in CAPITAL_GAINS if rule.since <= day][-1]


def audit_turnover_on(day: date) -> int:
    return [rule.turnover_minor for rule in AUDIT if rule.since <= day][-1]


def financial_year(day: date) -> tuple[date, date]:
    """First and last day of the financial year (April to March) that `day` is in."""
    first = day.year if day.month >= 4 else day.year - 1
    return date(first, 4, 1), date(first + 1, 3, 31)


def next_instalment(today: date) -> tuple[date, Instalment]:
    """The next advance-tax date from `today` on."""
    table = [rows for since, rows in ADVANCE_TAX if since <= today][-1]
    dates = [(date(year, row.month, row.day), row) for year in (today.year, today.year + 1) for row in table]
    return min(entry for entry in dates if entry[0] >= today)


def is_long_term(bought_on: date, sold_on: date) -> bool:
    """Held for more than twelve months."""
    return sold_on > _a_year_after(bought_on)


def _a_year_after(day: date) -> date:
    try:
        return day.replace(year=day.year + 1)
    except ValueError:  # 29 February
        return day.replace(year=day.year + 1, day=28) + timedelta(days=1)


class _Held:
    __slots__ = ("bought_on", "cost", "quantity")

    def __init__(self, bought_on: date, quantity: int, cost: Decimal) -> None:
        self.bought_on = bought_on
        self.quantity = quantity
        self.cost = cost


def year_gains(trades: Sequence[Trade], today: date) -> tuple[YearGains, dict[str, deque[_Held]]]:
    """What was realised in the financial year of `today`, and the shares still held, by symbol.

    Shares leave first in, first out (CBDT circular 768 of 1998). `trades` come in order of time.
    """
    first, last = financial_year(today)
    held: dict[str, deque[_Held]] = defaultdict(deque)
    long_term = short_term = Decimal(0)
    profit = turnover = 0
    for trade in trades:
        day = local_day(trade.at)
        if trade.instrument != "equity":
            if trade.realized_minor is not None and first <= day <= last:
                profit += trade.realized_minor - trade.charges_minor
                turnover += abs(trade.realized_minor)
            continue
        if trade.quantity > 0:
            held[trade.symbol].append(_Held(day, trade.quantity, Decimal(trade.price_minor)))
            continue
        left = -trade.quantity
        while left and held[trade.symbol]:
            lot = held[trade.symbol][0]
            sold = min(left, lot.quantity)
            gain = sold * (trade.price_minor - lot.cost)
            if first <= day <= last:
                if is_long_term(lot.bought_on, day):
                    long_term += gain
                else:
                    short_term += gain
            lot.quantity -= sold
            left -= sold
            if lot.quantity == 0:
                held[trade.symbol].popleft()
    return YearGains(int(long_term), int(short_term), profit, turnover), held


def open_lots(held: dict[str, deque[_Held]], items: Sequence[ItemNow], funds: Sequence[FundPurchase]) -> list[Lot]:
    """Every purchase still held, at today's price."""
    lots = []
    statements: dict[str, list[FundPurchase]] = defaultdict(list)
    for fund in funds:
        statements[fund.item].append(fund)
    for item in items:
        if item.asset_class == "equity":
            lots += [
                Lot(
                    item.item,
                    item.label,
                    lot.bought_on,
                    Decimal(lot.quantity),
                    int(lot.quantity * lot.cost),
                    int(lot.quantity * item.price),
                )
                for lot in held.get(item.label, ())
            ]
        elif item.asset_class == "fund":
            lots += _fund_lots(item, statements[item.item])
    return lots


def _fund_lots(item: ItemNow, statements: Sequence[FundPurchase]) -> list[Lot]:
    """Purchases are what units grew by from one statement to the next; redemptions take the oldest units."""
    bought: deque[tuple[date, Decimal, Decimal]] = deque()
    units, cost = Decimal(0), 0
    for stated in statements:
        more = stated.units - units
        if more > 0:
            paid = stated.cost_minor - cost if stated.cost_minor > cost else units_value_minor(more, stated.nav)
            bought.append((local_day(stated.at), more, Decimal(paid) / more))
        gone = -more
        while gone > 0 and bought:
            day, left, price = bought.popleft()
            if left > gone:
                bought.appendleft((day, left - gone, price))
            gone -= left
        units, cost = stated.units, stated.cost_minor
    return [
        Lot(item.item, item.label, day, left, int(left * price), units_value_minor(left, item.price))
        for day, left, price in bought
    ]


def percent_of(amount_minor: int, percent: Decimal) -> int:
    """That share of an amount, rounded half up to the paisa."""
    return int((amount_minor * percent / 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))
