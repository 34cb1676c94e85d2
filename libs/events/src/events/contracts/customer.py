"""customer: the merged entity both platforms may edit, on `profile-<user>` (published by sync-gateway)."""

from typing import Any

from events.contracts.registry import Event, contract


@contract("customer.profile.changed")
class ProfileChanged(Event, frozen=True, kw_only=True):
    version: int
    fields: dict[str, Any]
    """The fields that changed, with their new values."""
    sources: dict[str, str]
    """Which platform each of those values came from."""
