"""The outbox: what has been decided to be told, until it is in the customers' streams.

Ids are derived from the notification, so whoever appends an entry again appends nothing.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import asyncpg
from events.consumer import Consumer
from events.contracts import contract_of, decode, encode
from events.contracts.notification import Notification
from events.envelope import Metadata
from events.notification_texts import seal_text
from events.outage import until_it_works
from events.sealing import SubjectErased, SubjectKeys
from events.store import EventStore, StreamAppend

from notifier.telling import Entry

DDL = """
    CREATE TABLE IF NOT EXISTS outbox (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id uuid NOT NULL,
        user_id uuid NOT NULL,
        type text NOT NULL,
        data bytea NOT NULL,
        cause uuid,
        urgent boolean NOT NULL DEFAULT false
    );
    CREATE INDEX IF NOT EXISTS outbox_order ON outbox (urgent DESC, seq);
"""

_ACTOR = "service:notifier"
_IDLE_S = 1.0
_BATCH = 200
"""So few that something critical, which is the first of the next batch, waits for some milliseconds."""


async def enqueue(db: asyncpg.Connection, entries: Sequence[Entry]) -> None:
    """Puts entries into the outbox, durably with the transaction: a decision is on disk before anybody acts on it."""
    if not entries:
        return
    await db.execute(
        "WITH durable AS MATERIALIZED (SELECT set_config('synchronous_commit', 'on', true))"
        " INSERT INTO outbox (event_id, user_id, type, data, cause, urgent)"
        " SELECT entry.* FROM durable,"
        "  unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::uuid[], $6::boolean[]) AS entry",
        [entry.event_id for entry in entries],
        [entry.user_id for entry in entries],
        [contract_of(entry.event).type for entry in entries],
        [encode(entry.event) for entry in entries],
        [entry.cause for entry in entries],
        [entry.event.priority == "critical" for entry in entries],
    )


class Outbox:
    """Appends what the table holds."""

    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", store: EventStore, keys: SubjectKeys) -> None:
        self._database = database
        self._store = store
        self._keys = keys
        self._wake = asyncio.Event()
        self._applying = 0

    def wake(self, position: int = 0) -> None:
        """There are entries, or will be when the consumer has committed `position`."""
        self._applying = max(self._applying, position)
        self._wake.set()

    async def send_forever(self, consumer: Consumer) -> None:
        """Appends what there is, at once when this process has filled it."""
        while True:
            sent = await until_it_works("notifier.outbox", self.send)
            if sent == _BATCH:
                continue
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            # It was woken inside the consumer's transaction, and there is nothing to be seen before that commits.
            await until_it_works("notifier.outbox", lambda: consumer.wait_for(self._applying, _IDLE_S))

    async def send(self) -> int:
        """Appends the oldest entries, what is critical before anything else; how many."""
        rows = await self._database.fetch(
            "SELECT seq, event_id, user_id, type, data, cause FROM outbox ORDER BY urgent DESC, seq LIMIT $1", _BATCH
        )
        if not rows:
            return 0
        await self._keys.fetch({UUID(int=row["user_id"].int) for row in rows})
        sealed = [(row, event) for row in rows if (event := await self._sealed(row)) is not None]
        # Gathered calls are appended in their order, so a customer's notifications keep it.
        await asyncio.gather(
            *(
                self._store.append(
                    (StreamAppend(f"inbox-{row['user_id']}", (event,)),),
                    event_id=UUID(int=row["event_id"].int),
                    subject=UUID(int=row["user_id"].int),
                    metadata=Metadata(causation_id=UUID(int=row["cause"].int) if row["cause"] else None, actor=_ACTOR),
                )
                for row, event in sealed
            )
        )
        await self._database.execute("DELETE FROM outbox WHERE seq = ANY($1)", [row["seq"] for row in rows])
        return len(rows)

    async def _sealed(self, row: asyncpg.Record) -> Notification | None:
        """An entry as it is appended; None for who was erased meanwhile."""
        event = decode(row["type"], 1, row["data"])
        assert isinstance(event, Notification)
        if event.sealed_text is not None:
            return event  # told again after a snooze, in the words that it had
        try:
            return await seal_text(self._keys, UUID(int=row["user_id"].int), event)
        except SubjectErased:
            return None
