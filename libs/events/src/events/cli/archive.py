"""`sangam events archive` and `check-archive`: a part of the log as a file that proves itself without the database."""

import base64
import gzip
import hashlib
import json
import os
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast
from uuid import UUID

import asyncpg
import msgspec
import typer
from rich.progress import Progress

from events import pg
from events.cli import chain, output
from events.cli.connection import FOUND, EnvOption, JsonOption, StoreOption, find_servers, opened, run

FORMAT = "sangam-log-archive/1"
_CHUNK = 2_000


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive holds; beside it as `<archive>.manifest.json`."""

    format: str
    epoch: str
    first: int
    last: int
    hash_before: str
    """The chain's hash before `first`: that of the archive before this one, or the genesis."""
    hash_after: str
    sha256: str
    """Of the archive file."""
    made_at: datetime


class BadArchive(Exception):
    """An archive that is not what its manifest says."""


def archive(
    to: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the file and its manifest go.")],
    first: Annotated[int, typer.Option("--from", metavar="P", min=1, help="First position.")] = 1,
    last: Annotated[int | None, typer.Option("--to", metavar="P", min=1, help="Last position. Default: head.")] = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a part of the log to a compressed file, proving its hash chain on the way, with a manifest beside it.

    The log itself is left as it is: rebuilds read it from its first position. A partition whose events are archived may
    move to slower storage (docs/runbook.md, "Archive a part of the log").

    Example: sangam events archive /backup --from 1 --to 10000000
    """
    servers = find_servers(store, env)
    if not to.is_dir():
        raise typer.BadParameter(f"{to} is not a directory")

    async def work() -> int:
        async with opened(servers.store) as session:
            row = await session.fetchrow(
                "SELECT (SELECT epoch FROM store.store) AS epoch, coalesce(max(position), 0) AS head FROM store.log"
            )
            assert row is not None
            up_to = row["head"] if last is None else last
            if not first <= up_to <= row["head"]:
                raise typer.BadParameter(f"the log has positions 1 to {row['head']}, not {first} to {up_to}")
            path = to / f"sangam-log-{first:012}-{up_to:012}.jsonl.gz"
            try:
                manifest = await _write(session, path, str(row["epoch"]), first, up_to, quiet=as_json)
            except BadArchive as error:
                output.complain(str(error))
                return FOUND
        _tell(path, manifest, as_json, "archived")
        return 0

    run(servers, work)


def check_archive(
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The .jsonl.gz file.")],
    as_json: JsonOption = False,
) -> None:
    """Prove an archive from its file and manifest alone: no database is needed. Exit code 1: it is not what it was.

    Example: sangam events check-archive /backup/sangam-log-000000000001-000010000000.jsonl.gz
    """
    try:
        manifest = check(path)
    except (BadArchive, OSError, EOFError) as error:
        output.complain(f"{path}: {error}")
        raise typer.Exit(FOUND) from None
    _tell(path, manifest, as_json, "proven")


def check(path: Path) -> Manifest:
    """Recomputes the chain of an archive.

    Raises:
        BadArchive: the file is not the one the manifest describes, or its events do not chain.
        OSError: a file is not there or cannot be read.
    """
    try:
        manifest = msgspec.json.decode(_manifest_path(path).read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise BadArchive(f"the manifest is not readable: {error}") from error
    if manifest.format != FORMAT:
        raise BadArchive(f"its format is {manifest.format!r}, and this program reads {FORMAT!r}")
    with path.open("rb") as raw:
        if hashlib.file_digest(raw, "sha256").hexdigest() != manifest.sha256:
            raise BadArchive("the file is not the one that was archived: its SHA-256 differs")
    state, position = bytes.fromhex(manifest.hash_before), manifest.first - 1
    with gzip.open(path, "rb") as lines:
        for line in lines:
            row = _row_of(json.loads(line))
            if row["position"] != position + 1:
                raise BadArchive(f"position {position + 1} is missing")
            position, state = row["position"], chain.step(state, cast(asyncpg.Record, row))
    if (position, state.hex()) != (manifest.last, manifest.hash_after):
        raise BadArchive(f"it ends at position {position} with hash {state.hex()}, not as its manifest says")
    return manifest


async def _write(session: pg.Session, path: Path, epoch: str, first: int, last: int, *, quiet: bool) -> Manifest:
    """Writes file and manifest, whole or not at all."""
    before = chain.GENESIS
    if first > 1:
        before = await session.fetchval("SELECT chain_hash FROM store.log WHERE position = $1", first - 1)
    state, position = before, first - 1
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    err = output.stderr()
    try:
        with beside.open("wb") as raw, Progress(console=err, disable=quiet or not err.is_terminal) as progress:
            bar = progress.add_task("archiving", total=last - first + 1)
            # No name and no time in the header: the same events make the same file.
            with gzip.GzipFile(filename="", fileobj=cast(BinaryIO, raw), mode="wb", mtime=0) as packed:
                async for row in _rows(session, first, last):
                    if row["position"] != position + 1 or row["event_row"] is None:
                        raise BadArchive(f"position {position + 1} is not in the log: sangam events verify says more")
                    position, state = row["position"], chain.step(state, row)
                    if state != row["chain_hash"]:
                        raise BadArchive(f"position {position} does not chain: sangam events verify says more")
                    packed.write(_line_of(row))
                    progress.advance(bar)
            raw.flush()
            os.fsync(raw.fileno())
        if position != last:
            raise BadArchive(f"the log ends at {position}, before {last}")
        with beside.open("rb") as raw:
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
        manifest = Manifest(
            format=FORMAT,
            epoch=epoch,
            first=first,
            last=last,
            hash_before=before.hex(),
            hash_after=state.hex(),
            sha256=digest,
            made_at=datetime.now(UTC),
        )
        beside.replace(path)
        _manifest_path(path).write_bytes(msgspec.json.encode(manifest) + b"\n")
    finally:
        beside.unlink(missing_ok=True)
    return manifest


async def _rows(session: pg.Session, first: int, last: int) -> AsyncIterator[asyncpg.Record]:
    for after in range(first - 1, last, _CHUNK):
        for row in await session.fetch(
            f"SELECT {chain.COLUMNS} FROM store.log l LEFT JOIN store.events e ON e.id = l.id"
            " WHERE l.position > $1 AND l.position <= $2 ORDER BY l.position",
            after,
            min(after + _CHUNK, last),
        ):
            yield row


_EXACT = ("data", "metadata", "recorded_at")
"""Bytes, in Base64: the time too, as the eight bytes that PostgreSQL sends."""
_PLAIN = ("position", "id", "stream", "version", "type", "schema_version")


def _line_of(row: asyncpg.Record) -> bytes:
    line = {name: row[name] for name in _PLAIN}
    line["event_id"] = str(row["event_id"])
    line["subject"] = str(row["subject"]) if row["subject"] else None
    line |= {name: base64.b64encode(row[name]).decode() for name in _EXACT}
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _row_of(line: dict[str, Any]) -> dict[str, Any]:
    try:
        return {
            **{name: line[name] for name in _PLAIN},
            "event_id": UUID(line["event_id"]),
            "subject": UUID(line["subject"]) if line["subject"] else None,
            **{name: base64.b64decode(line[name], validate=True) for name in _EXACT},
        }
    except (KeyError, ValueError, TypeError, struct.error) as error:
        raise BadArchive(f"a line is not an event: {error!r}") from error


def _manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def _tell(path: Path, manifest: Manifest, as_json: bool, what: str) -> None:
    if as_json:
        output.print_json({"file": str(path), **msgspec.to_builtins(manifest)})
        return
    output.stdout().print(
        f"{what} positions {manifest.first:,} to {manifest.last:,} in {path}\nchain hash {manifest.hash_after} at"
        f" position {manifest.last}, epoch {manifest.epoch}",
        soft_wrap=True,
    )
