"""Joins what the platforms report to the customer it belongs to.

A platform reports items of customers who may not have linked themselves yet. Each consumer that needs them keeps
the items of unlinked customers, and gets them, in order, when `identity.user.link_confirmed` comes by; from then on
each item as it comes. The log has one order, so an item is either before the link or after it, never between.
"""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec

from events.contracts import identity
from events.envelope import CloudEvent, RecordedEvent

_decoder = msgspec.json.Decoder(CloudEvent)
_encoder = msgspec.json.Encoder()

TYPE_PREFIXES = ("banking.", "trading.")
LINK_CONFIRMED = "identity.user.link_confirmed"
LINK_REMOVED = "identity.user.link_removed"
ERASED = "identity.user.erased"


class PlatformItems:
    """The links and waiting items of one consumer, in the tables `<owner>_link` and `<owner>_item`."""

    def __init__(self, owner: str = "platform") -> None:
        self._owner = owner
        self.ddl = f"""
            CREATE TABLE IF NOT EXISTS {owner}_link (
                platform_stream text PRIMARY KEY,
                user_id uuid NOT NULL
            );
            CREATE TABLE IF NOT EXISTS {owner}_item (
                platform_stream text NOT NULL,
                position bigint NOT NULL,
                event bytea NOT NULL,
                PRIMARY KEY (platform_stream, position)
            );
        """

    async def resolve(
        self, db: asyncpg.Connection, events: Sequence[RecordedEvent]
    ) -> list[tuple[UUID, RecordedEvent]]:
        """The items that take effect with these events, each with its customer, in the order they take effect.

        The texts of those that have waited are sealed (`events.texts`).

        Give it every `banking.*`, `trading.*`, `identity.user.link_confirmed`, `.link_removed` and `.erased` event, in
        log order and in the transaction that saves the consumer's position. Other events are ignored. Items that come
        after a link was removed wait for the next one.
        """
        confirmed = {event.position: event.payload for event in events if event.type == LINK_CONFIRMED}
        streams = {event.stream for event in events if event.type.startswith(TYPE_PREFIXES)}
        links: dict[str, UUID] = {}
        if streams:
            rows = await db.fetch(
                f"SELECT platform_stream, user_id FROM {self._owner}_link WHERE platform_stream = ANY ($1)",
                list(streams),
            )
            links = {row["platform_stream"]: UUID(int=row["user_id"].int) for row in rows}
        waiting: dict[str, list[RecordedEvent]] = {}
        due: list[tuple[UUID, RecordedEvent]] = []
        for event in events:
            link = confirmed.get(event.position)
            if link is not None:
                assert isinstance(link, identity.LinkConfirmed)
                assert event.subject is not None, "a link is confirmed for a customer"
                links[link.platform_stream] = event.subject
                backlog = await self._take_over(db, link.platform_stream, event.subject)
                backlog += waiting.pop(link.platform_stream, [])
                due += [(event.subject, item) for item in backlog]
            elif event.type in (LINK_REMOVED, ERASED):
                for stream in await self._unlink(db, event):
                    links.pop(stream, None)
            elif event.type.startswith(TYPE_PREFIXES):
                if event.stream in links:
                    due.append((links[event.stream], event))
                else:
                    waiting.setdefault(event.stream, []).append(event)
        await db.executemany(
            f"INSERT INTO {self._owner}_item (platform_stream, position, event) VALUES ($1, $2, $3)"
            " ON CONFLICT DO NOTHING",  # a replay gives it again
            [
                (stream, item.position, _encoder.encode(item.as_stored.cloud_event()))
                for stream, items in waiting.items()
                for item in items
            ],
        )
        return due

    async def _unlink(self, db: asyncpg.Connection, event: RecordedEvent) -> list[str]:
        """Forgets the links that the event ends; those of another user stay. Gives their streams."""
        payload = event.payload
        if isinstance(payload, identity.LinkRemoved):
            rows = await db.fetch(
                f"DELETE FROM {self._owner}_link WHERE user_id = $1 AND platform_stream = $2 RETURNING platform_stream",
                event.subject,
                payload.platform_stream,
            )
        else:  # erased
            rows = await db.fetch(
                f"DELETE FROM {self._owner}_link WHERE user_id = $1 RETURNING platform_stream", event.subject
            )
        return [row["platform_stream"] for row in rows]

    async def _take_over(self, db: asyncpg.Connection, platform_stream: str, user_id: UUID) -> list[RecordedEvent]:
        """Records the link and takes the stream's waiting items out of the table."""
        await db.execute(
            f"INSERT INTO {self._owner}_link (platform_stream, user_id) VALUES ($1, $2)"
            " ON CONFLICT (platform_stream) DO UPDATE SET user_id = excluded.user_id",
            platform_stream,
            user_id,
        )
        rows = await db.fetch(
            f"WITH taken AS (DELETE FROM {self._owner}_item WHERE platform_stream = $1 RETURNING position, event)"
            " SELECT event FROM taken ORDER BY position",
            platform_stream,
        )
        return [_decoder.decode(row["event"]).recorded() for row in rows]
