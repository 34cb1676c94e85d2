"""customer: the merged entity both platforms may edit, with its conflicts, on `profile-<user>` (sync-gateway).

Values are personal data: they are in `sealed_*` fields, sealed for the user. Names of fields, clocks, winners are not.
A clock is a hybrid logical clock as sortable text (`<milliseconds>.<counter>`): the time at which somebody changed a
field, but never before the change that they had seen.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract

Platform = Literal["bfc", "vyomo"]
Winner = Literal["bfc", "vyomo", "merged"]
Strategy = Literal["policy", "bfc", "vyomo", "merge", "manual"]


class FieldDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one field that both platforms had changed."""

    field: str
    policy: str
    """`authority:<platform>`, `last_write_wins`, `merge` or `manual`."""
    winner: Winner | None
    """None: a person must decide; until then the field keeps the value it had."""
    bfc_clock: str
    vyomo_clock: str


@contract("customer.profile.changed")
class ProfileChanged(Event, frozen=True, kw_only=True):
    """A new version of the merged profile. Both platforms are told of it, also when no field changed: the platform
    whose change lost has to take it back."""

    version: int
    fields: dict[str, Any]
    """Always empty: values are sealed."""
    sources: dict[str, str]
    """By changed field: the platform that its value came from, `merged` or `customer`."""
    clocks: dict[str, str] = msgspec.field(default_factory=dict)
    """By changed field."""
    sealed_fields: str | None = None
    """JSON object of the changed fields (place `profile.fields`)."""
    platform: Platform | None = None
    """Whose item was merged; None for a resolution."""
    item_id: str | None = None
    seen: str | None = None
    """The merged item's clock."""
    conflict_id: UUID | None = None
    """Set where a conflict's resolution or its undoing made the version."""


@contract("customer.conflict.detected")
class ConflictDetected(Event, frozen=True, kw_only=True):
    conflict_id: UUID
    entity: str
    entity_id: UUID
    base_version: int
    """The version that the later of the two changes started from."""
    platform: Platform
    """Whose item came second."""
    decisions: tuple[FieldDecision, ...]
    bfc_changed_at: datetime | None = None
    vyomo_changed_at: datetime | None = None
    event_ids: tuple[UUID, ...] = ()
    """The events of the two sides."""
    sealed_values: str
    """JSON `{field: {base, bfc, vyomo, decided}}` (place `conflict.values`)."""


@contract("customer.conflict.resolved")
class ConflictResolved(Event, frozen=True, kw_only=True):
    conflict_id: UUID
    strategy: Strategy
    winners: dict[str, str]
    """By decided field: `bfc`, `vyomo`, `merged` or `manual`."""
    sealed_values: str
    """JSON `{field: {before, after, source_before, clock_before, version}}` (place `conflict.resolution`): what an
    undo needs."""
    resolved_by: str
    """`policy` or `user:<id>`."""


@contract("customer.conflict.reopened")
class ConflictReopened(Event, frozen=True, kw_only=True):
    """A resolution is undone: the fields that nobody has changed since have their former values again."""

    conflict_id: UUID
    restored: tuple[str, ...]
    reopened_by: str
