"""The proof that the log is what was written: walks it once, in chunks, with bounded memory.

Per chunk: positions are dense, every event is there, its hash follows from the one before, and its version follows
the one before on its stream. Of the streams only the most recently seen are remembered; for any other the store is
asked whether the event's predecessor stands before it and no namesake does. By induction over positions that is as
good as remembering all: a version cannot come twice, too early or too late.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from events import pg
from events.anchors import Anchor
from events.cli import chain

_REMEMBERED_STREAMS = 100_000
_ANCHORS_AT_ONCE = 10_000


class Finding(NamedTuple):
    """What is wrong, and where. Without a position: with the store as a whole."""

    position: int | None
    problem: str
    detail: str


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """How far the log is proven; also what a later run needs to go on."""

    epoch: str
    first: int
    """The first position of the walk. What is before it was taken as it stands."""
    position: int
    chain_hash: str
    at: datetime | None = None


class _RecentVersions:
    """The last version of recently seen streams: two halves, the older of which is forgotten in turn."""

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def get(self, stream: str) -> int | None:
        version = self._young.get(stream)
        return self._old.get(stream) if version is None else version

    def put(self, stream: str, version: int) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[stream] = version


class Walk:
    """One run over a range of the log.

    Args:
        reader: reads ahead while the chunk before is being checked.
        helper: a second session for what a chunk makes one ask.
    """

    def __init__(
        self, reader: pg.Session, helper: pg.Session, *, chunk: int, remembered_streams: int = _REMEMBERED_STREAMS
    ) -> None:
        self._reader = reader
        self._helper = helper
        self._chunk = chunk
        self._versions = _RecentVersions(remembered_streams)

    async def run(self, start: Proven, up_to: int, on_chunk: Callable[[Proven], None]) -> tuple[Proven, list[Finding]]:
        """Proves the positions after `start` up to `up_to`; ends at the first bad one with all that is wrong there."""
        proven = start
        position, state = start.position, bytes.fromhex(start.chain_hash)
        following = asyncio.create_task(self._read(position, up_to))
        try:
            while position < up_to:
                last = min(position + self._chunk, up_to)
                rows = await following
                if last < up_to:
                    following = asyncio.create_task(self._read(last, up_to))
                reached, state, findings = await self._check(rows, position, state, last)
                proven = msgspec.structs.replace(proven, position=reached, chain_hash=state.hex())
                if findings:
                    return proven, findings
                on_chunk(proven)
                position = last
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        return proven, []

    async def _read(self, after: int, up_to: int) -> list[asyncpg.Record]:
        return await _read(self._reader, after, min(after + self._chunk, up_to))

    async def _check(
        self, rows: list[asyncpg.Record], after: int, state: bytes, last: int
    ) -> tuple[int, bytes, list[Finding]]:
        """The last good position and its hash; and what is wrong with the next, if it is within the chunk."""
        findings: list[Finding] = []
        good = [state]
        """The hash after each good event of this chunk: order is settled after them."""
        first_seen: list[asyncpg.Record] = []
        for row in rows:
            position = after + len(good)
            if row["position"] != position:
                findings.append(_missing(position, row["position"] - 1))
                break
            if row["event_row"] is None:
                findings.append(Finding(position, "event missing", f"the log names event row {row['id']}: it is gone"))
                break
            previous = self._versions.get(row["stream"])
            if previous is None:
                first_seen.append(row)
            elif row["version"] != previous + 1:
                findings.append(_out_of_order(row, f"version {previous}"))
            self._versions.put(row["stream"], row["version"])
            computed = chain.step(good[-1], row)
            if computed != row["chain_hash"]:
                findings.insert(0, await self._explain(good[-1], row))
            if findings:
                break
            good.append(computed)
        if not findings and after + len(good) <= last:
            findings.append(_missing(after + len(good), last))
        disorder = await self._check_first_seen(first_seen)
        if disorder is not None and disorder.position is not None:
            bad = findings[0].position if findings else None
            if bad == disorder.position:
                findings.append(disorder)
            elif bad is None or disorder.position < bad:
                findings = [disorder]
                del good[disorder.position - after :]
        return after + len(good) - 1, good[-1], findings

    async def _check_first_seen(self, rows: list[asyncpg.Record]) -> Finding | None:
        """The first of the events whose predecessor is not before them, or whose version is there already."""
        if not rows:
            return None
        bad = await self._helper.fetchrow(
            "SELECT f.n, found.same, found.before FROM unnest($1::text[], $2::bigint[], $3::bigint[])"
            " WITH ORDINALITY AS f(stream, version, position, n) CROSS JOIN LATERAL (SELECT"
            "  (SELECT min(l.position) FROM store.events e JOIN store.log l ON l.id = e.id"
            "   WHERE e.stream = f.stream AND e.version = f.version) AS same,"
            "  (SELECT min(l.position) FROM store.events e JOIN store.log l ON l.id = e.id"
            "   WHERE e.stream = f.stream AND e.version = f.version - 1) AS before) AS found"
            " WHERE found.same < f.position OR f.version < 1"
            " OR (f.version > 1 AND coalesce(found.before, f.position) >= f.position)"
            " ORDER BY f.position LIMIT 1",
            [row["stream"] for row in rows],
            [row["version"] for row in rows],
            [row["position"] for row in rows],
        )
        if bad is None:
            return None
        row = rows[bad["n"] - 1]
        if bad["same"] is not None and bad["same"] < row["position"]:
            return _out_of_order(row, f"the same version at position {bad['same']}")
        if bad["before"] is None:
            return _out_of_order(row, f"no version {row['version'] - 1} at all")
        return _out_of_order(row, f"version {row['version'] - 1} only at position {bad['before']}")

    async def _explain(self, before: bytes, row: asyncpg.Record) -> Finding:
        """Why the hash does not fit: what the next event's hash and the index of event ids have to say."""
        position, stored, computed = row["position"], row["chain_hash"], chain.step(before, row)
        problem, detail = "event altered", f"the event or its hash was changed ({row['type']} on {row['stream']})"
        following = await _read(self._helper, position, position + 1)
        if following and following[0]["event_row"] is not None:
            if chain.step(computed, following[0]) == following[0]["chain_hash"]:
                problem, detail = "hash altered", "the stored hash was changed; the event itself is as it was written"
            elif chain.step(stored, following[0]) == following[0]["chain_hash"]:
                detail = f"the row of this event was changed after it was chained ({row['type']} on {row['stream']})"
            else:
                detail += "; the next one does not fit either"
        known = await self._helper.fetchrow(
            "SELECT stream, version FROM store.event_ids WHERE event_id = $1", row["event_id"]
        )
        if known is None:
            detail += f"; its event id {row['event_id']} was never appended"
        elif (known["stream"], known["version"]) != (row["stream"], row["version"]):
            detail += f"; it was appended as {known['stream']}@{known['version']}"
        return Finding(position, problem, f"{detail}; expected {computed.hex()}, stored {stored.hex()}")


async def start_of(store: pg.Session, epoch: str, first: int) -> Proven | Finding:
    """Where a walk from `first` begins: with the hash stored before it, or with the genesis."""
    if first == 1:
        return Proven(epoch=epoch, first=1, position=0, chain_hash=chain.GENESIS.hex())
    stored = await store.fetchval("SELECT chain_hash FROM store.log WHERE position = $1", first - 1)
    if stored is None:
        return _missing(first - 1, first - 1)
    return Proven(epoch=epoch, first=first, position=first - 1, chain_hash=stored.hex())


async def check_resumable(store: pg.Session, proven: Proven, head: int) -> Finding | None:
    """Whether the log still has what an earlier run has proven: that run's hash is an anchor outside the database."""
    if proven.position > head:
        detail = f"the log ends at {head}, and an earlier run has proven it up to {proven.position}: its end is gone"
        return Finding(head + 1, "end missing", detail)
    if proven.position == 0:
        return None
    stored = await store.fetchval("SELECT chain_hash FROM store.log WHERE position = $1", proven.position)
    if stored is None:
        return _missing(proven.position, proven.position)
    if stored.hex() != proven.chain_hash:
        detail = f"an earlier run has proven another hash here: {proven.chain_hash}, and now it is {stored.hex()}"
        return Finding(proven.position, "history replaced", f"{detail}; run without --resume to find what was changed")
    return None


async def check_anchors(store: pg.Session, anchors: Sequence[Anchor], epoch: str, head: int) -> Finding | None:
    """The first of the store's own anchors that the log no longer has. A log rewritten from end to end chains well."""
    own = sorted((anchor.position, anchor.chain_hash) for anchor in anchors if anchor.epoch == epoch)
    for first in range(0, len(own), _ANCHORS_AT_ONCE):
        some = own[first : first + _ANCHORS_AT_ONCE]
        rows = await store.fetch(
            "SELECT position, chain_hash FROM store.log WHERE position = ANY ($1)", [position for position, _ in some]
        )
        stored = {0: chain.GENESIS.hex(), **{row["position"]: row["chain_hash"].hex() for row in rows}}
        for position, anchored in some:
            if position > head:
                detail = f"the log ends at {head}, and an anchor was written at {position}: its end is gone"
                return Finding(head + 1, "end missing", detail)
            if stored.get(position) != anchored:
                detail = (
                    f"the anchor says {anchored}, the store {stored.get(position)}: it was rewritten here or before"
                )
                return Finding(position, "history replaced", detail)
    return None


async def check_whole(store: pg.Session) -> list[Finding]:
    """What no walk sees: an end cut off, and events that the log does not have. One snapshot, so writers may go on."""
    counts = await store.fetchrow(
        "SELECT (SELECT count(*) FROM store.events) AS events, (SELECT count(*) FROM store.log) AS logged,"
        " (SELECT count(*) FROM store.pending) AS pending, (SELECT count(*) FROM store.event_ids) AS ids,"
        " (SELECT coalesce(max(position), 0) FROM store.log) AS head,"
        " (SELECT coalesce(max(position), 0) FROM store.checkpoints) AS published"
    )
    assert counts is not None
    findings: list[Finding] = []
    if counts["published"] > counts["head"]:
        detail = f"the log ends at {counts['head']}, and the relay has published up to {counts['published']}"
        findings.append(Finding(counts["head"] + 1, "end missing", detail))
    if counts["events"] != counts["logged"] + counts["pending"]:
        lost = await store.fetchrow(
            "SELECT e.id, e.stream, e.version FROM store.events e"
            " WHERE NOT EXISTS (SELECT FROM store.log l WHERE l.id = e.id)"
            " AND NOT EXISTS (SELECT FROM store.pending p WHERE p.id = e.id) ORDER BY e.id LIMIT 1"
        )
        named = f", the first is {lost['stream']}@{lost['version']} (row {lost['id']})" if lost else ""
        missing = counts["events"] - counts["logged"] - counts["pending"]
        findings.append(Finding(None, "not in the log", f"{missing} events have no position and await none{named}"))
    if counts["events"] != counts["ids"]:
        detail = f"{counts['events']} events, and {counts['ids']} known event ids: appends may repeat or be refused"
        findings.append(Finding(None, "event ids differ", detail))
    return findings


async def _read(store: pg.Session, after: int, up_to: int) -> list[asyncpg.Record]:
    """Rows of the log after a position, with their events where those exist."""
    return await store.fetch(
        f"SELECT {chain.COLUMNS} FROM store.log l LEFT JOIN store.events e ON e.id = l.id"
        " WHERE l.position > $1 AND l.position <= $2 ORDER BY l.position",
        after,
        up_to,
    )


def _missing(first: int, last: int) -> Finding:
    what = f"position {first} is" if first >= last else f"positions {first} to {last} are"
    return Finding(first, "position missing", f"{what} not in the log")


def _out_of_order(row: asyncpg.Record, before: str) -> Finding:
    detail = f"{row['stream']} has version {row['version']} here, and before it {before}"
    return Finding(row["position"], "version out of order", detail)
