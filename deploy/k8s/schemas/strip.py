"""`strip.py IN KIND API OUT`: a generated schema without its prose, closed, and of one kind and version."""

import json
import sys
from pathlib import Path
from typing import Any

_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def resolved(definitions: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = definitions[node["$ref"].removeprefix("#/definitions/")]
    return node


def used(definitions: dict[str, Any], node: Any, names: set[str]) -> set[str]:
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.removeprefix("#/definitions/")
            if name not in names:
                names.add(name)
                used(definitions, definitions[name], names)
        for value in node.values():
            used(definitions, value, names)
    elif isinstance(node, list):
        for value in node:
            used(definitions, value, names)
    return names


def main(source: str, kind: str, api: str, target: str) -> None:
    document = json.loads(Path(source).read_text())
    definitions = document["definitions"]
    root = resolved(definitions, document)
    properties = {"apiVersion": {"const": api}, "kind": {"const": kind}, "metadata": _METADATA}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {**properties, "spec": root["properties"]["spec"]},
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }
    definitions |= {
        name: _QUANTITY for name, each in definitions.items() if list(each.get("properties", {})) == ["value"]
    }
    kept = {name: definitions[name] for name in sorted(used(definitions, schema, set()))}
    Path(target).write_text(json.dumps(without_prose({**schema, "definitions": kept}), separators=(",", ":")) + "\n")


_QUANTITY = {"type": ["string", "number"]}
"""Of which one model makes a class with a field `value`, and the API a text or a number."""


def without_prose(node: Any) -> Any:
    """Prose is a text under `description`; a field of that name is a schema and stays."""
    if isinstance(node, dict):
        return {
            key: without_prose(value)
            for key, value in node.items()
            if not (key in ("description", "deprecated") and isinstance(value, str | bool))
        }
    return [without_prose(value) for value in node] if isinstance(node, list) else node


if __name__ == "__main__":
    main(*sys.argv[1:])
