"""This process's own index: made from the read model, kept up with it, and mended without a hand.

Each replica has a folder of its own (a lock on it sees to that) with generations of the index in it, of which the file
`current` names the one in use. Whatever is wrong with it, the answer is the same: what is whole is used from its own
position on, what is not is built anew beside it and swapped in. Meanwhile PostgreSQL answers (`fallback.py`).
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from uuid import UUID

import asyncpg
import structlog
from events.outage import is_outage
from prometheus_client import Counter, Gauge

from search.documents import Document
from search.engine import IndexDamaged, Origin, SearchIndex
from search.projections.document import document_in

log = structlog.get_logger(__name__)

TAKE_IN_INTERVAL_S = 0.05
"""Between one look into the read model and the next. What arrives meanwhile is taken in together."""

COMMIT_INTERVAL_S = 2.0
"""What has been taken in can be found at once; on the disk it is after this time, or when it is much. After a crash
it is taken in again (docs/decisions/0090)."""

LOOK_INTERVAL_S = 1.0
"""Without a word from the log, look whether the read model has moved, and whether the folder is still there."""

BEHIND_S_MAX = 2.0
"""An index that is behind the read model for longer does not answer any more."""

PURGE_AFTER_S_PER_DOCUMENT = 0.0025
"""What was erased is out of every answer at once, and out of the files once the index is built anew. That takes some
0.05 ms a document: so long after the erasure it takes no more than a fiftieth of the time, whoever else is erased."""

_CHECK_INTERVAL_S = 10.0
_ROWS_PER_READ = 2_000
_SLOTS_MAX = 64
_RETRY_S_FIRST, _RETRY_S_MAX = 0.2, 10.0

_position = Gauge("search_index_position", "Position of the log that this replica's index contains")
_documents = Gauge("search_index_documents", "Documents in this replica's index")
_rebuilds = Counter("search_index_rebuilds_total", "Indexes built anew, by reason", ["reason"])
_commits = Counter("search_index_commits_total", "Commits of this replica's index")

T = TypeVar("T")


class _Source(NamedTuple):
    """Where the read model is."""

    position: int
    table: str


class Replica:
    """The index of one process.

    Args:
        directory: holds the folders of all replicas on this machine.
        epoch: tells the epoch of the log.
        caught_up: waits until the read model contains a position, for a moment at most.
    """

    def __init__(
        self,
        database: asyncpg.Pool,
        directory: Path,
        *,
        epoch: Callable[[], Awaitable[object]],
        caught_up: Callable[[int], Awaitable[object]] | None = None,
    ) -> None:
        self._database = database
        self._directory = directory
        self._epoch = epoch
        self._caught_up = caught_up
        self._slot: Path | None = None
        self._lock: IO[str] | None = None
        self._index: SearchIndex | None = None
        self._announced = 0
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._advanced = asyncio.Event()
        self._suspected = False
        self._checked_at_s = 0.0
        self._kept_up = False
        self._behind_since_s: float | None = None
        self._committed_at_s = 0.0
        self._purge_at_s: float | None = None
        # One thread writes, so that commits never wait for queries; two read, for two cores.
        self._writing = ThreadPoolExecutor(1, "search-write")
        self._reading = ThreadPoolExecutor(2, "search-read")

    # --- For answers ----------------------------------------------------------------------------------

    @property
    def index(self) -> SearchIndex | None:
        """What answers now; None while PostgreSQL has to."""
        if self._behind_since_s is not None and time.monotonic() - self._behind_since_s > BEHIND_S_MAX:
            return None
        return self._index

    @property
    def position(self) -> int:
        """What the index contains; 0 without one."""
        return self._index.position if self._index else 0

    async def ask(self, question: Callable[[SearchIndex], T]) -> T | None:
        """The answer of the index, found outside of the event loop; None if PostgreSQL has to be asked."""
        index = self.index
        if index is None:
            return None
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, question, index)
        except IndexDamaged as error:
            # Perhaps it is the question: the files tell. They are not read again for each such question.
            log.warning("search.index_failed", error=str(error))
            if time.monotonic() - self._checked_at_s > _CHECK_INTERVAL_S:
                self._suspected = True
                self.wake()
            return None

    async def contains(self, position: int, timeout_s: float) -> bool:
        """Whether the index contains the position, waiting for it."""
        self._announced = max(self._announced, position)
        self.wake()
        self._hurry.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.position < position:
                    await self._advanced.wait()
        return self.position >= position

    def wake(self, position: int = 0) -> None:
        """There may be something new, up to that position."""
        self._announced = max(self._announced, position)
        self._wake.set()

    # --- The life of the index ------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps the index until cancelled. Neither a broken disk nor a database that is away ends it."""
        retry_s = _RETRY_S_FIRST
        try:
            while True:
                self._kept_up = False
                try:
                    await self._ensure()
                    await self._keep_up()
                except IndexDamaged as error:
                    log.error("search.index_damaged", error=str(error))
                    await self._let_go()
                except asyncpg.UndefinedTableError:
                    # The service is being born, or its read model is just being swapped.
                    log.info("search.read_model_not_there")
                except Exception as error:
                    if not is_outage(error):
                        raise
                    # Without the database there is nothing newer to answer with: the index goes on answering.
                    log.warning("paused", who="search.index", error=repr(error))
                    self._behind_since_s = None
                if self._kept_up:
                    retry_s = _RETRY_S_FIRST
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_S_MAX)
        finally:
            await self.close()

    async def close(self) -> None:
        """Lets go of the folder; another process may take it."""
        await self._let_go()
        self._reading.shutdown(wait=False, cancel_futures=True)
        self._writing.shutdown(wait=False)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _ensure(self) -> None:
        """An index that is whole and of this read model: the one in the folder, or a new one."""
        if self._slot is None or not _holds(self._lock, self._slot):
            if self._lock is not None:
                self._lock.close()
            self._slot, self._lock = await self._write(_take_slot, self._directory)
        source = await self._source()
        origin = await self._origin(source)
        index = self._index
        if index is None:
            self._checked_at_s = time.monotonic()
            try:
                index = await self._write(_open_current, self._slot)
            except IndexDamaged as error:
                log.warning("search.index_unusable", error=str(error))
                await self._build("unusable", origin)
                return
        # A read model that has lost its last commits in a crash will make the same ones again; one that begins
        # anew has a table of its own.
        if index.origin != origin:
            self._use(index)  # not quite fresh is better than slow
            await self._build("other_read_model", origin)
            return
        if index is not self._index:
            try:
                # PostgreSQL answers until then, which knows everything.
                await self._take_in_beside(index)
            except BaseException:
                with contextlib.suppress(IndexDamaged):
                    await self._write(index.close)
                raise
        self._use(index)

    async def _keep_up(self) -> None:
        """Takes in what the read model has more than the index, again and again."""
        while True:
            assert self._index is not None
            if self._suspected:
                self._suspected = False
                await self._let_go()  # opening it checks every file
                return
            source = await self._source()
            if source.table != self._index.origin.table:
                return  # of another epoch nothing comes into the same table: its consumer stops
            if source.position > self._index.position:
                await self._take_in(self._index, source.position)
            self._behind_since_s = None
            is_due = time.monotonic() - self._committed_at_s >= COMMIT_INTERVAL_S
            if self._index.position > self._index.committed and is_due:
                await self._make(self._index.commit, self._index, self._index.position)
            self._kept_up |= self._index.position == self._index.committed
            if not await self._read(lambda index=self._index: index.is_there):
                raise IndexDamaged("its folder is gone")
            await self._purge_in_time(self._index)
            await self._wait()

    async def _purge_in_time(self, index: SearchIndex) -> None:
        """Rids the files of who was erased. Whether somebody was is in the files, too: a restart does not forget it."""
        if not index.holds_erased:
            self._purge_at_s = None
        elif self._purge_at_s is None:
            self._purge_at_s = time.monotonic() + PURGE_AFTER_S_PER_DOCUMENT * index.documents
        elif time.monotonic() >= self._purge_at_s:
            self._purge_at_s = None
            await self._build("erasure", index.origin)

    async def _wait(self) -> None:
        """Until there is something new, but not before the interval is over, unless somebody waits for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKE_IN_INTERVAL_S):
                await self._hurry.wait()
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_INTERVAL_S):
                await self._wake.wait()
        self._wake.clear()
        if self._caught_up is not None and self._announced > self.position:
            await self._caught_up(self._announced)

    async def _take_in(self, index: SearchIndex, up_to: int) -> None:
        """Everything of the read model above the index's position, up to that one.

        A row that is written again meanwhile has a higher position then, and comes with the next call.
        """
        self._behind_since_s = self._behind_since_s or time.monotonic()
        since = index.position
        removed = await self._database.fetch(
            "SELECT user_id, type, id FROM search_removed WHERE position > $1 AND position <= $2", since, up_to
        )
        await self._write(_remove, index, removed)
        last: tuple[Any, ...] = (since, UUID(int=2**128 - 1), "", "")
        while True:
            rows = await self._database.fetch(
                "SELECT user_id, type, id, position, state, document FROM search_document"
                " WHERE (position, user_id, type, id) > ($1, $2, $3, $4) AND position <= $5"
                f" ORDER BY position, user_id, type, id LIMIT {_ROWS_PER_READ}",
                *last,
                up_to,
            )
            await self._write(_put, index.put, rows)
            if len(rows) < _ROWS_PER_READ:
                break
            last = tuple(rows[-1][name] for name in ("position", "user_id", "type", "id"))
        await self._make(index.show, index, up_to)

    async def _build(self, reason: str, origin: Origin) -> None:
        """A new index beside the one in use, if there is one; then it takes its place."""
        assert self._slot is not None
        log.warning("search.index_rebuild", reason=reason)
        _rebuilds.labels(reason).inc()
        started_s = time.monotonic()
        position = (await self._source()).position
        building = await self._write(_create_beside, self._slot, origin)
        try:
            last: tuple[Any, ...] = (UUID(int=0), "", "")
            while True:
                rows = await self._database.fetch(
                    "SELECT user_id, type, id, state, document FROM search_document"
                    f" WHERE (user_id, type, id) > ($1, $2, $3) ORDER BY user_id, type, id LIMIT {_ROWS_PER_READ}",
                    *last,
                )
                if not rows:
                    break
                await self._write(_put, building.add, rows)
                last = tuple(rows[-1][name] for name in ("user_id", "type", "id"))
            # What was written meanwhile comes with the catching up: it is above this position.
            await self._write(building.commit, position)
            await self._take_in_beside(building)
            await self._write(building.commit, building.position)
            await self._write(_make_current, self._slot, building.path)
        except BaseException:
            with contextlib.suppress(IndexDamaged):
                await self._write(building.close)
            # Or a full disk would be filled again with each attempt.
            await self._write(_delete, building.path)
            raise
        before = self._index
        self._use(building)
        if before is not None:
            with contextlib.suppress(IndexDamaged):
                await self._write(before.close)
        await self._write(_delete_others, self._slot, building.path)
        log.info("search.index_built", documents=building.documents, seconds=round(time.monotonic() - started_s, 2))

    async def _take_in_beside(self, building: SearchIndex) -> None:
        source = await self._source()
        if source.position > building.position:
            await self._take_in(building, source.position)

    async def _make(self, lasting_or_shown: Callable[[int], None], index: SearchIndex, position: int) -> None:
        before = index.committed
        await self._write(lasting_or_shown, position)
        if index.committed != before:
            _commits.inc()
            self._committed_at_s = time.monotonic()
        if index is self._index:
            self._announce()

    def _use(self, index: SearchIndex) -> None:
        self._index = index
        self._announce()

    def _announce(self) -> None:
        assert self._index is not None
        _position.set(self._index.position)
        _documents.set(self._index.documents)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()

    async def _let_go(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            with contextlib.suppress(IndexDamaged):
                await self._write(index.close)

    async def _source(self) -> _Source:
        row = await self._database.fetchrow(
            "SELECT coalesce((SELECT position FROM document_applied), 0) AS position,"
            " pg_relation_filenode('search_document')::text AS file"
        )
        assert row is not None
        return _Source(row["position"], row["file"])

    async def _origin(self, source: _Source) -> Origin:
        return Origin(epoch=str(await self._epoch()), table=source.table)

    async def _write(self, action: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, action, *arguments)

    async def _read(self, action: Callable[..., T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, action)


# --- In the writing thread ----------------------------------------------------------------------------


def _put(put: Callable[[UUID, Document], None], rows: Iterable[asyncpg.Record]) -> None:
    for row in rows:
        put(UUID(int=row["user_id"].int), document_in(row))


def _remove(index: SearchIndex, rows: Sequence[asyncpg.Record]) -> None:
    for row in rows:
        user_id = UUID(int=row["user_id"].int)
        if row["type"] is None:
            index.erase(user_id)
        else:
            index.remove(user_id, row["type"], row["id"])


def _take_slot(directory: Path) -> tuple[Path, IO[str]]:
    """The first folder that no other process has, locked."""
    for number in range(_SLOTS_MAX):
        slot = directory / f"replica-{number}"
        try:
            slot.mkdir(parents=True, exist_ok=True)
            lock = _lock_of(slot).open("a")
        except OSError as error:
            raise IndexDamaged(f"the index folder cannot be used: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return slot, lock
    raise IndexDamaged(f"{_SLOTS_MAX} replicas have an index here already")


def _open_current(slot: Path) -> SearchIndex:
    try:
        name = (slot / "current").read_text().strip()
    except OSError as error:
        raise IndexDamaged("there is no index") from error
    _delete_others(slot, slot / name)
    return SearchIndex.open(slot / name)


def _create_beside(slot: Path, origin: Origin) -> SearchIndex:
    numbers = [int(path.name.partition("-")[2]) for path in slot.glob("generation-*")]
    # The one in use stays until the new one takes its place; what else is there is of builds that failed.
    return SearchIndex.create(slot / f"generation-{max(numbers, default=0) + 1}", origin)


def _make_current(slot: Path, path: Path) -> None:
    try:
        beside = slot / "current.new"
        with beside.open("w") as file:
            file.write(path.name)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(slot / "current")
    except OSError as error:
        raise IndexDamaged(f"the index folder cannot be written: {error}") from error


def _delete_others(slot: Path, path: Path) -> None:
    for other in slot.glob("generation-*"):
        if other != path:
            _delete(other)


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _holds(lock: IO[str] | None, slot: Path) -> bool:
    """Whether the lock is still the one of the slot: somebody may have deleted the folder with all that was in it."""
    try:
        return lock is not None and os.path.samestat(os.fstat(lock.fileno()), os.stat(_lock_of(slot)))
    except OSError:
        return False


def _lock_of(slot: Path) -> Path:
    return slot.with_name(f"{slot.name}.lock")
