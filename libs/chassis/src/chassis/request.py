"""The request as services see it: its id, its trace, the metadata of its events, its strict body."""

import re
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import msgspec
from events.envelope import Metadata, current_traceparent
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.serialization import default_deserializer

from chassis.problems import Problem, malformed_json

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being handled, in handlers and in everything they call."""

_REFUSED_PATH = re.compile(r" - at `\$\.?(.*)`$")
# An escaped NUL is the one character that JSON can carry and PostgreSQL cannot store. An odd number of
# backslashes makes it an escape; an even number is text that happens to look like one.
_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

AnyRequest = Request[Any, Any, State]
AnyConnection = ASGIConnection[Any, Any, Any, State]


def request_metadata(actor: str, platform: str | None = None) -> Metadata:
    """Metadata of events that the request being handled causes."""
    return Metadata(correlation_id=REQUEST_ID.get(), actor=actor, platform=platform, traceparent=current_traceparent())


def metadata_of(request: AnyConnection, actor: str, platform: str | None = None) -> Metadata:
    """Metadata of events that `request` causes: its id, its trace, who asked and on which platform.

    `actor` is `user:<id>`, `service:<name>`, `platform:<bfc|vyomo>` or `ops:<client>`.
    """
    return Metadata(
        correlation_id=request.scope["state"].get("request_id"),
        actor=actor,
        platform=platform,
        traceparent=current_traceparent(),
    )


class StrictRequest(Request[Any, Any, State]):
    """Decodes a JSON body straight into the handler's type, strictly: no "12" for 12, no unknown fields."""

    __slots__ = ()

    async def json(self) -> Any:
        """The body as the type of the handler's `data` parameter.

        Raises:
            Problem: 400 `malformed_json` or `invalid_request`, 413, 415.
        """
        media_type = self.content_type[0]
        if media_type and media_type != "application/json" and not media_type.endswith("+json"):
            raise Problem(415, "unsupported_media_type", "The body must be application/json")
        if self.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "unsupported_media_type", "The body must not be compressed")
        return _decoded(await self.body(), _decoder_for(self.route_handler))


@lru_cache(maxsize=1024)
def _decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type_, strict=True, dec_hook=default_deserializer)


@lru_cache(maxsize=1024)  # by handler: hashing an annotated type costs more than decoding a body
def _decoder_for(handler: Any) -> msgspec.json.Decoder[Any]:
    data = handler.parsed_fn_signature.parameters.get("data")
    return _decoder(Any if data is None else data.raw)


def decode_body(body: bytes, type_: Any) -> Any:
    """`body` as `type_`, strictly.

    Raises:
        Problem: 400 `malformed_json` when it is no JSON, 400 `invalid_request` naming the field otherwise.
    """
    return _decoded(body, _decoder(type_))


def _decoded(body: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid_body(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise malformed_json() from None
    except RecursionError:
        raise malformed_json("The body is nested too deeply") from None
    if b"\\u0000" in body and _ESCAPED_NUL.search(body):
        raise Problem(400, "invalid_request", "Text must not contain NUL characters")
    return value


def invalid_body(error: msgspec.ValidationError) -> Problem:
    """400 `invalid_request` with the field that msgspec refused."""
    text = str(error)
    match = _REFUSED_PATH.search(text)
    message = text[: match.start()] if match else text
    field = match[1] if match else ""
    if named := re.search(r"(?:missing required|contains unknown) field `([^`]*)`", message):
        field = f"{field}.{named[1]}" if field else named[1]
    return Problem(400, "invalid_request", "The body is not valid", errors=[{"field": field, "message": message}])
