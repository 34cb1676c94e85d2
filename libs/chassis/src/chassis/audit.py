"""Who used an operator's token, and for which customer: an event in the log, before anything is done."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from events.contracts.identity import OpsUsed
from events.envelope import new_id
from events.store import EventStore, StreamAppend

from chassis.request import AnyConnection, metadata_of
from chassis.tokens import Caller


def recorder(store: Any, service: str) -> Callable[[AnyConnection, Caller], Awaitable[None]]:
    """Appends the use to `ops_audit-<client>` with the service's own role. Where that fails, nothing is done."""

    async def record(connection: AnyConnection, caller: Caller) -> None:
        assert isinstance(store, EventStore), "a service that takes operators' tokens has an event store"
        assert caller.operator is not None
        user_id = None if caller.for_everyone else caller.user_id
        used = OpsUsed(
            client_id=caller.operator,
            service=service,
            method=str(connection.scope.get("method", "WEBSOCKET")),
            route=connection.scope.get("path_template", ""),
            user_id=user_id,
            scopes=tuple(sorted(caller.scopes)),
            used_at=datetime.now(UTC),
        )
        await store.append(
            [StreamAppend(f"ops_audit-{caller.session_id}", (used,))],
            event_id=new_id(),
            subject=user_id,
            metadata=metadata_of(connection, f"ops:{caller.operator}"),
        )

    return record
