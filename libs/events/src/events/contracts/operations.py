"""What operators do: replay, rebuild, retry, skip, requeue, discard. Never public; the audit is part of the log."""

from uuid import UUID

import msgspec

from events.contracts.registry import Event, contract


@contract("operations.act.begun", public=False)
class ActBegun(Event, frozen=True, kw_only=True):
    """An operator is about to do something. Recorded first, so that nothing is done unrecorded."""

    act: str
    """The command's words: `parked skip`, `replay`, `dead requeue`."""
    target: str
    """What it is done to: a consumer, a queue, a subscriber."""
    arguments: dict[str, str] = msgspec.field(default_factory=dict)
    reason: str | None = None
    operator: str
    """Who says so: `--as`, else the login name on the operator's machine."""


@contract("operations.act.finished", public=False)
class ActFinished(Event, frozen=True, kw_only=True):
    """What came of it."""

    begun_id: UUID
    outcome: str
    """`done`, `failed`, or `handed_over` to a service, which records the end in its table `operation`."""
    detail: dict[str, str] = msgspec.field(default_factory=dict)
