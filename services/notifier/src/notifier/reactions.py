"""From every service's events to notifications: the consumer `grouping` and its clock.

The consumer folds the log into lanes (`grouping.py`) and writes what is to be told into the outbox, in the transaction
that saves its position. Whoever is first then appends the outbox to the customers' streams, under ids derived from
the notification: doing it again writes nothing. A decision is on disk before it is appended, so a crash between the
two cannot decide anew. Groups that no further event closes are closed by the clock.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast
from uuid import UUID

import asyncpg
import msgspec
import structlog
from events.consumer import Consumer
from events.contracts import contract_of, identity, ledger
from events.contracts.notification import NotificationRequested, PreferenceChanged
from events.envelope import RecordedEvent
from events.notification_texts import open_text
from events.outage import until_it_works
from events.platform_items import LINK_CONFIRMED, TYPE_PREFIXES, PlatformItems
from events.sealing import SubjectKeys
from events.store import EventStore
from prometheus_client import Counter

from notifier import grouping, lanes, outbox
from notifier.lanes import LaneKey, Lanes, load_sightings, save_sightings
from notifier.outbox import Outbox, enqueue
from notifier.rules import TYPES as RULE_TYPES
from notifier.rules import Fact, fact_of, history_of
from notifier.sayings import account_name
from notifier.telling import SEEN_FOR, Chapter, Entry, woken
from notifier.texts import AccountName

log = structlog.get_logger(__name__)

FACTS = Counter("notifier_facts_total", "Facts by what became of them", ["fate"])

_LAG_MAX = 256
"""Behind by more than this, the clock leaves groups to the log: their members may be among what is yet to come."""
_IDLE_S = 1.0
_BATCH = 500
_LINK_SETTLES_IN = timedelta(days=1)
_USER_ERASED = contract_of(identity.UserErased).type
_LINK_REMOVED = contract_of(identity.LinkRemoved).type
_PREFERENCE_CHANGED = contract_of(PreferenceChanged).type
_OPENED, _POSTED = contract_of(ledger.AccountOpened).type, contract_of(ledger.AccountPosted).type
_ITEMS = frozenset(kind for kind in RULE_TYPES if kind.startswith(TYPE_PREFIXES)) | {LINK_CONFIRMED, _LINK_REMOVED}
"""What the platforms report, and the links that say of whom."""

_name_decoder = msgspec.json.Decoder(AccountName)
_preference_decoder = msgspec.json.Decoder(PreferenceChanged)

DDL = """
    CREATE TABLE IF NOT EXISTS account_name (
        account_id uuid PRIMARY KEY,
        user_id uuid NOT NULL,
        name bytea NOT NULL
    );
    CREATE TABLE IF NOT EXISTS recent_link (
        user_id uuid NOT NULL,
        platform text NOT NULL,
        position bigint NOT NULL,
        recorded_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, platform)
    );
    CREATE TABLE IF NOT EXISTS preferred (
        user_id uuid PRIMARY KEY,
        preferences bytea NOT NULL
    );
    CREATE TABLE IF NOT EXISTS gone_user (
        user_id uuid PRIMARY KEY
    );
"""


_ByType = defaultdict[str, list[RecordedEvent]]
_Told = tuple[UUID, Fact]
"""A fact, and whose it is."""


class _Sight(NamedTuple):
    """An event, whose it is, and with which event of the log it became known."""

    when: RecordedEvent
    user_id: UUID
    event: RecordedEvent
    is_past: bool


class Grouping:
    """Handler of the consumer `grouping`, and the clock and the outbox that go with it."""

    types = RULE_TYPES | {LINK_CONFIRMED, _LINK_REMOVED, _USER_ERASED, _PREFERENCE_CHANGED}

    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", store: EventStore, keys: SubjectKeys) -> None:
        self._database = database
        self._store = store
        self._keys = keys
        self._lanes = Lanes()
        self.outbox = Outbox(database, store, keys)
        self._items = PlatformItems("grouped")
        self.ddl = lanes.DDL + outbox.DDL + DDL + self._items.ddl
        self._applied_at = datetime.fromtimestamp(0, UTC)
        self.jitter_s: deque[float] = deque(maxlen=1_000)
        """How late the clock closed its last groups."""

    # Folding the log.

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Takes a chunk of the log into the lanes; what is to be told is in the outbox when it commits."""
        # One at a time: the clocks of all replicas take the same lock.
        await self._lanes.lock(db)
        of: _ByType = defaultdict(list)
        for event in events:
            of[event.type].append(event)
        await self._note(db, of)
        facts = await self._facts(db, events, of)
        gone = await _gone(db, {user for user, _ in facts})
        await self.take(db, [(user, fact) for user, fact in facts if user not in gone], datetime.now(UTC))
        self._applied_at = max(self._applied_at, events[-1].recorded_at)
        self.outbox.wake(events[-1].position)

    async def take(self, db: asyncpg.Connection, facts: Sequence[tuple[UUID, Fact]], now: datetime) -> None:
        """Takes facts, in log order, each with its customer."""
        if not facts:
            return
        chapter = Chapter(now, await preferences_of(db, {user for user, _ in facts}))
        grouped: list[tuple[LaneKey, Fact]] = []
        for user, fact in facts:
            if fact.priority == "critical":
                chapter.tell_at_once(user, fact)
            else:
                grouped.append((LaneKey(user, grouping.lane_key(fact)), fact))
        # Everything is decided in memory, over the whole chunk: a lane is read and written once, however many
        # events it gets.
        touched = await self._lanes.load(db, {pair for pair, _ in grouped})
        sightings = await load_sightings(db, ((pair.user_id, fact) for pair, fact in grouped))
        for pair, fact in grouped:
            chapter.take(pair.user_id, touched[pair], fact, sightings)
        await self._lanes.save(db, touched)
        await save_sightings(db, sightings)
        await self._write(db, chapter)

    async def _facts(self, db: asyncpg.Connection, events: Sequence[RecordedEvent], of: _ByType) -> list[_Told]:
        """What the events are to whom, in log order."""
        past = await self._past(db, of[_POSTED])
        found = [
            _Sight(event, user, event, event.event_id in past)
            for event in events
            if event.type in RULE_TYPES and (user := _recipient(event)) is not None
        ]
        items = [event for event in events if event.type in _ITEMS]
        if items:
            links = of[LINK_CONFIRMED]
            for user, item in await self._items.resolve(db, items):
                # What waited for a link becomes known with it.
                brought = next((link for link in links if _brought(link, item)), None)
                found.append(_Sight(brought or item, user, item, brought is not None))
            found.sort(key=lambda sight: sight.when.position)
        facts: list[_Told] = []
        for when, user, event, is_past in found:
            payload = event.payload
            if isinstance(payload, NotificationRequested):
                opened = await open_text(self._keys, user, payload)
                if opened is None:
                    continue  # erased
                payload = opened
            fact = fact_of(
                event.type,
                payload,
                event_id=event.event_id,
                position=when.position,
                recorded_at=when.recorded_at,
            )
            if fact is not None:
                facts.append((user, history_of(fact) if is_past else fact))
        return facts

    async def _past(self, db: asyncpg.Connection, postings: Sequence[RecordedEvent]) -> set[UUID]:
        """The postings of what a platform had reported before its customer linked."""
        users = {event.subject for event in postings}
        if not users:
            return set()
        rows = await db.fetch(
            "SELECT user_id, platform, position, recorded_at FROM recent_link WHERE user_id = ANY($1)", list(users)
        )
        if not rows:
            return set()
        links = {(row["user_id"], row["platform"]): row for row in rows}
        candidates: list[tuple[RecordedEvent, int]] = []
        for event in postings:
            assert isinstance(event.payload, ledger.AccountPosted)
            link = links.get((event.subject, event.payload.platform))
            if (
                link is not None
                and event.metadata.causation_id is not None
                and event.recorded_at - link["recorded_at"] < _LINK_SETTLES_IN
            ):
                candidates.append((event, link["position"]))
        causes = [cast(UUID, event.metadata.causation_id) for event, _ in candidates]
        positions = await asyncio.gather(*(self._store.position_of(cause) for cause in causes))
        return {
            event.event_id
            for (event, linked), position in zip(candidates, positions, strict=True)
            if position is not None and position < linked
        }

    async def _note(self, db: asyncpg.Connection, of: _ByType) -> None:
        """Remembers accounts' names, links and preferences; forgets who was erased."""
        if opened := of[_OPENED]:
            await db.executemany(
                "INSERT INTO account_name (account_id, user_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                [
                    (e.payload.account_id, e.subject, msgspec.json.encode(account_name(e.payload)))
                    for e in opened
                    if isinstance(e.payload, ledger.AccountOpened) and e.subject is not None
                ],
            )
        if links := of[LINK_CONFIRMED]:
            await db.executemany(
                "INSERT INTO recent_link (user_id, platform, position, recorded_at) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (user_id, platform) DO UPDATE"
                " SET position = excluded.position, recorded_at = excluded.recorded_at",
                [
                    (UUID(e.stream_id), e.payload.platform, e.position, e.recorded_at)
                    for e in links
                    if isinstance(e.payload, identity.LinkConfirmed)
                ],
            )
        for event in of[_PREFERENCE_CHANGED]:
            await self._prefer(db, UUID(event.stream_id), event)
        for event in of[_USER_ERASED]:
            assert isinstance(event.payload, identity.UserErased)
            await _erase(db, event.payload.user_id)
            self._lanes.forget(event.payload.user_id)

    async def _prefer(self, db: asyncpg.Connection, user: UUID, event: RecordedEvent) -> None:
        """Notes preferences. What was held back for the former quiet hours is decided again."""
        await db.execute(
            "INSERT INTO preferred (user_id, preferences) VALUES ($1, $2)"
            " ON CONFLICT (user_id) DO UPDATE SET preferences = excluded.preferences",
            user,
            event.data,
        )
        waiting = await self._lanes.of_user(db, user)
        held = {pair: lane for pair, lane in waiting.items() if lane.group is not None and lane.group.held}
        for lane in held.values():
            assert lane.group is not None
            lane.group.deadline = min(lane.group.deadline, event.recorded_at)
        await self._lanes.save(db, held)

    async def _write(self, db: asyncpg.Connection, chapter: "Chapter") -> None:
        """Puts into words what is to be told, and that into the outbox, durably."""
        if chapter.dropped:
            FACTS.labels("dropped").inc(chapter.dropped)
        if chapter.same:
            FACTS.labels("seen_by_both").inc(chapter.same)
        if not chapter.spoken:
            return
        names: dict[UUID, AccountName] = {}
        if accounts := {account for spoken in chapter.spoken for account in grouping.accounts_of(spoken.group.latest)}:
            rows = await db.fetch(
                "SELECT account_id, name FROM account_name WHERE account_id = ANY($1)", list(accounts)
            )
            names = {UUID(int=row["account_id"].int): _name_decoder.decode(row["name"]) for row in rows}
        await enqueue(db, [spoken.event(names) for spoken in chapter.spoken])

    # The clock.

    async def close_forever(self, consumer: Consumer) -> None:
        """Closes groups when their deadline comes, to the millisecond; brings back what was snoozed."""
        while True:
            lagging = consumer.lag > _LAG_MAX
            horizon = self._applied_at if lagging else datetime.now(UTC)
            closed = await until_it_works("notifier.clock", lambda now=horizon: self.close_due(now))  # type: ignore[misc]
            if closed:
                self.outbox.wake()
            if closed == _BATCH:
                continue
            upcoming = await until_it_works("notifier.clock", self._upcoming)
            pause_s = _IDLE_S
            if upcoming is not None and not lagging:
                pause_s = min(pause_s, max(0.001, (upcoming - datetime.now(UTC)).total_seconds()))
            # A group that was opened meanwhile is due in five seconds: later than the end of this pause.
            await asyncio.sleep(pause_s)

    async def _upcoming(self) -> datetime | None:
        upcoming: datetime | None = await self._database.fetchval("SELECT min(deadline) FROM lane")
        return upcoming

    async def close_due(self, horizon: datetime, now: datetime | None = None) -> int:
        """Settles the groups whose deadline is not after `horizon`; how many of them there were."""
        now = now or datetime.now(UTC)
        async with self._database.acquire() as proxy, proxy.transaction():
            db = cast(asyncpg.Connection, proxy)
            await self._lanes.lock(db)
            due = await self._lanes.due(db, horizon, _BATCH)
            awake = await db.fetch(
                "SELECT user_id, content, snoozed_until FROM notification WHERE snoozed_until <= $1 LIMIT $2",
                now,
                _BATCH,
            )
            if not due and not awake:
                return 0
            woken = {UUID(int=r["user_id"].int) for r in awake}
            chapter = Chapter(now, await preferences_of(db, {user for user, _ in due} | woken))
            for (user, _), lane in due.items():
                assert lane.group is not None
                self.jitter_s.append((now - lane.group.deadline).total_seconds())
                chapter.settle(user, lane)
            await self._lanes.save(db, due)
            await self._write(db, chapter)
            await enqueue(db, [entry for row in awake if (entry := _woken(chapter, row)) is not None])
        return len(due)

    async def prune_forever(self) -> None:
        """Forgets sightings that nothing can match any more, and lanes of messages that were told."""
        while True:
            await asyncio.sleep(600)
            await until_it_works("notifier.prune", self.prune)

    async def prune(self) -> None:
        now = datetime.now(UTC)
        await self._database.execute("DELETE FROM sighting WHERE seen_at < $1", now - SEEN_FOR)
        await self._database.execute("DELETE FROM lane WHERE deadline IS NULL AND key LIKE 'alone:%'")


def _recipient(event: RecordedEvent) -> UUID | None:
    """Whose inbox an event goes to; None for a platform's item, which is resolved by its link, and for nobody's."""
    if isinstance(event.payload, identity.SessionStarted | identity.RefreshReuseDetected):
        return event.payload.user_id
    return event.subject


def _brought(link: RecordedEvent, item: RecordedEvent) -> bool:
    """Whether the item waited for that link."""
    payload = link.payload
    assert isinstance(payload, identity.LinkConfirmed)
    return payload.platform_stream == item.stream and item.position < link.position


def _woken(chapter: Chapter, row: asyncpg.Record) -> Entry | None:
    return woken(chapter, UUID(int=row["user_id"].int), row["content"], row["snoozed_until"])


async def _erase(db: asyncpg.Connection, user: UUID) -> None:
    for table in ("lane", "sighting", "outbox", "account_name", "recent_link", "preferred"):
        await db.execute(f"DELETE FROM {table} WHERE user_id = $1", user)
    await db.execute("INSERT INTO gone_user VALUES ($1) ON CONFLICT DO NOTHING", user)


async def _gone(db: asyncpg.Connection, users: set[UUID]) -> set[UUID]:
    """Those of the users who were erased: nothing is told of them any more."""
    rows = await db.fetch("SELECT user_id FROM gone_user WHERE user_id = ANY($1)", list(users))
    return {UUID(int=row["user_id"].int) for row in rows}


async def preferences_of(db: asyncpg.Connection, users: set[UUID]) -> dict[UUID, PreferenceChanged]:
    """The preferences of those who have set any, as of this consumer's position."""
    rows = await db.fetch("SELECT user_id, preferences FROM preferred WHERE user_id = ANY($1)", list(users))
    return {UUID(int=row["user_id"].int): _preference_decoder.decode(row["preferences"]) for row in rows}
