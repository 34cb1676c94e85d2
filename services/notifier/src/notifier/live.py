"""`/ws/notifications`: what is raised, the moment it is (`chassis.sockets` is the connection).

Its cursor is a version of the customer's own stream, so a client that comes back reads what it missed from that stream,
however long ago it was.
"""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
import msgspec
import structlog
from chassis import frames
from chassis.clients import Client, Clients
from chassis.cursors import CursorCodec
from chassis.topics import Topics
from events.contracts import encode
from events.contracts.notification import Notification
from events.envelope import RecordedEvent
from events.follower import Follower
from events.notification_texts import open_text
from events.outage import until_it_works
from events.sealing import SealBroken, SubjectKeys
from events.store import EventStore

log = structlog.get_logger(__name__)

DEFAULT_TOPICS = ("notification.#",)
_PAGE = 200
_PURPOSE = "notifications"
_TYPE_PREFIX = "notification."


class _Place(msgspec.Struct, frozen=True):
    version: int


class NotificationFeed:
    """What this process's follower hears, and what of a customer's stream is sent to a client that comes back."""

    def __init__(
        self,
        clients: Clients,
        store: EventStore,
        database: "asyncpg.Pool[asyncpg.Record]",
        keys: SubjectKeys,
        cursors: CursorCodec,
    ) -> None:
        self._clients = clients
        self._database = database
        self._store = store
        self._keys = keys
        self._cursors = cursors
        self._follower: Follower | None = None

    def follow(self, follower: Follower) -> None:
        """`follower` calls `on_events`."""
        self._follower = follower

    # What happens.

    async def on_events(self, events: Sequence[RecordedEvent]) -> None:
        """The follower's callback."""
        for event in events:
            if self._is_told(event) and self._clients.of(event.subject):
                opened = await until_it_works("notifier.sockets", lambda event=event: self._opened(event))  # type: ignore[misc]
                frame: bytes | None = None
                for client in self._clients.of(event.subject):
                    if client.wants(event.type):
                        frame = frame or self._frame(opened, client.user_id)
                        client.offer(event.version, frame)

    def _is_told(self, event: RecordedEvent) -> bool:
        if not event.type.startswith(_TYPE_PREFIX) or not event.public:
            return False
        return not isinstance(event.payload, Notification) or "in_app" in event.payload.channels

    async def _opened(self, event: RecordedEvent) -> RecordedEvent:
        """The event with its words, for the customer whom they are for."""
        payload = event.payload
        if not isinstance(payload, Notification) or event.subject is None:
            return event
        try:
            text = await open_text(self._keys, event.subject, payload)
        except SealBroken:
            log.error("notification_does_not_open", position=event.position)
            return event
        return event if text is None else msgspec.structs.replace(event, data=encode(text))

    def _frame(self, event: RecordedEvent, user_id: UUID) -> bytes:
        return frames.event(self._cursor(event.version, user_id), frames.cloud_event(event))

    def _cursor(self, version: int, user_id: UUID) -> str:
        return self._cursors.encode(_Place(version), purpose=_PURPOSE, caller=user_id)

    # What has happened (`chassis.sockets.Source`).

    @property
    def started(self) -> bool:
        """Whether clients may be added."""
        return self._follower is not None and self._follower.started.is_set()

    async def cursor(self, user_id: UUID) -> str:
        """Where a client that begins now may come back to."""
        head: int | None = await self._database.fetchval(
            "SELECT max(version) FROM notification WHERE user_id = $1", user_id
        )
        return self._cursor(head or 0, user_id)

    async def resume(self, client: Client, wanted: Topics, cursor: str) -> str | None:
        """Sends what was missed; what happens meanwhile is held. It cannot be had only where the cursor is not ours.

        Raises:
            Problem: 400 `invalid_cursor`.
        """
        after = self._cursors.decode(cursor, _Place, purpose=_PURPOSE, caller=client.user_id).version
        client.begin_replay(wanted, after)
        client.hold()
        while client.closing is None:
            page = await self._store.read_stream(f"inbox-{client.user_id}", after, limit=_PAGE)
            for event in page:
                await client.room()
                if event.type in wanted and self._is_told(event):
                    client.replay(event.version, self._frame(await self._opened(event), client.user_id))
                after = client.delivered = event.version
            if len(page) < _PAGE:
                break
        return None
