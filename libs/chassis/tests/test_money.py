"""Amounts: exact both ways, and nothing but plain decimals gets in."""

import pytest
from chassis.money import DECIMALS, format_amount, parse_amount, rupees
from chassis.problems import Problem
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(min_value=1, max_value=10**13 - 1), st.sampled_from(sorted(DECIMALS)))
def test_what_is_formatted_parses_back(minor: int, currency: str) -> None:
    assert parse_amount(format_amount(minor, currency), currency) == minor
    assert parse_amount(format_amount(-minor, currency), currency, signed=True) == -minor


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("50000.00", "INR", 5000000),
        ("50000", "INR", 5000000),
        ("0.5", "INR", 50),
        ("9999999999999.99", "INR", 999999999999999),
        ("1500", "JPY", 1500),
        ("1.234", "KWD", 1234),
        ("007.10", "USD", 710),
    ],
)
def test_parses(text: str, currency: str, minor: int) -> None:
    assert parse_amount(text, currency) == minor


@pytest.mark.parametrize(
    "text",
    [
        *["", ".", "1.", ".5", "1.001", "1e3", "NaN", "Infinity", "+1", "-1", " 1", "1 ", "1\n", "1,000", "0x10"],
        *["1_000", "١٢٣", "1٫5", "１", "₹1", "10000000000000", "0", "0.00", "1" * 5000],
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_amount(text, "INR", field="total")
    assert (caught.value.status, caught.value.code) == (400, "invalid_amount")
    assert caught.value.errors[0]["field"] == "total"


def test_refuses_more_decimals_than_the_currency_has() -> None:
    with pytest.raises(Problem, match="invalid_amount"):
        parse_amount("1.5", "JPY")
    with pytest.raises(Problem, match="invalid_amount"):
        parse_amount("1.2345", "KWD")


@pytest.mark.parametrize("currency", ["", "inr", "XXX", "INR ", "BTC"])
def test_unknown_currency(currency: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_amount("1", currency)
    assert (caught.value.status, caught.value.code) == (400, "invalid_currency")


def test_zero_and_signs_only_where_the_caller_allows_them() -> None:
    assert parse_amount("0.00", "INR", zero=True) == 0
    assert parse_amount("-12.5", "INR", signed=True) == -1250
    assert parse_amount("0", "INR", signed=True) == 0
    with pytest.raises(Problem):
        parse_amount("-1", "INR", zero=True)


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (0, "INR", "0.00"),
        (5, "INR", "0.05"),
        (-5, "INR", "-0.05"),
        (5000000, "INR", "50000.00"),
        (7, "KWD", "0.007"),
        (-3, "JPY", "-3"),
    ],
)
def test_formats(minor: int, currency: str, text: str) -> None:
    assert format_amount(minor, currency) == text


@pytest.mark.parametrize(
    ("minor", "text"),
    [
        (0, "₹0"),
        (5, "₹0.05"),
        (100000, "₹1,000"),
        (5000000, "₹50,000"),
        (10000000, "₹1,00,000"),
        (123456750, "₹12,34,567.50"),
        (-123450, "-₹1,234.50"),
        (9999999999999, "₹99,99,99,99,999.99"),
    ],
)
def test_rupees_are_grouped_as_in_india(minor: int, text: str) -> None:
    assert rupees(minor) == text


def test_a_gain_may_show_its_sign() -> None:
    assert rupees(1500000, plus=True) == "+₹15,000"
    assert rupees(-1500000, plus=True) == "-₹15,000"
    assert rupees(0, plus=True) == "₹0"
