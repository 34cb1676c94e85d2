"""`/api/sync/conflicts`, `/api/sync/profile`: routes, their shapes, and which refusal is which status."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
import msgspec
from chassis.authentication import ops_may
from chassis.consistency import HEADER, CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.problems import Problem, invalid_field
from chassis.tokens import Caller
from events.contracts import sync
from events.decisions import Streams
from events.envelope import new_id
from litestar import Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler

from sync_gateway import policies, profile
from sync_gateway.feeds import Rejected, profile_fields
from sync_gateway.policies import ENTITIES, POLICIES_MAX, PROFILE, Policies
from sync_gateway.profile import Conflict, ConflictNotFound
from sync_gateway.profiles import Profiles
from sync_gateway.projections.conflict import past_decisions

OPS = ops_may("sync:admin")
OPS_ONLY = ops_may("sync:admin", everyone=True, only=True)
ANYBODY = ops_may("sync:admin", everyone=True)
TRIED_AGAINST_MAX = 10_000


class SideView(msgspec.Struct, frozen=True, kw_only=True):
    fields: dict[str, Any]
    changed_at: datetime | None


class BaseView(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    fields: dict[str, Any]


class DecisionView(msgspec.Struct, frozen=True, kw_only=True):
    field: str
    policy: str
    winner: str | None
    """`bfc`, `vyomo`, `merged`, or `manual` for a value given by hand; null while nobody has decided."""
    value: Any


class ConflictView(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    entity: str
    entity_id: UUID
    status: Literal["open", "resolved"]
    detected_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    base: BaseView
    bfc: SideView
    vyomo: SideView
    decisions: list[DecisionView]
    event_ids: list[UUID]


class ConflictList(msgspec.Struct, frozen=True):
    items: list[ConflictView]
    next_cursor: str | None


class ResolveBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    strategy: Literal["bfc", "vyomo", "merge", "manual"]
    fields: dict[str, Any] | None = None
    """With `manual`: a value for each open field."""


class ProfileView(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    """0: no platform has reported anything yet."""
    fields: dict[str, Any]
    updated_at: datetime | None
    sources: dict[str, str]
    """By field: the platform its value came from, `merged`, or `customer`."""


class PolicyView(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entity: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    field: Annotated[str, msgspec.Meta(pattern=r"^(\*|[A-Za-z][A-Za-z0-9_]{0,63})\Z")]
    """`*`: any field that is not named."""
    policy: str
    """`authority:bfc`, `authority:vyomo`, `last_write_wins`, `merge` or `manual`."""


class PolicyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    items: Annotated[list[PolicyView], msgspec.Meta(max_length=POLICIES_MAX)]
    """All that differ from the defaults; what is not named gets its default back."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A past decision that would have been another one. Values are the customers' own: they are not shown."""

    conflict_id: str
    entity: str
    field: str
    policy: str
    winner: str | None
    would_be_policy: str
    would_be_winner: str | None


class PolicyList(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    items: list[PolicyView]
    dry_run: bool = False
    tried_against: int | None = None
    """Past decisions that the proposal was tried against."""
    differences: list[Difference] | None = None


class _Before(msgspec.Struct, frozen=True):
    at: datetime
    conflict_id: UUID


def routes(
    profiles: Profiles, rules: Streams[Policies], database: "asyncpg.Pool[asyncpg.Record]", cursors: CursorCodec
) -> list[ControllerRouterHandler]:
    """The routes of conflicts and profiles."""

    @get("/api/sync/profile", summary="The merged profile", opt=OPS)
    async def get_profile(caller: NamedDependency[Caller]) -> ProfileView:
        known = await profiles.load(caller.user_id)
        return ProfileView(
            version=known.version,
            fields=known.values(),
            updated_at=known.updated_at,
            sources={field: place.source for field, place in sorted(known.fields.items())},
        )

    @get("/api/sync/conflicts", summary="The caller's conflicts, newest first", opt=OPS)
    async def list_conflicts(
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        status: FromQuery[Literal["open", "resolved"] | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, QueryParameter(max_length=2048)] = None,
    ) -> ConflictList:
        known = await profiles.load(caller.user_id)
        purpose = f"conflicts:{status}"
        found = sorted(
            (
                conflict
                for conflict in known.conflicts.values()
                if status is None or bool(conflict.open_fields) == (status == "open")
            ),
            key=_newest_first,
            reverse=True,
        )
        if cursor is not None:
            before = cursors.decode(cursor, _Before, purpose=purpose, caller=caller.user_id)
            found = [conflict for conflict in found if _newest_first(conflict) < (before.at, before.conflict_id.bytes)]
        page = found[:limit]
        following = None
        if len(found) > limit:
            place = _Before(page[-1].detected_at, page[-1].conflict_id)
            following = cursors.encode(place, purpose=purpose, caller=caller.user_id)
        return ConflictList([_view(caller.user_id, conflict) for conflict in page], following)

    @get("/api/sync/conflicts/policies", summary="Who wins, per entity and field", opt=ANYBODY)
    async def get_conflict_policies(caller: NamedDependency[Caller]) -> PolicyList:
        state, _ = await rules.load(PROFILE)
        return PolicyList(items=_policies(state))

    @put("/api/sync/conflicts/policies", summary="Set policies, or try them against past conflicts", opt=OPS_ONLY)
    async def put_conflict_policies(
        caller: NamedDependency[Caller], data: JSONBody[PolicyBody], dry_run: FromQuery[bool] = False
    ) -> PolicyList:
        items = [_checked(place, item) for place, item in enumerate(data.items)]
        if dry_run:
            proposed = Policies({(item.entity, item.field): item.policy for item in items})
            past = await past_decisions(database, TRIED_AGAINST_MAX)
            return PolicyList(
                items=_policies(proposed),
                dry_run=True,
                tried_against=len(past),
                differences=[
                    Difference(
                        conflict_id=decision.conflict_id,
                        entity=decision.entity,
                        field=decision.field,
                        policy=decision.policy,
                        winner=decision.winner,
                        would_be_policy=policy,
                        would_be_winner=winner,
                    )
                    for decision, policy, winner in policies.differences(past, proposed)
                ],
            )
        await rules.execute(
            PROFILE,
            lambda state: policies.change(state, items),
            event_id=new_id(),
            metadata=caller.metadata(),
        )
        state, _ = await rules.load(PROFILE)
        return PolicyList(items=_policies(state))

    @get("/api/sync/conflicts/{conflict_id:uuid}", summary="One conflict", opt=OPS)
    async def get_conflict(caller: NamedDependency[Caller], conflict_id: FromPath[UUID]) -> ConflictView:
        known = await profiles.load(caller.user_id)
        conflict = known.conflicts.get(conflict_id)
        if conflict is None:
            raise _not_found()
        return _view(caller.user_id, conflict)

    @post("/api/sync/conflicts/{conflict_id:uuid}/resolve", status_code=200, summary="Decide a conflict's open fields")
    async def resolve_conflict(
        caller: NamedDependency[Caller], conflict_id: FromPath[UUID], data: JSONBody[ResolveBody]
    ) -> Response[ConflictView]:
        if data.fields is not None:
            try:
                profile_fields("fields", data.fields)
            except Rejected as rejected:
                raise invalid_field("fields", rejected.reason) from None
        by = f"user:{caller.user_id}"
        return await _decide(
            caller,
            conflict_id,
            lambda known: profile.resolve(known, conflict_id, data.strategy, data.fields, by, datetime.now(UTC)),
        )

    @post("/api/sync/conflicts/{conflict_id:uuid}/reopen", status_code=200, summary="Undo a resolution")
    async def reopen_conflict(caller: NamedDependency[Caller], conflict_id: FromPath[UUID]) -> Response[ConflictView]:
        by = f"user:{caller.user_id}"
        return await _decide(
            caller, conflict_id, lambda known: profile.reopen(known, conflict_id, by, datetime.now(UTC))
        )

    async def _decide(caller: Caller, conflict_id: UUID, decide: Any) -> Response[ConflictView]:
        event_id = new_id()
        try:
            written = await profiles.execute(caller.user_id, decide, event_id=event_id, metadata=caller.metadata())
        except ConflictNotFound:
            raise _not_found() from None
        view = _view(caller.user_id, written.profile.conflicts[conflict_id])
        return Response(view, headers={HEADER: consistency_token(event_id)})

    return [
        get_profile,
        list_conflicts,
        get_conflict_policies,
        put_conflict_policies,
        get_conflict,
        resolve_conflict,
        reopen_conflict,
    ]


def _checked(place: int, item: PolicyView) -> sync.PolicyItem:
    if item.entity not in ENTITIES:
        raise invalid_field(f"items[{place}].entity", f"must be one of {', '.join(ENTITIES)}")
    if item.policy not in policies.POLICIES:
        raise invalid_field(f"items[{place}].policy", f"must be one of {', '.join(policies.POLICIES)}")
    return sync.PolicyItem(entity=item.entity, field=item.field, policy=item.policy)


def _policies(state: Policies) -> list[PolicyView]:
    return [PolicyView(entity=item.entity, field=item.field, policy=item.policy) for item in state.items()]


def _newest_first(conflict: Conflict) -> tuple[datetime, bytes]:
    return conflict.detected_at, conflict.conflict_id.bytes


def _side(conflict: Conflict, side: str) -> dict[str, Any]:
    return {field: values[side] for field, values in conflict.values.items()}


def _view(user_id: UUID, conflict: Conflict) -> ConflictView:
    resolution = conflict.resolution
    decided: Mapping[str, Any] = {} if resolution is None else resolution.after
    winners: Mapping[str, str] = {} if resolution is None else resolution.winners
    decisions = []
    for decision in conflict.decisions:
        field = decision.field
        if field in winners:
            winner, value = winners[field], decided[field]
        elif field in conflict.open_fields:
            winner, value = None, None
        else:
            winner, value = decision.winner, conflict.values[field]["decided"]
        decisions.append(DecisionView(field=field, policy=decision.policy, winner=winner, value=value))
    return ConflictView(
        id=conflict.conflict_id,
        entity=PROFILE,
        entity_id=user_id,
        status="open" if conflict.open_fields else "resolved",
        detected_at=conflict.detected_at,
        resolved_at=None if resolution is None else resolution.resolved_at,
        resolved_by=None if resolution is None else resolution.resolved_by,
        base=BaseView(version=conflict.base_version, fields=_side(conflict, "base")),
        bfc=SideView(fields=_side(conflict, "bfc"), changed_at=conflict.bfc_changed_at),
        vyomo=SideView(fields=_side(conflict, "vyomo"), changed_at=conflict.vyomo_changed_at),
        decisions=decisions,
        event_ids=list(conflict.event_ids),
    )


def _not_found() -> Problem:
    return Problem(404, "conflict_not_found", "There is no such conflict")
