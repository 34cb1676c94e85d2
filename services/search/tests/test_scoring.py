"""The classes of a match, their scores, and what must never match."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search.folding import canonical, fold, words
from search.scoring import QUERY_WORDS_MAX, Field, Query, Scored, edits, score

SPANS = {"exact": (100, 100), "starts_with": (80, 99), "contains": (60, 79), "fuzzy": (40, 59)}
RELIANCE = "Reliance Industries"


def scored(query: str, *names: str, text: str = "") -> Scored | None:
    fields = [Field("title", canonical(name), True) for name in names]
    return score(Query(query), [*fields, Field("memo", canonical(text), False)])


def match(query: str, *names: str, text: str = "") -> str | None:
    result = scored(query, *names, text=text)
    return result.match if result else None


@pytest.mark.parametrize(
    ("query", "name", "expected"),
    [
        ("NIFTY", "NIFTY", "exact"),
        ("  nifty ", "NIFTY", "exact"),
        ("ｎｉｆｔｙ", "NIFTY", "exact"),
        ("nifty", "NIFTY CALL", "starts_with"),
        ("call", "NIFTY CALL", "contains"),
        ("ift", "NIFTY", "contains"),
        ("call nifty", "NIFTY CALL", "contains"),
        ("nfty", "NIFTY", "fuzzy"),
        ("nitfy", "NIFTY", "fuzzy"),
        ("relianse", "RELIANCE", "fuzzy"),
        ("relaince indistries", "Reliance Industries", "fuzzy"),
        ("लक्ष्मी", "लक्ष्मी स्टोर", "starts_with"),
        ("straße", "STRASSE", "exact"),
        ("relience", "RELIANCE", "fuzzy"),
        ("NIFTY-CALL", "nifty, call!", "exact"),
        ("niftycall", "NIFTYCALL", "exact"),
        ("café", "Cafe Coffee Day", "starts_with"),
        ("५० हज़ार", "₹50,000", "exact"),
        ("5 lakh", "Loan of 500000", "contains"),
        ("ज़ोमेटो", "जोमेटो", "exact"),
        ("laxmi", "Lakshmi Stores", "fuzzy"),
        ("lakshmi", "लक्ष्मी स्टोर", "fuzzy"),
        ("लक्ष्मी", "Laxmi General Store", "fuzzy"),
        ("chaudhary", "चौधरी ट्रेडर्स", "fuzzy"),
    ],
)
def test_classes(query: str, name: str, expected: str) -> None:
    result = scored(query, name)
    assert result is not None
    assert result.match == expected
    least, most = SPANS[expected]
    assert least <= result.score <= most


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("ifty", "GOLD"),
        ("cat", "car"),  # one edit needs four letters
        ("niftabc", "nifty"),  # two edits need eight
        ("50001", "50000"),  # digits are never fuzzy
        ("nifty50", "nifty51"),
        ("niftya", "nifty5a"),
        ("nifty gold", "NIFTY CALL"),  # every word must be there
        ("abcdefgh", "abcdexyz"),
        ("%", "NIFTY"),
        ("_", "NIFTY"),
        ("क", "ख"),
        ("₹", "₹50"),  # asks for a sign
        ("if", "NIFTY"),  # inside of a word from three letters
        ("500", "15000"),
        ("rent", "ranty"),
        ("salary", "Solar"),
    ],
)
def test_what_does_not_match(query: str, name: str) -> None:
    assert scored(query, name) is None


def test_text_is_no_name() -> None:
    assert match("nifty", "NIFTY CALL", text="nifty") == "starts_with"
    assert match("salary", "Acme Ltd", text="salary") == "contains"


def test_the_best_field_counts() -> None:
    result = scored("nifty", "NIFTY CALL", "NIFTY")
    assert result is not None
    assert (result.match, result.score) == ("exact", 100)


@pytest.mark.parametrize(
    ("query", "points"),
    [
        ("reliance industries", 100),
        ("Reliance", 90),
        ("reli", 80),
        ("industries reliance", 78),
        ("industries fresh", 72),
        ("ind fre", 66),
        ("dustri", 60),
        ("relayance fresh", 55),
        ("relianse fresh", 55),
        ("relance", 50),
        ("relibncw fresh", 45),
        ("relibxcw", None),
    ],
)
def test_each_step(query: str, points: int | None) -> None:
    result = scored(query, RELIANCE, text="the fresh one")
    assert (result.score if result else None) == points


@pytest.mark.parametrize(
    "query", ["50000", "50,000", "₹50k", "50 k", "Rs 50,000.00", "0.5 lakh", "५०,०००", "50 हज़ार", "₹0.5L", "INR 50000"]
)
def test_an_amount_in_any_spelling(query: str) -> None:
    fields = [Field("title", "Rent", True), Field("amount", "₹50,000", False)]
    result = score(Query(query), fields, 50_000_00)
    assert result is not None
    assert (result.score, result.highlights[0].field, result.highlights[0].end) == (100, "amount", 7)
    both = score(Query(f"rent {query.removeprefix('Rs ')}"), fields, 50_000_00)
    assert both is not None
    assert both.score == 72
    assert score(Query("5000"), fields, 50_000_00) is None  # not even as its beginning
    assert score(Query("50000"), fields, None) is None  # not in rupees


def test_fewer_errors_are_better() -> None:
    one, two = scored("relance", "RELIANCE"), scored("relibncw", "RELIANCE")
    assert one is not None
    assert two is not None
    assert one.score > two.score


def test_highlights_point_into_the_original() -> None:
    result = scored("ﬁxed  deposit", "My FIXED   Deposit 12")
    assert result is not None
    assert [h.value[h.start : h.end] for h in result.highlights] == ["FIXED", "Deposit"]
    beginning = scored("my ﬁxed  dep", "My FIXED   Deposit 12")
    assert beginning is not None
    assert [h.value[h.start : h.end] for h in beginning.highlights] == ["My FIXED   Dep"]
    misspelt = scored("depsoit", "My FIXED   Deposit 12")
    assert misspelt is not None
    assert [h.value[h.start : h.end] for h in misspelt.highlights] == ["Deposit"]


def test_words_keep_marks_with_their_letters() -> None:
    assert words("लक्ष्मी, NIFTY-50!") == ("लक्ष्मी", "nifty", "50")


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(query=_texts, name=_texts, text=_texts)
def test_a_score_stays_in_its_class_and_highlights_in_their_field(query: str, name: str, text: str) -> None:
    result = scored(query, name, text=text)
    if result is None:
        return
    least, most = SPANS[result.match]
    assert least <= result.score <= most
    assert result.highlights
    for highlight in result.highlights:
        assert 0 <= highlight.start < highlight.end <= len(highlight.value)


@given(_texts)
def test_everything_finds_itself(text: str) -> None:
    if 0 < len(words(text)) <= QUERY_WORDS_MAX:
        assert match(text, text) == "exact"


@given(_texts)
def test_folding_maps_back(text: str) -> None:
    folded = fold(canonical(text))
    assert len(folded.origin) == len(folded.text)
    assert list(folded.origin) == sorted(folded.origin)
    assert all(0 <= index < len(canonical(text)) for index in folded.origin)
    assert "  " not in folded.text
    assert folded.text == folded.text.strip(" ")


@pytest.mark.parametrize(("one", "other"), [("zebra7", "zebras"), ("7zebra", "azebra"), ("778812", "77881o")])
def test_a_word_with_a_digit_is_not_a_misspelt_one(one: str, other: str) -> None:
    assert edits(one, other) is None
    assert edits(other, one) is None
    assert edits(one, one) == 0
