"""Lanes and sightings in the database, and the lanes of the last customers in memory.

Whoever changes lanes, a consumer or a clock of any replica, takes the one row of `lane_writer` first and leaves a token
there. Finding its own token, a process knows that nobody else has written since its last commit, and that its lanes in
memory are those of the database; finding another one, or that of before a transaction that did not commit, it forgets
them all.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec

from notifier.grouping import Lane
from notifier.rules import Fact
from notifier.telling import Sighting

CUSTOMERS_MAX = 5_000
"""Customers whose lanes are kept in memory: some kilobytes each."""

_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(Lane)

DDL = """
    CREATE TABLE IF NOT EXISTS lane (
        user_id uuid NOT NULL,
        key text NOT NULL,
        deadline timestamptz,
        state bytea NOT NULL,
        PRIMARY KEY (user_id, key)
    ) WITH (fillfactor = 60); -- rewritten in place while a group gathers
    CREATE INDEX IF NOT EXISTS lane_due ON lane (deadline) WHERE deadline IS NOT NULL;
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
"""


class LaneKey(NamedTuple):
    user_id: UUID
    key: str


class Lanes:
    """The lanes as one process has them. Everything is done in a transaction that has called `lock` first."""

    def __init__(self) -> None:
        self._token: UUID | None = None
        self._known: OrderedDict[UUID, dict[str, Lane]] = OrderedDict()
        """Of each customer the lanes that were looked for: one is in the database or it has never been."""

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

    async def load(self, db: asyncpg.Connection, wanted: Collection[LaneKey]) -> dict[LaneKey, Lane]:
        """The lanes of these customers and keys; new ones where there were none."""
        lanes: dict[LaneKey, Lane] = {}
        unknown: list[LaneKey] = []
        for pair in wanted:
            lane = self._known.get(pair.user_id, _NOTHING).get(pair.key)
            if lane is None:
                unknown.append(pair)
                lane = Lane(key=pair.key)
            lanes[pair] = lane
        if unknown:
            rows = await db.fetch(
                "SELECT user_id, key, state FROM lane JOIN unnest($1::uuid[], $2::text[]) AS wanted (user_id, key)"
                " USING (user_id, key)",
                [pair.user_id for pair in unknown],
                [pair.key for pair in unknown],
            )
            for row in rows:
                lanes[LaneKey(row["user_id"], row["key"])] = _decoder.decode(row["state"])
        return lanes

    async def of_user(self, db: asyncpg.Connection, user: UUID) -> dict[LaneKey, Lane]:
        """A customer's lanes whose group waits."""
        rows = await db.fetch("SELECT key, state FROM lane WHERE user_id = $1 AND deadline IS NOT NULL", user)
        return {LaneKey(user, row["key"]): _decoder.decode(row["state"]) for row in rows}

    async def due(self, db: asyncpg.Connection, horizon: datetime, limit: int) -> dict[LaneKey, Lane]:
        """The lanes whose group's deadline is not after `horizon`, the oldest deadline first."""
        rows = await db.fetch(
            "SELECT user_id, key, state FROM lane WHERE deadline <= $1 ORDER BY deadline LIMIT $2", horizon, limit
        )
        return {LaneKey(UUID(int=r["user_id"].int), r["key"]): _decoder.decode(r["state"]) for r in rows}

    async def save(self, db: asyncpg.Connection, lanes: Mapping[LaneKey, Lane]) -> None:
        if not lanes:
            return
        await db.execute(
            "INSERT INTO lane (user_id, key, deadline, state)"
            " SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::bytea[])"
            " ON CONFLICT (user_id, key) DO UPDATE SET deadline = excluded.deadline, state = excluded.state",
            [pair.user_id for pair in lanes],
            [pair.key for pair in lanes],
            [lane.group.deadline if lane.group is not None and lane.group.waits else None for lane in lanes.values()],
            [_encoder.encode(lane) for lane in lanes.values()],
        )
        for pair, lane in lanes.items():
            if pair.user_id in self._known:
                self._known[pair.user_id][pair.key] = lane
                self._known.move_to_end(pair.user_id)
            else:
                self._known[pair.user_id] = {pair.key: lane}
        while len(self._known) > CUSTOMERS_MAX:
            self._known.popitem(last=False)

    def forget(self, user: UUID) -> None:
        self._known.pop(user, None)


_NOTHING: Mapping[str, Lane] = {}


async def held_back(database: "asyncpg.Pool[asyncpg.Record]", user: UUID) -> int:
    """How many facts are held back for a customer now."""
    rows = await database.fetch("SELECT state FROM lane WHERE user_id = $1 AND deadline IS NOT NULL", user)
    lanes: list[Lane] = [_decoder.decode(row["state"]) for row in rows]
    return sum(lane.group.count for lane in lanes if lane.group is not None and lane.group.held is not None)


async def load_sightings(
    db: asyncpg.Connection, facts: Iterable[tuple[UUID, Fact]]
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


async def save_sightings(db: asyncpg.Connection, sightings: Mapping[tuple[UUID, str], Sighting | None]) -> None:
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
