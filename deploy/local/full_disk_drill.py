"""A full disk under load: `python deploy/local/full_disk_drill.py`, a drill on a stack of its own. Linux, as root.

PostgreSQL and RabbitMQ have their data on a small file system, which is filled while customers move money: first until
the broker refuses messages (`rabbitmq.DISK_FREE_LIMIT`), then, when that is over, at once to the last byte, which ends
the broker's write-ahead log. Each request must be answered 201, or 503 with a code; when there is room again everything
must go on without a hand. At the end each request, sent once more with its key, must find its transfer made exactly
once, every consumer must have applied everything, with nothing parked and each read model as the log rebuilds it.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import aiohttp
from rabbitmq import DISK_FREE_LIMIT
from rolling import Person, make_person
from stack import Stack

SIZE_MB = 900
LOW_S = 8.0
FULL_S = 20.0
_PAUSE_S = 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=40)
_REBUILT = ("identity", "ledger-transfer", "wealth", "notifier", "search", "sync-gateway")
_MADE = 201


class Answer(NamedTuple):
    """Of one request."""

    status: int
    code: str | None


class Work:
    """A customer who moves a rupee ten times a second, whatever is answered."""

    def __init__(self, stack: Stack, http: aiohttp.ClientSession, person: Person) -> None:
        self._stack, self._http, self._person = stack, http, person
        self.keys: list[str] = []
        self.answers: Counter[Answer] = Counter()
        """Since it was cleared."""

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            RuntimeError: an answer that must not be, in an exception group.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                self.keys.append(uuid4().hex)
                group.create_task(self._count(self.keys[-1]))
                await asyncio.sleep(_PAUSE_S)

    async def _count(self, key: str) -> None:
        self.answers[await self.transfer(key)] += 1

    async def transfer(self, key: str) -> Answer:
        """Asks for the rupee with that key."""
        person = self._person
        body = {"from_account_id": person.savings, "to_account_id": person.wallet, "amount": "1.00", "currency": "INR"}
        headers = {**person.headers, "Idempotency-Key": key}
        async with self._http.post(f"{self._stack.origin}/api/transfers", json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
            if response.status not in (200, _MADE, 503, 504) or (response.status >= 500 and not answer.get("code")):
                raise RuntimeError(f"answered {response.status} {answer}")
            return Answer(_MADE if response.status == 200 else response.status, answer.get("code"))

    async def balance(self) -> str:
        """Of the wallet that gets the rupees."""
        url = f"{self._stack.origin}/api/accounts/{self._person.wallet}/balance"
        async with self._http.get(url, headers=self._person.headers) as response:
            return str((await response.json())["balance"])

    def told(self) -> str:
        return ", ".join(f"{count} × {status} {code or ''}".strip() for (status, code), count in self.answers.items())


async def drill(stack: Stack, disk: Path) -> int:
    """Runs it; how many transfers were made.

    Raises:
        RuntimeError: an answer was another, money was lost or moved twice, or something did not come back.
    """
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
        work = Work(stack, http, await make_person(stack, http, 1))
        working = asyncio.create_task(work.run())
        await asyncio.sleep(3)
        print(f"room on the disk: {work.told()}")
        work.answers.clear()
        restarts = _restarts(stack)
        with filled(disk, leaving=DISK_FREE_LIMIT // 2):
            await asyncio.sleep(LOW_S)
            print(f"{DISK_FREE_LIMIT // 2_000_000} MB left for {LOW_S:.0f} s: {work.told()}")
        await _goes_on(stack, work)
        if _restarts(stack) != restarts:
            raise RuntimeError(f"a disk that was not full yet ended {_restarts(stack)}")
        work.answers.clear()
        with filled(disk, leaving=0):
            await asyncio.sleep(FULL_S)
            print(f"the disk full for {FULL_S:.0f} s: {work.told()}")
            if not any(answer.status == 503 for answer in work.answers):
                raise RuntimeError("the full disk was not noticed")
        await _goes_on(stack, work)
        working.cancel()
        for result in await asyncio.gather(working, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        for key in work.keys:
            if (answer := await work.transfer(key)).status != _MADE:
                raise RuntimeError(f"sent again with its key, a transfer is answered {answer}")
        deadline_s = time.monotonic() + 60
        while (balance := await work.balance()) != f"{len(work.keys)}.00":
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the wallet holds {balance} after {len(work.keys)} transfers of a rupee")
            await asyncio.sleep(0.2)
    return len(work.keys)


async def _goes_on(stack: Stack, work: Work) -> None:
    """Waits until a transfer is made, and until everything is ready."""
    freed_s = time.monotonic()
    work.answers.clear()
    while not work.answers[Answer(_MADE, None)]:
        if time.monotonic() - freed_s > 120:
            raise RuntimeError(f"no transfer for two minutes after there was room again: {work.told()}")
        await asyncio.sleep(0.05)
    made_s = time.monotonic() - freed_s
    await asyncio.to_thread(stack.wait_ready, None, 120)
    print(f"room again: a transfer after {made_s:.1f} s, everything ready after {time.monotonic() - freed_s:.1f} s")


def _restarts(stack: Stack) -> dict[str, object]:
    return {name: state["restarts"] for name, state in stack.supervisor.snapshot().items() if state["restarts"]}


def _nothing_is_missing(stack: Stack) -> None:
    """Every consumer has everything, nothing is parked, the log is whole, read models equal rebuilt ones.

    Raises:
        RuntimeError: what is not so.
    """
    deadline_s = time.monotonic() + 60
    while (behind := _sangam(stack, "lag", "--max", "0")).returncode and time.monotonic() < deadline_s:
        time.sleep(0.5)
    parked = _sangam(stack, "parked", "list", "--json")
    if parked.returncode or parked.stdout:
        raise RuntimeError(f"parked: {parked.stdout}{parked.stderr}")
    checks = {"lag": behind, "log": _sangam(stack, "events", "verify")}
    for service in _REBUILT:
        checks[f"rebuild of {service}"] = _sangam(stack, "rebuild", service, "all", "--diff", "--reason", "drill")
    for name, done in checks.items():
        if done.returncode:
            raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    print(f"everything delivered, nothing parked, {len(_REBUILT)} services' read models equal a rebuild")
    print(checks["log"].stdout.splitlines()[0])


def _sangam(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("sangam")), *arguments],
        env={**os.environ, "EVENT_STORE_URL": stack.cell.admin_url(), "SANGAM_OPERATOR": "drill"},
        capture_output=True,
        text=True,
    )


@contextmanager
def filled(disk: Path, *, leaving: int) -> Iterator[None]:
    """The disk has only `leaving` bytes meanwhile; 0: none, also where something is given back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        block = b"\0" * (1 << 20)
        while block and shutil.disk_usage(disk).free >= leaving + len(block) * bool(leaving):
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def small_disk(size_mb: int = SIZE_MB) -> Iterator[Path]:
    """An empty file system of its own, in memory, that every user can enter."""
    place = Path(tempfile.mkdtemp(prefix="sangam-disk-", dir="/var/tmp"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0711", "sangam", str(place)])
    if mounted.returncode:
        place.rmdir()
        raise SystemExit("a file system of its own is needed: run it as root on Linux")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def main() -> int:
    """Runs the drill and says what it found."""
    if os.geteuid() != 0:
        raise SystemExit("a file system of its own is needed: run it as root on Linux")
    with small_disk() as disk, tempfile.TemporaryDirectory(prefix="sangam-full-") as directory:
        (Path(directory) / "data").symlink_to(disk)
        with Stack(Path(directory), disposable=False, requests_per_s=20_000) as stack:
            made = asyncio.run(drill(stack, disk))
            print(f"{made} transfers, each made once")
            _nothing_is_missing(stack)
            print(f"restarted by the supervisor: {_restarts(stack)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
