"""The classes of a match, their scores, and what must never match."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search.folding import canonical, fold, folded_text, words
from search.scoring import Field, Query, Scored, score

SPANS = {"exact": (100, 100), "starts_with": (80, 99), "contains": (60, 79), "fuzzy": (40, 59)}


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
        ("₹", "₹50", "starts_with"),
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
        ("niftyyy", "nifty"),  # two edits need eight
        ("50001", "50000"),  # digits are never fuzzy
        ("nifty50", "nifty51"),
        ("niftya", "nifty5a"),
        ("nifty gold", "NIFTY CALL"),  # every word must be there
        ("abcdefgh", "abcdexyz"),
        ("%", "NIFTY"),
        ("_", "NIFTY"),
        ("क", "ख"),
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


def test_more_of_the_name_is_better_within_a_class() -> None:
    shorter, longer = scored("nifty", "NIFTY CALL"), scored("nifty", "NIFTY 22000 CALL FEB")
    assert shorter is not None
    assert longer is not None
    assert shorter.score > longer.score


def test_a_phrase_beats_its_words() -> None:
    phrase, apart = scored("feb salary", "x", text="for Feb salary"), scored("salary feb", "x", text="Feb salary")
    assert phrase is not None
    assert apart is not None
    assert phrase.score > apart.score


def test_fewer_errors_are_better() -> None:
    one, two = scored("relianse", "RELIANCE"), scored("reliansx", "RELIANCE")
    assert one is not None
    assert two is not None
    assert one.score > two.score


def test_highlights_point_into_the_original() -> None:
    result = scored("ﬁxed  deposit", "My FIXED   Deposit 12")
    assert result is not None
    (highlight,) = result.highlights
    assert highlight.value[highlight.start : highlight.end] == "FIXED   Deposit"
    misspelt = scored("depsoit", "My FIXED   Deposit 12")
    assert misspelt is not None
    assert [h.value[h.start : h.end] for h in misspelt.highlights] == ["Deposit"]


def test_words_keep_marks_with_their_letters() -> None:
    assert words(folded_text("लक्ष्मी, NIFTY-50!")) == ["लक्ष्मी", "nifty", "50"]


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(query=_texts, name=_texts, text=_texts)
def test_a_score_stays_in_its_class_and_highlights_in_their_field(query: str, name: str, text: str) -> None:
    if not Query(query).folded:
        return
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
    if Query(text).folded:
        assert match(text, text) == "exact"


@given(_texts)
def test_folding_maps_back(text: str) -> None:
    folded = fold(canonical(text))
    assert len(folded.origin) == len(folded.text)
    assert list(folded.origin) == sorted(folded.origin)
    assert all(0 <= index < len(canonical(text)) for index in folded.origin)
    assert "  " not in folded.text
    assert folded.text == folded.text.strip(" ")
