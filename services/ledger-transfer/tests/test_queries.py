"""The query string of the history."""

from datetime import UTC, datetime

import pytest
from chassis.problems import Problem
from ledger_transfer.projections.transactions import Filter
from ledger_transfer.queries import filter_of, instant


@pytest.mark.parametrize(
    ("text", "day_after", "expected"),
    [
        ("2026-02-12T09:00:00Z", False, datetime(2026, 2, 12, 9, tzinfo=UTC)),
        ("2026-02-12T09:00:00.250Z", True, datetime(2026, 2, 12, 9, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-02-12T09:00:00+05:30", False, datetime(2026, 2, 12, 3, 30, tzinfo=UTC)),
        # A date is a day in India: from its midnight, and through its end.
        ("2026-02-12", False, datetime(2026, 2, 11, 18, 30, tzinfo=UTC)),
        ("2026-02-12", True, datetime(2026, 2, 12, 18, 30, tzinfo=UTC)),
    ],
)
def test_instants(text: str, day_after: bool, expected: datetime) -> None:
    assert instant("from", text, day_after=day_after) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-02-12T09:00:00",
        "2026-02-12 09:00:00Z",
        "2026-02-30",
        "2026-13-01T00:00:00Z",
        "20260212",
        "1770886800",
        "9999-12-31",
        "0001-01-01T00:00:00+05:30",
        "２０２６-02-12",
        "2026-02-12T09:00:00Z\n",
    ],
)
def test_what_is_no_instant(text: str) -> None:
    with pytest.raises(Problem) as problem:
        instant("to", text, day_after=True)
    assert (problem.value.status, problem.value.code) == (400, "invalid_request")
    assert problem.value.errors[0]["field"] == "to"


def chosen(**parameters: str) -> Filter:
    names = (
        "platform",
        "account_id",
        "type_",
        "category",
        "direction",
        "since",
        "until",
        "min_amount",
        "max_amount",
    )
    values: dict[str, str | None] = {name: parameters.get(name) for name in names}
    return filter_of(**values)  # type: ignore[arg-type]


def test_amounts_are_decimal_strings_and_zero_is_one() -> None:
    assert chosen(min_amount="0", max_amount="1500.50") == Filter(min_amount_minor=0, max_amount_minor=1500_50)


@pytest.mark.parametrize("text", ["1e3", "-1", "1.005", "NaN", "", "1,000", "9" * 20])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(Problem) as problem:
        chosen(max_amount=text)
    assert (problem.value.status, problem.value.code) == (400, "invalid_amount")
    assert problem.value.errors[0]["field"] == "max_amount"


def test_no_parameter_filters_nothing() -> None:
    assert chosen() == Filter()
