"""How text is compared: folded, so that case, width and spacing do not matter, and split into words. Pure."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

_ASCII_WORD = re.compile(r"[a-z0-9]+")


class Folded(NamedTuple):
    """Text as it is compared, and where each of its characters came from."""

    text: str
    origin: Sequence[int]
    """For each character of `text`, the index of the original character."""


def canonical(text: str) -> str:
    """The form in which text is stored: composed, so that folding can go character by character."""
    return unicodedata.normalize("NFC", text)


def fold(text: str) -> Folded:
    """Canonical text without differences of case, width and spacing, mapped back to the original."""
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


def folded_text(text: str) -> str:
    """`fold` without the mapping."""
    return fold(canonical(text)).text


def words(folded: str) -> list[str]:
    """The words of folded text, in order: runs of letters, marks and digits.

    Marks belong to their letter: without them Devanagari would fall apart into single characters.
    """
    if folded.isascii():
        return _ASCII_WORD.findall(folded)
    return ["".join(run) for is_word, run in groupby(folded, _in_word) if is_word]


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    if character.isspace():
        return " "
    return unicodedata.normalize("NFKC", character).casefold()


@lru_cache(maxsize=4096)
def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
