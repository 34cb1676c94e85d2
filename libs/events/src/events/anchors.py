"""Chain heads, written outside the database: whoever can rewrite the whole log cannot rewrite these.

The leading relay appends a line to a file when it begins to lead, and then whenever the log has grown, at most every
`EVERY_S` seconds. `sangam events verify --anchors FILE` holds the log against them. Copy the file off the machine, to
storage that only takes additions, as often as a rewritten history would have to be noticed.
"""

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from events import pg

log = structlog.get_logger(__name__)

EVERY_S = 60.0
_AGAIN_S = 5.0
"""After a file that could not be written."""


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """The log as it was at one moment."""

    epoch: str
    position: int
    chain_hash: str
    """Hexadecimal, of the event at `position` and all before it."""
    at: datetime


class UnreadableAnchors(ValueError):
    """A file of anchors with a line that is none."""


async def anchor_forever(store: pg.Session, path: Path, every_s: float = EVERY_S) -> None:
    """Writes an anchor now and whenever the log has grown, until cancelled. A full disk stops no relay.

    Raises:
        OSError, asyncpg.PostgresError: the store is away.
    """
    anchored = -1
    while True:
        row = await store.fetchrow("SELECT * FROM store.chain_head()")
        assert row is not None
        if row["position"] > anchored:
            anchor = Anchor(
                epoch=str(row["epoch"]),
                position=row["position"],
                chain_hash=row["chain_hash"].hex(),
                at=datetime.now(UTC),
            )
            try:
                await asyncio.to_thread(_append, path, msgspec.json.encode(anchor) + b"\n")
            except OSError as error:
                log.error("anchors.not_written", error=repr(error))
                await asyncio.sleep(min(_AGAIN_S, every_s))
                continue
            anchored = row["position"]
        await asyncio.sleep(every_s)


def read(path: Path) -> list[Anchor]:
    """The anchors of a file, in the order they were written.

    A last line without an end, which a crash leaves, is not one yet.

    Raises:
        UnreadableAnchors: a line is not an anchor.
        OSError: the file cannot be read.
    """
    anchors = []
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            anchors.append(msgspec.json.decode(line, type=Anchor))
        except msgspec.DecodeError as error:
            raise UnreadableAnchors(f"{path}, line {number}: {error}") from error
    return anchors


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # A crash has cut a line off. Nothing is taken away from the file but what never was an anchor.
            os.ftruncate(descriptor, os.pread(descriptor, size, 0).rfind(b"\n") + 1)
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
