"""The HTTP side of every service: one factory, one way to answer errors, one log line per request."""

import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes
from uuid import UUID

import structlog
from events.envelope import current_traceparent, new_id
from litestar import Litestar, Response
from litestar.di import Provide
from litestar.types import ControllerRouterHandler, Message, Receive, Scope, Send
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from prometheus_client import Gauge, Histogram

from chassis import audit, consistency, openapi, step_up
from chassis.answers import problem_of
from chassis.authentication import Authentication
from chassis.health import operator_routes
from chassis.problems import MEDIA_TYPE, Problem
from chassis.request import REQUEST_ID, AnyRequest, StrictRequest
from chassis.sockets import Sockets
from chassis.tokens import TokenVerifier

log = structlog.get_logger(__name__)
tracer = trace.get_tracer(__name__)

BODY_BYTES_MAX = 256 * 1024

_DURATION = Histogram(
    "http_request_duration_seconds",
    "Requests by route template: rate, errors and duration",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
_IN_FLIGHT = Gauge("http_requests_in_flight", "Requests being handled now")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED = "unmatched"
_OPERATOR_ROUTES = frozenset({"/health/live", "/health/ready", "/metrics"})
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,127}")


class Host(Protocol):
    """What an app needs of the service that it runs in (`chassis.service.Runtime`)."""

    @property
    def verifier(self) -> TokenVerifier: ...

    @property
    def store(self) -> consistency.Log: ...

    def consumer(self, name: str) -> consistency.ReadModel:
        """The consumer of that name.

        Raises:
            KeyError: the service consumes nothing by that name.
        """
        ...

    async def unready(self) -> list[str]:
        """Why the service cannot serve now; empty when it can."""
        ...


def create_app(
    runtime: Host,
    route_handlers: Sequence[ControllerRouterHandler],
    title: str,
    *,
    version: str = "1.0.0",
    body_bytes_max: int = BODY_BYTES_MAX,
    allowed_origins: Collection[str] = (),
    dependencies: Mapping[str, Provide] | None = None,
    sockets: Sequence[Sockets] = (),
) -> Litestar:
    """The service's app: its routes plus health, metrics and `/schema`.

    Handlers may declare `caller: Caller`, `caught_up: CaughtUp` and `step_up: StepUp | None`. `body_bytes_max`
    holds for routes that set no `request_max_body_size` of their own. `allowed_origins` may open WebSockets
    besides our own origin; there is no CORS: browsers use the one origin.
    """
    authentication = Authentication(runtime.verifier, allowed_origins, audit.recorder(runtime.store, title))
    app = Application(
        route_handlers=[*route_handlers, *operator_routes(runtime.unready)],
        dependencies={
            "caller": Provide(authentication.provide_caller),
            "caught_up": Provide(consistency.provider(runtime.store, lambda: runtime.consumer("projections"))),
            "step_up": Provide(step_up.provider(runtime.verifier)),
            **(dependencies or {}),
        },
        before_request=authentication.before_request,
        exception_handlers={Exception: _answer},
        after_exception=[_note_problem],
        request_class=StrictRequest,
        request_max_body_size=body_bytes_max,
        type_encoders={UUID: str},  # asyncpg returns a subclass that msgspec does not know
        openapi_config=openapi.openapi_config(title, version),
        logging_config=None,
        debug=False,
    )
    openapi.complete(app)
    app.sockets = {each.path: each for each in sockets}
    return app


class Application(Litestar):
    """Litestar with everything around a request that must also hold when no route matches."""

    sockets: Mapping[str, Sockets]
    """By path: served beside Litestar, whose part of a connection would take memory as long as it lasts."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI entry."""
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"] in self.sockets:
            if (serve := await self._open_socket(scope, receive, send)) is not None:
                await serve()
        elif scope["type"] == "websocket":
            await self._serve_websocket(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _serve_http(self, scope: Any, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0
        with _Context(scope, SpanKind.SERVER) as context:
            ids = [(b"x-request-id", context.request_id.encode())]
            if (traceparent := current_traceparent()) is not None:
                ids.append((b"traceparent", traceparent.encode()))

            async def send_with_ids(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    headers = [*message["headers"], *ids, (b"x-content-type-options", b"nosniff")]
                    if not any(name.lower() == b"cache-control" for name, _ in headers):
                        headers.append((b"cache-control", b"no-store"))
                    message["headers"] = headers
                await send(message)

            _IN_FLIGHT.inc()
            try:
                if (problem := _refused_address(scope)) is not None:
                    await _send_problem(problem, context.request_id, send_with_ids)
                else:
                    await super().__call__(scope, receive, send_with_ids)
            except Exception:
                # Only what broke after the answer began, or while answering an error, comes here.
                log.exception("request_broken", route=_route(scope))
                if status:
                    raise
                await _send_problem(problem_of(RuntimeError()), context.request_id, send_with_ids)
            finally:
                _IN_FLIGHT.dec()
                _observe(scope, status or 499, time.perf_counter() - started, context.span)

    async def _open_socket(self, scope: Any, receive: Receive, send: Send) -> Callable[[], Awaitable[None]] | None:
        """What serves the connection from then on; None when the handshake was refused, as HTTP."""
        with _Context(scope, SpanKind.SERVER) as context:
            try:
                if (problem := _refused_address(scope)) is None:
                    return await self.sockets[scope["path"]].open(scope, receive, send)
            except Exception as error:
                await _note_problem(error, scope)
                problem = problem_of(error)
            await _send_problem(problem, context.request_id, send, prefix="websocket.")
            return None

    async def _serve_websocket(self, scope: Any, receive: Receive, send: Send) -> None:
        """A `Problem` before the handshake is answered as HTTP; after it, as close code 4000 + status."""
        accepted = False
        with _Context(scope, SpanKind.SERVER) as context:

            async def send_problems(message: Message) -> None:
                nonlocal accepted
                if message["type"] == "websocket.accept":
                    accepted = True
                elif message["type"] == "websocket.close":
                    problem: Problem | None = scope["state"].pop("problem", None)
                    if problem is not None and not accepted and "websocket.http.response" in scope["extensions"]:
                        await _send_problem(problem, context.request_id, send, prefix="websocket.")
                        return
                    if problem is not None:
                        message["code"], message["reason"] = 4000 + problem.status, problem.code
                await send(message)

            if (problem := _refused_address(scope)) is not None:
                scope["state"]["problem"] = problem
                await receive()
                await send_problems({"type": "websocket.close", "code": 4400, "reason": problem.code})
                return
            await super().__call__(scope, receive, send_problems)


class _Context:
    """The request's id and span, current for everything inside."""

    def __init__(self, scope: Any, kind: SpanKind) -> None:
        inbound: dict[str, str] = {}
        request_id = None
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
                request_id = value.decode("ascii")
            elif name in (b"traceparent", b"tracestate"):
                inbound[name.decode()] = value.decode("latin-1")
        self.request_id = request_id or str(new_id())
        scope.setdefault("state", {})["request_id"] = self.request_id
        scope.setdefault("extensions", {})
        parent = propagate.extract(inbound) if inbound else None
        self.span = tracer.start_span("request", context=parent, kind=kind)
        self._current = trace.use_span(self.span, end_on_exit=True, record_exception=False)

    def __enter__(self) -> "_Context":
        self._token = REQUEST_ID.set(self.request_id)
        self._current.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._current.__exit__(*error)
        REQUEST_ID.reset(self._token)


async def _note_problem(error: Exception, scope: Scope) -> None:
    """Every exception that became an answer passes here once: remember it, log what is our own fault."""
    problem = problem_of(error)
    scope["state"]["problem"] = problem
    if problem.code == "internal":
        log.error("request_failed", route=_route(scope), exc_info=error)
    elif problem.status == 503 and not isinstance(error, Problem):
        log.warning("request_unavailable", route=_route(scope), error=repr(error))
    elif problem.status == 400 and not isinstance(error, Problem) and type(error).__module__.startswith("asyncpg"):
        # Answered as bad input, but the route should have refused it before it reached the database.
        log.warning("value_reached_database", route=_route(scope), exc_info=error)


def _answer(request: AnyRequest, error: Exception) -> Response[bytes]:
    problem: Problem = request.scope["state"].get("problem") or problem_of(error)
    return Response(
        problem.body(request.scope["state"].get("request_id")),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )


async def _send_problem(problem: Problem, request_id: str, send: Callable[[Any], Any], *, prefix: str = "") -> None:
    headers = {"content-type": MEDIA_TYPE, "x-request-id": request_id, **problem.headers}
    if not prefix:
        del headers["x-request-id"]  # send_with_ids adds it
    body = problem.body(request_id)
    await send(
        {
            "type": f"{prefix}http.response.start",
            "status": problem.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            + [(b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": f"{prefix}http.response.body", "body": body, "more_body": False})


def _refused_address(scope: Any) -> Problem | None:
    """Text in the address that no parameter may hold: NUL, or bytes that are no UTF-8."""
    query: bytes = scope.get("query_string", b"")
    if b"%" in query or not query.isascii():
        query = unquote_to_bytes(query)
    path: str = scope["path"]
    if b"\x00" in query or "\x00" in path or "\ufffd" in path:
        return Problem(400, "invalid_request", "The address contains characters that are not allowed")
    if not query.isascii():
        try:
            query.decode()
        except UnicodeDecodeError:
            return Problem(400, "invalid_request", "The query is not valid UTF-8")
    return None


def _route(scope: Any) -> str:
    """The route's template: a small, closed set of names, unlike addresses."""
    template: str = scope.get("path_template") or _UNMATCHED
    return template


def _observe(scope: Any, status: int, duration_s: float, span: trace.Span) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "other"
    route = _route(scope)
    _DURATION.labels(method, route, status).observe(duration_s)
    if span.is_recording():
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
    if route not in _OPERATOR_ROUTES:
        log.info("request", method=method, route=route, status=status, duration_ms=round(duration_s * 1000, 2))
