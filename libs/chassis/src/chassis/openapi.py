"""The OpenAPI 3.1 document of a service, from its code, with our errors and our authentication in it."""

from typing import Any

from litestar import Litestar, Response, Router
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Reference,
    Schema,
    SecurityScheme,
)
from litestar.routes import HTTPRoute

from chassis.authentication import needs_caller
from chassis.problems import MEDIA_TYPE

_BEARER = "bearer"
_TEXT = Schema(type=OpenAPIType.STRING)
_PROBLEM = Schema(
    title="Problem",
    description="An error, as RFC 9457 writes it. `code` is stable.",
    type=OpenAPIType.OBJECT,
    required=["type", "title", "status", "detail", "code"],
    properties={
        "type": _TEXT,
        "title": _TEXT,
        "status": Schema(type=OpenAPIType.INTEGER),
        "detail": _TEXT,
        "code": _TEXT,
        "instance": _TEXT,
        "request_id": _TEXT,
        "errors": Schema(
            type=OpenAPIType.ARRAY,
            items=Schema(
                type=OpenAPIType.OBJECT,
                required=["field", "message"],
                properties={"field": _TEXT, "message": _TEXT},
            ),
        ),
    },
)
_ERRORS = {
    "4XX": "The request was refused; `code` says why",
    "503": "Not possible at the moment; the request may be sent again",
}


def openapi_config(title: str, version: str) -> OpenAPIConfig:
    """Serves the document at `/schema` (also `/schema/openapi.json`)."""
    return OpenAPIConfig(
        title=title,
        version=version,
        openapi_router=Router("/schema", route_handlers=[], include_in_schema=False, after_request=_no_html),
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
        operation_id_creator=_operation_id,
        components=Components(
            security_schemes={
                _BEARER: SecurityScheme(
                    type="http", scheme="bearer", bearer_format="JWT", description="ES256 access token"
                )
            }
        ),
    )


def _operation_id(handler: HTTPRouteHandler, _method: str, _path: Any) -> str:
    """The handler's name, which the routes of all services keep distinct: generated clients call it."""
    first, *others = handler.handler_name.split("_")
    return first + "".join(word.title() for word in others)


def _no_html(response: Response[Any]) -> Response[Any]:
    # Litestar answers unknown addresses below the document with a page of its own.
    if response.status_code == 404:
        raise NotFoundException
    return response


def complete(app: Litestar) -> None:
    """Adds to the document what Litestar cannot know: problem+json errors, and which routes need a token."""
    document = app.openapi_schema
    document.components.schemas = {**(document.components.schemas or {}), "Problem": _PROBLEM}
    authenticated = {
        (route.path_format, method.lower())
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if needs_caller(handler)
        for method in handler.http_methods
    }
    for path, item in (document.paths or {}).items():
        for method in ("get", "put", "post", "delete", "patch"):
            operation: Operation | None = getattr(item, method)
            if operation is None:
                continue
            responses = dict(operation.responses or {})
            responses.pop("400", None)  # Litestar's own error format, which we do not answer with
            for status, description in _ERRORS.items():
                responses[status] = OpenAPIResponse(
                    description=description,
                    content={MEDIA_TYPE: OpenAPIMediaType(schema=Reference(ref="#/components/schemas/Problem"))},
                )
            operation.responses = responses
            if (path, method) in authenticated:
                operation.security = [{_BEARER: []}]
