"""The registry of event contracts: type name and schema version ↔ struct."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False, gc=False):
    """Base of every event payload. Fields are added with defaults or under a new schema version."""


class Contract(NamedTuple):
    """What is published about one event type."""

    struct: type[Event]
    schema_version: int
    public: bool
    """Private events stay inside Sangam: they never leave on `sangam.events`, a WebSocket or a webhook."""
    type: str


class UnknownContract(LookupError):
    """The type or schema version is not one this process knows: a newer publisher is at work."""

    def __init__(self, event_type: str, schema_version: int) -> None:
        super().__init__(f"no contract for {event_type} v{schema_version}")
        self.event_type = event_type
        self.schema_version = schema_version


Upcaster = Callable[[Any], Event]

_by_type: dict[tuple[str, int], Contract] = {}
_by_struct: dict[type[Event], Contract] = {}
_decoders: dict[tuple[str, int], msgspec.json.Decoder[Event]] = {}
_upcasters: dict[tuple[str, int], Upcaster] = {}
"""From a type and its schema version to the payload of the next version."""
_encoder = msgspec.json.Encoder()

E = TypeVar("E", bound=Event)


def contract(event_type: str, *, schema_version: int = 1, public: bool = True) -> Callable[[type[E]], type[E]]:
    """Class decorator: registers the struct as the payload of `event_type`.

    Raises:
        ValueError: the type and schema version are registered already.
    """

    def register(struct: type[E]) -> type[E]:
        key = (event_type, schema_version)
        if key in _by_type:
            raise ValueError(f"{event_type} v{schema_version} is registered twice")
        entry = Contract(struct=struct, schema_version=schema_version, public=public, type=event_type)
        _by_type[key] = entry
        _by_struct[struct] = entry
        _decoders[key] = msgspec.json.Decoder(struct)
        return struct

    return register


def upcaster(old: type[E]) -> Callable[[Callable[[E], Event]], Callable[[E], Event]]:
    """Decorator: registers the pure function from `old` to the next schema version of the same type.

    Whoever decodes a stored event always gets the newest version; the stored bytes stay as they are.

    Raises:
        ValueError: `old` has an upcaster already.
    """
    key = (_by_struct[old].type, _by_struct[old].schema_version)

    def register(function: Callable[[E], Event]) -> Callable[[E], Event]:
        if key in _upcasters:
            raise ValueError(f"{key[0]} v{key[1]} has two upcasters")
        _upcasters[key] = function
        return function

    return register


def contract_of(event: Event | type[Event]) -> Contract:
    """The contract of a payload or of its class."""
    return _by_struct[event if isinstance(event, type) else type(event)]


def registered() -> Iterable[Contract]:
    """All contracts, in order of type and version."""
    return [entry for _, entry in sorted(_by_type.items())]


def newest(event_type: str) -> Contract:
    """The contract of the type's highest schema version.

    Raises:
        KeyError: nothing is registered under that name.
    """
    versions = [entry for (name, _), entry in _by_type.items() if name == event_type]
    if not versions:
        raise KeyError(event_type)
    return max(versions, key=lambda entry: entry.schema_version)


def is_public(event_type: str, schema_version: int) -> bool:
    """Whether the event may leave Sangam. An unknown type is private: nothing leaks by being new."""
    entry = _by_type.get((event_type, schema_version))
    return entry is not None and entry.public


def encode(event: Event) -> bytes:
    """The payload's JSON bytes, exactly as they are stored and hashed."""
    return _encoder.encode(event)


def decode(event_type: str, schema_version: int, data: bytes | msgspec.Raw) -> Event:
    """The payload of stored bytes, brought to the newest schema version.

    Raises:
        UnknownContract: no such type or schema version here.
        msgspec.ValidationError: the bytes do not fit the contract.
    """
    key = (event_type, schema_version)
    decoder = _decoders.get(key)
    if decoder is None:
        raise UnknownContract(event_type, schema_version)
    payload = decoder.decode(data)
    while (upcast := _upcasters.get(key)) is not None:
        payload = upcast(payload)
        key = (event_type, key[1] + 1)
    return payload


def _forget(event_type: str, schema_version: int) -> None:
    """Takes a contract back out. For tests that register their own."""
    entry = _by_type.pop((event_type, schema_version))
    del _by_struct[entry.struct]
    del _decoders[event_type, schema_version]
    _upcasters.pop((event_type, schema_version), None)
