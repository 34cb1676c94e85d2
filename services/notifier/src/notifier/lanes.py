"""Customers, lanes and sightings in the database, and what is known of the last customers in memory.

Whoever changes any of it, a consumer or a clock of any replica, takes the one row of `lane_writer` first and leaves a
token there. Finding its own token, a process knows that nobody else has written since its last commit, and that what it
has in memory is what the database has; finding another one, or that of before a transaction that did not commit, it
forgets everything.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec
from events.contracts.notification import PreferenceChanged

from notifier.grouping import ALONE, Lane
from notifier.preferences import DEFAULTS
from notifier.telling import Sighting, Sightings

CUSTOMERS_MAX = 5_000
"""Customers who are kept in memory: some kilobytes each."""

_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(Lane)
_preference_decoder = msgspec.json.Decoder(PreferenceChanged)

DDL = """
    CREATE TABLE IF NOT EXISTS lane (
        user_id uuid NOT NULL,
        key text NOT NULL,
        deadline timestamptz,
        state bytea NOT NULL,
        PRIMARY KEY (user_id, key)
    );
    -- Rewritten in place while a group gathers. A large group is not compressed and put elsewhere each time.
    ALTER TABLE lane SET (fillfactor = 60, toast_tuple_target = 8160);
    -- By customer, too: what quiet hours held back of one is told in one go, and mailed as one.
    CREATE INDEX IF NOT EXISTS lane_due_of ON lane (deadline, user_id) WHERE deadline IS NOT NULL;
    DROP INDEX IF EXISTS lane_due;
    CREATE TABLE IF NOT EXISTS lane_writer (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        token uuid NOT NULL
    ) WITH (fillfactor = 10);
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


class Link(NamedTuple):
    """When a customer linked a platform."""

    position: int
    recorded_at: datetime


class Upcoming(NamedTuple):
    deadline: datetime | None
    """Of the group that is due next; None where none waits."""
    ours: bool
    """Whether this process was the last to write lanes."""


class Customer:
    """What the consumer knows of a customer, as of its position."""

    __slots__ = ("gone", "lanes", "links", "preferences")

    def __init__(self) -> None:
        self.gone = False
        """Erased: nothing is told of them any more."""
        self.preferences = DEFAULTS
        self.links: dict[str, Link] = {}
        """By platform."""
        self.lanes: dict[str, Lane] = {}
        """By key: all that there are, but for messages that stood alone and were told."""

    def lane(self, key: str) -> Lane:
        """The lane of that key; a new one where there was none."""
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key=key)
        return lane


class Lanes:
    """The customers as one process has them. Everything is done in a transaction that has called `lock` first."""

    def __init__(self) -> None:
        self._token: UUID | None = None
        self._known: OrderedDict[UUID, Customer] = OrderedDict()

    async def lock(self, db: asyncpg.Connection) -> None:
        """Waits for whoever else writes lanes, until the end of the transaction."""
        token = uuid4()
        before = await db.fetchval(
            "WITH before AS (SELECT token FROM lane_writer FOR UPDATE)"
            " UPDATE lane_writer SET token = $1 FROM before RETURNING before.token",
            token,
        )
        if before is None:
            await db.execute("SELECT pg_advisory_xact_lock(hashtext('notifier.lanes'))")
            await db.execute(
                "INSERT INTO lane_writer (token) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET token = $1", token
            )
        if before is None or before != self._token:
            self._known.clear()
        self._token = token

    async def customers(self, db: asyncpg.Connection, users: Collection[UUID]) -> dict[UUID, Customer]:
        """What is known of these customers. Their lanes are changed in place, and then saved."""
        found: dict[UUID, Customer] = {}
        unknown: dict[UUID, Customer] = {}
        for user in users:
            customer = self._known.get(user)
            if customer is None:
                customer = self._known[user] = unknown[user] = Customer()
            else:
                self._known.move_to_end(user)
            found[user] = customer
        if unknown:
            await _load(db, unknown)
        while len(self._known) > max(CUSTOMERS_MAX, len(found)):
            self._known.popitem(last=False)
        return found

    async def upcoming(self, database: "asyncpg.Pool[asyncpg.Record]") -> Upcoming:
        """When the next group is due."""
        row = await database.fetchrow(
            "SELECT (SELECT min(deadline) FROM lane) AS deadline, (SELECT token FROM lane_writer) AS token"
        )
        assert row is not None
        return Upcoming(row["deadline"], row["token"] is None or row["token"] == self._token)

    async def any_due(self, database: "asyncpg.Pool[asyncpg.Record]", horizon: datetime) -> bool:
        """Whether there is anything to take the lock for."""
        found: bool = await database.fetchval("SELECT EXISTS (SELECT FROM lane WHERE deadline <= $1)", horizon)
        return found

    async def due(self, db: asyncpg.Connection, horizon: datetime, limit: int) -> list[tuple[UUID, str]]:
        """The customers and keys of lanes whose group's deadline is not after `horizon`, the oldest deadline first."""
        rows = await db.fetch(
            "SELECT user_id, key FROM lane WHERE deadline <= $1 ORDER BY deadline, user_id LIMIT $2", horizon, limit
        )
        return [(UUID(int=row["user_id"].int), row["key"]) for row in rows]

    async def save(self, db: asyncpg.Connection, lanes: Sequence[tuple[UUID, Lane]]) -> None:
        """Writes lanes of customers that were asked for in this transaction."""
        if not lanes:
            return
        await db.execute(
            "INSERT INTO lane (user_id, key, deadline, state)"
            " SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::bytea[])"
            " ON CONFLICT (user_id, key) DO UPDATE SET deadline = excluded.deadline, state = excluded.state",
            [user for user, _ in lanes],
            [lane.key for _, lane in lanes],
            [lane.group.deadline if lane.group is not None and lane.group.waits else None for _, lane in lanes],
            [_encoder.encode(lane) for _, lane in lanes],
        )

    def forget(self, user: UUID) -> None:
        """The next one who asks gets what the database has."""
        self._known.pop(user, None)


async def _load(db: asyncpg.Connection, customers: Mapping[UUID, Customer]) -> None:
    rows = await db.fetch(
        "SELECT user_id, 'gone' AS what, NULL::text AS name, NULL::bytea AS data, NULL::bigint AS position,"
        "  NULL::timestamptz AS recorded_at"
        " FROM gone_user WHERE user_id = ANY($1)"
        " UNION ALL SELECT user_id, 'preferred', NULL, preferences, NULL, NULL FROM preferred WHERE user_id = ANY($1)"
        " UNION ALL SELECT user_id, 'link', platform, NULL, position, recorded_at FROM recent_link"
        "  WHERE user_id = ANY($1)"
        " UNION ALL SELECT user_id, 'lane', key, state, NULL, NULL FROM lane"
        "  WHERE user_id = ANY($1) AND (deadline IS NOT NULL OR key NOT LIKE $2)",
        list(customers),
        f"{ALONE}%",
    )
    for row in rows:
        customer = customers[row["user_id"]]
        match row["what"]:
            case "gone":
                customer.gone = True
            case "preferred":
                customer.preferences = _preference_decoder.decode(row["data"])
            case "link":
                customer.links[row["name"]] = Link(row["position"], row["recorded_at"])
            case "lane":
                customer.lanes[row["name"]] = _decoder.decode(row["data"])


async def held_back(database: "asyncpg.Pool[asyncpg.Record]", user: UUID) -> int:
    """How many facts are held back for a customer now."""
    rows = await database.fetch("SELECT state FROM lane WHERE user_id = $1 AND deadline IS NOT NULL", user)
    lanes: list[Lane] = [_decoder.decode(row["state"]) for row in rows]
    return sum(lane.group.count for lane in lanes if lane.group is not None and lane.group.held is not None)


async def load_sightings(db: asyncpg.Connection, sightings: Sightings) -> None:
    """Fills in what was seen before."""
    rows = await db.fetch(
        "SELECT sighting.* FROM sighting JOIN unnest($1::uuid[], $2::text[]) AS wanted (user_id, name)"
        " USING (user_id, name)",
        [user for user, _ in sightings],
        [name for _, name in sightings],
    )
    for row in rows:
        sightings[UUID(int=row["user_id"].int), row["name"]] = Sighting(
            row["platform"], row["lane"], UUID(int=row["notification_id"].int), row["seen_at"]
        )


async def save_sightings(db: asyncpg.Connection, sightings: Sightings) -> None:
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
