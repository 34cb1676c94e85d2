"""A webhook: what its owner set, its secret, and whether it is trusted to answer. Pure: commands and state.

The stream is `webhook-<id>`. Deliveries are no events: they are in the delivery ledger (`deliveries.py`).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from events.contracts import sync
from events.contracts.registry import Event
from events.decisions import Refusal

State = Literal["unknown", "active", "inactive", "quarantined", "disabled", "deleted"]

RETRY_DELAYS_MAX = 20
RETRY_DELAY_S_MAX = 24 * 3600
CONCURRENCY_MAX = 64
RATE_PER_S_MAX = 5_000
PER_OWNER_MAX = 20


class WebhookNotFound(Refusal):
    """There is no such webhook, or it is somebody else's."""

    code = "webhook_not_found"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner may change."""

    url: str
    events: tuple[str, ...]
    description: str | None = None
    active: bool = True
    retry_delays_s: tuple[int, ...]
    concurrency_max: int
    rate_per_s: int


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook's state."""

    webhook_id: UUID | None = None
    owner_id: UUID | None = None
    settings: Settings | None = None
    state: State = "unknown"
    sealed_secret: str = ""
    previous_sealed_secret: str | None = None
    previous_until: datetime | None = None


def evolve(state: Webhook, event: Event) -> Webhook:
    """Folds one event."""

    def changed(**fields: Any) -> Webhook:
        return msgspec.structs.replace(state, **fields)

    match event:
        case sync.WebhookRegistered():
            return Webhook(
                webhook_id=event.webhook_id,
                owner_id=event.owner_id,
                settings=_settings(event),
                state="active" if event.active else "inactive",
                sealed_secret=event.sealed_secret,
            )
        case sync.WebhookChanged():
            # Making it active again ends being disabled; quarantine ends by a probe only.
            kept: State = "quarantined" if state.state == "quarantined" else "active"
            return changed(settings=_settings(event), state=kept if event.active else "inactive")
        case sync.WebhookSecretRotated():
            return changed(
                sealed_secret=event.sealed_secret,
                previous_sealed_secret=state.sealed_secret,
                previous_until=event.previous_until,
            )
        case sync.WebhookQuarantined():
            return changed(state="quarantined")
        case sync.WebhookRestored():
            return changed(state="active")
        case sync.WebhookDisabled():
            return changed(state="disabled")
        case sync.WebhookDeleted():
            return Webhook(webhook_id=event.webhook_id, owner_id=state.owner_id, state="deleted")
    return state


def register(
    state: Webhook, webhook_id: UUID, owner_id: UUID | None, settings: Settings, sealed_secret: str
) -> Sequence[Event]:
    assert state.state == "unknown", "ids are drawn, not chosen"
    return [
        sync.WebhookRegistered(
            webhook_id=webhook_id, owner_id=owner_id, sealed_secret=sealed_secret, **msgspec.structs.asdict(settings)
        )
    ]


def change(state: Webhook, owner_id: UUID | None, settings: Settings) -> Sequence[Event]:
    webhook_id = _own(state, owner_id)
    if settings == state.settings and state.state in ("active", "inactive", "quarantined"):
        return []
    return [sync.WebhookChanged(webhook_id=webhook_id, **msgspec.structs.asdict(settings))]


def rotate(state: Webhook, owner_id: UUID | None, sealed_secret: str, previous_until: datetime) -> Sequence[Event]:
    webhook_id = _own(state, owner_id)
    return [
        sync.WebhookSecretRotated(webhook_id=webhook_id, sealed_secret=sealed_secret, previous_until=previous_until)
    ]


def delete(state: Webhook, owner_id: UUID | None) -> Sequence[Event]:
    return [sync.WebhookDeleted(webhook_id=_own(state, owner_id))]


def quarantine(state: Webhook, reason: str, failures: int) -> Sequence[Event]:
    """Only an active one: whatever else it is by now, nothing is being sent."""
    if state.state != "active" or state.webhook_id is None:
        return []
    return [sync.WebhookQuarantined(webhook_id=state.webhook_id, reason=reason, failures=failures)]


def restore(state: Webhook) -> Sequence[Event]:
    if state.state != "quarantined" or state.webhook_id is None:
        return []
    return [sync.WebhookRestored(webhook_id=state.webhook_id)]


def disable(state: Webhook, reason: Literal["gone", "unreachable"]) -> Sequence[Event]:
    if state.state not in ("active", "quarantined") or state.webhook_id is None:
        return []
    return [sync.WebhookDisabled(webhook_id=state.webhook_id, reason=reason)]


def owned(state: Webhook, owner_id: UUID | None) -> Webhook:
    """The webhook, if it is this owner's and exists.

    Raises:
        WebhookNotFound
    """
    _own(state, owner_id)
    return state


def _own(state: Webhook, owner_id: UUID | None) -> UUID:
    if state.state in ("unknown", "deleted") or state.owner_id != owner_id or state.webhook_id is None:
        raise WebhookNotFound("There is no such webhook")
    return state.webhook_id


def _settings(event: sync.WebhookRegistered | sync.WebhookChanged) -> Settings:
    return Settings(
        url=event.url,
        events=event.events,
        description=event.description,
        active=event.active,
        retry_delays_s=event.retry_delays_s,
        concurrency_max=event.concurrency_max,
        rate_per_s=event.rate_per_s,
    )
