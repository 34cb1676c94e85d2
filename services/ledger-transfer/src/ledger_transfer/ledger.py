"""The ledger as commands and reactions use it: the pure deciders over the customers' streams."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar
from uuid import UUID

import msgspec
from events.contracts.ledger import (
    AlertRaised,
    FrozenBy,
    Movement,
    Platform,
    SyncRequested,
    TransferCaptured,
    TransferCompleted,
    TransferHeld,
    TransferRefused,
    TransferReversed,
    TransferVoided,
)
from events.contracts.ledger_rules import RuleTerms
from events.contracts.registry import Event
from events.decisions import Decided, Refusal, Streams
from events.envelope import Metadata, RecordedEvent, derived_id, new_id
from events.snapshots import Snapshots
from events.store import EventIdReused, EventStore, StreamAppend
from events.texts import Texts

import ledger_transfer
from ledger_transfer.accounts import record_fact
from ledger_transfer.allowances import NewLimits, change_limits
from ledger_transfer.bulk import BulkRequest, transfer_all
from ledger_transfer.deciding import decide, expire
from ledger_transfer.facts import MONEY_ITEMS, AccountReport, fact_of
from ledger_transfer.freezing import freeze, relink, unfreeze, unlink
from ledger_transfer.holds import HoldNotOpen, capture, lapsed, void
from ledger_transfer.idempotency import bulk_hash, capture_id_of, request_hash, void_id_of
from ledger_transfer.outcomes import BulkOutcome, FoundTransfer, Outcome, TransferOutcome
from ledger_transfer.reversals import NotReversible, reversal_id_of, reverse
from ledger_transfer.rule_commands import end
from ledger_transfer.state import Decision, LedgerState, account_id_of, evolve
from ledger_transfer.transfers import UNRESTRICTED, Clearance, StepUp, TransferRequest, transfer

T = TypeVar("T", bound=TransferCompleted | TransferHeld | TransferRefused)

CATEGORY = "ledger"
"""Of the streams `ledger-<user>`."""

NOBODY = UUID(int=0)
"""Whose stream holds alerts that are no customer's."""

REACTIONS = "ledger_transfer.reactions"
"""Distinguishes what the ledger makes of an item from what others make of it."""

_CACHED_MAX = 50_000
_POSITIONS_AT_ONCE = 20_000
_ACTOR = "service:ledger_transfer"


class TransferNotFound(Refusal):
    """There is no such transfer of this customer."""

    code = "transfer_not_found"


class Ledger:
    """All customers' ledgers. Decides in memory on cached streams, each append validated by its version."""

    def __init__(self, store: EventStore, texts: Texts) -> None:
        self._store = store
        self._texts = texts
        snapshots = Snapshots(store, LedgerState, ledger_transfer)
        self._streams = Streams(store, CATEGORY, LedgerState(), evolve, max_cached=_CACHED_MAX, snapshots=snapshots)

    async def state(self, user_id: UUID) -> LedgerState:
        """The customer's ledger as of now. Holds that have expired may still be in it."""
        state, _ = await self._streams.load(user_id)
        return state

    async def history(self, user_id: UUID) -> list[Event]:
        """Everything that was ever decided for the customer, in order."""
        return [event.payload for event in await self._store.read_stream(f"{CATEGORY}-{user_id}")]

    async def preview(self, user_id: UUID, now: datetime) -> LedgerState:
        """The state that a command would be decided on now."""
        state = await self.state(user_id)
        for event in lapsed(state, now):
            state = evolve(state, event)
        return state

    def execute(
        self,
        user_id: UUID,
        step: Callable[[Decision], None],
        *,
        event_id: UUID,
        request_hash: bytes = b"",
        metadata: Metadata,
        now: datetime | None = None,
    ) -> Awaitable[Decided]:
        """Decides what `step` records, with what follows from it, and appends it once per `event_id`.

        `step` may run more than once: on a stale state first, then on the true one.

        Raises:
            Refusal: as `step` raised it; nothing is recorded.
            EventIdReused: the id stands for another request.
        """
        at = now or datetime.now(UTC)
        return self._streams.execute(
            user_id,
            lambda state: decide(state, event_id, at, step),
            event_id=event_id,
            request_hash=request_hash,
            subject=user_id,
            metadata=metadata,
        )

    async def transfer(
        self,
        user_id: UUID,
        request: TransferRequest,
        metadata: Metadata,
        now: datetime,
        clearance: Clearance = UNRESTRICTED,
    ) -> TransferOutcome:
        """Moves or holds the money, or records why not, once per transfer id.

        Raises:
            AccountNotFound, StepUpRequired: nothing is recorded.
            EventIdReused: the transfer id stands for another request.
        """
        sealed = request if request.memo is None else await self._texts.sealed(user_id, request)
        decided = await self.execute(
            user_id,
            lambda decision: decision.record(*transfer(decision.state, sealed, now, clearance)),
            event_id=request.transfer_id,
            request_hash=request_hash(request),
            metadata=metadata,
            now=now,
        )
        event = decided.events[0]
        assert isinstance(event, TransferCompleted | TransferHeld | TransferRefused)
        return TransferOutcome(_saying(event, request.memo), decided.duplicate)

    async def bulk(
        self, user_id: UUID, bulk: BulkRequest, metadata: Metadata, now: datetime, clearance: Clearance = UNRESTRICTED
    ) -> BulkOutcome:
        """All items in one append, once per bulk id.

        Raises:
            AccountNotFound, StepUpRequired: nothing is recorded.
            EventIdReused: the bulk id stands for another request.
        """
        sealed = bulk
        if any(item.memo is not None for item in bulk.items):
            items = tuple([await self._texts.sealed(user_id, item) for item in bulk.items])
            sealed = msgspec.structs.replace(bulk, items=items)
        decided = await self.execute(
            user_id,
            lambda decision: transfer_all(decision, sealed, clearance),
            event_id=bulk.bulk_id,
            request_hash=bulk_hash(bulk),
            metadata=metadata,
            now=now,
        )
        events = tuple(
            _saying(event, bulk.items[event.bulk_item or 0].memo)
            for event in decided.events
            if isinstance(event, TransferCompleted | TransferHeld | TransferRefused) and event.bulk_id == bulk.bulk_id
        )
        return BulkOutcome(events, decided.event_id, decided.duplicate)

    async def capture(
        self, user_id: UUID, transfer_id: UUID, amount_minor: int | None, metadata: Metadata, now: datetime
    ) -> Outcome:
        """Transfers a held amount, or a part of it, once.

        Raises:
            TransferNotFound, HoldNotOpen, CaptureTooLarge, TransferRefusal: nothing is recorded.
        """
        await self._find_hold(user_id, transfer_id)
        return await self._end_hold(
            user_id,
            lambda decision: decision.record(*capture(decision.state, transfer_id, amount_minor, now)),
            capture_id_of(transfer_id),
            str(amount_minor).encode(),
            metadata,
            now,
        )

    async def void(self, user_id: UUID, transfer_id: UUID, metadata: Metadata, now: datetime) -> Outcome:
        """Gives a held amount back, once.

        Raises:
            TransferNotFound, HoldNotOpen: nothing is recorded.
        """
        await self._find_hold(user_id, transfer_id)
        return await self._end_hold(
            user_id,
            lambda decision: decision.record(*void(decision.state, transfer_id, now)),
            void_id_of(transfer_id),
            b"",
            metadata,
            now,
        )

    async def expire_holds(self, user_id: UUID, transfer_id: UUID, now: datetime) -> None:
        """Records that the customer's holds whose time is over have expired: that one, and any other."""
        event_id = derived_id(transfer_id, "expire")
        await self._streams.execute(
            user_id,
            lambda state: expire(state, event_id, now),
            event_id=event_id,
            subject=user_id,
            metadata=Metadata(actor=_ACTOR),
        )

    async def reverse(self, user_id: UUID, transfer_id: UUID, metadata: Metadata, now: datetime) -> Outcome:
        """Takes a completed transfer back, once.

        Raises:
            TransferNotFound, NotReversible, TransferRefusal: nothing is recorded.
        """
        found = await self._find_transfer(user_id, transfer_id)
        if found is None:
            raise TransferNotFound()
        original = found.completed
        if original is None:
            raise NotReversible()
        consumed_at = found.first.held_at if isinstance(found.first, TransferHeld) else original.completed_at
        decided = await self.execute(
            user_id,
            lambda decision: decision.record(*reverse(decision.state, original, consumed_at, now)),
            event_id=reversal_id_of(transfer_id),
            metadata=metadata,
            now=now,
        )
        return await self._outcome(user_id, decided)

    async def change_limits(
        self, user_id: UUID, wanted: NewLimits, step_up: StepUp | None, metadata: Metadata, now: datetime
    ) -> Decided:
        """Sets the limits.

        Raises:
            StepUpRequired: one is raised without proof; nothing is recorded.
        """
        return await self.execute(
            user_id,
            lambda decision: decision.record(*change_limits(decision.state, wanted, step_up, now)),
            event_id=new_id(),
            metadata=metadata,
            now=now,
        )

    async def freeze(
        self, user_id: UUID, account_id: UUID, by: FrozenBy, metadata: Metadata, now: datetime, *, thaw: bool = False
    ) -> Decided:
        """Freezes the account, or with `thaw` unfreezes it. No events where it was so already.

        Raises:
            AccountNotFound, AccountClosed, FrozenByOps, AccountUnlinked: nothing is recorded.
        """
        change = unfreeze if thaw else freeze
        return await self.execute(
            user_id,
            lambda decision: decision.record(*change(decision.state, account_id, by, now)),
            event_id=new_id(),
            metadata=metadata,
            now=now,
        )

    async def request_sync(
        self, user_id: UUID, sync_id: UUID, platforms: Sequence[Platform], metadata: Metadata, now: datetime
    ) -> Decided:
        """Asks the gateway to pull what is missing."""
        requested = SyncRequested(sync_id=sync_id, platforms=tuple(platforms), requested_at=now)
        return await self.execute(
            user_id,
            lambda decision: decision.record(requested),
            event_id=sync_id,
            request_hash=msgspec.json.encode(requested.platforms),
            metadata=metadata,
            now=now,
        )

    async def raise_alert(self, user_id: UUID | None, alert: AlertRaised) -> None:
        """Records an alert once per its id, in the customer's stream or in nobody's."""
        await self._store.append(
            [StreamAppend(f"{CATEGORY}-{user_id or NOBODY}", (alert,))],
            event_id=alert.alert_id,
            subject=user_id,
            metadata=Metadata(actor=_ACTOR),
        )

    async def find_transfer(self, user_id: UUID, transfer_id: UUID) -> FoundTransfer | None:
        """The customer's transfer of that id, from the store itself: an accepted one is there at once."""
        found = await self._find_transfer(user_id, transfer_id)
        if found is None:
            return None
        return found._replace(
            first=await self._texts.opened(user_id, found.first),
            completed=found.completed and await self._texts.opened(user_id, found.completed),
        )

    async def sealed_terms(self, user_id: UUID, terms: RuleTerms, *, like: RuleTerms | None = None) -> RuleTerms:
        """The terms as deciders take them: their name sealed, and with it the memo of what the rule will move.

        With the same name as in the sealed terms `like`, the seal is the same too: then equal terms are equal.
        """
        if like is not None and (await self.opened_terms(user_id, like)).name == terms.name:
            return msgspec.structs.replace(terms, name=like.name, sealed_texts=like.sealed_texts)
        return await self._texts.sealed(user_id, terms, memo=terms.name)

    async def opened_terms(self, user_id: UUID, terms: RuleTerms) -> RuleTerms:
        """The terms as the customer has written them."""
        return await self._texts.opened(user_id, terms)

    async def opened(self, items: Sequence[RecordedEvent]) -> list[RecordedEvent]:
        """The platforms' items with their texts, however long they have waited."""
        return await self._texts.open_events(items)

    async def expect(self, user_ids: Collection[UUID]) -> None:
        """Texts of these customers are about to be sealed: asks for their keys at once."""
        await self._texts.expect(user_ids)

    async def _find_transfer(self, user_id: UUID, transfer_id: UUID) -> FoundTransfer | None:
        """With its texts sealed."""
        first = await self._find(user_id, transfer_id)
        if not isinstance(first, TransferCompleted | TransferHeld | TransferRefused):
            return None
        completed = first if isinstance(first, TransferCompleted) else None
        ended: TransferCaptured | TransferVoided | None = None
        is_open = False
        if isinstance(first, TransferHeld):
            captured = await self._streams.outcome_of(capture_id_of(transfer_id))
            if captured is not None:
                for event in captured.events[:2]:
                    if isinstance(event, TransferCaptured):
                        ended = event
                    elif isinstance(event, TransferCompleted):
                        completed = event
            else:
                is_open = transfer_id in (await self.state(user_id)).holds and first.expires_at > datetime.now(UTC)
                voided = await self._find(user_id, void_id_of(transfer_id))
                ended = voided if isinstance(voided, TransferVoided) else None
        taken_back = await self._find(user_id, derived_id(reversal_id_of(transfer_id), 1)) if completed else None
        return FoundTransfer(
            first, completed, ended, is_open, taken_back if isinstance(taken_back, TransferReversed) else None
        )

    async def record(self, user_id: UUID, item: RecordedEvent, now: datetime | None = None) -> None:
        """Posts what a platform reported, once per item and customer, whatever the balances.

        `now` decides which holds have lapsed; None: the clock.
        """
        fact = fact_of(item.payload)
        if fact is None:
            return
        own_transfer = await self._own_transfer(user_id, fact)
        platform = fact.platform
        if hasattr(item.payload, "sealed_texts"):  # the platform's words, and not ours about a trade or a deposit
            fact = await self._texts.sealed(user_id, fact)
        await self.execute(
            user_id,
            partial(record_fact, user_id=user_id, fact=fact, own_transfer=own_transfer),
            # The customer is part of the id: a platform account may be linked to another one later.
            event_id=derived_id(item.event_id, REACTIONS, user_id),
            metadata=Metadata(
                correlation_id=item.metadata.correlation_id,
                causation_id=item.event_id,
                actor=f"platform:{platform}",
                platform=platform,
                traceparent=item.metadata.traceparent,
            ),
            now=now,
        )

    async def unlink(self, user_id: UUID, platform: Platform, cause: RecordedEvent) -> None:
        """The customer has unlinked the platform: what they have of it is read only."""
        await self.execute(
            user_id,
            lambda decision: unlink(decision, platform),
            event_id=derived_id(cause.event_id, REACTIONS),
            metadata=cause.caused(_ACTOR),
        )

    async def relink(self, user_id: UUID, items: Sequence[RecordedEvent], cause: RecordedEvent) -> None:
        """A platform customer who was linked before is now this customer's: `items` are all of theirs so far."""
        for item in items:
            await self.record(user_id, item)
        facts = [fact_of(item.payload) for item in items]
        accounts = [
            account_id_of(user_id, fact.platform, fact.platform_account_id)
            for fact in facts
            if isinstance(fact, AccountReport)
        ]
        await self.execute(
            user_id,
            lambda decision: relink(decision, accounts),
            event_id=derived_id(cause.event_id, REACTIONS),
            metadata=cause.caused(_ACTOR),
        )

    async def items_of(self, stream: str, up_to: int) -> list[RecordedEvent]:
        """What a platform has said of a customer's money, up to a position. Reads the log: for what is rare."""
        found: list[RecordedEvent] = []
        for after in range(0, up_to, _POSITIONS_AT_ONCE):
            page = await self._store.read_types(after, min(after + _POSITIONS_AT_ONCE, up_to), list(MONEY_ITEMS))
            found += [event for event in page if event.stream == stream]
        return found

    async def end_rules(self, user_id: UUID, erased: RecordedEvent) -> None:
        """Lets no rule of an erased customer do anything any more."""
        await self.execute(
            user_id, end, event_id=derived_id(erased.event_id, REACTIONS), metadata=erased.caused(_ACTOR)
        )

    async def _find(self, user_id: UUID, event_id: UUID) -> Event | None:
        found = await self._store.find(event_id)
        if found is None or found.event.stream != f"{CATEGORY}-{user_id}":
            return None
        return found.event.payload

    async def _find_hold(self, user_id: UUID, transfer_id: UUID) -> None:
        first = await self._find(user_id, transfer_id)
        if not isinstance(first, TransferCompleted | TransferHeld | TransferRefused):
            raise TransferNotFound()
        if not isinstance(first, TransferHeld):
            raise HoldNotOpen()

    async def _end_hold(
        self,
        user_id: UUID,
        step: Callable[[Decision], None],
        event_id: UUID,
        body: bytes,
        metadata: Metadata,
        now: datetime,
    ) -> Outcome:
        try:
            decided = await self.execute(
                user_id, step, event_id=event_id, request_hash=body, metadata=metadata, now=now
            )
        except EventIdReused:
            raise HoldNotOpen() from None  # captured before, another part of it
        return await self._outcome(user_id, decided)

    async def _outcome(self, user_id: UUID, decided: Decided) -> Outcome:
        events = [await self._texts.opened(user_id, event) for event in decided.events]
        return Outcome(tuple(events), decided.event_id, decided.duplicate)

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
        found = await self._find_transfer(user_id, reference)
        return found.completed if found else None


def _saying(event: T, memo: str | None) -> T:
    """The event of a request with the request's own memo, which is sealed in the store."""
    return event if memo is None else msgspec.structs.replace(event, memo=memo, sealed_texts=None)
