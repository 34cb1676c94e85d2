"""Merges the services' OpenAPI documents into the one that `/docs` serves and clients are generated from.

`python deploy/local/api_document.py` asks the running stack (`make up`) and writes the file of the sync-gateway.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "services" / "sync-gateway" / "src" / "sync_gateway" / "openapi.json"
SERVICES = {
    "identity": "Accounts of people, login, linking, sessions, OpenID Connect",
    "ledger_transfer": "Accounts, transfers, the combined history, rules that move money by themselves",
    "sync_gateway": "The platforms' feeds, webhooks, conflicts, synchronisation runs",
    "wealth": "Net worth, performance, health, insights, and where each figure comes from",
    "notifier": "The inbox and its channels",
    "search": "Search over both platforms",
}
_DESCRIPTION = """\
One API over a bank (BFC) and a broker (Vyomo). Money is a decimal string beside its currency, times are RFC 3339 in
UTC, errors are RFC 9457 problems with a stable `code`. A command's answer carries `X-Consistency-Token`; a read that
sends it back sees that command. Live events come over the WebSocket `/ws/sync`; their types are at `/docs/events`."""
_SCHEMA = "#/components/schemas/"


class Clash(Exception):
    """Two services answer at one address, or name two operations alike."""


def merge(documents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One document of all, by service. Schemas that differ under one name get their service's name in front.

    Raises:
        Clash: a path or an operation id comes twice.
    """
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    operations: set[str] = set()
    renamed = _ambiguous(documents)
    for service, document in documents.items():
        names = {name: f"{service.title().replace('_', '')}{name}" for name in renamed & _schemas(document).keys()}
        document = _rename(document, {_SCHEMA + old: _SCHEMA + new for old, new in names.items()})
        for name, schema in _schemas(document).items():
            if name in names:
                schema = {**schema, "title": names[name]}  # generators name their types by it
            schemas[names.get(name, name)] = schema
        for path, item in document["paths"].items():
            if path in paths:
                raise Clash(path)
            for operation in item.values():
                if operation["operationId"] in operations:
                    raise Clash(operation["operationId"])
                operations.add(operation["operationId"])
                operation["tags"] = [service.replace("_", "-")]
            paths[path] = item
    first = next(iter(documents.values()))
    return {
        "openapi": first["openapi"],
        "info": {
            "title": "Sangam",
            "version": first["info"]["version"],
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": service.replace("_", "-"), "description": text}
            for service, text in SERVICES.items()
            if service in documents
        ],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": first["components"]["securitySchemes"],
        },
    }


def fetch(ports: Mapping[str, int]) -> dict[str, Any]:
    """The merged document of the services at these ports."""
    documents = {}
    for service in SERVICES:
        with urlopen(f"http://127.0.0.1:{ports[service]}/schema/openapi.json", timeout=10) as answer:
            documents[service] = json.load(answer)
    return merge(documents)


def render(document: dict[str, Any]) -> str:
    """The text that is kept."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _schemas(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]
    return found


def _ambiguous(documents: Mapping[str, dict[str, Any]]) -> set[str]:
    versions: dict[str, set[str]] = defaultdict(set)
    for document in documents.values():
        for name, schema in _schemas(document).items():
            versions[name].add(json.dumps(schema, sort_keys=True))
    return {name for name, texts in versions.items() if len(texts) > 1}


def _rename(value: Any, references: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _rename(item, references) for key, item in value.items()}
    if isinstance(value, list):
        return [_rename(item, references) for item in value]
    return references.get(value, value) if isinstance(value, str) else value


def main() -> int:
    try:
        DOCUMENT.write_text(render(fetch(json.loads((ROOT / ".run" / "ports.json").read_text()))))
    except OSError as error:
        print(f"the stack does not answer ({error}): make up", file=sys.stderr)
        return 1
    print(f"written: {DOCUMENT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
