"""What the query string of the history may say, turned into a filter."""

import re
import unicodedata
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated
from uuid import UUID

import msgspec
from chassis.money import parse_amount
from chassis.problems import Problem, invalid_field
from chassis.request import AnyRequest
from chassis.tokens import Caller
from events.contracts.ledger import Direction, Platform
from litestar.params import HeaderParameter, QueryParameter

from ledger_transfer.limits import IST
from ledger_transfer.projections.transactions import Filter, TransactionType

CURRENCY = "INR"
"""Whose number of decimals the amounts of a filter have."""

_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_DATE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:.]{8,15}([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII)


Limit = Annotated[int, QueryParameter(ge=1, le=200, description="How many items to return")]
Cursor = Annotated[str | None, QueryParameter(description="`next_cursor` of the page before")]
Key = Annotated[
    str | None,
    HeaderParameter(name="Idempotency-Key", description="Names the request; 1 to 255 visible characters"),
]

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def reject_unknown(request: AnyRequest, *known: str) -> None:
    """A misspelt filter must not silently list everything.

    Raises:
        Problem: 400 `invalid_request` naming every parameter that is unknown or given twice.
    """
    caller: Caller | None = request.scope["state"].get("caller")
    if caller is not None and caller.operator is not None:
        known += ("user_id",)  # whom the operator acts for
    names = [name for name, _ in request.query_params.multi_items()]
    errors = [{"field": name[:64], "message": "is not a parameter here"} for name in names if name not in known]
    errors += [{"field": name, "message": "is given more than once"} for name in known if names.count(name) > 1]
    if errors:
        raise Problem(400, "invalid_request", "The query string is not valid", errors=errors)


def filter_of(
    *,
    platform: Platform | None,
    account_id: UUID | None,
    type_: TransactionType | None,
    category: str | None,
    direction: Direction | None,
    since: str | None,
    until: str | None,
    min_amount: str | None,
    max_amount: str | None,
) -> Filter:
    """The filter that the parameters describe; what is None does not filter.

    Raises:
        Problem: 400 naming the parameter whose value is no time, date or amount.
    """
    chosen = Filter(platform=platform, account_id=account_id, type=type_, category=category, direction=direction)
    bounds: dict[str, datetime | int] = {}
    if since is not None:
        bounds["since"] = instant("from", since)
    if until is not None:
        bounds["until"] = instant("to", until, day_after=True)
    if min_amount is not None:
        bounds["min_amount_minor"] = parse_amount(min_amount, CURRENCY, field="min_amount", zero=True)
    if max_amount is not None:
        bounds["max_amount_minor"] = parse_amount(max_amount, CURRENCY, field="max_amount", zero=True)
    return msgspec.structs.replace(chosen, **bounds)


def instant(field: str, text: str, *, day_after: bool = False) -> datetime:
    """A point in time: RFC 3339 with its offset, or a date, which is a day in India.

    `day_after`: a date stands for the end of its day, so that it is included.

    Raises:
        Problem: 400 `invalid_request`.
    """
    try:
        if _DATE.fullmatch(text):
            midnight = datetime.combine(date.fromisoformat(text), time(), IST)
            return (midnight + timedelta(days=1) if day_after else midnight).astimezone(UTC)
        if _DATE_TIME.fullmatch(text):
            return msgspec.convert(text, datetime).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # told below
    raise invalid_field(field, "must be a date or an RFC 3339 time with its offset, such as 2026-02-12T09:00:00Z")


def month_of(field: str, text: str) -> tuple[datetime, datetime]:
    """The instants at which a month in India, `YYYY-MM`, begins and ends.

    Raises:
        Problem: 400 `invalid_request`.
    """
    match = _MONTH.fullmatch(text)
    # The last month that datetime knows has no end.
    if match is None or not 2 <= int(match[1]) < 9999:
        raise invalid_field(field, "must be a month such as 2026-02")
    year, month = int(match[1]), int(match[2])
    until = date(year + month // 12, month % 12 + 1, 1)
    since = datetime.combine(date(year, month, 1), time(), IST)
    return since.astimezone(UTC), datetime.combine(until, time(), IST).astimezone(UTC)


def plain_text(field: str, text: str | None) -> str | None:
    """The text, if it is fit to be shown on one line.

    Raises:
        Problem: 400 `invalid_request`.
    """
    if text is not None and any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise invalid_field(field, "must not contain control characters")
    return text


def key_of(key: str | None) -> str:
    """The idempotency key, which must be there.

    Raises:
        Problem: 400 `idempotency_key_required` or `invalid_idempotency_key`.
    """
    if not key:
        raise Problem(400, "idempotency_key_required", "A transfer needs an Idempotency-Key")
    if _KEY.fullmatch(key) is None:
        raise invalid_field("Idempotency-Key", "must be 1 to 255 visible ASCII characters", "invalid_idempotency_key")
    return key
