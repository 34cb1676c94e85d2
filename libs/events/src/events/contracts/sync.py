"""sync: webhooks, synchronisation runs and conflict policies (published by sync-gateway).

Streams: `webhook-<id>`, `sync_run-<id>`, `conflict_policy-<entity>`.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract

Platform = Literal["bfc", "vyomo"]


@contract("sync.webhook.registered", public=False)
class WebhookRegistered(Event, frozen=True, kw_only=True):
    webhook_id: UUID
    owner_id: UUID | None
    """Whose events it gets; None: everyone's (made with an ops token)."""
    url: str
    events: tuple[str, ...]
    """Patterns as in AMQP topics."""
    description: str | None = None
    active: bool = True
    sealed_secret: str
    """Encrypted with a key that only sync-gateway has."""
    retry_delays_s: tuple[int, ...]
    """Pause before each attempt after the first: its length + 1 is the number of attempts."""
    concurrency_max: int
    rate_per_s: int


@contract("sync.webhook.changed", public=False)
class WebhookChanged(Event, frozen=True, kw_only=True):
    """Its settings from now on, all of them."""

    webhook_id: UUID
    url: str
    events: tuple[str, ...]
    description: str | None
    active: bool
    retry_delays_s: tuple[int, ...]
    concurrency_max: int
    rate_per_s: int


@contract("sync.webhook.secret_rotated", public=False)
class WebhookSecretRotated(Event, frozen=True, kw_only=True):
    webhook_id: UUID
    sealed_secret: str
    previous_until: datetime
    """Until then everything is signed with the former secret too."""


@contract("sync.webhook.quarantined")
class WebhookQuarantined(Event, frozen=True, kw_only=True):
    """It failed too often in a row: only probes are sent until one succeeds. Nothing is lost meanwhile."""

    webhook_id: UUID
    reason: str
    """The last failure: `http_<status>`, `timeout`, `connection_failed`, `url_not_allowed`, …"""
    failures: int
    """Failed attempts in a row."""


@contract("sync.webhook.restored")
class WebhookRestored(Event, frozen=True, kw_only=True):
    webhook_id: UUID


@contract("sync.webhook.disabled")
class WebhookDisabled(Event, frozen=True, kw_only=True):
    """It gets nothing any more until its owner makes it active again."""

    webhook_id: UUID
    reason: Literal["gone", "unreachable"]
    """It answered 410, or no probe succeeded for days."""


@contract("sync.webhook.deleted")
class WebhookDeleted(Event, frozen=True, kw_only=True):
    webhook_id: UUID


@contract("sync.sync_run.requested")
class SyncRunRequested(Event, frozen=True, kw_only=True):
    sync_id: UUID
    platforms: tuple[Platform, ...]
    entity: str | None = None


class PlatformOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What asking one platform brought."""

    platform: Platform
    status: Literal["completed", "failed", "not_linked"]
    found: int = 0
    """Items the platform gave us."""
    applied: int = 0
    """Of those, new to us."""
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    reason: str | None = None
    """Why it failed."""


@contract("sync.sync_run.completed")
class SyncRunCompleted(Event, frozen=True, kw_only=True):
    sync_id: UUID
    status: Literal["completed", "failed"]
    """`failed` where a platform did not answer; the others' items are in."""
    outcomes: tuple[PlatformOutcome, ...]


class PolicyItem(msgspec.Struct, frozen=True, kw_only=True):
    entity: str
    field: str
    policy: str


@contract("sync.conflict_policy.changed", public=False)
class ConflictPolicyChanged(Event, frozen=True, kw_only=True):
    items: tuple[PolicyItem, ...]
    """The policies that differ from the defaults from now on, all of them."""
