"""The pages below `/docs`: plain HTML without scripts, so that nothing has to be trusted or fetched."""

from html import escape
from typing import Any

CACHED = {"Cache-Control": "public, max-age=300"}
PAGE_HEADERS = {**CACHED, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1, h2 { line-height: 1.2; } code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: #f4f4f5; padding: .75rem; overflow-x: auto; } p { white-space: pre-line; }
details { border-top: 1px solid #ddd; padding: .5rem 0; } summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .25rem .5rem;
border-bottom: 1px solid #eee; } a { color: #0645ad; }
"""


def page(title: str, *body: str) -> str:
    """A whole page; `body` is HTML."""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        "<meta name=viewport content='width=device-width'>"
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{''.join(body)}</html>"
    )


def fields(schema: dict[str, Any]) -> str:
    """A table of an object's fields."""
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{'' if name in required else ' (optional)'}<td>"
        f"{escape(type_name(field))}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table><tr><th>field<th>type<th>meaning{rows}</table>"


def type_name(field: dict[str, Any]) -> str:
    """What a JSON schema allows, in short."""
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1])
    if "const" in field:
        return repr(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if alternatives := field.get("anyOf") or field.get("oneOf"):
        return " | ".join(type_name(one) for one in alternatives)
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        return f"list of {type_name(field['items'])}"
    return " ".join(str(field[key]) for key in ("type", "format") if key in field) or "any"
