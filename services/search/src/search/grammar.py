"""What a person types into the one box: words to look for, and filters among them. Pure.

    type:trade platform:vyomo amount>10000 last month NIFTY

| filter | is written |
|---|---|
| type, platform, state, category | `type:trade,position`  `platform:bfc`  `is:open`  `category:rent` |
| amount | `amount>10k`  `amount<=5,000`  `amount:500..1000`  `above ₹50k`  `under 5 lakh`  `between 500 and 1000` |
| date | `on:2026-02-12`  `from:2026-02-01`  `before:2026-03`  `12 Feb 2026`  `Feb 2026`  `today`  `yesterday` |
| | `this week`  `last month`  `last 30 days`  `this year`  `last FY`  `FY 2025-26` |

Days are those of India, weeks begin on Monday, the financial year on 1 April. What is not understood is text; so is
everything between quotes. Each filter is returned with the place where it was read, so that a client can show it as
a chip and cut it out.
"""

import re
from calendar import monthrange
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Literal, get_args

import msgspec
from chassis.money import format_amount

from search.documents import AMOUNT_CURRENCY, DocumentType, Platform, State
from search.filters import IST, Filters, day
from search.folding import is_number, words
from search.scoring import amount_of

FilterField = Literal["type", "platform", "state", "category", "amount", "date"]
Operator = Literal["=", ">", ">=", "<", "<=", "between"]

_AMOUNT_CATEGORY_CHARACTERS_MAX = 100


class ParsedFilter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter read from the query: characters `start` to `end` (exclusive) of it."""

    field: FilterField
    operator: Operator
    values: tuple[str, ...]
    """Amounts as decimal strings; days as 2026-02-12, both ends of `between` included."""
    text: str
    start: int
    end: int


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    """What is left to look for."""
    filters: Filters
    parsed: tuple[ParsedFilter, ...]


class _Read(msgspec.Struct, frozen=True, kw_only=True):
    """What one expression means."""

    field: FilterField
    operator: Operator
    values: tuple[str, ...]
    filters: Filters


def parse(query: str, now: datetime) -> Parsed:
    """Splits a query into filters and text. `now` tells what "last month" is."""
    today = now.astimezone(IST).date()
    # Same length as the query, with blanks where something has been read.
    rest = query
    for found in re.finditer(r'"[^"]*"', query):
        rest = _blank(rest, found.start(), found.end(), "\x00")
    read: list[tuple[ParsedFilter, Filters]] = []
    for pattern, meaning in _EXPRESSIONS:
        for found in pattern.finditer(rest):
            expression = meaning(found, today)
            if expression is None:
                continue
            start, end = found.span()
            rest = _blank(rest, start, end, " ")
            shown = ParsedFilter(
                field=expression.field,
                operator=expression.operator,
                values=expression.values,
                text=query[start:end],
                start=start,
                end=end,
            )
            read.append((shown, expression.filters))
    read.sort(key=lambda one: one[0].start)
    filters = Filters()
    for _, each in read:
        filters = filters & each
    text = "".join(query[i] if blanked == "\x00" else blanked for i, blanked in enumerate(rest)).replace('"', " ")
    return Parsed(text=" ".join(text.split()), filters=filters, parsed=tuple(shown for shown, _ in read))


def _blank(text: str, start: int, end: int, filler: str) -> str:
    return text[:start] + filler * (end - start) + text[end:]


# --- One of a list ------------------------------------------------------------------------------------

_KEYS: dict[str, tuple[FilterField, tuple[str, ...]]] = {
    "type": ("type", get_args(DocumentType)),
    "platform": ("platform", get_args(Platform)),
    "is": ("state", tuple(filter(None, get_args(State)))),
}


def _choice(found: re.Match[str], today: date) -> _Read | None:
    field, known = _KEYS[found["key"].lower().removesuffix("s") if found["key"].lower() != "is" else "is"]
    values = []
    for value in found["values"].lower().split(","):
        named = value if value in known else value.removesuffix("s")
        if named not in known:
            return None
        values.append(named)
    chosen = tuple(sorted(set(values)))
    if field == "type":
        return _Read(field=field, operator="=", values=chosen, filters=Filters(types=chosen))
    if field == "platform":
        return _Read(field=field, operator="=", values=chosen, filters=Filters(platforms=chosen))
    return _Read(field=field, operator="=", values=chosen, filters=Filters(states=chosen))


def _category(found: re.Match[str], today: date) -> _Read | None:
    chosen = tuple(sorted({value.lower() for value in found["values"].split(",") if value}))
    return _Read(field="category", operator="=", values=chosen, filters=Filters(categories=chosen))


# --- Amounts ------------------------------------------------------------------------------------------

_AMOUNT_TEXT = (
    r"(?:₹|rs\.?|inr)?\s?[0-9][0-9,]*(?:\.[0-9]+)?"
    r"(?:\s?(?:k|thousand|lakhs?|lacs?|crores?|cr|हज़ार|हजार|लाख|करोड़|करोड))?"
)


def _paise(text: str) -> int | None:
    found = [word for word in words(text) if word not in ("rs", "inr")]
    return amount_of(found[0]) if len(found) == 1 and is_number(found[0]) else None


def _bounds(operator: Operator, *paise: int | None) -> _Read | None:
    if any(amount is None for amount in paise):
        return None
    first, last = paise[0], paise[-1]
    assert first is not None
    assert last is not None
    if first > last:
        return None
    least = {">": first + 1, ">=": first, "=": first, "between": first}.get(operator)
    most = {"<": last - 1, "<=": last, "=": last, "between": last}.get(operator)
    return _Read(
        field="amount",
        operator=operator,
        values=tuple(format_amount(amount, AMOUNT_CURRENCY) for amount in (first, last)[: len(paise)]),
        filters=Filters(min_amount_minor=least, max_amount_minor=most),
    )


def _amount(found: re.Match[str], today: date) -> _Read | None:
    operator: Operator = {":": "=", "≥": ">=", "≤": "<="}.get(found["operator"], found["operator"])  # type: ignore[assignment]
    if found["most"]:
        return _bounds("between", _paise(found["least"]), _paise(found["most"])) if operator == "=" else None
    return _bounds(operator, _paise(found["least"]))


def _above(found: re.Match[str], today: date) -> _Read | None:
    return _bounds(">", _paise(found["amount"]))


def _below(found: re.Match[str], today: date) -> _Read | None:
    return _bounds("<", _paise(found["amount"]))


def _between(found: re.Match[str], today: date) -> _Read | None:
    return _bounds("between", _paise(found["least"]), _paise(found["most"]))


# --- Dates --------------------------------------------------------------------------------------------

_MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_DAY_TEXT = r"[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?"


def _days(first: date, last: date, operator: Operator = "between") -> _Read | None:
    """From the first day to the last, both included; one of the two for an open range."""
    try:
        since = day(first)[0] if operator != "<" else None
        until = day(last)[1] if operator != ">=" else None
        if operator == "<":
            until = day(first)[0]
    except OverflowError:
        return None
    values: tuple[str, ...] = (first.isoformat(), last.isoformat())
    if operator in ("<", ">="):
        values = values[:1]
    elif operator == "<=":
        values, since = values[1:], None
    elif first == last:
        operator, values = "=", values[:1]
    return _Read(field="date", operator=operator, values=values, filters=Filters(since=since, until=until))


def _span(text: str) -> tuple[date, date] | None:
    """The days of 2026-02-12 or of 2026-02."""
    try:
        if len(text) == len("2026-02-12"):
            one = date.fromisoformat(text)
            return one, one
        return _month(int(text[:4]), int(text[5:]))
    except ValueError:
        return None


def _month(year: int, month: int) -> tuple[date, date]:
    return date(year, month, 1), date(year, month, monthrange(year, month)[1])


def _dated(found: re.Match[str], today: date) -> _Read | None:
    span = _span(found["day"])
    if span is None:
        return None
    key = (found["key"] or "on").lower()
    match key:
        case "from" | "since":
            return _days(*span, ">=")
        case "after":
            return (
                _days(span[1] + timedelta(days=1), span[1] + timedelta(days=1), ">=") if span[1].year < 9999 else None
            )
        case "to" | "until":
            return _days(*span, "<=")
        case "before":
            return _days(*span, "<")
        case _:
            return _days(*span)


def _named_day(found: re.Match[str], today: date) -> _Read | None:
    try:
        one = date(int(found["year"]), _MONTHS[found["month"][:3].lower()], int(found["day"]))
    except ValueError:
        return None
    return _days(one, one)


def _named_month(found: re.Match[str], today: date) -> _Read | None:
    try:
        return _days(*_month(int(found["year"]), _MONTHS[found["month"][:3].lower()]))
    except ValueError:
        return None


def _near_day(found: re.Match[str], today: date) -> _Read | None:
    one = today if found[0].lower() == "today" else today - timedelta(days=1)
    return _days(one, one)


def _period(found: re.Match[str], today: date) -> _Read | None:
    last = found["which"].lower() in ("last", "previous")
    unit = found["unit"].lower()
    if unit == "week":
        first = today - timedelta(days=today.weekday() + 7 * last)
        return _days(first, first + timedelta(days=6))
    if unit == "month":
        first = today.replace(day=1)
        if last:
            first = (first - timedelta(days=1)).replace(day=1)
        return _days(*_month(first.year, first.month))
    if unit == "year":
        year = today.year - last
        return _days(date(year, 1, 1), date(year, 12, 31))
    year = today.year - (today.month < 4) - last
    return _days(date(year, 4, 1), date(year + 1, 3, 31))


def _last_few(found: re.Match[str], today: date) -> _Read | None:
    count = int(found["count"]) * {"day": 1, "week": 7, "month": 30}[found["unit"].lower().removesuffix("s")]
    return _days(today - timedelta(days=count - 1), today) if 1 <= count <= 3660 else None


def _financial_year(found: re.Match[str], today: date) -> _Read | None:
    year = int(found["year"])
    if int(found["next"]) != (year + 1) % 100 or not 1 <= year <= 9990:
        return None
    return _days(date(year, 4, 1), date(year + 1, 3, 31))


def _expressions() -> Iterator[tuple[re.Pattern[str], Callable[[re.Match[str], date], _Read | None]]]:
    """In the order in which they are tried: the longer before what it contains."""
    word = r"(?<!\S)"
    over = r"(?!\S)"
    for pattern, meaning in (
        (r"(?P<key>types?|platforms?|is):(?P<values>[a-z,]+)", _choice),
        (rf"category:(?P<values>[\w,]{{1,{_AMOUNT_CATEGORY_CHARACTERS_MAX}}})", _category),
        (
            rf"amount\s?(?P<operator>>=|<=|≥|≤|[:=<>])\s?(?P<least>{_AMOUNT_TEXT})(?:\.\.(?P<most>{_AMOUNT_TEXT}))?",
            _amount,
        ),
        (rf"between\s(?P<least>{_AMOUNT_TEXT})\sand\s(?P<most>{_AMOUNT_TEXT})", _between),
        (rf"(?:above|over|more\sthan)\s(?P<amount>{_AMOUNT_TEXT})", _above),
        (rf"(?:below|under|less\sthan)\s(?P<amount>{_AMOUNT_TEXT})", _below),
        (rf"(?:(?P<key>from|since|after|to|until|before|on):\s?)?(?P<day>{_DAY_TEXT})", _dated),
        (rf"(?:on\s)?(?P<day>[0-9]{{1,2}})\s{_MONTH},?\s(?P<year>[0-9]{{4}})", _named_day),
        (rf"(?:in\s)?{_MONTH}\s(?P<year>[0-9]{{4}})", _named_month),
        (r"today|yesterday", _near_day),
        (r"(?P<which>this|last|previous)\s(?P<unit>week|month|year|fy|financial\syear)", _period),
        (r"(?:in\sthe\s)?(?:last|past)\s(?P<count>[0-9]{1,4})\s(?P<unit>days?|weeks?|months?)", _last_few),
        (r"fy\s?(?P<year>[0-9]{4})-(?:[0-9]{2})?(?P<next>[0-9]{2})", _financial_year),
    ):
        yield re.compile(rf"{word}(?:{pattern}){over}", re.IGNORECASE), meaning


_EXPRESSIONS = tuple(_expressions())
