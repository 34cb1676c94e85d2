"""Form-encoded requests of OAuth 2 (RFC 6749) and its errors, which are problem documents with `error` besides."""

import base64
import binascii
from urllib.parse import parse_qsl, unquote_plus

from chassis.problems import Problem
from chassis.request import AnyRequest

FORM = "application/x-www-form-urlencoded"
FIELDS_MAX = 32


async def form_of(request: AnyRequest) -> dict[str, str]:
    """The fields of a form. Empty ones count as left out (RFC 6749, 3.1).

    Raises:
        Problem: 415; 400 `invalid_request` for a field given twice or a body that is no form.
    """
    if request.content_type[0] != FORM:
        raise Problem(415, "unsupported_media_type", f"The body must be {FORM}")
    try:
        text = (await request.body()).decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError:
        raise oauth_error(400, "invalid_request", "The body is not a form") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise oauth_error(400, "invalid_request", "A field is given twice")
    if any("\x00" in value for value in fields.values()):
        raise oauth_error(400, "invalid_request", "Text must not contain NUL characters")
    return {name: value for name, value in fields.items() if value}


def basic_credentials(request: AnyRequest) -> tuple[str, str] | None:
    """Client id and secret of HTTP Basic (RFC 6749, 2.3.1); None where there are none, or not in that form."""
    values = request.headers.getall("authorization", [])
    if len(values) != 1:
        return None
    scheme, _, encoded = values[0].partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client_id, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        return (unquote_plus(client_id), unquote_plus(secret)) if colon else None
    except (binascii.Error, ValueError):
        return None


def oauth_error(status: int, error: str, description: str, *, challenge: str | None = None) -> Problem:
    """An error as OAuth clients look for it."""
    headers = {"WWW-Authenticate": challenge} if challenge else None
    return Problem(status, error, description, headers=headers, error=error, error_description=description)
