"""What a customer owns and owes, as one number and its parts: holdings in, figures out. Pure.

Every figure is an int in paise. Parts sum to their whole by construction: a whole is only ever computed as
the sum of its parts. A figure we cannot know is None, never 0:

- nothing is linked → every figure is None;
- a platform is not linked → its figures are None, and the total is over the platform that is;
- a class is held only in currencies other than `CURRENCY` → its figure is None, because we have no rate.

Whatever is held in another currency is listed in `unconverted` and is in no figure.
"""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import msgspec

CURRENCY = "INR"
"""The currency every figure is in."""

_HUNDRED_PERCENT_BP = 10_000


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account of the ledger with its last balance.

    A fixed deposit is one too, at its principal: interest is the bank's until it is paid.
    """

    kind: Literal["savings", "current", "fixed_deposit", "trading_wallet"]
    currency: str
    balance_minor: int


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    loan_id: str
    currency: str
    outstanding_minor: int


class Fund(msgspec.Struct, frozen=True, kw_only=True):
    scheme_code: str
    currency: str
    units: Decimal
    nav: Decimal
    """Net asset value per unit, in major units."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    position_id: str
    instrument: Literal["option", "future", "equity"]
    currency: str
    quantity: int
    """Signed: a short position is negative."""
    mark_price_minor: int
    unrealized_pnl_minor: int


class RealizedPnl(msgspec.Struct, frozen=True, kw_only=True):
    """The sum of the realised profit and loss of all trades in one currency."""

    currency: str
    amount_minor: int


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the read model knows of one customer."""

    linked: frozenset[Literal["bfc", "vyomo"]] = frozenset()
    accounts: tuple[Account, ...] = ()
    loans: tuple[Loan, ...] = ()
    funds: tuple[Fund, ...] = ()
    positions: tuple[Position, ...] = ()
    realized: tuple[RealizedPnl, ...] = ()


class Valued(msgspec.Struct, frozen=True, kw_only=True):
    """One account, loan, fund or position at its value; a debt's is negative."""

    item: str
    """`account:<id>`, `loan:<id>`, `fund:<scheme>` or `position:<id>`."""
    asset_class: str
    currency: str
    label: str = ""
    value_minor: int


class Unconverted(msgspec.Struct, frozen=True, kw_only=True):
    """What is held of one class in another currency; negative for a debt."""

    asset_class: str
    currency: str
    amount_minor: int


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """One asset class's part of all assets; `percent_bp` is in hundredths of a percent."""

    asset_class: str
    amount_minor: int
    percent_bp: int


class NetWorth(msgspec.Struct, frozen=True, kw_only=True):
    """The figures in paise. None: not known."""

    savings: int | None
    current: int | None
    fixed_deposits: int | None
    """Shown under banking and under investments, and counted once."""
    mutual_funds: int | None
    wallet: int | None
    open_positions: int | None
    realized_pnl: int | None
    """Shown, not added: it is in the wallet."""
    loans: int | None
    allocation: tuple[Share, ...]
    unconverted: tuple[Unconverted, ...]

    @property
    def banking_total(self) -> int | None:
        return _sum_known(self.savings, self.current, self.fixed_deposits)

    @property
    def trading_total(self) -> int | None:
        return _sum_known(self.wallet, self.open_positions)

    @property
    def investments_total(self) -> int | None:
        return _sum_known(self.fixed_deposits, self.mutual_funds)

    @property
    def total(self) -> int | None:
        """Assets less liabilities."""
        debts = None if self.loans is None else -self.loans
        return _sum_known(self.banking_total, self.trading_total, self.mutual_funds, debts)


def fund_value_minor(fund: Fund) -> int:
    """Units × NAV, rounded half up to the paisa per scheme, so that schemes sum to their class.

    Half up is how Indian fund houses state the value of a folio.
    """
    return int((fund.units * fund.nav * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def position_value_minor(position: Position) -> int:
    """An option or a share is worth quantity × mark; a future only its unrealised P&L.

    A future was never paid for: its notional value is not the customer's.
    """
    if position.instrument == "future":
        return position.unrealized_pnl_minor
    return position.quantity * position.mark_price_minor


def net_worth(holdings: Holdings) -> NetWorth:
    """The figures of one customer's holdings."""
    values = [
        Valued(item="account:", asset_class=a.kind, currency=a.currency, value_minor=a.balance_minor)
        for a in holdings.accounts
    ]
    values += [
        Valued(item="loan:", asset_class="loan", currency=loan.currency, value_minor=-loan.outstanding_minor)
        for loan in holdings.loans
    ]
    values += [
        Valued(item="fund:", asset_class="fund", currency=fund.currency, value_minor=fund_value_minor(fund))
        for fund in holdings.funds
    ]
    values += [
        Valued(item="position:", asset_class=p.instrument, currency=p.currency, value_minor=position_value_minor(p))
        for p in holdings.positions
    ]
    return figures(holdings.linked, values, {item.currency: item.amount_minor for item in holdings.realized})


FIGURE_OF = {
    "savings": "savings",
    "current": "current",
    "fixed_deposit": "fixed_deposits",
    "fund": "mutual_funds",
    "trading_wallet": "wallet",
    "option": "open_positions",
    "future": "open_positions",
    "equity": "open_positions",
    "loan": "loans",
}
"""The figure that each class of item is part of."""


def figures(
    linked: frozenset[Literal["bfc", "vyomo"]], values: Sequence[Valued], realized: Mapping[str, int]
) -> NetWorth:
    """The figures of everything a customer has and owes; `realized` is profit and loss by currency."""
    by_figure: dict[str, dict[str, int]] = {figure: {} for figure in FIGURE_OF.values()}
    for value in values:
        sums = by_figure[FIGURE_OF[value.asset_class]]
        sums[value.currency] = sums.get(value.currency, 0) + value.value_minor
    unconverted: list[Unconverted] = []

    def figure(platform: Literal["bfc", "vyomo"], name: str, shown_as: str | None = None) -> int | None:
        by_currency = by_figure[name]
        unconverted.extend(
            Unconverted(asset_class=shown_as or name, currency=currency, amount_minor=amount_minor)
            for currency, amount_minor in sorted(by_currency.items())
            if currency != CURRENCY
        )
        if not by_currency and platform in linked:
            return 0  # the platform is linked and reported none: a fact
        return by_currency.get(CURRENCY)

    savings = figure("bfc", "savings")
    current = figure("bfc", "current")
    fixed_deposits = figure("bfc", "fixed_deposits")
    mutual_funds = figure("bfc", "mutual_funds")
    wallet = figure("vyomo", "wallet", "trading_wallet")
    open_positions = figure("vyomo", "open_positions")
    debts = figure("bfc", "loans")
    # Realised P&L is no holding: in another currency it is already part of that wallet, so it is not listed.
    realized_pnl = realized.get(CURRENCY, 0 if "vyomo" in linked and not realized else None)
    return NetWorth(
        savings=savings,
        current=current,
        fixed_deposits=fixed_deposits,
        mutual_funds=mutual_funds,
        wallet=wallet,
        open_positions=open_positions,
        realized_pnl=realized_pnl,
        loans=None if debts is None else -debts,
        allocation=allocate(
            (
                ("savings", savings),
                ("current", current),
                ("fixed_deposits", fixed_deposits),
                ("mutual_funds", mutual_funds),
                ("trading_wallet", wallet),
                ("open_positions", open_positions),
            )
        ),
        unconverted=tuple(unconverted),
    )


def allocate(classes: Sequence[tuple[str, int | None]]) -> tuple[Share, ...]:
    """The classes that are assets, with percents that sum to exactly 100.00 (largest remainder).

    A class that is not known, empty or overdrawn is not an asset and has no share. Of equal remainders
    the class named first gets the hundredth.
    """
    assets = [(name, amount) for name, amount in classes if amount is not None and amount > 0]
    total = sum(amount for _, amount in assets)
    if not assets:
        return ()
    exact = [divmod(amount * _HUNDRED_PERCENT_BP, total) for _, amount in assets]
    percents = [quotient for quotient, _ in exact]
    missing = _HUNDRED_PERCENT_BP - sum(percents)
    for index in sorted(range(len(assets)), key=lambda i: -exact[i][1])[:missing]:
        percents[index] += 1
    return tuple(
        Share(asset_class=name, amount_minor=amount, percent_bp=percent)
        for (name, amount), percent in zip(assets, percents, strict=True)
    )


def _sum_known(*parts: int | None) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
