"""The AsyncAPI 3.0 document of what leaves Sangam: made from the contracts, so that it cannot lie.

One message per public type and schema version on the topic exchange `sangam.events`, in the CloudEvents 1.0 binary
mode of the AMQP protocol binding: the context attributes are headers, the payload is the body. The payload on the wire
has the schema version that `cloudEvents:schemaversion` names.

Sources: AsyncAPI 3.0.0 (asyncapi.com), CloudEvents 1.0.2 and its AMQP binding (cloudevents.io).
"""

from typing import Any

from events import wire
from events.contracts import Contract, registered
from events.contracts.describe import example, json_schema

_HEADERS: dict[str, Any] = {
    "specversion": {"const": "1.0"},
    "id": {"type": "string", "format": "uuid", "description": "The event's id, the same on every delivery"},
    "source": {"type": "string", "description": "`/sangam/<context>`"},
    "type": {"type": "string"},
    "time": {"type": "string", "format": "date-time", "description": "When it was recorded, UTC"},
    "subject": {"type": "string", "format": "uuid", "description": "The customer's Sangam user id, where known"},
    "stream": {"type": "string", "description": "`<category>-<uuid>`: order is kept within a stream"},
    "version": {"type": "integer", "minimum": 1, "description": "The event's number within its stream, dense"},
    "position": {
        "type": "integer",
        "minimum": 1,
        "description": "The event's place in the whole log, rising. Private events have positions too, so what a"
        " subscriber sees has holes",
    },
    "schemaversion": {"type": "integer", "minimum": 1},
    "correlationid": {"type": "string", "description": "The request that started it all (`X-Request-Id`)"},
    "causationid": {"type": "string", "format": "uuid", "description": "The event that this one reacts to"},
    "actor": {"type": "string", "description": "Who asked: `user:`, `service:`, `platform:` or `ops:` and an id"},
    "platform": {"type": "string", "enum": ["bfc", "vyomo"], "description": "The platform it was asked on"},
    "traceparent": {"type": "string", "description": "W3C trace context of the append"},
}
_ALWAYS_THERE = ("specversion", "id", "source", "type", "time", "stream", "version", "position", "schemaversion")

_DESCRIPTION = """\
Every domain event of Sangam that may leave it, as it is recorded in the append-only log.

**Delivery** is at least once, in order per `stream`. Keep the highest `cloudEvents:position` you have processed and
ignore what is not above it. **Queue**: `sangam subscribers add` makes a bounded queue with the patterns you ask for
(`*` one word, `#` any number) and credentials that may read it and nothing else. What a full queue has dropped, or was
never in it, is at `GET /api/sync/events?after=<position>`, in the same form (CloudEvents 1.0 JSON).
**Compatibility**: fields are only ever added, with defaults, and enumerations may grow: ignore what you do not know.
Anything else is a new `schemaversion` of the type.
**Money** is an integer count of minor units (paise) in `…_minor`, beside an ISO 4217 `currency`."""


def document(server: str = "localhost:5672") -> dict[str, Any]:
    """The document; `server` is host and port of the broker as subscribers reach it."""
    contracts = [contract for contract in registered() if contract.public]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Sangam events",
            "version": "1.0.0",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0"},
            "tags": [{"name": context} for context in sorted({_context(contract) for contract in contracts})],
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": server,
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "security": [{"$ref": "#/components/securitySchemes/subscriber"}],
            }
        },
        "channels": {contract.type: _channel(contract) for contract in contracts},
        "operations": {
            f"receive.{contract.type}": {
                "action": "receive",
                "channel": {"$ref": f"#/channels/{contract.type}"},
                "summary": f"{contract.type} has happened",
                "tags": [{"name": _context(contract)}],
            }
            for contract in contracts
        },
        "components": {
            "messages": {_name(contract): _message(contract) for contract in contracts},
            "schemas": {"CloudEventHeaders": _headers()},
            "securitySchemes": {"subscriber": {"type": "userPassword", "description": "`sangam subscribers add`"}},
        },
    }


def _context(contract: Contract) -> str:
    return contract.type.split(".", 1)[0]


def _name(contract: Contract) -> str:
    return f"{contract.type}.v{contract.schema_version}"


def _channel(contract: Contract) -> dict[str, Any]:
    versions = [one for one in registered() if one.type == contract.type and one.public]
    return {
        "address": contract.type,
        "messages": {f"v{one.schema_version}": {"$ref": f"#/components/messages/{_name(one)}"} for one in versions},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": wire.EVENTS_EXCHANGE, "type": "topic", "durable": True, "autoDelete": False},
            }
        },
    }


def _message(contract: Contract) -> dict[str, Any]:
    schema = json_schema(contract.struct)
    description = schema.pop("description", None)
    return {
        "name": contract.type,
        "title": f"{contract.type} (schema version {contract.schema_version})",
        **({"description": description} if description else {}),
        "contentType": "application/json",
        "tags": [{"name": _context(contract)}],
        "headers": {"$ref": "#/components/schemas/CloudEventHeaders"},
        # Standing alone, so that its $refs resolve within it.
        "payload": {"$id": f"urn:sangam:{_name(contract)}", **schema},
        "examples": [{"name": "every field", "payload": example(contract.struct)}],
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "required": [f"cloudEvents:{name}" for name in _ALWAYS_THERE],
        "properties": {f"cloudEvents:{name}": schema for name, schema in _HEADERS.items()},
    }
