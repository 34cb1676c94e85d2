"""What the caller restricts a search to, read from the query parameters."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import TypeVar, get_args

import msgspec
from chassis.money import parse_amount
from chassis.problems import invalid_field

from search.documents import AMOUNT_CURRENCY, Document, DocumentType, Platform

IST = timezone(timedelta(hours=5, minutes=30))
_CATEGORY_CHARACTERS_MAX = 100

T = TypeVar("T", datetime, int)


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """None lets everything through. Both ends of a range are inclusive, but `until`, which is exclusive."""

    types: tuple[str, ...] | None = None
    platforms: tuple[str, ...] | None = None
    states: tuple[str, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_amount_minor: int | None = None
    max_amount_minor: int | None = None
    categories: tuple[str, ...] | None = None

    def __and__(self, other: "Filters") -> "Filters":
        """What both let through."""
        return Filters(
            types=_both(self.types, other.types),
            platforms=_both(self.platforms, other.platforms),
            states=_both(self.states, other.states),
            since=_choose(max, self.since, other.since),
            until=_choose(min, self.until, other.until),
            min_amount_minor=_choose(max, self.min_amount_minor, other.min_amount_minor),
            max_amount_minor=_choose(min, self.max_amount_minor, other.max_amount_minor),
            categories=_both(self.categories, other.categories),
        )

    def lets_through(self, document: Document) -> bool:
        """Whether the document is one of those asked for."""
        paise = document.paise
        return (
            (self.types is None or document.type in self.types)
            and (self.platforms is None or document.platform in self.platforms)
            and (self.states is None or document.state in self.states)
            and (self.since is None or document.date >= self.since)
            and (self.until is None or document.date < self.until)
            and (self.min_amount_minor is None or (paise is not None and paise >= self.min_amount_minor))
            and (self.max_amount_minor is None or (paise is not None and paise <= self.max_amount_minor))
            and (self.categories is None or document.category in self.categories)
        )


def read_filters(
    *,
    types: str | None,
    platforms: str | None,
    from_: str | None,
    to: str | None,
    min_amount: str | None,
    max_amount: str | None,
    category: str | None,
) -> Filters:
    """The filters as the parameters of that name say them.

    `from` and `to` are days (IST, both included) or instants (RFC 3339).

    Raises:
        Problem: 400 naming the parameter: `invalid_type`, `invalid_platform`, `invalid_date`,
            `invalid_amount`, `invalid_range`, `invalid_category`.
    """
    since = None if from_ is None else _instant("from", from_, end_of_day=False)
    until = None if to is None else _instant("to", to, end_of_day=True)
    if since is not None and until is not None and since >= until:
        raise invalid_field("to", "must not be before `from`", "invalid_range")
    least = None if min_amount is None else _amount("min_amount", min_amount)
    most = None if max_amount is None else _amount("max_amount", max_amount)
    if least is not None and most is not None and least > most:
        raise invalid_field("max_amount", "must not be below `min_amount`", "invalid_range")
    if category is not None and not 0 < len(category) <= _CATEGORY_CHARACTERS_MAX:
        raise invalid_field("category", f"must have 1 to {_CATEGORY_CHARACTERS_MAX} characters", "invalid_category")
    return Filters(
        types=_choices("types", types, get_args(DocumentType), "invalid_type"),
        platforms=_choices("platforms", platforms, get_args(Platform), "invalid_platform"),
        since=since,
        until=until,
        min_amount_minor=least,
        max_amount_minor=most,
        categories=None if category is None else (category,),
    )


def day(start: date) -> tuple[datetime, datetime]:
    """The instants at which a day begins and ends in India.

    Raises:
        OverflowError: the day is at the end of time.
    """
    begins = datetime.combine(start, time(), IST).astimezone(UTC)
    return begins, begins + timedelta(days=1)


def _both(ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return tuple(sorted(set(ours) & set(theirs)))


def _choose(choice: Callable[[T, T], T], ours: T | None, theirs: T | None) -> T | None:
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    return choice(ours, theirs)


def _choices(field: str, text: str | None, known: tuple[str, ...], code: str) -> tuple[str, ...] | None:
    if text is None:
        return None
    chosen = tuple(sorted(set(text.split(","))))
    if not set(chosen) <= set(known):
        raise invalid_field(field, f"must be a list, separated by commas, of: {', '.join(known)}", code)
    return chosen


def _amount(field: str, text: str) -> int:
    return parse_amount(text, AMOUNT_CURRENCY, field=field, zero=True)


def _instant(field: str, text: str, *, end_of_day: bool) -> datetime:
    try:
        if len(text) == len("2026-02-12"):
            return day(date.fromisoformat(text))[end_of_day]
        instant = msgspec.convert(text, datetime)
        if instant.tzinfo is None:
            raise ValueError("an instant without an offset")
        # An instant is included too, and `until` is exclusive.
        return (instant + datetime.resolution if end_of_day else instant).astimezone(UTC)
    except (ValueError, OverflowError):  # msgspec.ValidationError is a ValueError
        raise invalid_field(
            field, "must be a day (2026-02-12) or an instant (2026-02-12T09:00:00Z)", "invalid_date"
        ) from None
