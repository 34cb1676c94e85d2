"""From every service's events to notifications: the consumer `grouping`, its clock, and its outbox.

The consumer folds the log into lanes (`grouping.py`) and writes what is to be told into the outbox, in the transaction
that saves its position. Whoever is first then appends the outbox to the customers' streams, under ids derived from
the notification: doing it again writes nothing. A decision is on disk before it is appended, so a crash between the
two cannot decide anew. Groups that no further event closes are closed by the clock.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast
from uuid import UUID

import asyncpg
import msgspec
import structlog
from events.consumer import Consumer
from events.contracts import contract_of, decode, encode, identity, ledger
from events.contracts.notification import Notification, NotificationRequested, PreferenceChanged
from events.envelope import Metadata, RecordedEvent
from events.notification_texts import open_text, seal_text
from events.outage import until_it_works
from events.platform_items import LINK_CONFIRMED, PlatformItems
from events.sealing import SubjectErased, SubjectKeys
from events.store import EventStore, StreamAppend
from prometheus_client import Counter

from notifier import grouping
from notifier.grouping import Lane
from notifier.rules import TYPES as RULE_TYPES
from notifier.rules import Fact, account_name, fact_of, history_of
from notifier.telling import SEEN_FOR, Chapter, Entry, Sighting, woken
from notifier.texts import AccountName

log = structlog.get_logger(__name__)

FACTS = Counter("notifier_facts_total", "Facts by what became of them", ["fate"])

_ACTOR = "service:notifier"
_LAG_MAX = 256
"""Behind by more than this, the clock leaves groups to the log: their members may be among what is yet to come."""
_IDLE_S = 1.0
_BATCH = 500
_LINK_SETTLES_IN = timedelta(days=1)
_USER_ERASED = contract_of(identity.UserErased).type
_LINK_REMOVED = contract_of(identity.LinkRemoved).type
_PREFERENCE_CHANGED = contract_of(PreferenceChanged).type
_ITEM_PREFIXES = ("banking.", "trading.")

_lane_encoder = msgspec.msgpack.Encoder()
_lane_decoder = msgspec.msgpack.Decoder(Lane)
_name_decoder = msgspec.json.Decoder(AccountName)
_preference_decoder = msgspec.json.Decoder(PreferenceChanged)

DDL = """
    CREATE TABLE IF NOT EXISTS lane (
        user_id uuid NOT NULL,
        key text NOT NULL,
        deadline timestamptz,
        state bytea NOT NULL,
        PRIMARY KEY (user_id, key)
    ) WITH (fillfactor = 60); -- rewritten in place while a group gathers
    CREATE INDEX IF NOT EXISTS lane_due ON lane (deadline) WHERE deadline IS NOT NULL;
    CREATE TABLE IF NOT EXISTS sighting (
        user_id uuid NOT NULL,
        name text NOT NULL,
        platform text,
        lane text NOT NULL,
        notification_id uuid NOT NULL,
        seen_at timestamptz NOT NULL,
        PRIMARY KEY (user_id, name)
    );
    CREATE INDEX IF NOT EXISTS sighting_by_age ON sighting (seen_at);
    CREATE TABLE IF NOT EXISTS outbox (
        seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id uuid NOT NULL,
        user_id uuid NOT NULL,
        type text NOT NULL,
        data bytea NOT NULL,
        cause uuid
    );
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
        self._items = PlatformItems("grouped")
        self.ddl = DDL + self._items.ddl
        self._applied_at = datetime.fromtimestamp(0, UTC)
        self._applying = 0
        self._wake_outbox = asyncio.Event()
        self.jitter_s: deque[float] = deque(maxlen=1_000)
        """How late the clock closed its last groups."""

    # Folding the log.

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Takes a chunk of the log into the lanes; what is to be told is in the outbox when it commits."""
        # One at a time: the clocks of all replicas take the same lock.
        await db.execute("SELECT pg_advisory_xact_lock(hashtext('notifier.lanes'))")
        await self._note(db, events)
        facts = await self._facts(db, events)
        gone = await _gone(db, {user for user, _ in facts})
        await self.take(db, [(user, fact) for user, fact in facts if user not in gone], datetime.now(UTC))
        self._applied_at = max(self._applied_at, events[-1].recorded_at)
        self._applying = events[-1].position
        self._wake_outbox.set()

    async def take(self, db: asyncpg.Connection, facts: Sequence[tuple[UUID, Fact]], now: datetime) -> None:
        """Takes facts, in log order, each with its customer."""
        if not facts:
            return
        chapter = Chapter(now, await preferences_of(db, {user for user, _ in facts}))
        for user, fact in facts:
            if fact.priority == "critical":
                chapter.tell_at_once(user, fact)
        facts = [(user, fact) for user, fact in facts if fact.priority != "critical"]
        lanes = await _lanes(db, {(user, grouping.lane_key(fact)) for user, fact in facts})
        sightings = await _sightings(db, facts)
        for user, fact in facts:
            chapter.take(user, lanes[user, grouping.lane_key(fact)], fact, sightings)
        await _save_lanes(db, lanes)
        await _save_sightings(db, sightings)
        await self._write(db, chapter)

    async def _facts(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> list[tuple[UUID, Fact]]:
        """What the events are to whom, in log order."""
        past = await self._past(db, events)
        found = [
            _Sight(event, user, event, event.event_id in past)
            for event in events
            if event.type in RULE_TYPES and (user := _recipient(event)) is not None
        ]
        links = [event for event in events if event.type == LINK_CONFIRMED]
        items = [e for e in events if e.type.startswith(_ITEM_PREFIXES) or e.type in (LINK_CONFIRMED, _LINK_REMOVED)]
        if items:
            for user, item in await self._items.resolve(db, items):
                # What waited for a link becomes known with it.
                brought = next((link for link in links if _brought(link, item)), None)
                found.append(_Sight(brought or item, user, item, brought is not None))
        facts: list[tuple[UUID, Fact]] = []
        for when, user, event, is_past in sorted(found, key=lambda sight: sight.when.position):
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

    async def _past(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> set[UUID]:
        """The postings of what a platform had reported before its customer linked."""
        postings = [e for e in events if isinstance(e.payload, ledger.AccountPosted) and e.subject is not None]
        if not postings:
            return set()
        rows = await db.fetch(
            "SELECT user_id, platform, position, recorded_at FROM recent_link WHERE user_id = ANY($1)",
            list({e.subject for e in postings}),
        )
        links = {(UUID(int=row["user_id"].int), row["platform"]): row for row in rows}
        candidates: list[tuple[RecordedEvent, int]] = []
        for event in postings:
            assert isinstance(event.payload, ledger.AccountPosted)
            assert event.subject is not None
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

    async def _note(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Remembers accounts' names, links and preferences; forgets who was erased."""
        opened = [e for e in events if isinstance(e.payload, ledger.AccountOpened) and e.subject is not None]
        if opened:
            await db.executemany(
                "INSERT INTO account_name (account_id, user_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                [
                    (e.payload.account_id, e.subject, msgspec.json.encode(account_name(e.payload)))
                    for e in opened
                    if isinstance(e.payload, ledger.AccountOpened)
                ],
            )
        links = [e for e in events if isinstance(e.payload, identity.LinkConfirmed)]
        if links:
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
        for event in events:
            if isinstance(event.payload, PreferenceChanged):
                await self._prefer(db, UUID(event.stream_id), event)
            elif isinstance(event.payload, identity.UserErased):
                await _erase(db, event.payload.user_id)

    async def _prefer(self, db: asyncpg.Connection, user: UUID, event: RecordedEvent) -> None:
        """Notes preferences. What was held back for the former quiet hours is decided again."""
        await db.execute(
            "INSERT INTO preferred (user_id, preferences) VALUES ($1, $2)"
            " ON CONFLICT (user_id) DO UPDATE SET preferences = excluded.preferences",
            user,
            event.data,
        )
        rows = await db.fetch("SELECT key, state FROM lane WHERE user_id = $1 AND deadline IS NOT NULL", user)
        lanes = {(user, row["key"]): _lane_decoder.decode(row["state"]) for row in rows}
        held = {pair: lane for pair, lane in lanes.items() if lane.group is not None and lane.group.held}
        for lane in held.values():
            assert lane.group is not None
            lane.group.deadline = min(lane.group.deadline, event.recorded_at)
        await _save_lanes(db, held)

    async def _write(self, db: asyncpg.Connection, chapter: "Chapter") -> None:
        """Puts into words what is to be told, and that into the outbox, durably."""
        if chapter.dropped:
            FACTS.labels("dropped").inc(chapter.dropped)
        if chapter.same:
            FACTS.labels("seen_by_both").inc(chapter.same)
        if not chapter.spoken:
            return
        accounts = {account for spoken in chapter.spoken for account in grouping.accounts_of(spoken.fact)}
        rows = await db.fetch("SELECT account_id, name FROM account_name WHERE account_id = ANY($1)", list(accounts))
        names = {UUID(int=row["account_id"].int): _name_decoder.decode(row["name"]) for row in rows}
        entries = [spoken.event(names) for spoken in chapter.spoken]
        await _enqueue(db, entries)

    # The clock.

    async def close_forever(self, consumer: Consumer) -> None:
        """Closes groups when their deadline comes, to the millisecond; brings back what was snoozed."""
        while True:
            lagging = consumer.lag > _LAG_MAX
            horizon = self._applied_at if lagging else datetime.now(UTC)
            closed = await until_it_works("notifier.clock", lambda now=horizon: self.close_due(now))  # type: ignore[misc]
            if closed:
                self._wake_outbox.set()
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
            await db.execute("SELECT pg_advisory_xact_lock(hashtext('notifier.lanes'))")
            rows = await db.fetch(
                "SELECT user_id, key, state FROM lane WHERE deadline <= $1 ORDER BY deadline LIMIT $2", horizon, _BATCH
            )
            awake = await db.fetch(
                "SELECT user_id, content, snoozed_until FROM notification WHERE snoozed_until <= $1 LIMIT $2",
                now,
                _BATCH,
            )
            if not rows and not awake:
                return 0
            lanes = {(UUID(int=r["user_id"].int), r["key"]): _lane_decoder.decode(r["state"]) for r in rows}
            woken = {UUID(int=r["user_id"].int) for r in awake}
            chapter = Chapter(now, await preferences_of(db, {user for user, _ in lanes} | woken))
            for (user, _), lane in lanes.items():
                assert lane.group is not None
                self.jitter_s.append((now - lane.group.deadline).total_seconds())
                chapter.settle(user, lane)
            await _save_lanes(db, lanes)
            await self._write(db, chapter)
            await _enqueue(db, [entry for row in awake if (entry := _woken(chapter, row)) is not None])
        return len(rows)

    # The outbox.

    async def send_forever(self, consumer: Consumer) -> None:
        """Appends what the outbox holds, at once when this process has filled it."""
        while True:
            sent = await until_it_works("notifier.outbox", self.send_outbox)
            if sent == _BATCH:
                continue
            try:
                async with asyncio.timeout(_IDLE_S):
                    await self._wake_outbox.wait()
            except TimeoutError:
                continue
            self._wake_outbox.clear()
            # It was woken inside the consumer's transaction, and there is nothing to be seen before that commits.
            await consumer.wait_for(self._applying, _IDLE_S)

    async def send_outbox(self) -> int:
        """Appends the oldest entries; how many."""
        rows = await self._database.fetch(
            "SELECT seq, event_id, user_id, type, data, cause FROM outbox ORDER BY seq LIMIT $1", _BATCH
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


async def held_back(database: "asyncpg.Pool[asyncpg.Record]", user: UUID) -> int:
    """How many facts are held back for a customer now."""
    rows = await database.fetch("SELECT state FROM lane WHERE user_id = $1 AND deadline IS NOT NULL", user)
    lanes: list[Lane] = [_lane_decoder.decode(row["state"]) for row in rows]
    return sum(lane.group.count for lane in lanes if lane.group is not None and lane.group.held is not None)


async def _enqueue(db: asyncpg.Connection, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    # A decision is durable before anybody can act on it: see the module's docstring.
    await db.execute("SET LOCAL synchronous_commit = on")
    await db.execute(
        "INSERT INTO outbox (event_id, user_id, type, data, cause)"
        " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::uuid[])",
        [entry.event_id for entry in entries],
        [entry.user_id for entry in entries],
        [contract_of(entry.event).type for entry in entries],
        [encode(entry.event) for entry in entries],
        [entry.cause for entry in entries],
    )


async def _lanes(db: asyncpg.Connection, wanted: set[tuple[UUID, str]]) -> dict[tuple[UUID, str], Lane]:
    """The lanes of these customers and keys; new ones where there were none."""
    pairs = list(wanted)
    lanes = {pair: Lane(key=pair[1]) for pair in pairs}
    rows = await db.fetch(
        "SELECT user_id, key, state FROM lane JOIN unnest($1::uuid[], $2::text[]) AS wanted (user_id, key)"
        " USING (user_id, key)",
        [user for user, _ in pairs],
        [key for _, key in pairs],
    )
    for row in rows:
        lanes[UUID(int=row["user_id"].int), row["key"]] = _lane_decoder.decode(row["state"])
    return lanes


async def _save_lanes(db: asyncpg.Connection, lanes: dict[tuple[UUID, str], Lane]) -> None:
    if not lanes:
        return
    waiting = {pair: lane.group for pair, lane in lanes.items() if lane.group is not None and lane.group.waits}
    await db.execute(
        "INSERT INTO lane (user_id, key, deadline, state)"
        " SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::bytea[])"
        " ON CONFLICT (user_id, key) DO UPDATE SET deadline = excluded.deadline, state = excluded.state",
        [user for user, _ in lanes],
        [key for _, key in lanes],
        [waiting[pair].deadline if pair in waiting else None for pair in lanes],
        [_lane_encoder.encode(lane) for lane in lanes.values()],
    )


async def _sightings(
    db: asyncpg.Connection, facts: Sequence[tuple[UUID, Fact]]
) -> dict[tuple[UUID, str], Sighting | None]:
    """What was seen before of the facts that are seen twice."""
    wanted = {(user, name) for user, fact in facts if (name := fact.told.both_report or fact.told.once)}
    if not wanted:
        return {}
    pairs = list(wanted)
    found: dict[tuple[UUID, str], Sighting | None] = dict.fromkeys(pairs)
    rows = await db.fetch(
        "SELECT sighting.* FROM sighting JOIN unnest($1::uuid[], $2::text[]) AS wanted (user_id, name)"
        " USING (user_id, name)",
        [user for user, _ in pairs],
        [name for _, name in pairs],
    )
    for row in rows:
        found[UUID(int=row["user_id"].int), row["name"]] = Sighting(
            row["platform"], row["lane"], UUID(int=row["notification_id"].int), row["seen_at"]
        )
    return found


async def _save_sightings(db: asyncpg.Connection, sightings: dict[tuple[UUID, str], Sighting | None]) -> None:
    if not sightings:
        return
    forgotten = [pair for pair, seen in sightings.items() if seen is None]
    if forgotten:
        await db.execute(
            "DELETE FROM sighting USING unnest($1::uuid[], $2::text[]) AS old (user_id, name)"
            " WHERE sighting.user_id = old.user_id AND sighting.name = old.name",
            [user for user, _ in forgotten],
            [name for _, name in forgotten],
        )
    known = {pair: seen for pair, seen in sightings.items() if seen is not None}
    if known:
        await db.execute(
            "INSERT INTO sighting (user_id, name, platform, lane, notification_id, seen_at)"
            " SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::timestamptz[])"
            " ON CONFLICT (user_id, name) DO UPDATE SET platform = excluded.platform, lane = excluded.lane,"
            "  notification_id = excluded.notification_id, seen_at = excluded.seen_at",
            [user for user, _ in known],
            [name for _, name in known],
            [seen.platform for seen in known.values()],
            [seen.lane for seen in known.values()],
            [seen.notification_id for seen in known.values()],
            [seen.seen_at for seen in known.values()],
        )
