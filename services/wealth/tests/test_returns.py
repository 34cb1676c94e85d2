"""Known answers of the formulas, and what must hold of any returns."""

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wealth.ledger_lines import EPOCH_DAY, Statement, stated_flow
from wealth.performance import PERIODS, category_performance, history, performance
from wealth.picture import ItemDays
from wealth.returns import drawdown_max, link, modified_dietz, time_weighted, xirr

TODAY = date(2026, 10, 31)


def test_xirr_of_one_year() -> None:
    found = xirr([(date(2010, 1, 1), -200_00), (date(2010, 12, 31), 210_00)])
    assert found.rate == pytest.approx(0.050140747, abs=1e-8)
    assert found.rate == pytest.approx(1.05 ** (365 / 364) - 1, abs=1e-12)  # the closed form


def test_xirr_of_nearly_everything_lost() -> None:
    flows = [(date(2019, 5, 24), -1560_94), (date(2020, 1, 13), -1160_00), (date(2020, 6, 29), 42_80)]
    assert xirr(flows).rate == pytest.approx(-0.999251643, abs=1e-9)


def test_xirr_with_several_roots_gives_them_all() -> None:
    found = xirr([(date(2021, 1, 1), -1000_00), (date(2022, 1, 1), 2300_00), (date(2023, 1, 1), -1320_00)])
    assert found.ambiguous
    assert found.rate is None
    assert found.roots == pytest.approx((0.1, 0.2), abs=1e-9)


@pytest.mark.parametrize(
    ("flows", "reason"),
    [
        ([], "one way"),
        ([(TODAY, -5)], "one way"),
        ([(TODAY, -5), (TODAY, 5)], "one way"),
        ([(date(2020, 1, 1), 1), (date(2021, 1, 1), -1), (date(2022, 1, 1), 1)], "no rate"),
    ],
)
def test_xirr_without_a_root_says_why(flows: list[tuple[date, int]], reason: str) -> None:
    found = xirr(flows)
    assert found.roots == ()
    assert reason in (found.reason or "")


def test_modified_dietz() -> None:
    weight = (31 - 15) / 31  # 15 March, at the end of the day
    found = modified_dietz(50_000_000_00, 51_500_000_00, [(weight, -500_000_00)])
    assert found.value is not None
    assert round(100 * found.value, 2) == 4.02
    assert round(100 * link([found.value, 0.023, -0.010]), 2) == 5.35


def test_drawdown_beyond_everything() -> None:
    assert drawdown_max([0, 0.1, 0.2, -1.4]) == pytest.approx(4 / 3)
    assert drawdown_max([]) == drawdown_max([0, 0.1, 0.3]) == 0


def test_returns_that_do_not_exist() -> None:
    zeros = np.zeros(3, dtype=np.int64)
    assert time_weighted(zeros, zeros[1:]).value is None
    owed = np.array([-100, -90, -80], dtype=np.int64)
    assert "negative" in (time_weighted(owed, zeros[1:]).reason or "")
    assert modified_dietz(0, 0, []).value is None


def test_the_first_deposit_earns_from_its_day() -> None:
    values = np.array([0, 110, 121], dtype=np.int64)
    flows = np.array([100, 0], dtype=np.int64)
    assert time_weighted(values, flows).value == pytest.approx(0.21)


# ---- a portfolio of two accounts, from days ----

money = st.integers(1, 10**9)
day = st.integers(1, 364)


def days(asset_class: str, changes: dict[int, tuple[int, int]], start: int) -> ItemDays:
    """An item that had `start` before the year; `changes` of a day are (gain, flow)."""
    first = (TODAY - EPOCH_DAY).days - 365
    value, rows = start, [(first, start, 0)]
    for on, (gain, flow) in sorted(changes.items()):
        value += gain + flow
        rows.append((first + on, value, flow))
    return ItemDays(asset_class, [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], [0 for _ in rows])


@settings(deadline=None, max_examples=50)
@given(start=money, gains=st.dictionaries(day, st.integers(0, 10**6), max_size=8), moved=money, on=day)
def test_a_move_between_own_accounts_changes_no_return(start: int, gains: dict[int, int], moved: int, on: int) -> None:
    def both(amount: int) -> list[ItemDays]:
        banking = {d: (g, 0) for d, g in gains.items()}
        banking[on] = (gains.get(on, 0), -amount)
        return [days("savings", banking, start + 10**9), days("trading_wallet", {on: (0, amount)}, 5)]

    for period in PERIODS:
        still = performance(history(both(0), TODAY), period)
        after = performance(history(both(moved), TODAY), period)
        assert (after.twr, after.gain_rate, after.gain_minor) == (still.twr, still.gain_rate, still.gain_minor)
        assert after.xirr == still.xirr
        assert after.series == still.series


@settings(deadline=None, max_examples=50)
@given(start=money, gain=st.integers(0, 10**6), on=day, deposit=money)
def test_a_deposit_on_the_last_day_is_neutral(start: int, gain: int, on: int, deposit: int) -> None:
    without = performance(history([days("savings", {on: (gain, 0)}, start)], TODAY), 365)
    changes = {on: (gain, 0), 365: (0, deposit)}
    with_it = performance(history([days("savings", changes, start)], TODAY), 365)
    assert with_it.twr == without.twr
    assert with_it.gain_rate == without.gain_rate
    assert with_it.gain_minor == without.gain_minor
    assert with_it.net_flows_minor == deposit


@settings(deadline=None, max_examples=50)
@given(
    changes=st.dictionaries(day, st.tuples(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6)), max_size=20),
    classes=st.lists(st.sampled_from(["savings", "fixed_deposit", "fund", "equity", "loan"]), min_size=1, max_size=4),
)
def test_parts_sum_to_the_whole(changes: dict[int, tuple[int, int]], classes: list[str]) -> None:
    whole = history([days(name, changes, 10**6 * (n + 1)) for n, name in enumerate(classes)], TODAY)
    for period in PERIODS:
        found = performance(whole, period)
        assert found.gain_minor == found.end_minor - found.start_minor - found.net_flows_minor
        assert found.series[0] == found.start_minor
        assert found.series[-1] == found.end_minor
        assert len(found.series) == period + 1


def test_an_emi_goes_into_the_loan_and_its_interest_is_the_loss() -> None:
    first = (TODAY - EPOCH_DAY).days - 365
    bank = ItemDays("savings", [first, first + 10], [1000, 900], [0, -100], [0, -100])
    loan = ItemDays("loan", [first, first + 12], [-5000, -4940], [0, 0], [0, 0])
    found = {c.category: c for c in performance(history([bank, loan], TODAY), 365).categories}
    assert (found["loans"].net_flows_minor, found["loans"].gain_minor) == (100, -40)
    assert found["banking"].gain_minor == 0
    late = ItemDays("loan", [first, first + 40], [-5000, -4940], [0, 0], [0, 0])
    found = {c.category: c for c in performance(history([bank, late], TODAY), 365).categories}
    assert (found["loans"].net_flows_minor, found["loans"].gain_minor) == (60, 0), "paid by somebody else"


def test_a_debt_that_grows_by_its_interest_is_a_loss() -> None:
    first = (TODAY - EPOCH_DAY).days - 365
    loan = ItemDays("loan", [first, first + 12], [-5000, -5040], [0, 0], [0, 0])
    assert performance(history([loan], TODAY), 365).gain_minor == -40


def test_a_fact_of_tomorrow_counts_today() -> None:
    bank = days("savings", {10: (0, 5)}, 100)
    ahead = bank._replace(days=[*bank.days[:-1], bank.days[0] + 400])
    assert performance(history([ahead], TODAY), 30).end_minor == 105


def test_one_category_alone() -> None:
    whole = history([days("trading_wallet", {100: (10, 0)}, 100), days("savings", {}, 10**6)], TODAY)
    assert category_performance(whole, "trading", 365).value == pytest.approx(0.1)
    assert category_performance(whole, "funds", 365).value is None


def test_days_are_days_in_india() -> None:
    from datetime import UTC, datetime

    from wealth.ledger_lines import local_day

    assert local_day(datetime(2026, 3, 31, 18, 30, tzinfo=UTC)) == date(2026, 4, 1)
    assert local_day(datetime(2026, 3, 31, 18, 30, tzinfo=UTC) - timedelta(seconds=1)) == date(2026, 3, 31)


def test_a_flow_beyond_what_anybody_holds_is_refused() -> None:
    """Units of next to nothing, redeemed at a NAV in millions: each value is a customer's, the flow is not."""
    at = datetime(2026, 2, 12, tzinfo=UTC)
    before = Statement(at, 1, UUID(int=1), "banking.fund.changed", 100_00, "100000000", "0.000001", 100_00)
    now = Statement(at, 2, UUID(int=2), "banking.fund.changed", 10**14, "1", "1000000000000", 100_00)
    with pytest.raises(ValueError, match="beyond"):
        stated_flow("fund", before, now, False)
