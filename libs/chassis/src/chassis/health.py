"""`/health/live`, `/health/ready` and `/metrics`: for the operators, not routed at the public origin."""

from collections.abc import Awaitable, Callable

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from chassis.problems import Problem


class Health(msgspec.Struct, frozen=True):
    """The answer of a healthy service."""

    status: str


Readiness = Callable[[], Awaitable[list[str]]]
"""Gives the reasons why the service cannot serve now; none means ready."""


def operator_routes(readiness: Readiness) -> list[HTTPRouteHandler]:
    """The three routes that every service has."""

    @get("/health/live", sync_to_thread=False, include_in_schema=False)
    def live() -> Health:
        """The process is alive and its event loop turns."""
        return Health("live")

    @get("/health/ready", include_in_schema=False)
    async def ready() -> Health:
        """The service can do its work: database, event store and consumers are well, read models fresh."""
        if reasons := await readiness():
            raise Problem(503, "not_ready", "The service is not ready", headers={"Retry-After": "1"}, reasons=reasons)
        return Health("ready")

    @get("/metrics", sync_to_thread=False, include_in_schema=False)
    def metrics() -> Response[bytes]:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [live, ready, metrics]
