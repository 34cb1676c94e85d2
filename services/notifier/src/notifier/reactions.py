"""From every service's events to notifications: the consumer `grouping` and its clock.

The consumer folds the log into lanes (`grouping.py`) and writes what is to be told into the outbox, in the transaction
that saves its position. Whoever is first then appends the outbox to the customers' streams, under ids derived from
the notification: doing it again writes nothing. A decision is on disk before it is appended, so a crash between the
two cannot decide anew. Groups that no further event closes are closed by the clock.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
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
from notifier.grouping import Lane
from notifier.lanes import Customer, Lanes, load_sightings, save_sightings
from notifier.outbox import Outbox, enqueue
from notifier.preferences import DEFAULTS
from notifier.rules import TYPES as RULE_TYPES
from notifier.rules import Fact, fact_of, history_of
from notifier.sayings import account_name
from notifier.telling import SEEN_FOR, Chapter, Entry, Sightings, woken
from notifier.texts import AccountName

log = structlog.get_logger(__name__)

FACTS = Counter("notifier_facts_total", "Facts by what became of them", ["fate"])

_LAG_MAX = 256
"""Behind by more than this, the clock leaves groups to the log: their members may be among what is yet to come."""
_IDLE_S = 1.0
_BATCH = 100
"""So few groups are closed at a time that something critical, which waits for that, waits for some milliseconds."""
_SECOND_S = 0.1
_CUSTOMERS_AT_ONCE = 250
_FROM_THE_START = (datetime.fromtimestamp(0, UTC), UUID(int=0))
_LINK_SETTLES_IN = timedelta(days=1)
_USER_ERASED = contract_of(identity.UserErased).type
_LINK_REMOVED = contract_of(identity.LinkRemoved).type
_PREFERENCE_CHANGED = contract_of(PreferenceChanged).type
_MESSAGE = contract_of(NotificationRequested).type
_POSTED = contract_of(ledger.AccountPosted).type
_NOTED = frozenset({contract_of(ledger.AccountOpened).type, LINK_CONFIRMED, _USER_ERASED, _PREFERENCE_CHANGED})
_ITEMS = frozenset(kind for kind in RULE_TYPES if kind.startswith(TYPE_PREFIXES)) | {LINK_CONFIRMED, _LINK_REMOVED}
"""What the platforms report, and the links that say of whom."""

_NAMES_ITS_USER = frozenset(contract_of(kind).type for kind in (identity.SessionStarted, identity.RefreshReuseDetected))
"""What is told to the user that the payload names. Anything else is told to the event's subject."""

_name_decoder = msgspec.json.Decoder(AccountName)

DDL = """
    CREATE TABLE IF NOT EXISTS account_name (
        account_id uuid PRIMARY KEY,
        user_id uuid NOT NULL,
        name bytea NOT NULL
    );
"""


_Sight = tuple[RecordedEvent, RecordedEvent]
"""An event, after the event of the log with which it became known: itself, but where it waited for a link."""


class Grouping:
    """Handler of the consumer `grouping`, and the clock and the outbox that go with it."""

    types = RULE_TYPES | {LINK_CONFIRMED, _LINK_REMOVED, _USER_ERASED, _PREFERENCE_CHANGED}

    def __init__(
        self,
        database: "asyncpg.Pool[asyncpg.Record]",
        store: EventStore,
        keys: SubjectKeys,
        floors_minor: Mapping[str, int] = grouping.LARGE_FLOOR_MINOR,
    ) -> None:
        self._database = database
        self._floors_minor = floors_minor
        self._store = store
        self._keys = keys
        self._lanes = Lanes()
        self.outbox = Outbox(database, store, keys)
        self._items = PlatformItems("grouped")
        self.ddl = lanes.DDL + outbox.DDL + DDL + self._items.ddl
        self._applied_at = datetime.fromtimestamp(0, UTC)
        self._snoozes_from = _FROM_THE_START
        self.jitter_s: deque[float] = deque(maxlen=1_000)
        """How late the clock closed its last groups."""

    # Folding the log.

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Takes a chunk of the log into the lanes; what is to be told is in the outbox when it commits."""
        # One at a time: the clocks of all replicas take the same lock.
        await self._lanes.lock(db)
        await self._note(db, [event for event in events if event.type in _NOTED])
        await self._fold(db, await self._sights(db, events), datetime.now(UTC))
        self._applied_at = max(self._applied_at, events[-1].recorded_at)
        self.outbox.wake(events[-1].position)

    async def _sights(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> dict[UUID, list[_Sight]]:
        """The events by whom they are told to, for each in the order in which they became known."""
        sights: defaultdict[UUID, list[_Sight]] = defaultdict(list)
        items: list[RecordedEvent] = []
        for event in events:
            kind = event.type
            if kind in _ITEMS:
                items.append(event)
            if kind in RULE_TYPES:
                # A platform's item has no subject: its link tells whose it is.
                payload: Any = event.payload if kind in _NAMES_ITS_USER else None
                user = event.subject if payload is None else payload.user_id
                if user is not None:
                    sights[user].append((event, event))
        if items:
            links = [event for event in items if event.type == LINK_CONFIRMED]
            for user, item in await self._items.resolve(db, items):
                # What waited for a link becomes known with it.
                brought = next((link for link in links if _brought(link, item)), None)
                sights[user].append((brought or item, item))
            for seen in sights.values():
                seen.sort(key=lambda sight: sight[0].position)
        return sights

    async def _fold(self, db: asyncpg.Connection, sights: Mapping[UUID, Sequence[_Sight]], now: datetime) -> None:
        """Takes what was seen into the lanes. Everything is decided in memory, customer by customer: what they have
        is read and written once, however many events there are."""
        customers = await self._lanes.customers(db, sights.keys())
        past = await self._past(customers, sights)
        messages = await self._messages(sights)
        chosen = {user: each.preferences for user, each in customers.items() if each.preferences is not DEFAULTS}
        chapter = Chapter(now, chosen, self._floors_minor)
        everybody = list(zip(sights.items(), customers.values(), strict=True))
        saving = asyncio.ensure_future(asyncio.sleep(0))
        try:
            # The database writes what some customers have while the next ones' is decided.
            for start in range(0, len(everybody), _CUSTOMERS_AT_ONCE):
                told: list[tuple[UUID, Customer, list[Fact]]] = []
                for (user, seen), customer in everybody[start : start + _CUSTOMERS_AT_ONCE]:
                    if not customer.gone and (facts := _facts(seen, past, messages)):
                        told.append((user, customer, facts))
                sightings: Sightings = {
                    (user, name): None
                    for user, _, facts in told
                    for fact in facts
                    if (name := fact.told.both_report or fact.told.once)
                }
                if sightings:
                    await saving
                    await load_sightings(db, sightings)
                changed = [
                    (user, lane)
                    for user, customer, facts in told
                    for lane in _taken(chapter, user, customer, facts, sightings)
                ]
                await saving
                saving = asyncio.ensure_future(self._save(db, changed, sightings))
                # One turn for the statement to begin, one for it to leave.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        finally:
            # The connection is the transaction's: when that ends, nothing may be under way on it.
            await asyncio.wait([saving])
        await saving
        await self._write(db, chapter)

    async def _save(self, db: asyncpg.Connection, lanes: Sequence[tuple[UUID, Lane]], sightings: Sightings) -> None:
        await self._lanes.save(db, lanes)
        await save_sightings(db, sightings)

    async def _messages(self, sights: Mapping[UUID, Sequence[_Sight]]) -> dict[UUID, NotificationRequested]:
        """What operators wrote, with its words, by event id; not what was written to somebody who is erased."""
        messages: dict[UUID, NotificationRequested] = {}
        for user, seen in sights.items():
            for _, event in seen:
                if event.type == _MESSAGE:
                    assert isinstance(event.payload, NotificationRequested)
                    if (opened := await open_text(self._keys, user, event.payload)) is not None:
                        messages[event.event_id] = opened
        return messages

    async def _past(self, customers: Mapping[UUID, Customer], sights: Mapping[UUID, Sequence[_Sight]]) -> set[UUID]:
        """The postings of what a platform had reported before its customer linked."""
        candidates: list[tuple[UUID, UUID, int]] = []
        for user, customer in customers.items():
            if not customer.links:
                continue
            for _, event in sights[user]:
                if event.type != _POSTED or event.metadata.causation_id is None:
                    continue
                assert isinstance(event.payload, ledger.AccountPosted)
                link = customer.links.get(event.payload.platform)
                if link is not None and event.recorded_at - link.recorded_at < _LINK_SETTLES_IN:
                    candidates.append((event.event_id, event.metadata.causation_id, link.position))
        if not candidates:
            return set()
        positions = await self._store.positions_of(list({cause for _, cause, _ in candidates}))
        return {event_id for event_id, cause, linked in candidates if positions.get(cause, linked) < linked}

    async def _note(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Remembers accounts' names, links and preferences; forgets who was erased."""
        if not events:
            return
        payloads = [event.payload for event in events]
        await db.executemany(
            "INSERT INTO account_name (account_id, user_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            [
                (opened.account_id, event.subject, msgspec.json.encode(account_name(opened)))
                for event, opened in zip(events, payloads, strict=True)
                if isinstance(opened, ledger.AccountOpened) and event.subject is not None
            ],
        )
        await db.executemany(
            "INSERT INTO recent_link (user_id, platform, position, recorded_at) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (user_id, platform) DO UPDATE"
            " SET position = excluded.position, recorded_at = excluded.recorded_at",
            [
                (UUID(event.stream_id), link.platform, event.position, event.recorded_at)
                for event, link in zip(events, payloads, strict=True)
                if isinstance(link, identity.LinkConfirmed)
            ],
        )
        for event, payload in zip(events, payloads, strict=True):
            if isinstance(payload, PreferenceChanged):
                await self._prefer(db, UUID(event.stream_id), event)
        # Last: what the chunk says of them goes, too.
        for payload in payloads:
            if isinstance(payload, identity.UserErased):
                await _erase(db, payload.user_id)
        for event, payload in zip(events, payloads, strict=True):
            self._lanes.forget(payload.user_id if isinstance(payload, identity.UserErased) else UUID(event.stream_id))

    async def _prefer(self, db: asyncpg.Connection, user: UUID, event: RecordedEvent) -> None:
        """Notes preferences. What was held back for the former quiet hours is decided again."""
        await db.execute(
            "INSERT INTO preferred (user_id, preferences) VALUES ($1, $2)"
            " ON CONFLICT (user_id) DO UPDATE SET preferences = excluded.preferences",
            user,
            event.data,
        )
        customer = (await self._lanes.customers(db, (user,)))[user]
        held = [lane for lane in customer.lanes.values() if lane.group is not None and lane.group.held]
        for lane in held:
            assert lane.group is not None
            lane.group.deadline = min(lane.group.deadline, event.recorded_at)
        await self._lanes.save(db, [(user, lane) for lane in held])

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
            upcoming = await until_it_works("notifier.clock", lambda: self._lanes.upcoming(self._database))
            pause_s = _IDLE_S
            if upcoming.deadline is not None and not lagging:
                pause_s = min(pause_s, max(0.001, (upcoming.deadline - datetime.now(UTC)).total_seconds()))
            if not upcoming.ours:
                # Whoever applies the log has these lanes in memory, and would forget them if this clock were first.
                pause_s += _SECOND_S
            # A group that was opened meanwhile is due in five seconds: later than the end of this pause.
            await asyncio.sleep(pause_s)

    async def close_due(self, horizon: datetime, now: datetime | None = None) -> int:
        """Settles the groups whose deadline is not after `horizon`; how many of them there were. At most a batch: then
        there may be more."""
        now = now or datetime.now(UTC)
        awake = await self._database.fetch(
            "SELECT id, user_id, content, snoozed_until FROM notification"
            " WHERE snoozed_until <= $1 AND (snoozed_until, id) > ($2, $3) ORDER BY snoozed_until, id LIMIT $4",
            now,
            *self._snoozes_from,
            _BATCH,
        )
        # Page by page: those whose customers have quiet hours now stay, and hold up nobody behind them.
        more = len(awake) == _BATCH
        self._snoozes_from = (awake[-1]["snoozed_until"], awake[-1]["id"]) if more else _FROM_THE_START
        if not awake and not await self._lanes.any_due(self._database, horizon):
            return 0
        async with self._database.acquire() as proxy, proxy.transaction():
            db = cast(asyncpg.Connection, proxy)
            await self._lanes.lock(db)
            due = await self._lanes.due(db, horizon, _BATCH)
            customers = await self._lanes.customers(
                db, {user for user, _ in due} | {UUID(int=row["user_id"].int) for row in awake}
            )
            chapter = Chapter(now, {user: customer.preferences for user, customer in customers.items()})
            settled: list[tuple[UUID, Lane]] = []
            for user, key in due:
                lane = customers[user].lanes[key]
                assert lane.group is not None
                self.jitter_s.append((now - lane.group.deadline).total_seconds())
                chapter.settle(user, lane)
                settled.append((user, lane))
            await self._lanes.save(db, settled)
            await self._write(db, chapter)
            await enqueue(db, [entry for row in awake if (entry := _woken(chapter, row)) is not None])
        return _BATCH if more else len(due)

    async def prune_forever(self) -> None:
        """Forgets sightings that nothing can match any more, and lanes of messages that were told."""
        while True:
            await asyncio.sleep(600)
            await until_it_works("notifier.prune", self.prune)

    async def prune(self) -> None:
        now = datetime.now(UTC)
        await self._database.execute("DELETE FROM sighting WHERE seen_at < $1", now - SEEN_FOR)
        await self._database.execute("DELETE FROM lane WHERE deadline IS NULL AND key LIKE 'alone:%'")


def _facts(
    seen: Sequence[_Sight], past: Collection[UUID], messages: Mapping[UUID, NotificationRequested]
) -> list[Fact]:
    facts: list[Fact] = []
    for when, event in seen:
        payload = event.payload if event.type != _MESSAGE else messages.get(event.event_id)
        if payload is None:
            continue  # erased
        fact = fact_of(
            event.type,
            payload,
            event_id=event.event_id,
            position=when.position,
            recorded_at=when.recorded_at,
        )
        if fact is not None:
            facts.append(history_of(fact) if when is not event or event.event_id in past else fact)
    return facts


def _taken(
    chapter: Chapter, user: UUID, customer: Customer, facts: Sequence[Fact], sightings: Sightings
) -> Iterable[Lane]:
    """Takes a customer's facts, in log order; the lanes that they changed."""
    lanes: dict[str, Lane] = {}
    for fact in facts:
        if fact.priority == "critical":
            chapter.tell_at_once(user, fact)
        else:
            key = grouping.lane_key(fact)
            lane = lanes[key] = customer.lane(key)
            chapter.take(user, lane, fact, sightings)
    return lanes.values()


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
