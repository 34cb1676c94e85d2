"""The audit of what operators do: events of the log itself, in streams `operation-<id>`, under the same hash chain."""

import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Mapping
from uuid import UUID

from events.contracts.operations import ActBegun, ActFinished
from events.envelope import Metadata, new_id
from events.schema import OPERATIONS
from events.store import EventStore, StreamAppend


def operator_name() -> str:
    """Who runs this process: SANGAM_OPERATOR, else the login name."""
    if name := os.environ.get("SANGAM_OPERATOR"):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid-{os.getuid()}"


class Act:
    """One act under way. `detail` is what its end will say."""

    def __init__(self, event_id: UUID, operator: str) -> None:
        self.id = event_id
        self.operator = operator
        self.detail: dict[str, str] = {}
        self.outcome = "done"


@contextlib.asynccontextmanager
async def recorded_act(
    store: EventStore,
    act: str,
    target: str,
    *,
    operator: str,
    reason: str | None = None,
    arguments: Mapping[str, object] | None = None,
) -> AsyncIterator[Act]:
    """Records that an act begins, lets it be done, and records how it ended.

    Raises:
        OSError, asyncpg.PostgresError: it cannot be recorded; then it is not done either.
    """
    doing = Act(new_id(), operator)
    stream = f"{OPERATIONS}-{doing.id}"
    metadata = Metadata(actor=f"ops:{operator}", correlation_id=str(doing.id))
    said = {name: str(value) for name, value in (arguments or {}).items() if value is not None}
    begun = ActBegun(act=act, target=target, arguments=said, reason=reason, operator=operator)
    await store.append([StreamAppend(stream, (begun,), 0)], event_id=doing.id, metadata=metadata)

    async def end(outcome: str) -> None:
        finished = ActFinished(begun_id=doing.id, outcome=outcome, detail=doing.detail)
        await store.append([StreamAppend(stream, (finished,), 1)], event_id=new_id(), metadata=metadata)

    try:
        yield doing
    except BaseException as error:
        doing.detail["error"] = repr(error)
        await end("failed")
        raise
    await end(doing.outcome)
