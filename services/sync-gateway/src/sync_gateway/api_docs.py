"""`/docs`: the HTTP API of all services, as a page for people and as OpenAPI 3.1 for tools. Public.

The document is merged from the services' own (`deploy/local/api_document.py`) and a test keeps it so.
"""

import json
from html import escape
from importlib.resources import files
from typing import Any

from litestar import MediaType, Response, get
from litestar.types import ControllerRouterHandler

from sync_gateway.docs_page import CACHED, PAGE_HEADERS, fields, page, type_name

_METHODS = ("get", "post", "put", "patch", "delete")


def api_docs_routes() -> list[ControllerRouterHandler]:
    """The page and the document, made once."""
    text = files("sync_gateway").joinpath("openapi.json").read_bytes()
    html = _page(json.loads(text))

    @get("/docs", media_type=MediaType.HTML, include_in_schema=False)
    async def api_page() -> Response[str]:
        """Every route with its parameters, bodies and answers."""
        return Response(html, media_type=MediaType.HTML, headers=PAGE_HEADERS)

    @get("/docs/openapi.json", include_in_schema=False)
    async def api_document() -> Response[bytes]:
        """The OpenAPI 3.1 document of all services."""
        return Response(text, media_type="application/json", headers=CACHED)

    return [api_page, api_document]


def _page(document: dict[str, Any]) -> str:
    operations = [
        (method, path, item[method])
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]
    return page(
        "Sangam API",
        f"<p>{escape(document['info']['description'])}</p>",
        "<p><a href='/docs/openapi.json'>OpenAPI 3.1 document</a> · <a href='/docs/events'>event types</a></p>",
        *(
            f"<h2 id='{escape(tag['name'])}'>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>"
            + "".join(_operation(*operation) for operation in operations if operation[2]["tags"] == [tag["name"]])
            for tag in document["tags"]
        ),
        "<h2 id=schemas>Schemas</h2>",
        *(_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(one['name'])}</code> in {one['in']}{'' if one.get('required') else ' (optional)'}"
        f"<td>{escape(type_name(one['schema']))}<td>{escape(one.get('description', ''))}"
        for one in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td>{escape(status)}<td>{_content(answer)}<td>{escape(answer.get('description', ''))}"
        for status, answer in operation["responses"].items()
    )
    description = operation.get("description", "")
    return "".join(
        (
            f"<details id='{escape(operation['operationId'])}'><summary><code>{method.upper()} {escape(path)}</code> ",
            f"{escape(operation.get('summary', ''))}</summary>",
            f"<p>{escape(description)}</p>" if description else "",
            "" if operation.get("security") else "<p>Needs no access token.</p>",
            f"<table><tr><th>parameter<th>type<th>meaning{parameters}</table>" if parameters else "",
            f"<p>Body: {_content(operation['requestBody'])}</p>" if "requestBody" in operation else "",
            f"<table><tr><th>status<th>body<th>meaning{answers}</table></details>",
        )
    )


def _content(message: dict[str, Any]) -> str:
    """The media types of a body, with links to their schemas."""
    return " or ".join(
        f"{_linked(content.get('schema', {}))} as <code>{escape(media_type)}</code>"
        for media_type, content in message.get("content", {}).items()
    )


def _linked(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f"<a href='#{name}'>{name}</a>"
    if "oneOf" in schema:
        return " | ".join(_linked(one) for one in schema["oneOf"])
    return escape(type_name(schema))


def _schema(name: str, schema: dict[str, Any]) -> str:
    return (
        f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>"
        f"<p>{escape(schema.get('description', ''))}</p>{fields(schema)}</details>"
    )
