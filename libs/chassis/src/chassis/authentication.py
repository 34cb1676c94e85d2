"""How a request or WebSocket proves who it is from. Routes ask by declaring the parameter `caller: Caller`.

The token is verified before the body is read or any other parameter is looked at.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final
from uuid import UUID

import structlog
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope

from chassis.problems import Problem, invalid_field
from chassis.request import AnyConnection, AnyRequest
from chassis.scopes import check_scope
from chassis.tokens import OPS_AUDIENCE, PLATFORM_AUDIENCES, Caller, InvalidToken, TokenVerifier

log = structlog.get_logger(__name__)

BEARER_SUBPROTOCOL: Final = "bearer"
"""What a WebSocket must be accepted with: `await socket.accept(subprotocols="bearer")`."""

Audit = Callable[[AnyConnection, Caller], Awaitable[None]]
"""Records durably that an operator's token is used for a request."""

_WITH_OPS = PLATFORM_AUDIENCES | {OPS_AUDIENCE}
_REFUSED = {
    "token_expired": "The access token has expired",
    "session_ended": "The session has ended; log in again",
    "invalid_token": "The access token is not valid",
}
_TOKEN_PARAMETERS = frozenset({"token", "access_token", "bearer", "jwt", "authorization"})


def ops_may(scope: str, *, everyone: bool = False, only: bool = False) -> dict[str, Any]:
    """Route option (`opt=ops_may("transfers:reverse")`): an operator's token with `scope` is accepted here too.

    The customer it acts for is named by `?user_id=`, and is the handler's `caller.user_id`. Every use is audited
    before the handler runs.

    Args:
        everyone: none need be named; without one `caller.for_everyone` is true.
        only: customers are refused (403 `insufficient_scope`).
    """
    return {"ops_scope": scope, "ops_everyone": everyone, "ops_only": only}


def needs_caller(handler: BaseRouteHandler) -> bool:
    """Whether the handler declares the parameter `caller`."""
    return "caller" in handler.parsed_fn_signature.parameters


class Authentication:
    """Finds out who a connection is from, once, for whatever declares a `caller`."""

    def __init__(self, verifier: TokenVerifier, allowed_origins: Collection[str], audit: Audit) -> None:
        self._verifier = verifier
        self._allowed_origins = frozenset(allowed_origins)
        self._audit = audit

    async def before_request(self, request: AnyRequest) -> None:
        """Litestar's hook before anything of a request is parsed: a stranger's body is never looked at."""
        if request.route_handler.opt.get("moves_money"):
            self._must_know_revocations()
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
            opt = connection.route_handler.opt
            audiences = _WITH_OPS if "ops_scope" in opt else PLATFORM_AUDIENCES
            caller = await verified_caller(self._verifier, token, audiences)
            if caller.operator is None:
                check_scope(caller.scopes, str(scope.get("method", "GET")), scope["path"])
            if "ops_scope" in opt:
                caller = _allowed(caller, connection, opt)
                if caller.operator is not None:
                    await self._audit(connection, caller)
            scope["state"]["caller"] = caller
        return caller

    def _must_know_revocations(self) -> None:
        revocations = self._verifier.revocations
        if revocations is not None and not revocations.fresh():
            raise Problem(
                503,
                "revocations_unknown",
                "It is not known at the moment which sessions have ended, so no money moves",
                headers={"Retry-After": "2"},
            )


def _allowed(caller: Caller, connection: AnyConnection, opt: Mapping[str, Any]) -> Caller:
    """The caller of a route that operators may use, acting for the customer that the address names.

    Raises:
        Problem: 403 `insufficient_scope`, 403 `forbidden`, 400 `user_id_required` and the like.
    """
    if (caller.operator is None and opt["ops_only"]) or (caller.operator and opt["ops_scope"] not in caller.scopes):
        raise Problem(
            403,
            "insufficient_scope",
            f"This needs a token with the scope {opt['ops_scope']}",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{opt["ops_scope"]}"'},
        )
    named = connection.query_params.getall("user_id", [])
    if caller.operator is None:
        if named:
            raise Problem(403, "forbidden", "Only an operator may name the customer to act for")
        return caller
    if not named:
        if not opt["ops_everyone"]:
            raise invalid_field("user_id", "names the customer to act for", "user_id_required")
        return caller._replace(for_everyone=True)
    try:
        (user_id,) = map(UUID, named)
    except ValueError:
        raise invalid_field("user_id", "must be one user id") from None
    return caller._replace(user_id=user_id)


async def verified_caller(
    verifier: TokenVerifier, token: str, audiences: Collection[str] = PLATFORM_AUDIENCES
) -> Caller:
    """Who `token` speaks for (also for the `refresh` frame of a WebSocket).

    Raises:
        Problem: 401 `token_expired`, `session_ended` or `invalid_token`. Which check failed is only logged.
    """
    try:
        return Caller.of(await verifier.verify(token, audiences))
    except InvalidToken as error:
        log.info("token_refused", reason=error.reason)
        raise _unauthenticated(error.code, _REFUSED[error.code]) from None


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
