"""Profiles in the event store: streams `profile-<user>`, opened when read, sealed when written."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from events.contracts import banking, contract_of, customer, encode, trading
from events.contracts.registry import Event
from events.decisions import Streams
from events.envelope import Metadata, RecordedEvent, platform_stream
from events.sealing import SubjectErased, SubjectKeys
from events.store import EventStore, StreamAppend, VersionConflict
from events.texts import Texts

from sync_gateway import profile
from sync_gateway.feeds import Platform, Translated
from sync_gateway.policies import PROFILE, Policies
from sync_gateway.profile import Draft, Edit, Happened, Profile

FIELDS_PLACE = "profile.fields"
_SEALED = {
    customer.ProfileChanged: ("sealed_fields", FIELDS_PLACE),
    customer.ConflictDetected: ("sealed_values", "conflict.values"),
    customer.ConflictResolved: ("sealed_values", "conflict.resolution"),
}
"""Which field of an event holds its values, and what it is sealed for."""

Reported = banking.ProfileReported | trading.ProfileReported


class Written(NamedTuple):
    """What a command came to: the profile after it, and the event that it appended, if any."""

    profile: Profile
    event_id: UUID | None


class Profiles:
    """Loads, decides, appends."""

    def __init__(self, store: EventStore, keys: SubjectKeys, policies: Streams[Policies]) -> None:
        self._store = store
        self._keys = keys
        self._policies = policies

    async def rules(self) -> Policies:
        """The policies of now."""
        rules, _ = await self._policies.load(PROFILE)
        return rules

    async def load(self, user_id: UUID) -> Profile:
        """The profile as the store holds it now; an empty one for somebody who was erased."""
        loaded, _ = await self._load(user_id)
        return loaded

    async def execute(
        self,
        user_id: UUID,
        decide: Callable[[Profile], Sequence[Draft]],
        *,
        event_id: UUID,
        metadata: Metadata,
    ) -> Written:
        """Decides on the profile and appends, once per `event_id`.

        Raises:
            Refusal: as decide() raised it; the profile it saw is the store's newest.
            SubjectErased: nothing may be kept about this person.
        """
        while True:
            loaded, version = await self._load(user_id)
            if version and await self._store.find(event_id) is not None:
                return Written(loaded, event_id)
            drafts = decide(loaded)
            if not drafts:
                return Written(loaded, None)
            events = [await self._sealed(user_id, draft) for draft in drafts]
            try:
                await self._store.append(
                    [StreamAppend(f"profile-{user_id}", tuple(events), version)],
                    event_id=event_id,
                    subject=user_id,
                    metadata=metadata,
                )
            except VersionConflict:
                continue
            return Written(await self.load(user_id), event_id)

    async def merge(self, edit: Edit, *, event_id: UUID, metadata: Metadata) -> Written:
        """Merges a platform's edit by the policies of now."""
        rules = await self.rules()
        return await self.execute(
            edit.user_id, lambda known: profile.merge(known, edit, rules), event_id=event_id, metadata=metadata
        )

    async def edit_of(self, user_id: UUID, item: RecordedEvent) -> Edit | None:
        """The edit that a profile item reports; None once its platform customer has been erased."""
        reported = item.payload
        assert isinstance(reported, Reported)
        fields: Any = reported.fields
        if reported.sealed_fields is not None:
            text = await self._keys.open(UUID(item.stream_id), reported.sealed_fields, FIELDS_PLACE)
            if text is None:
                return None
            fields = msgspec.json.decode(text)
        return Edit(
            user_id=user_id,
            platform="bfc" if isinstance(reported, banking.ProfileReported) else "vyomo",
            item_id=reported.item_id,
            event_id=item.event_id,
            base_version=reported.base_version,
            changed_at=reported.changed_at,
            recorded_at=item.recorded_at,
            fields=fields,
            origin=reported.origin,
        )

    async def would_conflict(self, user_id: UUID, stream: str, item: Translated) -> bool:
        """Whether merging this item detects, or has detected, a conflict."""
        now = datetime.now(UTC)
        recorded = RecordedEvent(
            position=0,
            stream=stream,
            version=0,
            event_id=item.event_id,
            type=contract_of(item.event).type,
            schema_version=1,
            subject=None,
            data=encode(item.event),
            metadata=Metadata(),
            recorded_at=now,
        )
        edit = await self.edit_of(user_id, recorded)
        if edit is None:
            return False
        return profile.conflicts_with(await self.load(user_id), edit, await self.rules())

    async def seal_item(self, stream_id: UUID, item: Event) -> Event:
        """A profile item as it is stored: its values sealed for the platform's customer.

        Raises:
            SubjectErased
        """
        assert isinstance(item, Reported)
        sealed = await self._keys.seal(stream_id, _json(item.fields), FIELDS_PLACE)
        return msgspec.structs.replace(item, fields={}, field_names=tuple(sorted(item.fields)), sealed_fields=sealed)

    async def _load(self, user_id: UUID) -> tuple[Profile, int]:
        loaded, version = Profile(), 0
        for event in await self._store.read_stream(f"profile-{user_id}"):
            version = event.version
            values = await self._opened(user_id, event.payload)
            if values is None:
                return Profile(), version
            loaded = profile.evolve(loaded, Happened(event.payload, values, event.recorded_at, event.event_id))
        return loaded, version

    async def _sealed(self, user_id: UUID, draft: Draft) -> Event:
        where = _SEALED.get(type(draft.event))
        if where is None:
            return draft.event
        field, place = where
        return msgspec.structs.replace(
            draft.event, **{field: await self._keys.seal(user_id, _json(draft.values), place)}
        )

    async def _opened(self, user_id: UUID, payload: Event) -> dict[str, Any] | None:
        where = _SEALED.get(type(payload))
        sealed = None if where is None else getattr(payload, where[0])
        if where is None or sealed is None:
            return {}
        text = await self._keys.open(user_id, sealed, where[1])
        return None if text is None else msgspec.json.decode(text)


class ItemSealer:
    """What the intake asks about profile items (`intake.Sealer`)."""

    def __init__(self, profiles: Profiles, texts: Texts, user_of: Callable[[str], Awaitable[UUID | None]]) -> None:
        """`user_of`: whom a platform stream is linked to."""
        self._profiles = profiles
        self._texts = texts
        self._user_of = user_of

    async def expect(self, platform: Platform, customer_ids: Sequence[str]) -> None:
        await self._texts.expect({_subject(platform, customer_id) for customer_id in customer_ids})

    async def seal(self, platform: Platform, item: Translated) -> Translated:
        subject = _subject(platform, item.customer_id)
        if item.profile:
            return item._replace(event=await self._profiles.seal_item(subject, item.event))
        # Money has moved all the same: for somebody who was erased it is kept without its texts.
        return item._replace(event=await self._texts.sealed(subject, item.event))

    async def conflicts(self, platform: Platform, item: Translated) -> bool:
        stream = platform_stream(platform, item.customer_id)
        user_id = await self._user_of(stream)
        if user_id is None:
            return False
        return await self._profiles.would_conflict(user_id, stream, item)


def _subject(platform: Platform, customer_id: str) -> UUID:
    """Whose key seals a platform customer's items: the id of their stream."""
    return UUID(platform_stream(platform, customer_id).split("-", 1)[1])


def _json(values: dict[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


__all__ = ["Profiles", "SubjectErased", "Written"]
