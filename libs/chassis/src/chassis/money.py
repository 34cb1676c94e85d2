"""Money at the edge: decimal strings outside, integer minor units (paise) inside, never a float."""

import re

from chassis.problems import Problem

DECIMALS = {"EUR": 2, "GBP": 2, "INR": 2, "JPY": 0, "KWD": 3, "USD": 2}
"""Digits after the point per ISO 4217 currency that we deal in."""

INTEGER_DIGITS_MAX = 13

_AMOUNT = re.compile(rf"(-?)([0-9]{{1,{INTEGER_DIGITS_MAX}}})(?:\.([0-9]+))?", re.ASCII)


def decimals_of(currency: str) -> int:
    """How many digits after the point `currency` has.

    Raises:
        Problem: 400 `invalid_currency`.
    """
    decimals = DECIMALS.get(currency)
    if decimals is None:
        message = "is not a currency we deal in"
        raise Problem(
            400,
            "invalid_currency",
            f"The currency {message}",
            errors=[{"field": "currency", "message": message}],
        )
    return decimals


def parse_amount(text: str, currency: str, *, field: str = "amount", zero: bool = False, signed: bool = False) -> int:
    """The minor units of a decimal string like "50000.00".

    Plain ASCII digits with at most the currency's number of decimals. Only positive amounts, unless the
    caller allows `zero` (a balance) or `signed` (a profit or loss; implies zero).

    Raises:
        Problem: 400 `invalid_amount` naming `field`, or 400 `invalid_currency`.
    """
    decimals = decimals_of(currency)
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise _invalid(field, "must be a plain decimal number such as 50000.00")
    sign, whole, fraction = match[1], match[2], match[3] or ""
    if len(fraction) > decimals:
        raise _invalid(field, f"must have at most {decimals} decimals in {currency}")
    minor = int(whole + fraction.ljust(decimals, "0"))
    if sign and not signed:
        raise _invalid(field, "must not be negative")
    if minor == 0 and not (zero or signed):
        raise _invalid(field, "must be greater than zero")
    return -minor if sign else minor


def format_amount(minor: int, currency: str) -> str:
    """The decimal string of `minor` units, always with all decimals: "50000.00".

    Raises:
        Problem: 400 `invalid_currency`.
    """
    decimals = decimals_of(currency)
    if decimals == 0:
        return str(minor)
    digits = str(abs(minor)).rjust(decimals + 1, "0")
    return f"{'-' if minor < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def rupees(minor: int, *, plus: bool = False) -> str:
    """Paise as a person in India reads them: ₹12,34,567.50; whole rupees without decimals.

    `plus` puts a + before a gain, as profit and loss are written.
    """
    whole, paise = divmod(abs(minor), 100)
    text = str(whole)
    head, tail = text[:-3], text[-3:]
    groups = [head[max(0, end - 2) : end] for end in range(len(head), 0, -2)][::-1]
    sign = "-" if minor < 0 else "+" if plus and minor > 0 else ""
    return f"{sign}₹{','.join([*groups, tail])}{f'.{paise:02d}' if paise else ''}"


def _invalid(field: str, message: str) -> Problem:
    return Problem(400, "invalid_amount", f"The {field} {message}", errors=[{"field": field, "message": message}])
