"""What the platforms report, posted to the ledger of the customer it belongs to.

A consumer of its own: rebuilding a read model never decides anything again. The append and this
consumer's position are in two databases; the event id derived from the item makes doing it again harmless.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
from events.contracts.identity import LinkConfirmed, LinkRemoved, UserErased
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
        self.ddl = (
            self._items.ddl
            + """
            CREATE TABLE IF NOT EXISTS past_link (
                platform_stream text PRIMARY KEY
            );
        """
        )

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Posts the items of linked customers: customers side by side, each one's items strictly in order."""
        stretch: list[RecordedEvent] = []
        for event in events:
            stretch.append(event)
            if event.type in (LINK_REMOVED, ERASED):
                await self._post(db, stretch)
                await self._unlink(db, event)
                stretch = []
        await self._post(db, stretch)

    async def _post(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        due = await self._items.resolve(db, events)
        for event in await self._linked_again(db, events):
            assert isinstance(event.payload, LinkConfirmed)
            assert event.subject is not None
            # The next owner sees the accounts from their opening: what the owner before got is theirs, too.
            items = await self._ledger.items_of(event.payload.platform_stream, event.position)
            await self._ledger.relink(event.subject, items, event)
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

    async def _linked_again(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> list[RecordedEvent]:
        """The links of platform customers who were linked before."""
        links = {event.payload.platform_stream: event for event in events if isinstance(event.payload, LinkConfirmed)}
        if not links:
            return []
        rows = await db.fetch("SELECT platform_stream FROM past_link WHERE platform_stream = ANY ($1)", list(links))
        return [links[row["platform_stream"]] for row in rows]

    async def _unlink(self, db: asyncpg.Connection, event: RecordedEvent) -> None:
        match event.payload:
            case LinkRemoved(platform=platform, platform_stream=stream):
                streams = [stream]
                assert event.subject is not None, "a link is removed from a customer"
                await self._ledger.unlink(event.subject, platform, event)
            case UserErased(user_id=user_id, platform_streams=platform_streams):
                streams = list(platform_streams)
                await self._ledger.end_rules(user_id, event)
        await db.execute(
            "INSERT INTO past_link (platform_stream) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", streams
        )

    async def _record(self, user_id: UUID, items: Sequence[RecordedEvent]) -> None:
        for item in items:
            await self._ledger.record(user_id, item)
