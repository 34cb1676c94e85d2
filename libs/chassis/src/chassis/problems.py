"""Errors as clients see them: RFC 9457 `application/problem+json` with a stable `code`.

Nothing here does I/O. Which exception becomes which problem is said in `chassis.answers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1

_encoder = msgspec.json.Encoder()


class Problem(Exception):
    """An error answer. `code` is stable and machine-readable, `detail` is for people."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] | None = None,
        **extensions: Any,
    ) -> None:
        """`errors` are `{field, message}` of bad input; `extensions` become further members of the body."""
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = list(errors or ())
        self.extensions = extensions

    def body(self, request_id: str | None) -> bytes:
        """The JSON document of RFC 9457."""
        document: dict[str, Any] = {
            "type": f"urn:sangam:problem:{self.code}",
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            document["errors"] = self.errors
        if request_id is not None:
            document["instance"] = f"urn:sangam:request:{request_id}"
            document["request_id"] = request_id
        return _encoder.encode(document | self.extensions)


def unavailable(detail: str = "A part of the service is not available at the moment") -> Problem:
    """503: nothing is wrong with the request; the client may send it again."""
    return Problem(503, "unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def invalid_field(field: str, message: str, code: str = "invalid_request") -> Problem:
    """400: one field of the request is not acceptable."""
    return Problem(400, code, message, errors=[{"field": field, "message": message}])


def malformed_json(detail: str = "The body is not valid JSON") -> Problem:
    """400: the body could not be parsed at all."""
    return Problem(400, "malformed_json", detail)
