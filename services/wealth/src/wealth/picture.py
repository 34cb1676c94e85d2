"""Everything the read model knows of one customer, at one position of the log. Plain data."""

from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from wealth.networth import CURRENCY, Valued


class ItemNow(NamedTuple):
    """An account, loan, fund or position as it is now. Amounts in minor units of `currency`."""

    item: str
    asset_class: str
    currency: str
    label: str
    underlying: str
    value_minor: int
    quantity: Decimal
    """Of a position or a fund; 0 otherwise."""
    price: Decimal
    """Mark price (paise), NAV (rupees), or a loan's EMI (paise)."""
    cost: Decimal
    """Average price (paise), a fund's cost (paise), or a loan's principal (paise)."""
    event_id: UUID | None
    """The event that changed it last."""

    def valued(self) -> Valued:
        return Valued(
            item=self.item,
            asset_class=self.asset_class,
            currency=self.currency,
            label=self.label,
            value_minor=self.value_minor,
        )


class ItemDays(NamedTuple):
    """An item at the end of the days on which it changed, rising. A value holds until the next of them."""

    asset_class: str
    days: Sequence[int]
    """Days since 1970-01-01."""
    values: Sequence[int]
    flows: Sequence[int]
    """What came in from outside of its category that day (negative: went out)."""
    emis: Sequence[int]
    """The part of the flow that paid a loan's instalment (negative)."""


class MonthFlow(NamedTuple):
    """What a category of postings moved on the bank accounts in a month."""

    month: date
    category: str
    in_minor: int
    out_minor: int


class Trade(NamedTuple):
    at: datetime
    event_id: UUID
    symbol: str
    instrument: str
    quantity: int
    """Negative for a sale."""
    price_minor: int
    charges_minor: int
    realized_minor: int | None


class FundPurchase(NamedTuple):
    """A statement of a fund: how many units there were then, and what they had cost."""

    item: str
    at: datetime
    event_id: UUID
    units: Decimal
    nav: Decimal
    cost_minor: int


class Deposit(NamedTuple):
    deposit_id: str
    principal_minor: int
    rate_percent: Decimal
    matures_on: date


class Posting(NamedTuple):
    """A recent posting on a bank account."""

    at: datetime
    event_id: UUID
    category: str
    amount_minor: int


class Noticed(NamedTuple):
    """An insight that was raised before."""

    insight_id: UUID
    rule: str
    subject: str
    level: int
    state: str
    """`active`, `cleared` or `dismissed`."""
    title: str
    body: str
    facts: str
    """The evidence that title and body were written from, as one text."""
    raised_at: datetime


class Picture(NamedTuple):
    user_id: UUID
    now: datetime
    today: date
    """In the customer's calendar (IST)."""
    position: int
    as_of: datetime | None
    """When the event at `position` was recorded; None before the first."""
    linked: frozenset[str]
    items: tuple[ItemNow, ...]
    realized: dict[str, int]
    """Realised profit and loss by currency."""
    days: tuple[ItemDays, ...]
    """The last year of everything held in `CURRENCY`."""
    months: tuple[MonthFlow, ...]
    trades: tuple[Trade, ...]
    fund_purchases: tuple[FundPurchase, ...]
    deposits: tuple[Deposit, ...]
    """Those that have not matured."""
    postings: tuple[Posting, ...]
    noticed: tuple[Noticed, ...]

    def ours(self) -> list[ItemNow]:
        """What is held in the currency of every figure."""
        return [item for item in self.items if item.currency == CURRENCY]

    def sum_of(self, *classes: str) -> int:
        return sum(item.value_minor for item in self.ours() if item.asset_class in classes)
