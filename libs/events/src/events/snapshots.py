"""Snapshots: the state of a long stream as of some version, so that a cold start does not fold years of it.

A snapshot is a cache in the store, never a truth: it is read when a process meets a stream for the first time, and the
events after its version are folded onto it. It is left by whoever had to fold many events. Its fingerprint covers the
code that folds: another release reads none of the old ones, so a changed `evolve` needs no migration.
"""

import asyncio
import hashlib
from functools import cache
from importlib import resources
from types import ModuleType
from typing import Generic, NamedTuple, TypeVar

import asyncpg
import msgspec
import structlog

from events import contracts
from events.store import EventStore

log = structlog.get_logger(__name__)

S = TypeVar("S")

EVENTS_WORTH_ONE = 500
"""Folding more events than this leaves a snapshot: some milliseconds of a cold start."""


class Snapshot(NamedTuple, Generic[S]):
    """A state, and the version of the stream that it is the fold of."""

    state: S
    version: int


class Snapshots(Generic[S]):
    """The snapshots of one category of streams.

    Args:
        state: the type of the state, which msgspec can encode and decode.
        code: the package whose functions fold it.
    """

    def __init__(self, store: EventStore, state: type[S], code: ModuleType) -> None:
        self._store = store
        self._decoder = msgspec.json.Decoder(state)
        self._fingerprint = fingerprint(code)
        self._saving: set[asyncio.Task[None]] = set()

    async def latest(self, stream: str) -> Snapshot[S] | None:
        """The newest snapshot that this code has left of the stream."""
        row = await self._store.read_snapshot(stream, self._fingerprint)
        if row is None:
            return None
        try:
            return Snapshot(self._decoder.decode(row.state), row.version)
        except msgspec.DecodeError as error:
            log.warning("snapshot.unreadable", error=repr(error))
            return None

    def leave(self, stream: str, state: S, version: int, folded: int) -> None:
        """Saves the state behind the caller's back, if folding it was work. One that cannot be saved is no loss."""
        if folded >= EVENTS_WORTH_ONE:
            task = asyncio.create_task(self._save(stream, msgspec.json.encode(state), version))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)

    async def _save(self, stream: str, state: bytes, version: int) -> None:
        try:
            await self._store.save_snapshot(stream, version, self._fingerprint, state)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("snapshot.not_saved", error=repr(error))


@cache
def fingerprint(code: ModuleType) -> bytes:
    """Of the source of a package's own modules and of all contracts."""
    digest = hashlib.sha256()
    for package in (code, contracts):
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.is_file() and file.name.endswith(".py"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.digest()
