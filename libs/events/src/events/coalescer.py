"""Merges concurrent appends into one transaction: one flusher, flushing whenever it is idle.

There is no timer: a lone request goes out at once, and what arrives while a transaction is under way
goes out together with the next one. Calls keep their order. When very many wait, they go out in several
transactions: while the server works on one, this process decides what goes out with the next.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import structlog

from events import contracts, pg
from events.envelope import Metadata, derived_id, encode_metadata

log = structlog.get_logger(__name__)

MAX_EVENTS_PER_TRANSACTION = 256
"""A larger one costs each event no less, and leaves server and process to wait for each other."""

_WORTH_A_TRANSACTION = MAX_EVENTS_PER_TRANSACTION // 2
"""So many requests wait for nobody: who has just been answered decides again while the server works on them."""

_WAKE_SPACING_S = 0.002
"""One wake-up serves all appends of two milliseconds: each costs a third of what a lone append takes."""

# Arrays of what has a short text go as text: the driver looks at each element of an array for an array within it, which
# costs more than all else that it does for a batch.
_APPEND = (
    "SELECT verdicts, versions FROM store.append($1, $2::text::bigint[], $3::text::uuid[], $4, $5::text::int[],"
    " $6::text::int[], $7::text::bigint[], $8::text::bigint[], $9::text::int[], $10::text::int[],"
    " $11::text::bigint[], $12::text::uuid[], $13::text::text[], $14::text::int[], $15::text::uuid[], $16, $17,"
    " $18::text::boolean[])"
)

_APPEND_ONE = "SELECT store.append_one($1, $2, $3, $4, $5, $6, $7, $8, $9)"


class StreamAppend(msgspec.Struct, frozen=True, gc=False):
    """The events one request wants on one stream.

    `expected` is the stream's version that the decision was made on: None accepts any,
    0 means that the stream must not exist yet.
    """

    stream: str
    events: tuple[contracts.Event, ...]
    expected: int | None = None


class Row(NamedTuple):
    """An event as the append function takes it."""

    event_id: UUID
    type: str
    schema_version: int
    subject: UUID | None
    data: bytes
    metadata: bytes


class Part(msgspec.Struct, frozen=True, gc=False):
    stream: str
    expected: int | None
    rows: tuple[Row, ...]


class Request:
    """An append under way.

    Args:
        follows: the request that this one was decided on, before its outcome was known. Where that one is not
            appended, this one conflicts.
    """

    __slots__ = ("_watchers", "event_id", "follows", "outcome", "parts", "request_hash", "result", "size")

    def __init__(
        self,
        event_id: UUID,
        request_hash: bytes,
        parts: tuple[Part, ...],
        result: "asyncio.Future[Verdict]",
        follows: "Request | None" = None,
    ) -> None:
        self.event_id = event_id
        self.request_hash = request_hash
        self.parts = parts
        self.result = result
        """For the caller alone, who may go away and cancel it: what becomes of the request is in `outcome`."""
        self.follows = follows
        self.outcome: Verdict | Exception | None = None
        self.size = len(parts[0].rows) if len(parts) == 1 else sum([len(part.rows) for part in parts])
        self._watchers: list[Callable[[], None]] = []

    def settle(self, outcome: "Verdict | Exception") -> None:
        """Gives the outcome."""
        self.follows = None  # a chain of all requests there ever were would never be freed
        if self.outcome is not None:
            return
        self.outcome = outcome
        watchers, self._watchers = self._watchers, []  # they know this request: a cycle, which would outlive it
        for watcher in watchers:
            watcher()
        if self.result.done():
            return
        if isinstance(outcome, Exception):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)

    def watch(self, settled: Callable[[], None]) -> None:
        """Calls `settled` once there is an outcome, before the caller learns of it."""
        self._watchers.append(settled)

    async def settled(self) -> None:
        """Waits for the outcome, whether or not the caller still does."""
        if self.outcome is None:
            given = asyncio.Event()
            self.watch(given.set)
            await given.wait()

    @property
    def appended(self) -> bool:
        """Whether it is known to be appended."""
        return type(self.outcome) is Verdict and self.outcome.outcome == "appended"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """What became of one request: `appended`, `duplicate`, `reused` or `conflict`.

    `versions` has one entry per part: after the part (appended), of the request's first event
    (duplicate, first part only), or the stream's actual version (conflict).
    """

    outcome: str
    versions: tuple[int | None, ...]


def encode_request(
    parts: tuple[StreamAppend, ...],
    event_id: UUID,
    request_hash: bytes,
    subject: UUID | None,
    metadata: Metadata,
) -> tuple[Part, ...]:
    """The rows of a request. Its first event gets `event_id`, the n-th `derived_id(event_id, n)`.

    Raises:
        ValueError: there is no event.
    """
    encoded_metadata = encode_metadata(metadata)
    rows_of_parts = []
    n = 0
    for part in parts:
        rows = []
        for event in part.events:
            contract = contracts.contract_of(event)
            rows.append(
                Row(
                    derived_id(event_id, n) if n else event_id,
                    contract.type,
                    contract.schema_version,
                    subject,
                    contracts.encode(event),
                    encoded_metadata,
                )
            )
            n += 1
        rows_of_parts.append(Part(part.stream, part.expected, tuple(rows)))
    if not n:
        raise ValueError("an append needs at least one event")
    return tuple(rows_of_parts)


class Coalescer:
    """The only way events are written. One per process and event store."""

    def __init__(self, url: str) -> None:
        self._append = pg.Session(url, application_name="append", statement_timeout_ms=10_000)
        # The wake-up is a hint: a lost one costs a poll interval, so it need not reach the disk.
        self._notify = pg.Session(url, application_name="wake", settings={"synchronous_commit": "off"})
        self._loop = asyncio.get_running_loop()  # asking for it each time asks the kernel for the process's id
        self._waiting: deque[Request] = deque()
        self._arrived = asyncio.Event()
        self._committed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = [
            asyncio.create_task(self._flush_forever(), name="append-flusher"),
            asyncio.create_task(self._wake_forever(), name="append-wake"),
        ]

    def submit(
        self, event_id: UUID, request_hash: bytes, parts: tuple[Part, ...], follows: Request | None = None
    ) -> Request:
        """Begins an append. Its `result` is there once the verdict is durable.

        The result's exception is an OSError, asyncpg.PostgresError or asyncpg.InterfaceError where the outcome is
        unknown; submitting the same `event_id` again is always safe.
        """
        result: asyncio.Future[Verdict] = self._loop.create_future()
        if follows is not None and follows.appended:
            follows = None
        request = Request(event_id, request_hash, parts, result, follows)
        if not self._waiting:
            self._idle.clear()
            self._arrived.set()
        self._waiting.append(request)
        return request

    async def open(self) -> None:
        """Connects now, so that the first append need not.

        Raises:
            OSError, TimeoutError, asyncpg.PostgresError: the server is not to be had.
        """
        await self._append.open()
        await self._notify.open()

    async def close(self) -> None:
        """Finishes what was submitted, then closes the connections."""
        await self._idle.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._append.close()
        await self._notify.close()

    async def _flush_forever(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._waiting) < _WORTH_A_TRANSACTION:
                # Let every task that is ready to append now join this transaction.
                await asyncio.sleep(0)
            batch = self._next_batch()
            await self._flush(self._sound(batch))
            if not self._waiting:
                self._idle.set()

    def _next_batch(self) -> list[Request]:
        batch: list[Request] = []
        events = 0
        while self._waiting and (not batch or events + self._waiting[0].size <= MAX_EVENTS_PER_TRANSACTION):
            request = self._waiting.popleft()
            events += request.size
            batch.append(request)
        if not self._waiting:
            self._arrived.clear()
        return batch

    def _sound(self, batch: list[Request]) -> list[Request]:
        """The batch without those that were decided on what has not been appended: they conflict."""
        doomed: set[Request] = set()
        for request in batch:
            before = request.follows
            if before is None:
                continue
            if before.appended:
                request.follows = None
            elif before in doomed or before.outcome is not None:
                doomed.add(request)
                request.settle(Verdict("conflict", tuple(None for _ in request.parts)))
        return [request for request in batch if request not in doomed]

    async def _flush(self, batch: list[Request]) -> None:
        if not batch:
            return
        try:
            verdicts = await self._write(batch)
        except BaseException as error:
            if pg.is_outage(error) or len(batch) == 1 or not isinstance(error, Exception):
                for request in batch:
                    request.settle(error if isinstance(error, Exception) else ConnectionError("shutdown"))
                if not isinstance(error, Exception):
                    raise
                return
            # One request of the batch is at fault: find it, and let its neighbours through.
            log.warning("append.one_by_one", requests=len(batch), error=repr(error))
            for request in batch:
                await self._flush(self._sound([request]))
            return
        for request, verdict in zip(batch, verdicts, strict=True):
            request.settle(verdict)
        self._committed.set()

    async def _write(self, batch: list[Request]) -> list[Verdict]:
        lone = len(batch) == 1 and batch[0].size == len(batch[0].parts) == 1
        if lone and (verdict := await self._write_one(batch[0])):
            return [verdict]
        growth: dict[str, int] = {}
        for request in batch:
            for part in request.parts:
                growth[part.stream] = growth.get(part.stream, 0) + len(part.rows)
        # By code points is by UTF-8 bytes, as the "C" collation sorts: every transaction locks in this order.
        streams = sorted(growth)
        index = {stream: n for n, stream in enumerate(streams, 1)}
        before = dict.fromkeys(streams, 0)

        part_request: list[int] = []
        part_stream: list[int] = []
        part_expected: list[int | None] = []
        part_offset: list[int] = []
        part_count: list[int] = []
        event_part: list[int] = []
        event_offset: list[int] = []
        rows: list[Row] = []
        for number, request in enumerate(batch, 1):
            for part in request.parts:
                stream, part_rows = part.stream, part.rows
                offset, count = before[stream], len(part_rows)
                part_request.append(number)
                part_stream.append(index[stream])
                part_expected.append(part.expected)
                part_offset.append(offset)
                part_count.append(count)
                if count == 1:
                    event_part.append(len(part_request))
                    event_offset.append(offset + 1)
                else:
                    event_part.extend([len(part_request)] * count)
                    event_offset.extend(range(offset + 1, offset + count + 1))
                rows += part_rows
                before[stream] = offset + count

        event_ids, types, schema_versions, subjects, data, metadata = zip(*rows, strict=True)
        record = await self._append.fetchrow(
            _APPEND,
            streams,
            _numbers([growth[stream] for stream in streams]),
            _array([request.event_id.hex for request in batch]),
            [request.request_hash for request in batch],
            _numbers(part_request),
            _numbers(part_stream),
            _numbers(part_expected),
            _numbers(part_offset),
            _numbers(part_count),
            _numbers(event_part),
            _numbers(event_offset),
            _array([event_id.hex for event_id in event_ids]),
            _array(types),
            _numbers(schema_versions),
            _array(["NULL" if subject is None else subject.hex for subject in subjects]),
            data,
            metadata,
            _array(["f" if each.follows is None else "t" for each in batch])
            if any(each.follows for each in batch)
            else None,
        )
        assert record is not None
        verdicts, versions = record["verdicts"], record["versions"]
        if len(versions) == len(batch):
            return [Verdict(outcome, (version,)) for outcome, version in zip(verdicts, versions, strict=True)]
        following = iter(versions)
        return [
            Verdict(outcome, tuple(itertools.islice(following, len(request.parts))))
            for request, outcome in zip(batch, verdicts, strict=True)
        ]

    async def _write_one(self, request: Request) -> Verdict | None:
        """The short way for a lone event; None where it takes the long one to tell why not."""
        (part,) = request.parts
        row = part.rows[0]
        version = await self._append.fetchval(
            _APPEND_ONE, part.stream, part.expected, row.event_id, request.request_hash, *row[1:]
        )
        return None if version is None else Verdict("appended", (version,))

    async def _wake_forever(self) -> None:
        """Tells the sequencer after the commit: a NOTIFY inside it would serialise all commits."""
        while True:
            await self._committed.wait()
            self._committed.clear()
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await self._notify.execute(f"NOTIFY {pg.WAKE_CHANNEL}")
            await asyncio.sleep(_WAKE_SPACING_S)


def _array(elements: Iterable[str]) -> str:
    """The text of a PostgreSQL array whose elements need no quotes: ids, and types, which are dotted names."""
    return f"{{{','.join(elements)}}}"


def _numbers(elements: Sequence[int | None]) -> str:
    """The text of a PostgreSQL array."""
    return f"{{{str(list(elements))[1:-1]}}}".replace("None", "NULL")
