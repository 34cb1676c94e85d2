"""The webhooks that exist, by owner. How they are doing is in the delivery ledger."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, sync
from events.envelope import RecordedEvent

from sync_gateway.webhooks import Settings, Webhook, evolve

_REGISTERED = contract_of(sync.WebhookRegistered).type
_TYPES = (
    sync.WebhookRegistered,
    sync.WebhookChanged,
    sync.WebhookQuarantined,
    sync.WebhookRestored,
    sync.WebhookDisabled,
    sync.WebhookDeleted,
)


class WebhookRow(NamedTuple):
    webhook_id: UUID
    owner_id: UUID | None
    state: str
    settings: Settings


class WebhookProjection:
    """One row per webhook, with its folded state but without secrets."""

    name = "webhook"
    types = frozenset(contract_of(contract).type for contract in _TYPES) | {"identity.user.erased"}
    ddl = """
        CREATE TABLE IF NOT EXISTS webhook (
            webhook_id uuid PRIMARY KEY,
            owner_id uuid,
            registered_at bigint NOT NULL,
            state bytea NOT NULL
        );
        CREATE INDEX IF NOT EXISTS webhook_by_owner ON webhook (owner_id);
    """

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if event.type == "identity.user.erased":
                await db.execute("DELETE FROM webhook WHERE owner_id = $1", event.subject)
                continue
            webhook_id = UUID(event.stream_id)
            known = await db.fetchval("SELECT state FROM webhook WHERE webhook_id = $1 FOR UPDATE", webhook_id)
            if known is None and event.type != _REGISTERED:
                continue  # its owner was erased
            before = Webhook() if known is None else msgspec.json.decode(known, type=Webhook)
            state = evolve(before, event.payload)
            if state.state == "deleted":
                await db.execute("DELETE FROM webhook WHERE webhook_id = $1", webhook_id)
                continue
            await db.execute(
                "INSERT INTO webhook (webhook_id, owner_id, registered_at, state) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (webhook_id) DO UPDATE SET state = excluded.state",
                webhook_id,
                state.owner_id,
                event.position,
                msgspec.json.encode(msgspec.structs.replace(state, sealed_secret="", previous_sealed_secret=None)),
            )


async def webhooks_of(database: "asyncpg.Pool[asyncpg.Record]", owner_id: UUID | None) -> list[WebhookRow]:
    """The owner's webhooks in the order they were registered; None: those of ops."""
    rows = await database.fetch(
        "SELECT webhook_id, state FROM webhook WHERE owner_id IS NOT DISTINCT FROM $1 ORDER BY registered_at", owner_id
    )
    found = []
    for row in rows:
        state = msgspec.json.decode(row["state"], type=Webhook)
        assert state.settings is not None
        found.append(WebhookRow(UUID(int=row["webhook_id"].int), state.owner_id, state.state, state.settings))
    return found
