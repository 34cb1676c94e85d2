"""`/docs/events`: what subscribers get, as a page for people and as AsyncAPI 3.0 for tools. Public."""

import json
from html import escape
from typing import Any

from events import asyncapi
from litestar import MediaType, Response, get
from litestar.types import ControllerRouterHandler

_CACHED = {"Cache-Control": "public, max-age=300"}
_PAGE_HEADERS = {**_CACHED, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1, h2 { line-height: 1.2; } code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: #f4f4f5; padding: .75rem; overflow-x: auto; } p { white-space: pre-line; }
details { border-top: 1px solid #ddd; padding: .5rem 0; } summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .5rem;
border-bottom: 1px solid #eee; } a { color: #0645ad; }
"""


def event_docs_routes() -> list[ControllerRouterHandler]:
    """The page and the document, made once: the contracts do not change while a process runs."""
    document = asyncapi.document()
    page, text = _page(document), json.dumps(document, ensure_ascii=False).encode()

    @get("/docs/events", media_type=MediaType.HTML, include_in_schema=False)
    async def events_page() -> Response[str]:
        """Every public event type with its fields and an example."""
        return Response(page, media_type=MediaType.HTML, headers=_PAGE_HEADERS)

    @get("/docs/events/asyncapi.json")
    async def events_document() -> Response[bytes]:
        """The AsyncAPI 3.0 document of `sangam.events`."""
        return Response(text, media_type="application/json", headers=_CACHED)

    return [events_page, events_document]


def _page(document: dict[str, Any]) -> str:
    messages = document["components"]["messages"].values()
    return "".join(
        (
            "<!doctype html><html lang=en><meta charset=utf-8><title>Sangam events</title>",
            "<meta name=viewport content='width=device-width'>",
            f"<style>{_STYLE}</style><h1>Sangam events</h1><p>{escape(document['info']['description'])}</p>",
            "<p><a href='/docs/events/asyncapi.json'>AsyncAPI 3.0 document</a></p>",
            "<h2>Headers of every event</h2>",
            _fields(document["components"]["schemas"]["CloudEventHeaders"]),
            "<h2>Event types</h2>",
            *(_message(message) for message in messages),
            "</html>",
        )
    )


def _message(message: dict[str, Any]) -> str:
    payload = message["payload"]
    nested = "".join(
        f"<h4>{escape(name)}</h4>{_fields(schema)}" for name, schema in sorted(payload.get("$defs", {}).items())
    )
    example = json.dumps(message["examples"][0]["payload"], indent=2, ensure_ascii=False)
    return (
        f"<details id='{escape(message['title'].replace(' ', '-'))}'><summary><code>{escape(message['title'])}</code>"
        f"</summary><p>{escape(message.get('description', ''))}</p>{_fields(payload)}{nested}"
        f"<pre>{escape(example)}</pre></details>"
    )


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'' if name in required else ' (optional)'}<td>"
        f"{escape(_type(field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table><tr><th>field<th>type<th>meaning{rows}</table>"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1])
    if "const" in field:
        return repr(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        return " | ".join(_type(one) for one in field["anyOf"])
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        return f"list of {_type(field['items'])}"
    return " ".join(str(field[key]) for key in ("type", "format") if key in field) or "any"
