"""Known answers, and properties that must hold for every customer."""

from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wealth.networth import (
    Account,
    Fund,
    Holdings,
    Loan,
    Position,
    RealizedPnl,
    Share,
    Unconverted,
    allocate,
    fund_value_minor,
    net_worth,
    position_value_minor,
)

BOTH: frozenset[Literal["bfc", "vyomo"]] = frozenset({"bfc", "vyomo"})
Kind = Literal["savings", "current", "fixed_deposit", "trading_wallet"]
Instrument = Literal["option", "future", "equity"]


def account(kind: Kind, balance_minor: int, currency: str = "INR") -> Account:
    return Account(kind=kind, currency=currency, balance_minor=balance_minor)


def position(instrument: Instrument, quantity: int, mark: int, unrealized: int = 0) -> Position:
    return Position(
        position_id="P1",
        instrument=instrument,
        currency="INR",
        quantity=quantity,
        mark_price_minor=mark,
        unrealized_pnl_minor=unrealized,
    )


def fund(units: str, nav: str) -> Fund:
    return Fund(scheme_code="S1", currency="INR", units=Decimal(units), nav=Decimal(nav))


def test_a_customer_with_everything() -> None:
    figures = net_worth(
        Holdings(
            linked=BOTH,
            accounts=(
                account("savings", 1_00_000_00),
                account("savings", 50_000_00),
                account("current", 25_000_00),
                account("fixed_deposit", 2_00_000_00),
                account("trading_wallet", 75_000_00),
            ),
            loans=(Loan(loan_id="L1", currency="INR", outstanding_minor=3_00_000_00),),
            funds=(fund("100.5", "45.67"),),
            positions=(position("option", 50, 120_50), position("future", 75, 22_000_00, -1_500_00)),
            realized=(RealizedPnl(currency="INR", amount_minor=4_000_00),),
        )
    )
    assert figures.savings == 1_50_000_00
    assert figures.banking_total == 3_75_000_00
    assert figures.open_positions == 6_025_00 - 1_500_00
    assert figures.trading_total == 75_000_00 + 4_525_00
    assert figures.mutual_funds == 4_589_84  # 100.5 × 45.67 = 4589.835, half up
    assert figures.investments_total == 2_00_000_00 + 4_589_84
    assert figures.loans == 3_00_000_00
    assert figures.realized_pnl == 4_000_00
    # Deposits are in two views and counted once; realised P&L is in the wallet and not added.
    assert figures.total == 3_75_000_00 + 79_525_00 + 4_589_84 - 3_00_000_00


def test_nothing_linked_is_nothing_known() -> None:
    figures = net_worth(Holdings())
    assert (figures.total, figures.savings, figures.wallet, figures.loans) == (None, None, None, None)
    assert figures.realized_pnl is None
    assert figures.allocation == ()


def test_linked_and_empty_is_a_known_zero() -> None:
    figures = net_worth(Holdings(linked=BOTH))
    assert (figures.total, figures.savings, figures.wallet, figures.realized_pnl) == (0, 0, 0, 0)
    assert figures.allocation == ()


def test_one_platform_linked_leaves_the_other_unknown() -> None:
    figures = net_worth(Holdings(linked=frozenset({"bfc"}), accounts=(account("savings", 500),)))
    assert (figures.total, figures.banking_total) == (500, 500)
    assert (figures.trading_total, figures.wallet, figures.realized_pnl) == (None, None, None)


def test_only_debts() -> None:
    figures = net_worth(Holdings(linked=BOTH, loans=(Loan(loan_id="L1", currency="INR", outstanding_minor=100),)))
    assert figures.total == -100
    assert figures.allocation == ()


def test_other_currencies_are_listed_and_never_added() -> None:
    figures = net_worth(
        Holdings(
            linked=BOTH,
            accounts=(account("savings", 100), account("savings", 7, "USD"), account("current", 9, "EUR")),
            loans=(Loan(loan_id="L1", currency="USD", outstanding_minor=5),),
            realized=(RealizedPnl(currency="USD", amount_minor=3),),
        )
    )
    assert figures.savings == 100
    assert figures.current is None  # there is one, and it cannot be stated in rupees
    assert figures.loans is None
    assert figures.realized_pnl is None
    assert figures.total == 100
    assert figures.unconverted == (
        Unconverted(asset_class="savings", currency="USD", amount_minor=7),
        Unconverted(asset_class="current", currency="EUR", amount_minor=9),
        Unconverted(asset_class="loans", currency="USD", amount_minor=-5),
    )


@pytest.mark.parametrize(
    ("held", "value"),
    [
        (position("option", 50, 120_50), 6_025_00),
        (position("option", -50, 120_50), -6_025_00),
        (position("equity", 3, 1_00), 3_00),
        (position("future", 75, 22_000_00, 9_99), 9_99),
    ],
)
def test_position_values(held: Position, value: int) -> None:
    assert position_value_minor(held) == value


@pytest.mark.parametrize(
    ("units", "nav", "value"),
    [("1", "0.005", 1), ("1", "0.0049", 0), ("0.0001", "123456.7891", 12_35), ("0", "10", 0)],
)
def test_fund_values_round_half_up(units: str, nav: str, value: int) -> None:
    assert fund_value_minor(fund(units, nav)) == value


def test_thirds_sum_to_a_hundred_percent() -> None:
    assert allocate([("a", 1), ("b", 1), ("c", 1)]) == (
        Share(asset_class="a", amount_minor=1, percent_bp=3334),
        Share(asset_class="b", amount_minor=1, percent_bp=3333),
        Share(asset_class="c", amount_minor=1, percent_bp=3333),
    )


def test_the_largest_remainder_gets_the_hundredth() -> None:
    # 1/6 = 16.666…, 5/6 = 83.333…
    assert [share.percent_bp for share in allocate([("a", 5), ("b", 1)])] == [8333, 1667]


def test_what_is_overdrawn_unknown_or_empty_has_no_share() -> None:
    shares = allocate([("a", -5), ("b", None), ("c", 0), ("d", 2)])
    assert shares == (Share(asset_class="d", amount_minor=2, percent_bp=10_000),)


_amounts = st.integers(-(10**12), 10**12)


@given(
    balances=st.lists(st.tuples(st.sampled_from(["savings", "current", "fixed_deposit", "trading_wallet"]), _amounts)),
    debts=st.lists(st.integers(0, 10**12)),
    units=st.lists(st.tuples(st.decimals(0, 10**6, places=4), st.decimals(0, 10**5, places=4))),
    marks=st.lists(st.tuples(st.sampled_from(["option", "future", "equity"]), st.integers(-1000, 1000), _amounts)),
)
def test_parts_sum_to_the_whole(
    balances: list[tuple[Kind, int]],
    debts: list[int],
    units: list[tuple[Decimal, Decimal]],
    marks: list[tuple[Instrument, int, int]],
) -> None:
    holdings = Holdings(
        linked=BOTH,
        accounts=tuple(account(kind, balance) for kind, balance in balances),
        loans=tuple(Loan(loan_id=str(n), currency="INR", outstanding_minor=d) for n, d in enumerate(debts)),
        funds=tuple(Fund(scheme_code="S", currency="INR", units=u, nav=n) for u, n in units),
        positions=tuple(position(instrument, q, mark, mark) for instrument, q, mark in marks),
    )
    figures = net_worth(holdings)
    each = (
        sum(balance for _, balance in balances)
        + sum(map(fund_value_minor, holdings.funds))
        + sum(map(position_value_minor, holdings.positions))
        - sum(debts)
    )
    assert figures.total == each
    assert (figures.banking_total or 0) + (figures.trading_total or 0) + (figures.mutual_funds or 0) - (
        figures.loans or 0
    ) == figures.total
    assert sum(share.percent_bp for share in figures.allocation) in (0, 10_000)
    assert bool(figures.allocation) == any(share.amount_minor > 0 for share in figures.allocation)


@given(st.lists(st.integers(1, 10**15), min_size=1, max_size=12))
def test_percents_are_exact_and_fair(amounts: list[int]) -> None:
    shares = allocate([(str(index), amount) for index, amount in enumerate(amounts)])
    assert sum(share.percent_bp for share in shares) == 10_000
    for share in shares:
        assert abs(share.percent_bp * sum(amounts) - share.amount_minor * 10_000) < sum(amounts)
