"""The index of a replica over its life: what breaks it, and that it comes back by itself with nothing lost."""

import asyncio
import contextlib
import random
import resource
import secrets
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from chassis.consistency import HEADER, consistency_token
from events.contracts import identity
from events.envelope import new_id
from search import replica as replica_module
from search.index_queries import IndexQueries
from search.replica import Replica
from search_serving import serving
from search_story import customer, posted, search
from structlog.testing import capture_logs

pytestmark = pytest.mark.integration


async def until(condition: Any, timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def totals(client: httpx.AsyncClient, world: Any, users: list[UUID]) -> list[int]:
    return [(await search(client, world, user, q="acme"))["total"] for user in users]


def indexed(replica: Replica) -> bool:
    return replica.index is not None


async def test_a_restart_goes_on_where_the_last_commit_was(world: Any, tmp_path: Path) -> None:
    user, savings, _ = await customer(world, lambda account: posted(account, 1))
    async with serving(world, tmp_path) as (replica, client):
        await world.deliver()
        position = replica.position
        assert position == world.position
    await world.append(f"ledger-{user}", posted(savings, 2))
    await world.deliver()
    with capture_logs() as logs:
        async with serving(world, tmp_path) as (replica, client):
            await world.deliver()
            assert await totals(client, world, [user]) == [2]
            assert replica.position == world.position > position
    assert not [line for line in logs if line["event"] == "search.index_rebuild"]


async def test_whoever_waits_for_a_write_finds_it_in_an_index_that_has_not_looked_yet(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "LOOK_INTERVAL_S", 60.0)
    user, savings, _ = await customer(world, lambda account: posted(account, 1))
    async with serving(world, tmp_path) as (_, client):
        await world.deliver()
        event_id = await world.append(f"ledger-{user}", posted(savings, 2))
        await type(world).deliver(world)  # without waiting for the index, which nobody tells of it
        headers = world.bearer(user) | {HEADER: consistency_token(event_id)}
        assert (await client.get("/api/search?q=acme", headers=headers)).json()["total"] == 2


async def test_two_replicas_have_an_index_each(world: Any, tmp_path: Path) -> None:
    user, _, _ = await customer(world, lambda account: posted(account, 1))
    async with serving(world, tmp_path) as (one, client), serving(world, tmp_path) as (other, second):
        await until(lambda: indexed(one) and indexed(other))
        await world.deliver()
        assert await totals(client, world, [user]) == await totals(second, world, [user]) == [1]
        assert one.index is not None
        assert other.index is not None
        assert one.index.path.parent != other.index.path.parent


async def test_a_deleted_folder_comes_back_by_itself(world: Any, tmp_path: Path) -> None:
    user, savings, _ = await customer(world, lambda account: posted(account, 1))
    async with serving(world, tmp_path / "indexes") as (replica, client):
        await world.deliver()
        shutil.rmtree(tmp_path / "indexes")
        event_id = await world.append(f"ledger-{user}", posted(savings, 2))
        await type(world).deliver(world)  # without waiting for the index
        # Whoever waits for that write gets it, from wherever it is.
        headers = world.bearer(user) | {HEADER: consistency_token(event_id)}
        assert (await client.get("/api/search?q=acme", headers=headers)).json()["total"] == 2
        await until(lambda: indexed(replica) and replica.position == world.position)
        assert await totals(client, world, [user]) == [2]
        assert replica.index is not None
        assert replica.index.is_there
        await world.append(f"ledger-{user}", posted(savings, 3))
        await world.deliver()
        assert await totals(client, world, [user]) == [3]


async def test_a_corrupted_index_is_built_anew(world: Any, tmp_path: Path) -> None:
    user, _, _ = await customer(world, *[lambda account, n=n: posted(account, n) for n in range(1, 30)])
    async with serving(world, tmp_path) as (replica, client):
        await world.deliver()
        assert replica.index is not None
        path = replica.index.path
    postings = max(path.glob("*.idx"), key=lambda file: file.stat().st_size)
    data = bytearray(postings.read_bytes())
    data[len(data) // 2] ^= 0xFF
    postings.write_bytes(data)
    async with serving(world, tmp_path) as (replica, client):
        await world.deliver()
        assert await totals(client, world, [user]) == [29]
        assert replica.index is not None
        assert replica.index.path != path

        await until(lambda: not path.exists())


@pytest.mark.parametrize("failing", ["search", "panic"])
async def test_an_index_that_fails_under_a_query_is_answered_for_and_checked(
    world: Any, tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "_CHECK_INTERVAL_S", 0.0)
    user, _, _ = await customer(world, lambda account: posted(account, 1))
    async with serving(world, tmp_path) as (replica, client):
        await world.deliver()
        healthy = IndexQueries.steps

        class PanicException(BaseException):
            pass

        def broken(*_: Any) -> Any:
            raise ValueError("a term is not where it should be") if failing == "search" else PanicException("out")

        monkeypatch.setattr(IndexQueries, "steps", broken)
        assert await totals(client, world, [user]) == [1]
        monkeypatch.setattr(IndexQueries, "steps", healthy)
        await until(lambda: indexed(replica))
        assert await totals(client, world, [user]) == [1]


async def test_who_was_erased_leaves_the_files_too_also_after_a_restart(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Digits at random, of which what compresses the files may shorten the last.
    word_of_one, word_of_other = (secrets.token_hex(12) for _ in range(2))

    def holds(word: str) -> bool:
        return any(word[:16].encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())

    goes, _, _ = await customer(world, lambda account: posted(account, 1, word_of_one))
    stays, _, _ = await customer(world, lambda account: posted(account, 1, word_of_other))
    monkeypatch.setattr(replica_module, "PURGE_AFTER_S_PER_DOCUMENT", 3600.0)
    monkeypatch.setattr(replica_module, "COMMIT_INTERVAL_S", 0.0)
    async with serving(world, tmp_path) as (replica, client):
        await world.deliver()
        await world.append(f"user-{goes}", identity.UserErased(user_id=goes, erased_at=datetime.now(UTC)))
        await world.deliver()
        await until(lambda: replica.index is not None and replica.index.committed == world.position)
        assert holds(word_of_one), "a deletion alone takes nothing out of a file"
    monkeypatch.setattr(replica_module, "PURGE_AFTER_S_PER_DOCUMENT", 0.1)
    async with serving(world, tmp_path) as (replica, client):
        await until(lambda: indexed(replica) and replica.index is not None and not replica.index.holds_erased)
        await until(lambda: len(list(tmp_path.glob("*/generation-*"))) == 1)
        assert not holds(word_of_one)
        assert (await search(client, world, stays, q=word_of_other))["total"] == 1
        assert holds(word_of_other)


async def test_another_read_model_gets_another_index(world: Any, tmp_path: Path) -> None:
    """A read model that was made anew may say something else for the same positions."""
    user, _, _ = await customer(world, lambda account: posted(account, 1), lambda account: posted(account, 2))
    async with serving(world, tmp_path) as (replica, client):
        await world.deliver()
        assert await totals(client, world, [user]) == [2]
        async with world.db.acquire() as db, db.transaction():
            await db.execute("CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE search_document")
            await db.execute("TRUNCATE search_document")
            await db.execute("INSERT INTO search_document SELECT * FROM kept WHERE paise IS DISTINCT FROM 1")
        replica.wake()
        await until(lambda: indexed(replica) and replica.index.documents == 3)  # type: ignore[union-attr]
        assert await totals(client, world, [user]) == [1]


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; where that may not be mounted, the place where no file may grow beyond 64 KiB."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True).returncode:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
        try:
            yield path
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.chaos
async def test_a_full_disk_loses_nothing_and_mends_itself(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "COMMIT_INTERVAL_S", 0.2)
    user, savings, _ = await customer(world, lambda account: posted(account, 1))
    with small_disk(tmp_path / "disk") as disk:
        mounted = disk.is_mount()
        async with serving(world, disk) as (replica, client):
            await world.deliver()
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while mounted:
                    file.write(b"x" * 65536)
                    file.flush()
            for amount in range(2, 40):
                # Long memos: without a file system of its own, it is the size of a file that is limited.
                memo = None if mounted else " ".join(str(new_id()) for _ in range(300))
                await world.append(f"ledger-{user}", posted(savings, amount, memo=memo))
            await type(world).deliver(world)
            tries = 0
            ensure = replica._ensure

            async def counted() -> None:
                nonlocal tries
                tries += 1
                await ensure()

            monkeypatch.setattr(replica, "_ensure", counted)
            replica.wake()
            for number in range(1, 4):  # it tries again and again, and what answers meanwhile knows everything
                await until(lambda number=number: tries >= number)
                assert replica.index is None or replica.index.committed < world.position
                assert (await search(client, world, user, q="acme"))["total"] == 39
            if mounted:
                filler.unlink()
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await until(lambda: indexed(replica) and replica.index.committed == world.position, 30)  # type: ignore[union-attr]
            assert (await search(client, world, user, q="acme"))["total"] == 39


KEEPER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    import asyncpg
    from search import replica
    from search.engine import SearchIndex
    replica.TAKE_IN_INTERVAL_S = replica.COMMIT_INTERVAL_S = 0.0
    commit = SearchIndex.commit
    def told(self, position):
        print(position, flush=True)
        commit(self, position)
    SearchIndex.commit = told
    async def main():
        database = await asyncpg.create_pool(sys.argv[1], min_size=1, max_size=1)
        keeper = replica.Replica(database, Path(sys.argv[2]), epoch=lambda: asyncio.sleep(0, sys.argv[3]))
        async def wake():
            while True:
                keeper.wake()
                await asyncio.sleep(0.005)
        await asyncio.gather(keeper.run(), wake())
    asyncio.run(main())
""")


@pytest.mark.chaos
async def test_killed_during_commits_it_goes_on_from_the_last_one_by_itself(
    world: Any, cell: Any, tmp_path: Path
) -> None:
    dice = random.Random(11)
    user, savings, _ = await customer(world)
    epoch = str((await world.store.head()).epoch)
    command = [sys.executable, "-c", KEEPER, cell.database_url("search"), str(tmp_path), epoch]
    written = 0
    for _ in range(4):
        keeper = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert keeper.stdout is not None
        for _ in range(dice.randrange(4, 10)):
            # Each is committed by the keeper, or is under way when it dies.
            written += 1
            await world.append(f"ledger-{user}", posted(savings, written))
            await world.deliver()
            async with asyncio.timeout(20):
                while line := await keeper.stdout.readline():
                    if line.strip().isdigit() and int(line) >= world.position:
                        break
        await asyncio.sleep(dice.uniform(0, 0.01))
        keeper.kill()
        await keeper.wait()
    with capture_logs() as logs:
        async with serving(world, tmp_path) as (replica, client):
            await world.deliver()
            assert replica.position == world.position
            found = await search(client, world, user, q="acme", limit=100)
            assert sorted(item["amount"] for item in found["items"]) == sorted(
                f"{amount / 100:.2f}" for amount in range(1, written + 1)
            )
    # From where it was: nothing had to be built anew.
    assert not [line for line in logs if line["event"] == "search.index_rebuild"]
