"""What a contract looks like from outside: its JSON Schema, and example payloads made from it."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID, uuid5

import msgspec

from events.contracts.registry import Event

_EXAMPLE_TIME = "2026-02-12T09:00:00Z"
_EXAMPLE_IDS = UUID("6d0bfa5e-52e3-5d1b-9a3e-0e0d6a8e7f10")


def json_schema(struct: type[Event]) -> dict[str, Any]:
    """JSON Schema (2020-12) of the payload, self-contained: nested structs are under `$defs`.

    Structs and fields carry the descriptions of their source.
    """
    (reference,), components = msgspec.json.schema_components([struct])
    structs = {nested.__name__: nested for nested in _structs(struct)}
    for name, component in components.items():
        if name in structs:
            _complete(component, structs[name])
    own = components.pop(reference["$ref"].rsplit("/", 1)[1])
    return {**own, "$defs": components} if components else dict(own)


def example(struct: type[msgspec.Struct], *, full: bool = True) -> dict[str, Any]:
    """A payload that fits the struct, the same on every call: with every field, or with the required ones only."""
    payload = {}
    for field in msgspec.structs.fields(struct):
        if full or field.required:
            payload[field.encode_name] = _example_of(msgspec.inspect.type_info(field.type), field.name, full)
    return payload


def _structs(struct: type[msgspec.Struct]) -> set[type[msgspec.Struct]]:
    """The struct and those nested in it."""
    found: set[type[msgspec.Struct]] = set()

    def visit(info: msgspec.inspect.Type) -> None:
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                return
            found.add(info.cls)
            for field in info.fields:
                visit(field.type)
        for inner in _inner(info):
            visit(inner)

    visit(msgspec.inspect.type_info(struct))
    return found


def _inner(info: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    if isinstance(info, msgspec.inspect.UnionType):
        yield from info.types
    elif isinstance(info, msgspec.inspect.CollectionType):
        yield info.item_type
    elif isinstance(info, msgspec.inspect.TupleType):
        yield from info.item_types
    elif isinstance(info, msgspec.inspect.DictType):
        yield info.value_type
    elif isinstance(info, msgspec.inspect.Metadata):
        yield info.type


def _complete(component: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    """Adds what msgspec leaves out: descriptions of fields, and the format of times (always RFC 3339, UTC)."""
    documented = _field_docs(struct)
    for field in msgspec.structs.fields(struct):
        schema = component["properties"][field.encode_name]
        info = msgspec.inspect.type_info(field.type)
        times = [one for one in (info, *_inner(info)) if isinstance(one, msgspec.inspect.DateTimeType)]
        if times:
            text = schema if "type" in schema else next(s for s in schema["anyOf"] if s.get("type") == "string")
            text["format"] = "date-time"
        if field.name in documented:
            schema["description"] = documented[field.name]
    if inspect.getdoc(struct) == inspect.getdoc(Event):
        component.pop("description", None)


@cache
def _field_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The strings that follow the fields in the source, by field."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    assert isinstance(definition, ast.ClassDef)
    documented = {}
    for field, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            documented[field.target.id] = inspect.cleandoc(following.value.value)
    return documented


def _example_of(info: msgspec.inspect.Type, name: str, full: bool) -> Any:
    match info:
        case msgspec.inspect.Metadata(type=inner):
            return _example_of(inner, name, full)
        case msgspec.inspect.UnionType(types=types):
            return _example_of(next(t for t in types if not isinstance(t, msgspec.inspect.NoneType)), name, full)
        case msgspec.inspect.StructType(cls=struct):
            tag = {info.tag_field: info.tag} if info.tag_field else {}
            return tag | example(struct, full=full)
        case msgspec.inspect.LiteralType(values=values):
            return sorted(values, key=str)[0]
        case msgspec.inspect.EnumType(cls=enum):
            first: Enum = next(iter(enum))
            return first.value
        case msgspec.inspect.UUIDType():
            return str(uuid5(_EXAMPLE_IDS, name))
        case msgspec.inspect.DateTimeType():
            return datetime.fromisoformat(_EXAMPLE_TIME).isoformat().replace("+00:00", "Z")
        case msgspec.inspect.DateType():
            return date(2026, 2, 12).isoformat()
        case msgspec.inspect.DecimalType():
            return str(Decimal("12.5"))
        case msgspec.inspect.BoolType():
            return True
        case msgspec.inspect.IntType(ge=least, le=most):
            return min(max(5_000_000 if name.endswith("_minor") else 1, least or 0), most or 5_000_000)
        case msgspec.inspect.FloatType():
            return 7.25
        case msgspec.inspect.StrType():
            return "INR" if name == "currency" else name
        case msgspec.inspect.DictType(value_type=inner):
            return {"key": _example_of(inner, name, full)}
        case msgspec.inspect.TupleType(item_types=inners):
            return [_example_of(inner, name, full) for inner in inners]
        case msgspec.inspect.CollectionType(item_type=inner):
            return [_example_of(inner, name, full)]
        case msgspec.inspect.BytesType():
            return ""
        case msgspec.inspect.NoneType():
            return None
        case msgspec.inspect.AnyType() | msgspec.inspect.RawType():
            return name
    raise NotImplementedError(f"an example of {info!r} ({name}): add its case")
