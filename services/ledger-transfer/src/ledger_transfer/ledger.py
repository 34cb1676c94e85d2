"""The ledger as commands and reactions use it: the pure deciders over the customers' streams."""

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

import msgspec
from events.contracts.ledger import Movement, TransferCompleted, TransferRefused
from events.decisions import Decided, Streams
from events.envelope import Metadata, RecordedEvent, derived_id
from events.store import EventStore

from ledger_transfer.accounts import record_fact
from ledger_transfer.deciding import decide
from ledger_transfer.facts import AccountReport, fact_of
from ledger_transfer.state import Decision, LedgerState, evolve
from ledger_transfer.transfers import TransferRequest, transfer

CATEGORY = "ledger"
"""Of the streams `ledger-<user>`."""

REACTIONS = "ledger_transfer.reactions"
"""Distinguishes what the ledger makes of an item from what others make of it."""


class TransferOutcome(NamedTuple):
    """What became of a request: the event that records it, and whether an earlier request had recorded it."""

    event: TransferCompleted | TransferRefused
    replayed: bool


class Ledger:
    """All customers' ledgers. Decides in memory on cached streams, each append validated by its version."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._streams = Streams(store, CATEGORY, LedgerState(), evolve)

    async def state(self, user_id: UUID) -> LedgerState:
        """The customer's ledger as of now."""
        state, _ = await self._streams.load(user_id)
        return state

    async def execute(
        self,
        user_id: UUID,
        step: Callable[[Decision], None],
        *,
        event_id: UUID,
        request_hash: bytes = b"",
        metadata: Metadata,
        now: datetime | None = None,
    ) -> Decided:
        """Decides what `step` records, with what follows from it, and appends it once per `event_id`.

        `step` may run more than once: on a stale state first, then on the true one.

        Raises:
            Refusal: as `step` raised it; nothing is recorded.
            EventIdReused: the id stands for another request.
        """
        at = now or datetime.now(UTC)
        return await self._streams.execute(
            user_id,
            lambda state: decide(state, event_id, at, step),
            event_id=event_id,
            request_hash=request_hash,
            subject=user_id,
            metadata=metadata,
        )

    async def transfer(
        self, user_id: UUID, request: TransferRequest, metadata: Metadata, now: datetime
    ) -> TransferOutcome:
        """Moves the money, or records why not, once per transfer id.

        Raises:
            AccountNotFound: an account is unknown or another customer's; nothing is recorded.
            EventIdReused: the transfer id stands for another request.
        """
        decided = await self.execute(
            user_id,
            lambda decision: decision.record(*transfer(decision.state, request, now)),
            event_id=request.transfer_id,
            request_hash=request_hash(request),
            metadata=metadata,
            now=now,
        )
        event = decided.events[0]
        assert isinstance(event, TransferCompleted | TransferRefused)
        return TransferOutcome(event, decided.duplicate)

    async def find_transfer(self, user_id: UUID, transfer_id: UUID) -> TransferCompleted | TransferRefused | None:
        """The customer's transfer of that id, from the store itself: an accepted one is there at once."""
        found = await self._store.find(transfer_id)
        if found is None or found.event.stream != f"{CATEGORY}-{user_id}":
            return None
        payload = found.event.payload
        return payload if isinstance(payload, TransferCompleted | TransferRefused) else None

    async def record(self, user_id: UUID, item: RecordedEvent) -> None:
        """Posts what a platform reported, once per item and customer, whatever the balances."""
        fact = fact_of(item.payload)
        if fact is None:
            return
        own_transfer = await self._own_transfer(user_id, fact)
        platform = fact.platform
        await self.execute(
            user_id,
            lambda decision: record_fact(decision, user_id, fact, own_transfer),
            # The customer is part of the id: a platform account may be linked to another one later.
            event_id=derived_id(item.event_id, REACTIONS, user_id),
            metadata=Metadata(
                correlation_id=item.metadata.correlation_id,
                causation_id=item.event_id,
                actor=f"platform:{platform}",
                platform=platform,
                traceparent=item.metadata.traceparent,
            ),
        )

    async def _own_transfer(self, user_id: UUID, fact: AccountReport | Movement) -> TransferCompleted | None:
        """The completed transfer of this customer that the fact's reference names.

        A platform can only know a transfer that is in the store already: nothing need be remembered.
        """
        if isinstance(fact, AccountReport) or fact.reference is None:
            return None
        try:
            reference = UUID(fact.reference)
        except ValueError:
            return None
        found = await self.find_transfer(user_id, reference)
        return found if isinstance(found, TransferCompleted) else None


def transfer_id_of(user_id: UUID, idempotency_key: str) -> UUID:
    """The id of the transfer that a customer's key stands for."""
    return derived_id(user_id, "transfer", idempotency_key)


def request_hash(request: TransferRequest) -> bytes:
    """What makes two requests the same: the route and every field of the body, in one canonical form."""
    body = [
        "POST /api/transfers",
        request.from_account_id,
        request.to_account_id,
        request.amount_minor,
        request.currency,
        request.memo,
    ]
    return sha256(msgspec.json.encode(body)).digest()
