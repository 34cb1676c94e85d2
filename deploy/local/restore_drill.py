"""Backup, disaster, point-in-time restore: `python deploy/local/restore_drill.py`, a drill on a server of its own.

A PostgreSQL that archives its write-ahead log takes appends; a base backup is made while they go on; somebody rewrites
history; the server is killed and its disk deleted. What comes back, from the base backup and the archived log up to
the moment before the mistake, must have the hash chain it had then, byte for byte. Prints how long each part took and
what was lost: everything after the chosen moment, nothing before it.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg
import packages
import ports
from events import schema, sequencer
from events.contracts import ledger
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from postgres import SUPERUSER, PostgresServer, url

EVENT_STORE = "event_store"
RESTORE_POINT = "before the mistake"
_MOMENT = datetime(2026, 2, 12, 9, tzinfo=UTC)


class Outcome(NamedTuple):
    """What the drill measured."""

    events_backed_up: int
    """In the base backup's log when it began."""
    events_at_the_point: int
    events_lost: int
    """Appended after the moment that was restored to."""
    backup_s: float
    restore_s: float
    """From the decision to restore until the restored server answers (RTO of the database alone)."""
    rto_s: float
    """From the decision to restore until the chain is verified and the first append is accepted."""
    archived_s: float
    """From the end of a segment of the write-ahead log until the archive has it: RPO beyond `archive_timeout`."""
    chain_hash: str
    """At the moment restored to: before the disaster and after the restore."""


async def drill(directory: Path, say: Callable[[str], None], events: int = 2_000) -> Outcome:
    """Runs the drill in `directory`.

    Raises:
        RuntimeError: what was restored is not what was there.
    """
    archive, base = directory / "archive", directory / "base"
    server = _server(directory / "first")
    server.prepare()
    _own(server, archive)
    _configure(
        server,
        archive_mode="on",
        archive_command=f"test ! -f {archive}/%f && cp %p {archive}/%f",
        max_wal_senders="2",
    )
    with suppress(FileNotFoundError):
        shutil.rmtree(base)
    async with _running(server):
        admin_url = await _install(server)
        await _append(admin_url, events)
        backed_up, _ = await _head(admin_url)
        say(f"{backed_up:,} events, then a base backup while {events:,} more are appended")
        started_s = time.monotonic()
        await asyncio.gather(_append(admin_url, events), _base_backup(server, base))
        backup_s = time.monotonic() - started_s
        await _append(admin_url, events)
        connection = await asyncpg.connect(admin_url)
        await connection.execute("SELECT pg_create_restore_point($1)", RESTORE_POINT)
        at_the_point, chain_hash = await _head(admin_url)
        say(f"restore point at position {at_the_point:,}, chain hash {chain_hash[:16]}…")
        await _append(admin_url, events // 2)
        await connection.execute("UPDATE store.events SET data = '{}' WHERE id % 7 = 0")
        lost = (await _head(admin_url))[0] - at_the_point
        say("history was rewritten, and nobody can say how much of it: restore to the moment before")
        switched_s = time.monotonic()
        await _archived(connection, await connection.fetchval("SELECT pg_walfile_name(pg_switch_wal())"))
        archived_s = time.monotonic() - switched_s
        await connection.close()
    shutil.rmtree(server.data)  # the disk is gone

    started_s = time.monotonic()
    restored = _server(directory / "second")
    shutil.copytree(base, restored.data)
    (restored.data / "recovery.signal").touch()
    _configure(
        restored,
        restore_command=f"cp {archive}/%f %p",
        recovery_target_name=RESTORE_POINT,
        recovery_target_action="promote",
    )
    _own(restored, restored.data)
    async with _running(restored):
        admin_url = url(SUPERUSER, restored.password, "127.0.0.1", restored.port, EVENT_STORE)
        await _promoted(admin_url)
        restore_s = time.monotonic() - started_s
        position, restored_hash = await _head(admin_url)
        if (position, restored_hash) != (at_the_point, chain_hash):
            raise RuntimeError(f"restored {position} with {restored_hash}, not {at_the_point} with {chain_hash}")
        verified = _verify(admin_url)
        say(f"restored in {restore_s:.1f} s; {verified}")
        # Positions that consumers may have seen beyond the point will be given to other events: another epoch.
        connection = await asyncpg.connect(admin_url)
        await connection.execute("UPDATE store.store SET epoch = gen_random_uuid()")
        await connection.close()
        await _append(admin_url, 10)
        rto_s = time.monotonic() - started_s
        if (await _head(admin_url))[0] != at_the_point + 10:
            raise RuntimeError("the restored store does not go on where it ended")
        say("a new epoch, and appends go on; consumers stop with EpochChanged (docs/runbook.md, A restored store)")
    return Outcome(backed_up, at_the_point, lost, backup_s, restore_s, rto_s, archived_s, chain_hash)


# --- the server -------------------------------------------------------------------------------------


class _Server(PostgresServer):
    """A server that remembers the password of its superuser."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        port = ports.assign(directory / "ports.json", {"postgres": None})["postgres"]
        self.password = _password
        super().__init__(directory, port, self.password, durable=True, disposable=True)
        _own(self, directory)


_password = secrets.token_urlsafe(16)


def _server(directory: Path) -> _Server:
    return _Server(directory)


def _own(server: PostgresServer, path: Path) -> None:
    path.mkdir(exist_ok=True, mode=0o700)
    if os.geteuid() == 0:
        for entry in (path, *path.rglob("*")):
            shutil.chown(entry, SUPERUSER, SUPERUSER)


def _configure(server: PostgresServer, **settings: str) -> None:
    """Adds settings to those of the local stack; a later line wins."""
    if not (configuration := server.data / "postgresql.auto.conf").exists():
        raise RuntimeError(f"{server.data} is no data directory")
    port = {"port": str(server.port), "unix_socket_directories": str(server.data)}
    with configuration.open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in {**port, **settings}.items())


@asynccontextmanager
async def _running(server: PostgresServer) -> AsyncIterator[None]:
    program = server.program()
    log = (server.data.parent / "postgres.log").open("ab")
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        program.argv, env=program.environment, cwd=program.directory, stdout=log, stderr=log, start_new_session=True
    )
    try:
        async with asyncio.timeout(60):
            while why := await asyncio.to_thread(server.why_not_ready):
                if process.poll() is not None:
                    raise RuntimeError(f"PostgreSQL ended: {why}; see {log.name}")
                await asyncio.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the disaster, and the end of the drill
        process.wait()
        log.close()


async def _base_backup(server: _Server, target: Path) -> None:
    program = str(server.binary("pg_basebackup"))
    arguments = ["-D", str(target), "-h", "127.0.0.1", "-p", str(server.port), "-U", SUPERUSER, "-c", "fast"]
    process = await asyncio.create_subprocess_exec(
        program, *arguments, "-X", "none", "--no-sync", env={**os.environ, "PGPASSWORD": server.password}
    )
    if await process.wait():
        raise RuntimeError("pg_basebackup failed")


async def _archived(connection: asyncpg.Connection, segment: str) -> None:
    """Waits until the write-ahead log up to that segment is in the archive."""
    await _until(
        lambda: connection.fetchval("SELECT last_archived_wal >= $1 FROM pg_stat_archiver", segment), "archiving"
    )


async def _promoted(admin_url: str) -> None:
    async def is_primary() -> bool:
        try:
            connection = await asyncpg.connect(admin_url)
        except (OSError, asyncpg.PostgresError):
            return False
        try:
            return not await connection.fetchval("SELECT pg_is_in_recovery()")
        finally:
            await connection.close()

    await _until(is_primary, "the end of recovery")


async def _until(condition: Callable[[], Awaitable[bool | None]], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not await condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited in vain for {what}")
        await asyncio.sleep(0.1)


# --- the event store --------------------------------------------------------------------------------


async def _install(server: _Server) -> str:
    connection = await asyncpg.connect(server.admin_url)
    await connection.execute(f"CREATE DATABASE {EVENT_STORE}")
    await connection.close()
    admin_url = url(SUPERUSER, server.password, "127.0.0.1", server.port, EVENT_STORE)
    await schema.install(admin_url, writers={SUPERUSER: ("ledger",)}, relay_role=SUPERUSER)
    return admin_url


async def _append(admin_url: str, count: int) -> None:
    """Appends through the one door and sequences, as services and the relay do."""
    store = await EventStore.connect(admin_url)
    for start in range(0, count, 100):
        stream = f"ledger-{new_id()}"
        facts = tuple(
            ledger.AccountClosed(account_id=new_id(), platform="bfc", occurred_at=_MOMENT)
            for _ in range(min(100, count - start))
        )
        await store.append([StreamAppend(stream, facts)], event_id=new_id())
    await store.close()
    connection = await asyncpg.connect(admin_url)
    leader = await sequencer.Sequencer.take_over(connection)
    assert leader is not None
    while await leader.sequence():
        pass
    await connection.close()


async def _head(admin_url: str) -> tuple[int, str]:
    connection = await asyncpg.connect(admin_url)
    row = await connection.fetchrow("SELECT position, chain_hash FROM store.log ORDER BY position DESC LIMIT 1")
    await connection.close()
    assert row is not None
    return row["position"], row["chain_hash"].hex()


def _verify(admin_url: str) -> str:
    """`sangam events verify` on the restored store."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("sangam")), "events", "verify"],
        env={**os.environ, "EVENT_STORE_URL": admin_url},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the restored chain does not verify: {done.stdout}{done.stderr}")
    return done.stdout.splitlines()[0]


def main() -> None:
    """Runs the drill in a folder that goes away, and prints what it measured."""
    packages.require(["postgres"], print)
    with tempfile.TemporaryDirectory(prefix="sangam-restore-") as directory:
        Path(directory).chmod(0o711)  # the user postgres passes through
        outcome = asyncio.run(drill(Path(directory), print))
    print(
        f"backup {outcome.backup_s:.1f} s · restore {outcome.restore_s:.1f} s · {outcome.events_at_the_point:,} events"
        f" back with the same chain hash · {outcome.events_lost:,} appended after the chosen moment are gone"
    )
    print(
        f"RPO: what was committed and not archived, at most archive_timeout (60 s in production) and the copying of a"
        f" segment, {outcome.archived_s:.1f} s here; 0 with a synchronous standby"
    )
    print(
        f"RTO: {outcome.rto_s:.1f} s from the decision to the first append accepted, the whole chain verified;"
        " read models serve on meanwhile and are rebuilt only where they are beyond the restored end"
    )


if __name__ == "__main__":
    main()
