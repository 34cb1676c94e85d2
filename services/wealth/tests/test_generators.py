"""Each rule that finds insights: what it finds, what it leaves alone, and what it says it is worth."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pictures import NOW, buy, found, item, months, share
from wealth.generators import RULES
from wealth.insights import Insight, Thresholds
from wealth.picture import Deposit, FundPurchase
from wealth.tax import (
    audit_turnover_on,
    financial_year,
    is_long_term,
    next_instalment,
    rule_on,
    year_gains,
)

LIVING = months("groceries", [20_000_00] * 7)


def only(insights: list[Insight]) -> Insight:
    assert len(insights) == 1, insights
    return insights[0]


def test_idle_cash_beyond_six_months_of_expenses() -> None:
    cash = [item("savings", 5_00_000_00, "SB-1"), item("trading_wallet", 1, "TW-1")]
    insight = only(found("idle_cash", items=cash, months=LIVING))
    # 6 × 20,000 stay; 3,80,000 at 4 percentage points more
    assert insight.effect_minor == 15_200_00
    assert insight.kind == "opportunity"
    assert insight.action is not None
    assert insight.action.body == {
        "from_account_id": "SB-1",
        "to_account_id": "TW-1",
        "amount": "380000.00",
        "currency": "INR",
    }
    assert found("idle_cash", items=[item("savings", 1_60_000_00)], months=LIVING) == []
    assert found("idle_cash", items=cash, months=[]) == [], "nothing is idle before expenses are known"
    assert found("idle_cash", Thresholds(emergency_fund_months=24), items=cash, months=LIVING) == []


def test_a_position_up_or_down_by_the_threshold() -> None:
    up, down, still = share("UP", 100, 100_00, 125_00), share("DOWN", 100, 100_00, 85_00), share("S", 9, 9_00, 20_00)
    profit = only(found("profit_booking", items=[up, down, still]))
    assert (profit.subject, profit.effect_minor, profit.kind) == ("UP", 2_500_00, "profit_booking")
    loss = only(found("loss_warning", items=[up, down, still]))
    assert (loss.subject, loss.effect_minor, loss.kind) == ("DOWN", 1_500_00, "loss_warning")
    assert found("profit_booking", Thresholds(profit_percent=25.1), items=[up]) == []
    assert found("loss_warning", Thresholds(loss_percent=15.1), items=[down]) == []


def test_an_action_can_be_called_whatever_a_symbol_has_in_it() -> None:
    profit = only(found("profit_booking", items=[share("M&M #1", 100, 100_00, 125_00)]))
    assert profit.action is not None
    assert profit.action.href == "/api/search?q=M%26M%20%231"


def test_a_short_position_that_rises_is_a_loss() -> None:
    short = share("SOLD", -100, 100_00, 130_00)
    assert only(found("loss_warning", items=[short])).effect_minor == 3_000_00


def test_concentration_counts_what_depends_on_one_underlying() -> None:
    items = [share("AAA", 100, 9_00_00, 10_00_00), item("fixed_deposit", 1_00_000_00, "FD")]
    insight = only(found("concentration", items=items))
    assert insight.subject == "AAA"
    assert insight.effect_minor == 1_00_000_00 - 80_000_00  # what lies beyond 40 % of two lakh
    assert found("concentration", items=[*items, item("fixed_deposit", 2_00_000_00, "FD2")]) == []


def test_a_deposit_that_matures_soon() -> None:
    held = [item("fixed_deposit", 1_00_000_00, "FD-1")]
    terms = Deposit("FD-1", 1_00_000_00, Decimal("7.10"), date(2026, 11, 1))
    insight = only(found("deposit_maturing", items=held, deposits=[terms]))
    assert insight.effect_minor == 7_100_00
    assert insight.expires_at == datetime(2026, 11, 1, 18, 30, tzinfo=UTC)
    assert found("deposit_maturing", items=held, deposits=[terms._replace(matures_on=date(2026, 12, 1))]) == []
    assert found("deposit_maturing", items=[item("fixed_deposit", 0, "FD-1")], deposits=[terms]) == []


LONG_AGO = datetime(2025, 1, 6, tzinfo=UTC)
RECENT = datetime(2026, 8, 3, tzinfo=UTC)


def test_the_long_term_exemption_that_is_left() -> None:
    held = [share("AAA", 1000, 100_00, 180_00)]
    insight = only(found("long_term_exemption", items=held, trades=[buy("AAA", LONG_AGO, 1000, 100_00)]))
    assert insight.effect_minor == 10_000_00  # 12.5 % of 80,000
    many = [share("AAA", 2000, 100_00, 180_00)]
    capped = only(found("long_term_exemption", items=many, trades=[buy("AAA", LONG_AGO, 2000, 100_00)]))
    assert capped.effect_minor == 15_625_00  # 12.5 % of 1,25,000: no more is exempt
    sold = [buy("AAA", LONG_AGO, 2000, 100_00), buy("AAA", RECENT, -1000, 200_00)]
    partly = only(found("long_term_exemption", items=held, trades=sold))
    assert partly.effect_minor == 3_125_00  # 1,00,000 of it is used
    assert found("long_term_exemption", items=held, trades=[buy("AAA", RECENT, 1000, 100_00)]) == []


def test_fund_units_are_long_term_by_the_purchase() -> None:
    fund = item("fund", 2_00_000_00, "Index", quantity=Decimal(1000), price=Decimal(200), cost=Decimal(1_50_000_00))
    stated = [
        FundPurchase("fund:Index", LONG_AGO, UUID(int=1), Decimal(600), Decimal(100), 60_000_00),
        FundPurchase("fund:Index", RECENT, UUID(int=2), Decimal(1000), Decimal(225), 1_50_000_00),
    ]
    insight = only(found("long_term_exemption", items=[fund], fund_purchases=stated))
    assert insight.effect_minor == 7_500_00  # 12.5 % of 600 × (200 - 100)


def test_losses_that_could_be_harvested() -> None:
    trades = [
        buy("WON", RECENT - timedelta(days=30), 100, 100_00),
        buy("WON", RECENT, -100, 300_00),
        buy("LOST", RECENT, 100, 500_00),
    ]
    insight = only(found("loss_harvesting", items=[share("LOST", 100, 500_00, 400_00)], trades=trades))
    assert insight.effect_minor == 2_000_00  # 20 % of 10,000: the gains were short-term
    assert found("loss_harvesting", items=[share("LOST", 100, 500_00, 400_00)], trades=trades[2:]) == []


def test_derivatives_turnover_takes_losses_as_positive() -> None:
    trades = [
        buy("NIFTY26MARFUT", RECENT, -65, 1, 5_000_00, "future"),
        buy("NIFTY26MARFUT", RECENT + timedelta(days=1), -65, 1, -8_000_00, "future"),
        buy("NIFTY25MARFUT", datetime(2026, 3, 2, tzinfo=UTC), -65, 1, 1_00_000_00, "future"),  # the year before
    ]
    insight = only(found("derivatives_turnover", trades=trades))
    assert insight.evidence[0].value == "₹13,000"
    assert insight.evidence[1].value == "-₹3,000"


def test_advance_tax_when_a_date_is_near() -> None:
    trades = [buy("A", RECENT, 1000, 100_00), buy("A", RECENT + timedelta(days=2), -1000, 200_00)]
    at = datetime(2026, 12, 1, tzinfo=UTC)
    insight = only(found("advance_tax", trades=trades, now=at))
    assert insight.effect_minor == 15_000_00  # 75 % of 20 % of 1,00,000
    assert found("advance_tax", trades=trades, now=datetime(2026, 10, 20, tzinfo=UTC)) == []
    assert found("advance_tax", trades=[], now=at) == []


def test_spending_far_from_the_customers_own_usual() -> None:
    usual = [20_000_00, 21_000_00, 19_500_00, 20_500_00, 20_000_00, 19_000_00]
    insight = only(found("spending_anomaly", months=months("shopping", [*usual, 90_000_00])))
    assert insight.subject == "shopping:2026-10"
    assert insight.effect_minor == 70_000_00
    assert found("spending_anomaly", months=months("shopping", [*usual, 21_500_00])) == []
    assert found("spending_anomaly", months=months("rent", [*usual, 90_000_00])) == []
    one_odd = [20_000_00, 20_000_00, 95_000_00, 20_000_00, 20_000_00, 20_000_00, 20_000_00]
    assert found("spending_anomaly", months=months("shopping", one_odd)) == [], "one odd month is not usual"


def test_salary_in_a_row_and_missing() -> None:
    paid = [90_000_00] * 8
    insight = only(found("salary_streak", months=months("salary", paid, credit=True)))
    assert insight.title == "6 months of salary in a row"
    gap = months("salary", [*paid[:6], 0], credit=True)
    missed = only(found("salary_missed", months=gap))
    assert (missed.subject, missed.effect_minor) == ("2026-10", 90_000_00)
    early = NOW.replace(day=5)
    assert found("salary_missed", months=gap, now=early) == [], "it may still come"
    assert found("salary_missed", months=LIVING) == []


def test_achievements() -> None:
    rich = [item("savings", 12_00_000_00, "SB")]
    assert only(found("net_worth_mark", items=rich, months=LIVING)).subject == str(10_00_000_00)
    assert only(found("emergency_fund_full", items=rich, months=LIVING)).kind == "achievement"
    assert found("net_worth_mark", items=[item("savings", 1_00)]) == []


@pytest.mark.parametrize(
    "nothing",
    [{}, {"linked": frozenset()}, {"items": [item("loan", -50_00_000_00)]}, {"items": [item("savings", 0)]}],
)
def test_nothing_is_found_where_there_is_nothing(nothing: dict[str, Any]) -> None:
    for rule in ("idle_cash", "profit_booking", "concentration", "emergency_fund_full", "salary_missed"):
        assert found(rule, **nothing) == []


def test_every_insight_says_what_it_rests_on_and_what_to_do() -> None:
    assert len(RULES) == 11
    cash = [
        item("savings", 50_00_000_00, "SB-1"),
        share("UP", 1000, 100_00, 300_00),
        share("DOWN", 1000, 100_00, 50_00),
    ]
    salary = months("salary", [90_000_00] * 8, credit=True)
    from pictures import computed

    shown = computed(items=cash, months=[*LIVING, *salary], trades=[buy("UP", LONG_AGO, 1000, 100_00)]).shown
    assert len(shown) >= 6
    for entry in shown:
        assert entry.insight.evidence
        assert entry.insight.action is not None
        assert entry.insight.action.href.startswith("/api/")
    importance = [entry.insight.importance for entry in shown]
    assert importance == sorted(importance, reverse=True)


# ---- the tables of tax ----


def test_rules_by_their_date() -> None:
    assert rule_on(date(2024, 7, 22)).exempt_minor == 1_00_000_00
    assert rule_on(date(2024, 7, 23)).exempt_minor == 1_25_000_00
    assert audit_turnover_on(date(2026, 4, 1)) == 10_00_00_000_00
    assert financial_year(date(2026, 3, 31)) == (date(2025, 4, 1), date(2026, 3, 31))
    assert financial_year(date(2026, 4, 1))[0] == date(2026, 4, 1)


@pytest.mark.parametrize(
    ("today", "due", "percent"),
    [
        (date(2026, 6, 15), date(2026, 6, 15), 15),
        (date(2026, 6, 16), date(2026, 9, 15), 45),
        (date(2026, 12, 16), date(2027, 3, 15), 100),
    ],
)
def test_advance_tax_dates(today: date, due: date, percent: int) -> None:
    found_due, instalment = next_instalment(today)
    assert (found_due, instalment.percent) == (due, percent)


def test_more_than_twelve_months() -> None:
    assert not is_long_term(date(2025, 3, 10), date(2026, 3, 10))
    assert is_long_term(date(2025, 3, 10), date(2026, 3, 11))
    assert not is_long_term(date(2024, 2, 29), date(2025, 3, 1))


def test_first_in_first_out() -> None:
    trades = [buy("A", LONG_AGO, 10, 100), buy("A", RECENT, 10, 200), buy("A", RECENT, -15, 300)]
    gains, held = year_gains(trades, date(2026, 10, 1))
    assert (gains.long_term_minor, gains.short_term_minor) == (10 * 200, 5 * 100)
    assert [(lot.quantity, lot.cost) for lot in held["A"]] == [(5, Decimal(200))]
