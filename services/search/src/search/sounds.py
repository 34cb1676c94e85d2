"""How words sound: one key for the spellings that Indian names and words have in two scripts. Pure.

Laxmi, Lakshmi and लक्ष्मी are `lksmi`; Chaudhary, Choudhury and चौधरी are alike, and so are Zomato and Jomato.
docs/decisions/0041 tells the rules and what they cost. In short: Devanagari is written in Latin letters first; then
aspirates lose their h, sh and s, w and v, z and j, c and k fall together, vowels keep only their colour
(i-like, u-like; a is dropped but at the start), and nothing is doubled.
"""

import re
from functools import lru_cache

from search.folding import has_digit

LETTERS_MIN = 3
"""Shorter words sound like too many others."""

_CONSONANTS_IN_LATIN = """
    क k  ख kh  ग g  घ gh  ङ n  च ch  छ chh  ज j  झ jh  ञ n  ट t  ठ th  ड d  ढ dh  ण n  त t  थ th  द d  ध dh  न n
    प p  फ ph  ब b  भ bh  म m  य y  र r  ल l  व v  श sh  ष sh  स s  ह h  ळ l
"""
_VOWELS_IN_LATIN = "अ a  आ aa  इ i  ई ii  उ u  ऊ uu  ऋ ri  ए e  ऐ ai  ओ o  औ au  ऑ o  ऍ e"
_SIGNS_IN_LATIN = "ा aa  ि i  ी ii  ु u  ू uu  ृ ri  े e  ै ai  ो o  ौ au  ॉ o  ॅ e"


def _pairs(text: str) -> dict[str, str]:
    parts = text.split()
    return dict(zip(parts[::2], parts[1::2], strict=True))


_CONSONANTS, _VOWELS, _SIGNS = map(_pairs, (_CONSONANTS_IN_LATIN, _VOWELS_IN_LATIN, _SIGNS_IN_LATIN))
_VIRAMA, _ANUSVARA, _VISARGA = "्", "ं", "ः"

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"x", "ks"),
        (r"ck|q", "k"),
        (r"tch", "ch"),
        (r"c(?=[eiy])", "s"),
        (r"c(?!h)", "k"),
        (r"ch+", "c"),
        (r"ph", "f"),
        (r"z", "j"),
        (r"w", "v"),
        (r"sh", "s"),
        (r"([kgjtdbrlmn])h", r"\1"),
        (r"m(?=[kgcjtds])", "n"),  # an anusvara before anything but a lip sound is an n
        (r"ee+|ii+|ie|ey|iy|ei|y(?![aeiou])", "i"),
        (r"oo+|uu+|ou|au|ov(?=[dr])|o", "u"),
        (r"ai(?=.)", "a"),  # जैन, Jain; and the a of English words in Devanagari: बैंक
        (r"ai|ay(?![aeiou])", "i"),
        (r"^e", "a"),
        (r"(?<=.)[ae]+$", ""),
        (r"e", "i"),
        (r"(?<=.)a+", ""),
        (r"aa+", "a"),
        (r"(?<=.)h", ""),
        (r"y", "i"),
        (r"(.)\1+", r"\1"),
    )
)


@lru_cache(maxsize=32768)
def sound(word: str) -> str | None:
    """The key of a folded word; None where it has digits, is too short, or is of a script not known here."""
    if has_digit(word):
        return None
    latin = word if word.isascii() else in_latin(word)
    if latin is None or len(latin) < LETTERS_MIN or not latin.isalpha():
        return None
    key = latin
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return key if len(key) >= 2 else None


def in_latin(word: str) -> str | None:
    """A folded Devanagari word in Latin letters as it is commonly typed; None for other scripts.

    The inherent a is written after a consonant that has neither a vowel sign nor a virama, but not at the end.
    """
    latin: list[str] = []
    last = len(word) - 1
    for index, character in enumerate(word):
        following = word[index + 1] if index < last else ""
        if character in _CONSONANTS:
            latin.append(_CONSONANTS[character])
            if index < last and following not in _SIGNS and following != _VIRAMA:
                latin.append("a")
        elif character in _VOWELS:
            latin.append(_VOWELS[character])
        elif character in _SIGNS:
            latin.append(_SIGNS[character])
        elif character == _ANUSVARA:
            latin.append("m" if following in tuple("पफबभम") else "n")
        elif character not in (_VIRAMA, _VISARGA):
            return None
    return "".join(latin)
