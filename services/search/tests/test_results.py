"""Order, pages and counts of results; filters as the parameters say them."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from chassis.problems import Problem
from hypothesis import given
from hypothesis import strategies as st
from search.documents import Document, Platform
from search.filters import Filters, read_filters
from search.results import Place, facets, page, rank_of, ranked
from search.scoring import Field, Query

AT = datetime(2026, 2, 12, tzinfo=UTC)


def document(id_: str, title: str = "NIFTY", days: int = 0, platform: Platform = "vyomo") -> Document:
    return Document(
        type="trade",
        id=id_,
        platform=platform,
        title=title,
        subtitle="",
        amount_minor=1,
        currency="INR",
        category="option",
        state="",
        date=AT + timedelta(days=days),
        target="NIFTY",
        fields=[Field("title", title, True)],
    )


def test_by_score_then_recency_then_id() -> None:
    documents = [
        document("d", "a NIFTY"),
        document("c", "NIFTY CALL", days=9),
        document("b", days=-1),
        document("z", "GOLD"),
        document("a2"),
        document("a1"),
    ]
    found = ranked(Query("nifty"), documents)
    ids = [result.document.id for result in found]
    assert sorted(ids[:2]) == ["a1", "a2"]  # alike but for their ids, of which one goes first for ever
    assert ids[2:] == ["b", "c", "d"]
    assert [r.place for r in ranked(Query("nifty"), reversed(documents))] == [r.place for r in found]
    assert facets(found).type == {"trade": 5}


def test_what_is_goes_before_what_was_said_of_it() -> None:
    note = msgspec.structs.replace(document("a"), type="notification")
    position = msgspec.structs.replace(document("b"), type="position")
    assert rank_of(position) > rank_of(document("c")) > rank_of(note)
    assert rank_of(note) > rank_of(document("d", days=-1))


def test_facets_are_over_all_results() -> None:
    found = ranked(Query("nifty"), [document("a"), document("b", platform="bfc"), document("c")])
    assert facets(found).platform == {"vyomo": 2, "bfc": 1}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.integers(1, 5))
def test_pages_hold_every_result_once(dates: list[tuple[int, int]], limit: int) -> None:
    documents = [document(str(n), "NIFTY" if exact else "NIFTY CALL", days) for n, (days, exact) in enumerate(dates)]
    found = ranked(Query("nifty"), documents)
    seen: list[str] = []
    after: Place | None = None
    while True:
        shown, after = page(found, after, limit)
        seen += [result.document.id for result in shown]
        assert len(shown) <= limit
        if after is None:
            break
    assert seen == [result.document.id for result in found]
    assert sorted(seen) == sorted(each.id for each in documents)


def filters(**parameters: str) -> Filters:
    names = ("types", "platforms", "from_", "to", "min_amount", "max_amount", "category")
    return read_filters(**{name: parameters.get(name) for name in names})


def test_a_day_is_a_day_in_india() -> None:
    read = filters(from_="2026-02-12", to="2026-02-12")
    assert read.since == datetime(2026, 2, 11, 18, 30, tzinfo=UTC)
    assert read.until == datetime(2026, 2, 12, 18, 30, tzinfo=UTC)


def test_an_instant_is_included_at_both_ends() -> None:
    read = filters(from_="2026-02-12T05:30:00+05:30", to="2026-02-12T00:00:00Z")
    assert read.since == AT
    assert read.until == AT + datetime.resolution


def test_lists_and_amounts() -> None:
    read = filters(types="trade,position,trade", platforms="bfc", min_amount="0", max_amount="50000.5")
    assert (read.types, read.platforms) == (("position", "trade"), ("bfc",))
    assert (read.min_amount_minor, read.max_amount_minor) == (0, 50_000_50)
    assert filters() == Filters()


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"types": "trade,"}, "invalid_type"),
        ({"platforms": "BFC"}, "invalid_platform"),
        ({"from_": "2026-2-1"}, "invalid_date"),
        ({"from_": "2026-02-12T00:00:00Z", "to": "2026-02-11T23:59:59Z"}, "invalid_range"),
        ({"min_amount": "NaN"}, "invalid_amount"),
        ({"min_amount": "1.001"}, "invalid_amount"),
        ({"category": "x" * 101}, "invalid_category"),
    ],
)
def test_what_is_refused(parameters: dict[str, str], code: str) -> None:
    with pytest.raises(Problem) as refusal:
        filters(**parameters)
    assert (refusal.value.status, refusal.value.code) == (400, code)
