"""`/docs/events`: what subscribers get, as a page for people and as AsyncAPI 3.0 for tools. Public."""

import json
from html import escape
from typing import Any

from events import asyncapi
from litestar import MediaType, Response, get
from litestar.types import ControllerRouterHandler

from sync_gateway.docs_page import CACHED, PAGE_HEADERS, fields, page


def event_docs_routes() -> list[ControllerRouterHandler]:
    """The page and the document, made once: the contracts do not change while a process runs."""
    document = asyncapi.document()
    html, text = _page(document), json.dumps(document, ensure_ascii=False).encode()

    @get("/docs/events", media_type=MediaType.HTML, include_in_schema=False)
    async def events_page() -> Response[str]:
        """Every public event type with its fields and an example."""
        return Response(html, media_type=MediaType.HTML, headers=PAGE_HEADERS)

    @get("/docs/events/asyncapi.json")
    async def events_document() -> Response[bytes]:
        """The AsyncAPI 3.0 document of `sangam.events`."""
        return Response(text, media_type="application/json", headers=CACHED)

    return [events_page, events_document]


def _page(document: dict[str, Any]) -> str:
    messages = document["components"]["messages"].values()
    return page(
        "Sangam events",
        f"<p>{escape(document['info']['description'])}</p>",
        "<p><a href='/docs/events/asyncapi.json'>AsyncAPI 3.0 document</a> · <a href='/docs'>the HTTP API</a></p>",
        "<h2>Headers of every event</h2>",
        fields(document["components"]["schemas"]["CloudEventHeaders"]),
        "<h2>Event types</h2>",
        *(_message(message) for message in messages),
    )


def _message(message: dict[str, Any]) -> str:
    payload = message["payload"]
    nested = "".join(
        f"<h4>{escape(name)}</h4>{fields(schema)}" for name, schema in sorted(payload.get("$defs", {}).items())
    )
    example = json.dumps(message["examples"][0]["payload"], indent=2, ensure_ascii=False)
    return (
        f"<details id='{escape(message['title'].replace(' ', '-'))}'><summary><code>{escape(message['title'])}</code>"
        f"</summary><p>{escape(message.get('description', ''))}</p>{fields(payload)}{nested}"
        f"<pre>{escape(example)}</pre></details>"
    )
