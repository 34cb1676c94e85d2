"""The one table from exception to answer, for everything that reaches the edge of a service.

Services raise `Problem`, or let a decider's `Refusal` through, which is a 422 with its own code.
"""

from http import HTTPStatus
from typing import Any

import asyncpg
from events.decisions import Refusal
from events.outage import is_outage
from events.store import EventIdReused, VersionConflict
from litestar.exceptions import HTTPException, ValidationException

from chassis.problems import Problem, unavailable

_CODES = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "unavailable",
}
_DETAILS = {
    400: "The request is not valid",
    404: "There is nothing at this address",
    405: "This address does not support the method",
    413: "The body is larger than this route accepts",
}


def problem_of(error: BaseException) -> Problem:
    """The answer to an exception that reached the edge of a service."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Refusal):
        return Problem(422, error.code, str(error) or error.code.replace("_", " "))
    if isinstance(error, EventIdReused):
        return Problem(422, "idempotency_key_reused", "The idempotency key was used for another request")
    if isinstance(error, VersionConflict):
        return Problem(409, "conflict", "Something else changed at the same time; read again and retry")
    if isinstance(error, ValidationException):
        return Problem(400, "invalid_request", _DETAILS[400], errors=_validation_errors(error))
    if isinstance(error, HTTPException):
        status = error.status_code
        if status in _CODES:
            detail = _DETAILS.get(status, HTTPStatus(status).phrase)
            return Problem(status, _CODES[status], detail, headers=error.headers)
        if error.detail == "client disconnected prematurely":
            return Problem(400, "client_disconnected", "The body did not arrive completely")
    if _is_unrepresentable(error):
        return Problem(400, "invalid_request", "The request holds a value out of range")
    if is_outage(error):
        return unavailable()
    return Problem(500, "internal", "Something went wrong on our side; the request id helps us find it")


def _is_unrepresentable(error: BaseException) -> bool:
    """A value that PostgreSQL cannot store, or asyncpg not even send (its DataError has no public name)."""
    return isinstance(error, asyncpg.DataError) or (
        isinstance(error, asyncpg.InterfaceError)
        and isinstance(error, ValueError)
        and not isinstance(error, asyncpg.ClientConfigurationError)
    )


def _validation_errors(error: ValidationException) -> list[dict[str, str]]:
    if isinstance(error.extra, list):
        return [{"field": _field(item), "message": _message(item)} for item in error.extra if isinstance(item, dict)]
    # "Missing required query parameter 'limit' for path /x?…": keep the name, drop the caller's URL.
    parts = error.detail.split("'")
    if error.detail.startswith("Missing required") and len(parts) > 1:
        return [{"field": parts[1], "message": "is required"}]
    return []


def _field(item: dict[str, Any]) -> str:
    # `data` is the name of a parameter of ours; the client knows it as the body.
    return "" if item.get("key") == "data" else str(item.get("key", ""))


def _message(item: dict[str, Any]) -> str:
    message = str(item.get("message", ""))
    return "is required" if message == f"'{item.get('key')}'" else message
