"""How text is compared: folded, so that case, width, accents and spacing do not matter, and cut into tokens. Pure.

A token is a word, or a number in one spelling: "50,000", "₹50k" and "50000.00" are all `50000`, "5 lakh" is
`500000`. Both documents and queries go through here, so that they meet.
"""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

_UNITS = {
    **dict.fromkeys(("k", "thousand", "hazar", "hazaar", "हजार"), 1_000),
    **dict.fromkeys(("lakh", "lakhs", "lac", "lacs", "लाख"), 100_000),
    **dict.fromkeys(("crore", "crores", "cr", "करोड"), 10_000_000),
}
# Letters and digits, with the marks that belong to them: without its marks Devanagari would fall apart into single
# characters. The blocks of the Indic scripts are taken whole, but for the dandas, which end sentences.
_IN_WORD = r"(?:[^\W_]|[\u0900-\u0963\u0966-\u0dff])"
_TOKEN = re.compile(
    rf"(?<!{_IN_WORD})(?:(?:rs|inr)\.?\ ?)?(?P<number>(?:[0-9]{{1,3}}(?:,[0-9]{{2,3}})+|[0-9]+)(?:\.[0-9]+)?)"
    rf"(?:(?P<short>l)|\ ?(?P<unit>{'|'.join(sorted(_UNITS, key=len, reverse=True))}))?(?!{_IN_WORD})"
    rf"|{_IN_WORD}+"
)
_NUMBER_DIGITS_MAX = 18
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff"
_NUKTA = "\u093c"
_CHANDRABINDU, _ANUSVARA = "\u0901", "\u0902"


class Folded(NamedTuple):
    """Text as it is compared, and where each of its characters came from."""

    text: str
    origin: Sequence[int]
    """For each character of `text`, the index of the original character."""


class Token(NamedTuple):
    """A word or number of folded text."""

    text: str
    start: int
    end: int
    """Exclusive; both count characters of the folded text."""


def canonical(text: str) -> str:
    """The form in which text is stored: composed, so that folding can go character by character."""
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> Folded:
    """Canonical text without differences of case, width, accents and spacing, mapped back to the original."""
    if text.isascii() and text == " ".join(text.split()):
        return Folded(text.lower(), range(len(text)))  # nearly all text, and an order of magnitude faster
    folded: list[str] = []
    origin: list[int] = []
    for index, character in enumerate(text):
        for piece in _fold_character(character):
            if piece == " " and (not folded or folded[-1] == " "):
                continue
            folded.append(piece)
            origin.append(index)
    if folded and folded[-1] == " ":
        folded.pop()
        origin.pop()
    return Folded("".join(folded), origin)


def tokens(folded: str) -> list[Token]:
    """The tokens of folded text, in order."""
    return [Token(_spelling(found), found.start(), found.end()) for found in _TOKEN.finditer(folded)]


@lru_cache(maxsize=16384)
def words(text: str) -> tuple[str, ...]:
    """The tokens of any text, folded: what of it can be found."""
    return tuple(token.text for token in tokens(fold(canonical(text)).text))


def has_digit(word: str) -> bool:
    """Whether a digit of any script is in it. Such a word is an amount, a date, a reference: never misspelt."""
    if word.isascii() and word.isalpha():
        return False  # nearly all words, and five times as fast
    return any(map(str.isnumeric, word))


def is_number(word: str) -> bool:
    """Whether a token is a plain number, which may be an amount in rupees."""
    return word.isascii() and word.replace(".", "", 1).isdigit()


def _spelling(found: re.Match[str]) -> str:
    number, unit = found["number"], "lakh" if found["short"] else found["unit"]
    if number is None:
        return found[0]
    plain = number.replace(",", "")
    if (unit is None and "." not in plain) or len(plain) > _NUMBER_DIGITS_MAX:
        return plain  # digits as they are: zeros in front count in a reference
    value = (Decimal(plain) * _UNITS.get(unit or "", 1)).normalize()
    return f"{value:f}"


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    if character.isspace():
        return " "
    if character in _ZERO_WIDTH or character == _NUKTA:
        return ""  # joiners, and the dot that turns ज into ज़, are left out as often as written
    if character == _CHANDRABINDU:
        return _ANUSVARA
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    folded = unicodedata.normalize("NFKC", character).casefold()
    # An accent on a Latin letter goes; the marks of other scripts are vowels, and stay.
    decomposed = unicodedata.normalize("NFKD", folded)
    return "".join(mark for mark in decomposed if not "\u0300" <= mark <= "\u036f" and mark != _NUKTA)
