"""A person's e-mail address, phone number and name: which are accepted, and in which form they are kept."""

import re
import unicodedata
from typing import NamedTuple

EMAIL_LENGTH_MAX = 254
_LOCAL_PART_LENGTH_MAX = 64
NAME_LENGTH_MAX = 200
_INDIA = "+91"

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(\.{_ATOM})*")
_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_INDIAN_MOBILE = re.compile(r"[6-9][0-9]{9}")
_SEPARATORS = re.compile(r"[ ().-]")
# Line and bidi controls change how the text around a name reads. Joiners stay: Indian scripts need them.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


class EmailAddress(NamedTuple):
    """An address as its owner wrote it, and the form that is unique among users."""

    address: str
    unique: str
    """Without case: `Asha@Example.in` and `asha@example.in` reach one person."""


def email_address(text: str) -> EmailAddress:
    """The address, its domain in lower-case ASCII (IDNA), its local part in NFC.

    Raises:
        ValueError: not an address by form and the length limits of RFC 5321. Quoted local parts are refused.
    """
    text = unicodedata.normalize("NFC", text)
    local_part, at, domain = text.rpartition("@")
    if not at or len(text) > EMAIL_LENGTH_MAX or len(local_part.encode()) > _LOCAL_PART_LENGTH_MAX:
        raise ValueError("is not an e-mail address")
    try:
        # The codec raises UnicodeError, a ValueError.
        domain = domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError("is not an e-mail address") from None
    address = f"{local_part}@{domain}"
    well_formed = _LOCAL_PART.fullmatch(local_part) and _DOMAIN.fullmatch(domain)
    invisible = any(unicodedata.category(char)[0] in "CZ" for char in local_part)
    if not well_formed or invisible or len(address) > EMAIL_LENGTH_MAX:
        raise ValueError("is not an e-mail address")
    return EmailAddress(address, unicodedata.normalize("NFC", address.casefold()))


def phone_number(text: str) -> str:
    """The number in E.164 form. A bare ten-digit mobile number is an Indian one.

    Raises:
        ValueError: not a phone number.
    """
    digits = _SEPARATORS.sub("", text)
    if _INDIAN_MOBILE.fullmatch(digits):
        digits = _INDIA + digits
    if not _E164.fullmatch(digits):
        raise ValueError("is not a phone number with country code, such as +919812345678")
    return digits


def full_name(text: str) -> str:
    """The name in NFC, without surrounding blanks.

    Raises:
        ValueError: empty, too long, or with characters that are no text.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not 1 <= len(name) <= NAME_LENGTH_MAX:
        raise ValueError(f"must have 1 to {NAME_LENGTH_MAX} characters")
    if any(unicodedata.category(char) in _REFUSED_CATEGORIES or char in _BIDI_CONTROLS for char in name):
        raise ValueError("must not contain control characters")
    return name
