"""How a request or WebSocket proves who it is from. Routes ask by declaring the parameter `caller: Caller`.

The token is verified before the body is read or any other parameter is looked at.
"""

from collections.abc import Collection
from typing import Final

import structlog
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from chassis.problems import Problem
from chassis.request import AnyConnection, AnyRequest
from chassis.tokens import OPS_AUDIENCE, PLATFORM_AUDIENCES, Caller, InvalidToken, TokenVerifier

log = structlog.get_logger(__name__)

BEARER_SUBPROTOCOL: Final = "bearer"
"""What a WebSocket must be accepted with: `await socket.accept(subprotocols="bearer")`."""

OPS_ALLOWED: Final = {"ops_allowed": True}
"""Route option (`opt=OPS_ALLOWED`): a token for `sangam-ops` is accepted here as well."""

_WITH_OPS = PLATFORM_AUDIENCES | {OPS_AUDIENCE}
_TOKEN_PARAMETERS = frozenset({"token", "access_token", "bearer", "jwt", "authorization"})


def needs_caller(handler: BaseRouteHandler) -> bool:
    """Whether the handler declares the parameter `caller`."""
    return "caller" in handler.parsed_fn_signature.parameters


class Authentication:
    """Finds out who a connection is from, once, for whatever declares a `caller`."""

    def __init__(self, verifier: TokenVerifier, allowed_origins: Collection[str]) -> None:
        self._verifier = verifier
        self._allowed_origins = frozenset(allowed_origins)

    async def before_request(self, request: AnyRequest) -> None:
        """Litestar's hook before anything of a request is parsed: a stranger's body is never looked at."""
        if needs_caller(request.route_handler):
            await self.provide_caller(request.scope)

    async def provide_caller(self, scope: Scope) -> Caller:
        """The dependency `caller`.

        Raises:
            Problem: 401; for a WebSocket also 400 `token_in_query` and 403 `origin_not_allowed`.
        """
        caller: Caller | None = scope["state"].get("caller")
        if caller is None:
            connection: AnyConnection = ASGIConnection(scope)
            if scope["type"] == ScopeType.WEBSOCKET:
                check_origin(connection, self._allowed_origins)
                token = socket_token(connection)
            else:
                token = _bearer(connection)
            audiences = _WITH_OPS if connection.route_handler.opt.get("ops_allowed") else PLATFORM_AUDIENCES
            caller = await verified_caller(self._verifier, token, audiences)
            scope["state"]["caller"] = caller
        return caller


async def verified_caller(
    verifier: TokenVerifier, token: str, audiences: Collection[str] = PLATFORM_AUDIENCES
) -> Caller:
    """Who `token` speaks for (also for the `refresh` frame of a WebSocket).

    Raises:
        Problem: 401 `token_expired` or `invalid_token`. Which check failed is only logged.
    """
    try:
        return Caller.of(await verifier.verify(token, audiences))
    except InvalidToken as error:
        log.info("token_refused", reason=error.reason)
        code = "token_expired" if error.expired else "invalid_token"
        raise _unauthenticated(
            code, "The access token has expired" if error.expired else "The access token is not valid"
        ) from None


def socket_token(socket: AnyConnection) -> str:
    """The token of `Sec-WebSocket-Protocol: bearer, <token>`.

    Raises:
        Problem: 400 `token_in_query` (it would end up in logs), 401 `unauthenticated`.
    """
    if any(name.lower() in _TOKEN_PARAMETERS for name in socket.query_params):
        raise Problem(400, "token_in_query", "Send the token in Sec-WebSocket-Protocol, not in the address")
    protocols = [part.strip() for part in socket.headers.get("sec-websocket-protocol", "").split(",")]
    if len(protocols) != 2 or protocols[0] != BEARER_SUBPROTOCOL or not protocols[1]:
        raise _unauthenticated("unauthenticated", "Sec-WebSocket-Protocol must be: bearer, <access token>")
    return protocols[1]


def check_origin(socket: AnyConnection, allowed: Collection[str] = ()) -> None:
    """Refuses a browser page of another origin. Clients that are no browsers send no Origin.

    Raises:
        Problem: 403 `origin_not_allowed`.
    """
    origin = socket.headers.get("origin")
    if origin is None or origin in allowed:
        return
    host = socket.headers.get("host")
    # Compared as a whole: an origin that is no URL must not fail in a parser.
    if origin not in (f"http://{host}", f"https://{host}"):
        raise Problem(403, "origin_not_allowed", "This origin may not open a WebSocket here")


def _bearer(connection: AnyConnection) -> str:
    values = connection.headers.getall("authorization", [])
    if not values:
        raise _unauthenticated("unauthenticated", "An access token is required")
    scheme, _, token = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token:
        raise _unauthenticated("invalid_token", "The Authorization header must be: Bearer <access token>")
    return token.strip()


def _unauthenticated(code: str, detail: str) -> Problem:
    challenge = "Bearer" if code == "unauthenticated" else 'Bearer error="invalid_token"'
    return Problem(401, code, detail, headers={"WWW-Authenticate": challenge})
