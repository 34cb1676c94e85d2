"""What the one box understands: every filter it knows, what it leaves as text, and where it read what."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search.filters import Filters
from search.grammar import Parsed, parse

NOW = datetime(2026, 2, 28, 19, 0, tzinfo=UTC)  # already 1 March in India, a Sunday


def parsed(query: str) -> Parsed:
    return parse(query, NOW)


def days(query: str) -> tuple[str, tuple[str, ...]]:
    (found,) = parsed(query).parsed
    assert found.field == "date"
    return found.operator, found.values


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("type:trade", Filters(types=("trade",))),
        ("types:trades,positions", Filters(types=("position", "trade"))),
        ("TYPE:Trade", Filters(types=("trade",))),
        ("platform:vyomo", Filters(platforms=("vyomo",))),
        ("is:open", Filters(states=("open",))),
        ("category:rent", Filters(categories=("rent",))),
        ("amount>10k", Filters(min_amount_minor=10_000_01)),
        ("amount>=10,000", Filters(min_amount_minor=10_000_00)),
        ("amount <= ₹5 lakh", Filters(max_amount_minor=5_00_000_00)),
        ("amount<0.50", Filters(max_amount_minor=49)),
        ("amount:500", Filters(min_amount_minor=500_00, max_amount_minor=500_00)),
        ("amount:500..1000", Filters(min_amount_minor=500_00, max_amount_minor=1_000_00)),
        ("above ₹50k", Filters(min_amount_minor=50_000_01)),
        ("more than 1 crore", Filters(min_amount_minor=1_00_00_000_01)),
        ("under 5 lakh", Filters(max_amount_minor=5_00_000_00 - 1)),
        ("between 500 and 1000", Filters(min_amount_minor=500_00, max_amount_minor=1_000_00)),
        ("type:trade type:position", Filters(types=())),  # both cannot hold
    ],
)
def test_lists_and_amounts(query: str, filters: Filters) -> None:
    read = parsed(query)
    assert (read.text, read.filters) == ("", filters)


@pytest.mark.parametrize(
    ("query", "operator", "values"),
    [
        ("on:2026-02-12", "=", ("2026-02-12",)),
        ("2026-02-12", "=", ("2026-02-12",)),
        ("from:2026-02-01", ">=", ("2026-02-01",)),
        ("after:2026-01", ">=", ("2026-02-01",)),
        ("to:2026-02", "<=", ("2026-02-28",)),
        ("before:2026-03", "<", ("2026-03-01",)),
        ("12 Feb 2026", "=", ("2026-02-12",)),
        ("on 1 september, 2025", "=", ("2025-09-01",)),
        ("Feb 2024", "between", ("2024-02-01", "2024-02-29")),
        ("today", "=", ("2026-03-01",)),
        ("Yesterday", "=", ("2026-02-28",)),
        ("this week", "between", ("2026-02-23", "2026-03-01")),  # from Monday on
        ("last week", "between", ("2026-02-16", "2026-02-22")),
        ("last month", "between", ("2026-02-01", "2026-02-28")),
        ("this year", "between", ("2026-01-01", "2026-12-31")),
        ("last 30 days", "between", ("2026-01-31", "2026-03-01")),
        ("this FY", "between", ("2025-04-01", "2026-03-31")),
        ("last financial year", "between", ("2024-04-01", "2025-03-31")),
        ("FY 2025-26", "between", ("2025-04-01", "2026-03-31")),
        ("fy2025-2026", "between", ("2025-04-01", "2026-03-31")),
    ],
)
def test_days(query: str, operator: str, values: tuple[str, ...]) -> None:
    assert days(query) == (operator, values)
    assert parsed(query).text == ""


def test_days_are_those_of_india() -> None:
    today = parsed("today").filters
    assert (today.since, today.until) == (
        datetime(2026, 2, 28, 18, 30, tzinfo=UTC),
        datetime(2026, 3, 1, 18, 30, tzinfo=UTC),
    )
    open_end, open_start = parsed("from:2026-02-12").filters, parsed("before:2026-02-12").filters
    assert (open_end.since, open_end.until) == (datetime(2026, 2, 11, 18, 30, tzinfo=UTC), None)
    assert (open_start.since, open_start.until) == (None, datetime(2026, 2, 11, 18, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    "query",
    [
        "type:nonsense",
        "platform:nse",
        "is:lost",
        "type:",
        "amount>many",
        "amount:1000..500",
        "amount>1.234",
        "2026-02-30",
        "31 Feb",
        "on:9999-12-31x",
        "last 0 days",
        "FY 2025-27",
        "mytype:trade",
        "todayish",
        "50000",  # looked for, as an amount: no filter
        "Feb",
    ],
)
def test_what_is_not_understood_is_text(query: str) -> None:
    read = parsed(query)
    assert (read.text, read.filters, read.parsed) == (query, Filters(), ())


def test_what_is_quoted_is_text() -> None:
    read = parsed('"last month" type:trade "today')
    assert read.text == "last month today"
    assert [found.text for found in read.parsed] == ["type:trade"]


def test_each_filter_tells_where_it_was_read() -> None:
    query = "type:trade NIFTY platform:vyomo  amount>10000 call last month"
    read = parsed(query)
    assert read.text == "NIFTY call"
    assert [query[found.start : found.end] for found in read.parsed] == [found.text for found in read.parsed]
    assert [found.text for found in read.parsed] == ["type:trade", "platform:vyomo", "amount>10000", "last month"]
    assert [(found.field, found.operator, found.values) for found in read.parsed[:3]] == [
        ("type", "=", ("trade",)),
        ("platform", "=", ("vyomo",)),
        ("amount", ">", ("10000.00",)),
    ]
    for found in read.parsed:  # cutting a chip out takes away this filter and no more
        rest = parsed(query[: found.start] + query[found.end :])
        assert rest.text == read.text
        assert [each.text for each in rest.parsed] == [each.text for each in read.parsed if each is not found]


_pieces = st.sampled_from(
    [
        "type:trade",
        "is:open",
        "amount>5",
        "last month",
        "today",
        "FY 2025-26",
        '"',
        "NIFTY",
        "5 lakh",
        "लक्ष्मी",
        "a:b",
        "..",
    ]
)


@given(st.lists(st.one_of(_pieces, st.text(max_size=8)), max_size=6).map(" ".join))
def test_any_text_is_read_and_nothing_twice(query: str) -> None:
    read = parsed(query)
    end = 0
    for found in read.parsed:
        assert end <= found.start < found.end <= len(query)
        assert found.text == query[found.start : found.end]
        end = found.end
    assert read.filters == Filters() or read.parsed
