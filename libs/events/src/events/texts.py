"""What people and banks write about money (memo, counterparty, reference, name of an account or a rule): sealed in the
log.

A contract with such texts has a field `sealed_texts` beside them. Whoever appends seals: the texts go into that field,
together, with the key of the stream's data subject, and the fields themselves stay empty (None, or "" where a contract
has always had a text). Deciders hand the sealed text
on as it is. Consumers get events opened (`EventStore.opens_with`), as if nothing had ever been sealed; in a service
without the right to keys, and once the subject has been erased, the texts are absent.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import msgspec
import structlog

from events.contracts import UnknownContract, registry
from events.contracts.identity import UserErased
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent
from events.sealing import SealBroken, SubjectErased

log = structlog.get_logger(__name__)

PLACE: Final = "texts"
"""What texts are sealed for."""

NAMES: Final = ("counterparty", "memo", "name", "reference")
"""The fields that are sealed, where a struct has them."""

_FIELD: Final = "sealed_texts"
_NESTED: Final = ("movement", "terms")
"""The fields with structs that have texts of their own; an event has one of them at most."""
_ERASED: Final = contract_of(UserErased).type

_decoder: Final = msgspec.json.Decoder(dict[str, str])

S = TypeVar("S", bound=msgspec.Struct)


class Keys(Protocol):
    """The keys of data subjects (`events.sealing.SubjectKeys`)."""

    async def seal(self, subject: UUID, text: str, place: str) -> str: ...
    async def open(self, subject: UUID, sealed: str, place: str) -> str | None: ...
    async def fetch(self, subjects: Collection[UUID]) -> None: ...
    def bury(self, subject: UUID) -> None: ...


class Texts:
    """Seals and opens the texts of structs that have a field `sealed_texts`."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def expect(self, subjects: Collection[UUID]) -> None:
        """Texts of these subjects are about to be sealed or opened: gets their keys at once.

        Raises:
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        await self._keys.fetch(subjects)

    async def sealed(self, subject: UUID, struct: S, **also: str) -> S:
        """The struct with its texts sealed for the subject; without them where the subject has been erased.

        `also` are further texts under the same seal, for what deciders will make of the struct: whoever has a field
        of such a name reads it there.

        Raises:
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        texts = {name: text for name in NAMES if name in struct.__struct_fields__ and (text := getattr(struct, name))}
        if not texts:
            return struct
        changes: dict[str, Any] = {name: _empty(type(struct), name) for name in texts}
        try:
            changes[_FIELD] = await self._keys.seal(subject, msgspec.json.encode(texts | also).decode(), PLACE)
        except SubjectErased:
            changes[_FIELD] = None
        return msgspec.structs.replace(struct, **changes)

    async def opened(self, subject: UUID, struct: S) -> S:
        """The struct with its texts in their fields; without them where the subject has been erased.

        Raises:
            SealBroken: they were sealed for something else, or were changed since.
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        text: str | None = getattr(struct, _FIELD, None)
        if text is None:
            return struct
        opened = await self._keys.open(subject, text, PLACE)
        texts: Mapping[str, str] = {} if opened is None else _decoder.decode(opened)
        known = {name: text for name, text in texts.items() if name in struct.__struct_fields__}
        return msgspec.structs.replace(struct, **{_FIELD: None}, **known)

    async def open_events(self, events: Sequence[RecordedEvent]) -> list[RecordedEvent]:
        """The events with their texts opened, in payload and bytes alike. Their hashes are those of the stored bytes.

        A text that was tampered with is absent, and logged: the money it tells about is none the less there.

        Raises:
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        subjects: dict[str, UUID] = {}
        for event in events:
            if event.type in _TYPES and event.stream not in subjects:
                subjects[event.stream] = UUID(event.stream_id)
        if subjects:
            await self.expect(set(subjects.values()))
        return [await self._open_event(event, subjects) if event.type in _WATCHED else event for event in events]

    async def _open_event(self, event: RecordedEvent, subjects: Mapping[str, UUID]) -> RecordedEvent:
        if event.type == _ERASED:
            # Whatever follows in the log was sealed by somebody who had not heard of it yet: never opened here, as
            # it is not by a rebuild that comes when the key is gone.
            for subject in _subjects(event):
                self._keys.bury(subject)
            return event
        try:
            payload: Any = event.payload
            subject = subjects[event.stream]
            if hasattr(payload, _FIELD):
                if getattr(payload, _FIELD) is None:
                    return event
                opened = await self.opened(subject, payload)
            else:
                [place] = [name for name in _NESTED if hasattr(payload, name)]
                nested = getattr(payload, place)
                if nested.sealed_texts is None:
                    return event
                opened = msgspec.structs.replace(payload, **{place: await self.opened(subject, nested)})
        except SealBroken:
            log.error("texts.broken", position=event.position, event_id=str(event.event_id))
            return event
        except (UnknownContract, msgspec.DecodeError):
            return event  # whoever reads the payload meets it again, and knows what to do about it
        clear = msgspec.structs.replace(
            event, data=registry.encode(opened), schema_version=contract_of(opened).schema_version
        )
        clear.__dict__.update(payload=opened, stored=event)
        return clear


def _subjects(event: RecordedEvent) -> list[UUID]:
    erased = event.payload
    assert isinstance(erased, UserErased)
    return [erased.user_id, *(UUID(stream.split("-", 1)[1]) for stream in erased.platform_streams)]


@cache
def _empty(struct: type[msgspec.Struct], name: str) -> str | None:
    """What the field holds when its text is elsewhere."""
    [kind] = [field.type for field in msgspec.structs.fields(struct) if field.name == name]
    return "" if kind is str else None


def _holders() -> Iterable[str]:
    """The types of event that have texts, their own or those of what is nested in them."""
    for entry in registry.registered():
        hints = {field.name: field.type for field in msgspec.structs.fields(entry.struct)}
        if _FIELD in hints or any(hasattr(hints.get(name), _FIELD) for name in _NESTED):
            yield entry.type


_TYPES = frozenset(_holders())
_WATCHED = _TYPES | {_ERASED}
