"""What the platforms report, posted to the ledger of the customer it belongs to.

A consumer of its own: rebuilding a read model never decides anything again. The append and this
consumer's position are in two databases; the event id derived from the item makes doing it again harmless.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
from events.contracts.identity import UserErased
from events.envelope import RecordedEvent
from events.pg import is_outage
from events.platform_items import ERASED, LINK_CONFIRMED, LINK_REMOVED, PlatformItems

from ledger_transfer.facts import MONEY_ITEMS
from ledger_transfer.ledger import Ledger


class Reactions:
    """Handler of the consumer `reactions`."""

    types = MONEY_ITEMS | {LINK_CONFIRMED, LINK_REMOVED, ERASED}

    repeatable = True  # event ids are derived from the item

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._items = PlatformItems()
        self.ddl = self._items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Posts the items of linked customers: customers side by side, each one's items strictly in order."""
        due = await self._items.resolve(db, events)
        items = await self._ledger.opened([item for _, item in due])
        by_user: dict[UUID, list[RecordedEvent]] = {}
        for (user_id, _), item in zip(due, items, strict=True):
            by_user.setdefault(user_id, []).append(item)
        await self._ledger.expect(by_user)
        outcomes = await asyncio.gather(
            *(self._record(user_id, items) for user_id, items in by_user.items()), return_exceptions=True
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            # An outage first: it is waited out, whereas any other error would set its stream aside.
            raise next((error for error in errors if is_outage(error)), errors[0])
        for event in events:
            if isinstance(event.payload, UserErased):
                await self._ledger.end_rules(event.payload.user_id, event)

    async def _record(self, user_id: UUID, items: Sequence[RecordedEvent]) -> None:
        for item in items:
            await self._ledger.record(user_id, item)
