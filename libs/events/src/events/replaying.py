"""Replay: chosen events of the past, given to one consumer again.

A replay has a lane of its own: transactions that take the lock of the consumer's row as the live consumer does, but
move no position. So only one of them applies anything at a time, live events go on in between, and no other consumer
sees anything. What would make things happen outside goes into temporary tables that end with the transaction, unless
the operator wants the effects.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from events.consumer import Handler
from events.envelope import Metadata, RecordedEvent
from events.feed import EpochChanged
from events.operations import Progress, Refused, ReplayRequest
from events.parking import skipped_positions
from events.patterns import matching
from events.store import Appended, EventStore, StreamAppend

_SCAN_POSITIONS = 5_000
_CHUNK_EVENTS = 500
_SAMPLE_ROWS = 20
_NOT_READ_MODELS = ("consumed", "parked", "skipped", "operation", "generation")


class RecordingStore(EventStore):
    """The store for a dry run: it reads, and of appends it only takes note."""

    appended: "Counter[str]"
    known = 0
    """Appends that were made before: doing them again changes nothing."""

    async def append(
        self,
        parts: Sequence[StreamAppend],
        *,
        event_id: UUID,
        request_hash: bytes = b"",
        subject: UUID | None = None,
        metadata: Metadata = Metadata(),  # noqa: B008 - immutable
    ) -> Appended:
        """Notes the append and answers as if it had been made."""
        if (found := await self.find(event_id)) is not None:
            self.known += 1
            return Appended(event_id, True, {found.event.stream: found.event.version})
        if not hasattr(self, "appended"):
            self.appended = Counter()
        self.appended.update(f"{type(event).__name__}" for part in parts for event in part.events)
        return Appended(event_id, False, {part.stream: (part.expected or 0) + len(part.events) for part in parts})


class Replay:
    """One replay.

    Args:
        db: a connection to the service's database; its search path finds the live tables.
        other: another one, to see what is committed while `db` is in a transaction.
    """

    def __init__(
        self,
        *,
        consumer: str,
        handler: Handler,
        store: EventStore,
        db: asyncpg.Connection,
        other: asyncpg.Connection,
        progress: Progress,
    ) -> None:
        self._consumer = consumer
        self._handler = handler
        self._store = store
        self._db = db
        self._other = other
        self._progress = progress
        self._effects: dict[str, str] = getattr(handler, "effects", {})
        self._outside: Counter[str] = Counter()
        self._rows: dict[str, Counter[str]] = {}

    async def run(self, request: ReplayRequest, begun_at: int, bound: int | None) -> dict[str, Any]:
        """Replays, or (dry run) tells what that would do.

        Args:
            begun_at: where an earlier worker got to.
            bound: where that one meant to end; None where there was none. What has come since is none of this replay's.

        Raises:
            Refused: applying events twice is not safe for this handler, or it has never run.
            Cancelled: the operator wishes so; what is applied stays.
            Exception: an event cannot be applied. Those before it are.
        """
        types = matching(request.type_pattern, self._handler.types)
        if not types:
            raise Refused(f"{self._consumer} handles no type like {request.type_pattern!r}")
        if not (request.dry_run or request.anyway or getattr(self._handler, "repeatable", False)):
            raise Refused(
                "applying an event twice is not declared safe here (`repeatable`): rebuild it instead, or look at"
                " --dry-run and say --anyway"
            )
        up_to = await self._up_to(request)
        if request.dry_run:
            return await self._dry_run(request, types, up_to)
        if bound is not None:
            up_to = min(up_to, bound)
        position = max(request.after, begun_at)
        await self._progress.at(position, up_to, now=True)  # before anything is applied: the end is known from here on
        started_s = time.monotonic()
        done = 0
        while position < up_to:
            events, position_then = await self._select(request, types, position, up_to)
            for start in range(0, max(len(events), 1), _CHUNK_EVENTS):
                chunk = events[start : start + _CHUNK_EVENTS]
                whole = start + _CHUNK_EVENTS >= len(events)
                reached = position_then if whole else chunk[-1].position
                await self._apply(chunk, reached, with_effects=request.with_effects)
                done += len(chunk)
                await self._progress.at(reached, up_to)
                if request.rate:
                    ahead_s = done / request.rate - (time.monotonic() - started_s)
                    await self._sleep(ahead_s, reached, up_to)
            position = position_then
        return {
            "applied": self._progress.applied,
            "rows": {table: dict(counts) for table, counts in self._rows.items()},
            "suppressed_effects": dict(self._outside),
        }

    async def _sleep(self, ahead_s: float, position: int, up_to: int) -> None:
        """Keeps to the rate, and hears the operator meanwhile."""
        while ahead_s > 0:
            await asyncio.sleep(min(ahead_s, 0.5))
            ahead_s -= 0.5
            await self._progress.at(position, up_to)

    async def _up_to(self, request: ReplayRequest) -> int:
        """No further than the live consumer: what comes later it will get anyway."""
        row = await self._db.fetchrow("SELECT position, epoch FROM consumed WHERE consumer = $1", self._consumer)
        if row is None:
            raise Refused(f"{self._consumer} has never run")
        head = await self._store.head()
        if row["epoch"] is not None and UUID(int=row["epoch"].int) != head.epoch:
            raise EpochChanged(self._consumer, UUID(int=row["epoch"].int), head.epoch)
        position: int = row["position"]
        return min(position, request.up_to) if request.up_to is not None else position

    async def _select(
        self, request: ReplayRequest, types: Sequence[str], after: int, up_to: int
    ) -> tuple[list[RecordedEvent], int]:
        """The chosen events of the next range, and where it ends."""
        last = min(after + _SCAN_POSITIONS, up_to)
        since = datetime.fromisoformat(request.since) if request.since else None
        until = datetime.fromisoformat(request.until) if request.until else None
        events = [
            event
            for event in await self._store.read_types(after, last, list(types))
            if (request.stream is None or event.stream == request.stream)
            and (request.correlation_id is None or event.metadata.correlation_id == request.correlation_id)
            and (since is None or event.recorded_at >= since)
            and (until is None or event.recorded_at < until)
        ]
        return events, last

    async def _apply(self, events: list[RecordedEvent], reached: int, *, with_effects: bool) -> None:
        async with self._db.transaction():
            applied = await self._in_lane(events, with_effects=with_effects)
            # In the same transaction: a worker that comes after this one goes on exactly here.
            await self._db.execute(
                "UPDATE operation SET position = $2, applied = applied + $3 WHERE id = $1",
                self._progress.id,
                reached,
                applied,
            )
            if events and not with_effects:
                await self._count_effects()
            await self._count_rows()
        self._progress.applied += applied

    async def _in_lane(self, events: list[RecordedEvent], *, with_effects: bool) -> int:
        """Applies what is neither parked nor skipped, under the lock; gives how many that were."""
        await self._db.execute("SELECT FROM consumed WHERE consumer = $1 FOR UPDATE", self._consumer)
        if not events:
            return 0
        parked = await self._db.fetch("SELECT position FROM parked WHERE consumer = $1", self._consumer)
        out = {row["position"] for row in parked} | await skipped_positions(self._db, self._consumer)
        chosen = [event for event in events if event.position not in out]
        if not with_effects:
            for table in self._effects:
                # The temporary schema is searched first: the handler's rows go there, and with the transaction.
                await self._db.execute(
                    f'CREATE TEMPORARY TABLE "{table}" (LIKE public."{table}" INCLUDING ALL) ON COMMIT DROP'
                )
        if chosen:
            await self._handler.apply(self._db, chosen)
        return len(chosen)

    async def _count_effects(self) -> None:
        for table, what in self._effects.items():
            key = await _key(self._db, table)
            seen = " AND ".join(f'live."{column}" = mine."{column}"' for column in key) or "false"
            self._outside[what] += await self._db.fetchval(
                f'SELECT count(*) FROM pg_temp."{table}" mine'
                f' WHERE NOT EXISTS (SELECT FROM public."{table}" live WHERE {seen})'
            )

    async def _count_rows(self) -> None:
        """Rows that this transaction has touched, from the server's own counters."""
        rows = await self._db.fetch(
            "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_xact_user_tables"
            " WHERE schemaname = 'public' AND n_tup_ins + n_tup_upd + n_tup_del > 0 AND relname <> ALL ($1)",
            list(_NOT_READ_MODELS),
        )
        for row in rows:
            counts = self._rows.setdefault(row["relname"], Counter())
            counts.update(inserted=row["n_tup_ins"], updated=row["n_tup_upd"], deleted=row["n_tup_del"])

    # --- the dry run --------------------------------------------------------------------------------

    async def _dry_run(self, request: ReplayRequest, types: Sequence[str], up_to: int) -> dict[str, Any]:
        """Counts everything, applies the first `sample` events and takes them back."""
        position, count = request.after, 0
        by_type: Counter[str] = Counter()
        streams: set[str] = set()
        sample: list[RecordedEvent] = []
        while position < up_to:
            events, position = await self._select(request, types, position, up_to)
            count += len(events)
            by_type.update(event.type for event in events)
            if len(streams) < 100_000:
                streams.update(event.stream for event in events)
            sample += events[: request.sample - len(sample)]
            await self._progress.at(position, up_to)
        changes, taken_s = await self._try_out(sample)
        estimate_s = taken_s / len(sample) * count if sample else 0.0
        if request.rate:
            estimate_s = max(estimate_s, count / request.rate)
        store = self._store
        return {
            "dry_run": True,
            "events": count,
            "streams": len(streams),
            "by_type": dict(by_type),
            "sampled": len(sample),
            "estimate_s": round(estimate_s, 2),
            "tables": changes,
            "outside_effects": dict(self._outside),
            "appends": dict(getattr(store, "appended", {})),
            "appends_known": getattr(store, "known", 0),
            "repeatable": bool(getattr(self._handler, "repeatable", False)),
        }

    async def _try_out(self, events: list[RecordedEvent]) -> tuple[dict[str, Any], float]:
        """What applying these events changes, row by row. Nothing of it stays."""
        transaction = self._db.transaction()
        await transaction.start()
        try:
            await self._db.execute("SET LOCAL statement_timeout = '30s'")
            started_s = time.monotonic()
            await self._in_lane(events, with_effects=False)
            taken_s = time.monotonic() - started_s
            if events:
                await self._count_effects()
            await self._count_rows()
            changes = {table: await self._changes(table, counts) for table, counts in self._rows.items()}
        finally:
            await transaction.rollback()
        return {table: found for table, found in changes.items() if found["changed"] or found["deleted"]}, taken_s

    async def _changes(self, table: str, counts: "Counter[str]") -> dict[str, Any]:
        """Rows whose values differ from what is committed; one written with the same values is no change."""
        mine = await self._db.fetch(
            f'SELECT to_jsonb(t)::text AS row FROM public."{table}" t WHERE xmin = pg_current_xact_id()::xid'
        )
        key = await _key(self._db, table)
        after = {_key_of(row["row"], key): row["row"] for row in mine}
        before: dict[str, str] = {}
        if key and mine:
            names = ", ".join(f'"{column}"' for column in key)
            rows = await self._other.fetch(
                f'SELECT to_jsonb(t)::text AS row FROM public."{table}" t WHERE ({names}) IN'
                f' (SELECT {names} FROM jsonb_populate_recordset(NULL::public."{table}", $1::text::jsonb))',
                "[" + ",".join(row["row"] for row in mine) + "]",
            )
            before = {_key_of(row["row"], key): row["row"] for row in rows}
        differing = [(before.get(each), row) for each, row in after.items() if before.get(each) != row]
        return {
            "changed": len(differing),
            "new": sum(old is None for old, _ in differing),
            "written_alike": len(after) - len(differing),
            "deleted": counts["deleted"],
            "rows": [{"live": old, "new": row} for old, row in differing[:_SAMPLE_ROWS]],
        }


def _key_of(row: str, key: Sequence[str]) -> str:
    if not key:
        return row
    values = msgspec.json.decode(row)
    return msgspec.json.encode([values[column] for column in key]).decode()


async def _key(db: asyncpg.Connection, table: str) -> list[str]:
    rows = await db.fetch(
        "SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)"
        " JOIN pg_attribute a ON a.attnum = k.attnum"
        " WHERE i.indrelid = $1::regclass AND i.indisprimary AND a.attrelid = i.indrelid ORDER BY k.n",
        f'public."{table}"',
    )
    return [row["attname"] for row in rows]
