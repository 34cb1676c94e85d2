"""Who wins where both platforms changed the same field: policies per entity and field. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from events.contracts import sync
from events.contracts.customer import Platform, Winner
from events.contracts.registry import Event

PROFILE: Final = "profile"
ANY_FIELD: Final = "*"
ENTITIES: Final = (PROFILE,)
POLICIES: Final = ("authority:bfc", "authority:vyomo", "last_write_wins", "merge", "manual")
POLICIES_MAX: Final = 200

DEFAULTS: Final[Mapping[tuple[str, str], str]] = {
    (PROFILE, "phone"): "authority:bfc",
    (PROFILE, "email"): "authority:bfc",
    (PROFILE, "address"): "authority:bfc",
    (PROFILE, "nominee"): "manual",
    (PROFILE, "tags"): "merge",
    (PROFILE, ANY_FIELD): "last_write_wins",
}


class Policies(msgspec.Struct, frozen=True):
    """The defaults, and what differs from them."""

    differing: dict[tuple[str, str], str] = msgspec.field(default_factory=dict)

    def of(self, entity: str, field: str) -> str:
        """The policy of a field: its own, else that of any field."""
        for key in ((entity, field), (entity, ANY_FIELD)):
            policy = self.differing.get(key) or DEFAULTS.get(key)
            if policy is not None:
                return policy
        return "last_write_wins"

    def items(self) -> list[sync.PolicyItem]:
        """All of them, sorted."""
        table = {**DEFAULTS, **self.differing}
        return [
            sync.PolicyItem(entity=entity, field=field, policy=table[entity, field]) for entity, field in sorted(table)
        ]


def evolve(state: Policies, event: Event) -> Policies:
    """Folds one event."""
    if isinstance(event, sync.ConflictPolicyChanged):
        return Policies({(item.entity, item.field): item.policy for item in event.items})
    return state


def change(state: Policies, items: Sequence[sync.PolicyItem]) -> Sequence[Event]:
    """These policies from now on; what is not named has its default."""
    differing = {
        (item.entity, item.field): item.policy
        for item in items
        if DEFAULTS.get((item.entity, item.field)) != item.policy
    }
    if differing == state.differing:
        return []
    return [
        sync.ConflictPolicyChanged(
            items=tuple(
                sync.PolicyItem(entity=entity, field=field, policy=differing[entity, field])
                for entity, field in sorted(differing)
            )
        )
    ]


def winner(policy: str, bfc_clock: str, vyomo_clock: str, *, mergeable: bool = True) -> Winner | None:
    """Who wins a field by `policy`; None: a person decides. Equal clocks: the bank's, so that it is one and the same
    whoever comes first."""
    if policy == "authority:bfc":
        return "bfc"
    if policy == "authority:vyomo":
        return "vyomo"
    if policy == "manual":
        return None
    if policy == "merge" and mergeable:
        return "merged"
    return "vyomo" if vyomo_clock > bfc_clock else "bfc"


def merged(base: Any, bfc: Any, vyomo: Any) -> list[Any] | None:
    """Three-way merge of sets: what either side added, less what either side removed. None: these are no lists."""
    if not isinstance(bfc, list) or not isinstance(vyomo, list):
        return None
    before = {_key(member) for member in base} if isinstance(base, list) else set()
    left, right = ({_key(member) for member in side} for side in (bfc, vyomo))
    kept: dict[bytes, Any] = {}
    for member in [*bfc, *vyomo]:
        key = _key(member)
        if key not in before or (key in left and key in right):
            kept.setdefault(key, member)
    return list(kept.values())


class PastDecision(NamedTuple):
    """A field's decision in a past conflict."""

    conflict_id: str
    entity: str
    field: str
    policy: str
    winner: str | None
    bfc_clock: str
    vyomo_clock: str


def differences(past: Sequence[PastDecision], proposed: Policies) -> list[tuple[PastDecision, str, Winner | None]]:
    """The past decisions that would have had another winner, each with its policy and winner by the proposal."""
    differing = []
    for decision in past:
        policy = proposed.of(decision.entity, decision.field)
        would_win = winner(policy, decision.bfc_clock, decision.vyomo_clock)
        if would_win != decision.winner:
            differing.append((decision, policy, would_win))
    return differing


def other(platform: Platform) -> Platform:
    return "vyomo" if platform == "bfc" else "bfc"


def _key(member: Any) -> bytes:
    return msgspec.json.encode(member, order="deterministic")
