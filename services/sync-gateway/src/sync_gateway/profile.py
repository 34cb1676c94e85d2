"""The merged profile of a customer, which both platforms edit, and its conflicts. Pure.

    merge(profile, edit) → drafts        an item of a platform
    resolve / reopen(profile, …)         a person's decision about a conflict
    evolve(profile, happened) → profile  folds one event

A draft is an event whose personal values are still in the clear; `profiles.py` seals and opens them.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from events.contracts import customer
from events.contracts.customer import FieldDecision, Platform, Strategy
from events.contracts.registry import Event
from events.decisions import Refusal
from events.envelope import derived_id

from sync_gateway import clocks, policies
from sync_gateway.policies import PROFILE, Policies, other

ORIGIN = "sangam"
"""How a platform marks what it reports back of ours."""

Values = dict[str, Any]


class ConflictNotFound(Refusal):
    code: ClassVar[str] = "conflict_not_found"


class ConflictNotOpen(Refusal):
    """It has been resolved already."""

    code: ClassVar[str] = "conflict_not_open"


class ConflictNotResolved(Refusal):
    """There is nothing to undo."""

    code: ClassVar[str] = "conflict_not_resolved"


class FieldsMissing(Refusal):
    """A manual resolution must give a value for each open field, and for no other."""

    code: ClassVar[str] = "fields_do_not_match"


class NotMergeable(Refusal):
    """Only lists can be merged."""

    code: ClassVar[str] = "not_mergeable"


class Draft(NamedTuple):
    """An event to be: `values` go into its sealed field."""

    event: Event
    values: Values


class Happened(NamedTuple):
    """A recorded event, opened."""

    payload: Event
    values: Values
    recorded_at: datetime
    event_id: UUID | None = None


class Edit(NamedTuple):
    """What a platform reports that its customer changed."""

    user_id: UUID
    platform: Platform
    item_id: str
    event_id: UUID
    base_version: int
    changed_at: datetime
    recorded_at: datetime
    fields: Values
    origin: str | None = None


class Place(NamedTuple):
    """A field's value since a version."""

    value: Any
    source: str
    clock: str
    version: int
    event_id: UUID | None
    changed_at: datetime | None


class Resolution(NamedTuple):
    """How the fields of a conflict were decided, and what an undo needs."""

    strategy: str
    winners: Mapping[str, str]
    before: Values
    """By field; absent where the field had no value."""
    after: Values
    sources_before: Mapping[str, str]
    version: int
    """The profile's version that came with it."""
    resolved_at: datetime
    resolved_by: str


class Conflict(NamedTuple):
    conflict_id: UUID
    base_version: int
    platform: Platform
    decisions: tuple[FieldDecision, ...]
    values: Mapping[str, Mapping[str, Any]]
    """By field: base, bfc, vyomo, decided."""
    bfc_changed_at: datetime | None
    vyomo_changed_at: datetime | None
    event_ids: tuple[UUID, ...]
    detected_at: datetime
    open_fields: tuple[str, ...]
    resolution: Resolution | None = None


class Profile(NamedTuple):
    """State after `version` changes. `history` keeps every value of each field: the base of any merge."""

    version: int = 0
    fields: Mapping[str, Place] = {}
    history: Mapping[str, tuple[Place, ...]] = {}
    clocks: tuple[str, ...] = (clocks.ZERO,)
    """By version: the latest clock up to it."""
    edits: Mapping[tuple[str, str], str] = {}
    """The clock of each platform's latest edit of each field, won or lost."""
    conflicts: Mapping[UUID, Conflict] = {}
    updated_at: datetime | None = None

    def values(self) -> Values:
        """The fields as the platforms are told."""
        return {name: place.value for name, place in sorted(self.fields.items())}

    def at(self, field: str, version: int) -> Place | None:
        """The field as it was at a version."""
        found = None
        for place in self.history.get(field, ()):
            if place.version > version:
                break
            found = place
        return found


def conflict_id_of(edit_event_id: UUID) -> UUID:
    """The id of the conflict that merging that item detects."""
    return derived_id(edit_event_id, "conflict")


class _Outcome(NamedTuple):
    """What merging an edit makes of its fields."""

    changed: dict[str, Any]
    sources: dict[str, str]
    decisions: list[FieldDecision]
    values: dict[str, Values]


def is_echo(profile: Profile, edit: Edit) -> bool:
    """Whether the platform only reports back what it was told."""
    if edit.origin == ORIGIN:
        return True
    return edit.base_version >= profile.version > 0 and all(
        field in profile.fields and profile.fields[field].value == value for field, value in edit.fields.items()
    )


def merge(profile: Profile, edit: Edit, rules: Policies) -> list[Draft]:
    """The events of a platform's edit; none for an echo.

    Every other edit makes a version, also one that changes nothing here: the platform may have to take it back.
    """
    if is_echo(profile, edit):
        return []
    base_version = min(edit.base_version, profile.version)
    clock = clocks.clock(edit.changed_at, edit.recorded_at, profile.clocks[base_version])
    outcome = _merge_fields(profile, edit, base_version, clock, rules)
    conflict_id = conflict_id_of(edit.event_id)
    drafts = []
    if outcome.decisions:
        drafts.append(_detected(profile, edit, base_version, conflict_id, outcome))
        if all(decision.winner is not None for decision in outcome.decisions):
            drafts.append(_decided_by_policy(profile, conflict_id, outcome))
    changed = customer.ProfileChanged(
        version=profile.version + 1,
        fields={},
        sources=outcome.sources,
        # An edit that lost is remembered by its clock: an older one of the same platform must not come after it.
        clocks=dict.fromkeys(edit.fields, clock),
        platform=edit.platform,
        item_id=edit.item_id,
        seen=clock,
    )
    drafts.append(Draft(changed, outcome.changed))
    return drafts


def conflicts_with(profile: Profile, edit: Edit, rules: Policies) -> bool:
    """Whether merging the edit detects a conflict, or has detected one."""
    if conflict_id_of(edit.event_id) in profile.conflicts:
        return True
    return any(isinstance(draft.event, customer.ConflictDetected) for draft in merge(profile, edit, rules))


def _merge_fields(profile: Profile, edit: Edit, base_version: int, clock: str, rules: Policies) -> _Outcome:
    outcome = _Outcome({}, {}, [], {})
    for field, value in edit.fields.items():
        if profile.edits.get((field, edit.platform), "") > clock:
            continue  # an older edit of the same platform, come late
        current = profile.fields.get(field)
        base = profile.at(field, base_version)
        if current is not None and current.value == value:
            continue
        if not any(p.version > base_version and p.source != edit.platform for p in profile.history.get(field, ())):
            outcome.changed[field], outcome.sources[field] = value, edit.platform
            continue
        assert current is not None, "somebody has changed it"
        if base is not None and base.value == value:
            continue  # only the other side has changed it
        sides: dict[str, Any] = {edit.platform: value, other(edit.platform): current.value}
        at: dict[str, str] = {edit.platform: clock, other(edit.platform): current.clock}
        base_value = None if base is None else base.value
        both = policies.merged(base_value, sides["bfc"], sides["vyomo"])
        policy = rules.of(PROFILE, field)
        won = policies.winner(policy, at["bfc"], at["vyomo"], mergeable=both is not None)
        decided = current.value if won is None else both if won == "merged" else sides[won]
        if decided != current.value:
            outcome.changed[field], outcome.sources[field] = decided, won or edit.platform
        outcome.decisions.append(
            FieldDecision(field=field, policy=policy, winner=won, bfc_clock=at["bfc"], vyomo_clock=at["vyomo"])
        )
        outcome.values[field] = {"base": base_value, **sides, "decided": None if won is None else decided}
    return outcome


def _detected(profile: Profile, edit: Edit, base_version: int, conflict_id: UUID, outcome: _Outcome) -> Draft:
    against = [profile.fields[field] for field in outcome.values]
    theirs = max((place.changed_at for place in against if place.changed_at is not None), default=None)
    changed_at = {edit.platform: edit.changed_at, other(edit.platform): theirs}
    sources = dict.fromkeys(place.event_id for place in against if place.event_id is not None)
    return Draft(
        customer.ConflictDetected(
            conflict_id=conflict_id,
            entity=PROFILE,
            entity_id=edit.user_id,
            base_version=base_version,
            platform=edit.platform,
            decisions=tuple(outcome.decisions),
            bfc_changed_at=changed_at["bfc"],
            vyomo_changed_at=changed_at["vyomo"],
            event_ids=(*sources, edit.event_id),
            sealed_values="",
        ),
        dict(outcome.values),
    )


def _decided_by_policy(profile: Profile, conflict_id: UUID, outcome: _Outcome) -> Draft:
    decided = {decision.field: outcome.values[decision.field]["decided"] for decision in outcome.decisions}
    winners = {decision.field: str(decision.winner) for decision in outcome.decisions}
    return _resolved(profile, conflict_id, "policy", winners, decided, "policy")


def _resolved(
    profile: Profile, conflict_id: UUID, strategy: Strategy, winners: dict[str, str], after: Values, resolved_by: str
) -> Draft:
    return Draft(
        customer.ConflictResolved(
            conflict_id=conflict_id, strategy=strategy, winners=winners, sealed_values="", resolved_by=resolved_by
        ),
        {
            field: {
                "before": profile.fields[field].value,
                "source_before": profile.fields[field].source,
                "after": value,
                "version": profile.version + 1,
            }
            for field, value in after.items()
        },
    )


def resolve(
    profile: Profile, conflict_id: UUID, strategy: Strategy, fields: Values | None, resolved_by: str, now: datetime
) -> list[Draft]:
    """A person's decision on the open fields of a conflict.

    Raises:
        ConflictNotFound, ConflictNotOpen, FieldsMissing, NotMergeable
    """
    conflict = _conflict(profile, conflict_id)
    if not conflict.open_fields:
        raise ConflictNotOpen("The conflict is resolved; reopen it to decide again")
    if (strategy == "manual") != (fields is not None) or (
        fields is not None and set(fields) != set(conflict.open_fields)
    ):
        raise FieldsMissing("`fields` must name exactly the open fields, with the strategy `manual` only")
    after: Values = {}
    for field in conflict.open_fields:
        sides = conflict.values[field]
        if fields is not None:
            after[field] = fields[field]
        elif strategy == "merge":
            both = policies.merged(sides["base"], sides["bfc"], sides["vyomo"])
            if both is None:
                raise NotMergeable(f"{field} is no list")
            after[field] = both
        else:
            after[field] = sides[strategy]
    won = {"manual": "manual", "merge": "merged"}.get(strategy, strategy)
    sources = dict.fromkeys(after, {"manual": "customer", "merge": "merged"}.get(strategy, strategy))
    return [
        _resolved(profile, conflict_id, strategy, dict.fromkeys(after, won), after, resolved_by),
        _changed_by_person(profile, conflict_id, after, sources, now),
    ]


def reopen(profile: Profile, conflict_id: UUID, reopened_by: str, now: datetime) -> list[Draft]:
    """Undoes the resolution: each field that nobody has changed since has its former value again.

    Raises:
        ConflictNotFound, ConflictNotResolved
    """
    conflict = _conflict(profile, conflict_id)
    resolution = conflict.resolution
    if resolution is None or conflict.open_fields:
        raise ConflictNotResolved("The conflict is open")
    restored = {
        field: before
        for field, before in resolution.before.items()
        if before != resolution.after[field]
        and profile.fields[field].value == resolution.after[field]
        and profile.fields[field].version <= resolution.version
    }
    reopened = customer.ConflictReopened(
        conflict_id=conflict_id, restored=tuple(sorted(restored)), reopened_by=reopened_by
    )
    sources = {field: resolution.sources_before[field] for field in restored}
    return [Draft(reopened, {}), _changed_by_person(profile, conflict_id, restored, sources, now)]


def _changed_by_person(
    profile: Profile, conflict_id: UUID, values: Values, sources: dict[str, str], now: datetime
) -> Draft:
    clock = clocks.clock(now, now, profile.clocks[-1])
    event = customer.ProfileChanged(
        version=profile.version + 1,
        fields={},
        sources=sources,
        clocks=dict.fromkeys(values, clock),
        seen=clock,
        conflict_id=conflict_id,
    )
    return Draft(event, values)


def _conflict(profile: Profile, conflict_id: UUID) -> Conflict:
    conflict = profile.conflicts.get(conflict_id)
    if conflict is None:
        raise ConflictNotFound("There is no such conflict")
    return conflict


def evolve(profile: Profile, happened: Happened) -> Profile:
    """Folds one event."""
    event = happened.payload
    match event:
        case customer.ProfileChanged():
            return _evolve_changed(profile, event, happened)
        case customer.ConflictDetected():
            conflict = Conflict(
                conflict_id=event.conflict_id,
                base_version=event.base_version,
                platform=event.platform,
                decisions=event.decisions,
                values=happened.values,
                bfc_changed_at=event.bfc_changed_at,
                vyomo_changed_at=event.vyomo_changed_at,
                event_ids=event.event_ids,
                detected_at=happened.recorded_at,
                open_fields=tuple(decision.field for decision in event.decisions if decision.winner is None),
            )
            # Fields that the policy decided are settled even where others are open.
            return profile._replace(conflicts={**profile.conflicts, event.conflict_id: conflict})
        case customer.ConflictResolved():
            return _evolve_resolved(profile, event, happened)
        case customer.ConflictReopened():
            conflict = profile.conflicts[event.conflict_id]
            assert conflict.resolution is not None, "only a resolved conflict is reopened"
            opened = conflict._replace(open_fields=tuple(sorted(conflict.resolution.winners)), resolution=None)
            return profile._replace(conflicts={**profile.conflicts, event.conflict_id: opened})
    return profile


def _evolve_changed(profile: Profile, event: customer.ProfileChanged, happened: Happened) -> Profile:
    fields, history, edits = dict(profile.fields), dict(profile.history), dict(profile.edits)
    for field, value in happened.values.items():
        place = Place(
            value=value,
            source=event.sources[field],
            clock=event.clocks[field],
            version=event.version,
            event_id=happened.event_id,
            changed_at=happened.recorded_at,
        )
        fields[field] = place
        history[field] = (*history.get(field, ()), place)
    if event.platform is not None:
        for field, clock in event.clocks.items():
            edits[field, event.platform] = max(clock, edits.get((field, event.platform), ""))
    return profile._replace(
        version=event.version,
        fields=fields,
        history=history,
        edits=edits,
        clocks=(*profile.clocks, max(profile.clocks[-1], event.seen or clocks.ZERO)),
        updated_at=happened.recorded_at,
    )


def _evolve_resolved(profile: Profile, event: customer.ConflictResolved, happened: Happened) -> Profile:
    conflict = profile.conflicts[event.conflict_id]
    resolution = Resolution(
        strategy=event.strategy,
        winners=event.winners,
        before={field: values["before"] for field, values in happened.values.items()},
        after={field: values["after"] for field, values in happened.values.items()},
        sources_before={field: values["source_before"] for field, values in happened.values.items()},
        version=max((values["version"] for values in happened.values.values()), default=profile.version),
        resolved_at=happened.recorded_at,
        resolved_by=event.resolved_by,
    )
    resolved = conflict._replace(open_fields=(), resolution=resolution)
    return profile._replace(conflicts={**profile.conflicts, event.conflict_id: resolved})
