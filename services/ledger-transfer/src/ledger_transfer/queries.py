"""What the query string of the history may say, turned into a filter."""

import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from uuid import UUID

import msgspec
from chassis.money import parse_amount
from chassis.problems import Problem, invalid_field
from chassis.request import AnyRequest
from chassis.tokens import Caller
from events.contracts.ledger import Direction, Platform

from ledger_transfer.projections.transactions import Filter, TransactionType

CURRENCY = "INR"
"""Whose number of decimals the amounts of a filter have."""

_IST = timezone(timedelta(hours=5, minutes=30), "IST")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_DATE_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:.]{8,15}([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII)


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
            midnight = datetime.combine(date.fromisoformat(text), time(), _IST)
            return (midnight + timedelta(days=1) if day_after else midnight).astimezone(UTC)
        if _DATE_TIME.fullmatch(text):
            return msgspec.convert(text, datetime).astimezone(UTC)
    except (ValueError, OverflowError):
        pass  # told below
    raise invalid_field(field, "must be a date or an RFC 3339 time with its offset, such as 2026-02-12T09:00:00Z")
