"""What the customer reads."""

import pytest
from simulators.screens import rupees


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0.00", "₹0.00"),
        ("999.50", "₹999.50"),
        ("1000", "₹1,000.00"),
        ("50000.00", "₹50,000.00"),
        ("1234567.50", "₹12,34,567.50"),
        ("-10000000.05", "-₹1,00,00,000.05"),
        (None, "—"),
    ],
)
def test_rupees_group_by_lakh_and_crore(amount: str | None, text: str) -> None:
    assert rupees(amount) == text
