"""A full disk under load: `python deploy/local/full_disk_drill.py`, a drill on a stack of its own. Linux, as root.

PostgreSQL and RabbitMQ have their data on a small file system, which is then filled to the last byte while customers
move money. Each request must be answered 201, or 503 with a code; when there is room again everything must go on by
itself; and sending every request once more with its key must find each transfer made exactly once.
"""

import asyncio
import os
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
from rolling import Person, make_person
from stack import Stack

SIZE_MB = 900
FULL_S = 20.0
_PAUSE_S = 0.1
_TIMEOUT = aiohttp.ClientTimeout(total=40)


class Answer(NamedTuple):
    """Of one request."""

    status: int
    code: str | None


async def drill(stack: Stack, disk: Path) -> int:
    """Runs it; how many transfers were made.

    Raises:
        RuntimeError: an answer was another, or money was lost or moved twice.
    """
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
        person = await make_person(stack, http, 1)
        keys: list[str] = []
        answers: Counter[Answer] = Counter()
        working = asyncio.create_task(_work(stack, http, person, keys, answers))
        await asyncio.sleep(3)
        print(f"{sum(answers.values())} transfers with room on the disk: {_told(answers)}")
        answers.clear()
        with _filled(disk):
            await asyncio.sleep(FULL_S)
            print(f"the disk full for {FULL_S:.0f} s: {_told(answers)}")
            if not any(answer.status == 503 for answer in answers):
                raise RuntimeError("the full disk was not noticed")
            answers.clear()
        freed_s = time.monotonic()
        while not answers[Answer(201, None)]:
            if time.monotonic() - freed_s > 120:
                raise RuntimeError(f"no transfer for two minutes after there was room again: {_told(answers)}")
            await asyncio.sleep(0.05)
        print(f"room again: a transfer is made after {time.monotonic() - freed_s:.1f} s, without a hand")
        await asyncio.to_thread(stack.wait_ready, None, 120)
        print(f"everything is ready after {time.monotonic() - freed_s:.1f} s")
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        for key in keys:
            answer = await _transfer(stack, http, person, key)
            if answer.status != 201:
                raise RuntimeError(f"sent again with its key, a transfer is answered {answer}")
        await _holds(stack, http, person, len(keys))
    return len(keys)


async def _work(
    stack: Stack, http: aiohttp.ClientSession, person: Person, keys: list[str], answers: Counter[Answer]
) -> None:
    async with asyncio.TaskGroup() as group:

        async def one(key: str) -> None:
            answers[await _transfer(stack, http, person, key)] += 1

        while True:
            keys.append(uuid4().hex)
            group.create_task(one(keys[-1]))
            await asyncio.sleep(_PAUSE_S)


async def _transfer(stack: Stack, http: aiohttp.ClientSession, person: Person, key: str) -> Answer:
    body = {"from_account_id": person.savings, "to_account_id": person.wallet, "amount": "1.00", "currency": "INR"}
    headers = {**person.headers, "Idempotency-Key": key}
    async with http.post(f"{stack.origin}/api/transfers", json=body, headers=headers) as response:
        answer = await response.json(content_type=None)
        if response.status not in (200, 201, 503, 504) or (response.status >= 500 and not answer.get("code")):
            raise RuntimeError(f"answered {response.status} {answer}")
        return Answer(201 if response.status == 200 else response.status, answer.get("code"))


async def _holds(stack: Stack, http: aiohttp.ClientSession, person: Person, rupees: int) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        url = f"{stack.origin}/api/accounts/{person.wallet}/balance"
        async with http.get(url, headers=person.headers) as response:
            balance = (await response.json())["balance"]
        if balance == f"{rupees}.00":
            return
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"the wallet holds {balance} after {rupees} transfers of a rupee")
        await asyncio.sleep(0.2)


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """No byte is left on the disk meanwhile, also where something is given back."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        block = b"\0" * (1 << 20)
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def _disk() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="sangam-disk-", dir="/var/tmp"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=0711", "sangam", str(place)])
    if mounted.returncode:
        place.rmdir()
        raise SystemExit("a file system of its own is needed: run it as root on Linux")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def _told(answers: Counter[Answer]) -> str:
    return ", ".join(f"{count} × {answer.status} {answer.code or ''}".strip() for answer, count in answers.items())


def main() -> int:
    """Runs the drill and says what it found."""
    if os.geteuid() != 0:
        raise SystemExit("a file system of its own is needed: run it as root on Linux")
    with _disk() as disk, tempfile.TemporaryDirectory(prefix="sangam-full-") as directory:
        (Path(directory) / "data").symlink_to(disk)
        with Stack(Path(directory), disposable=False, requests_per_s=20_000) as stack:
            made = asyncio.run(drill(stack, disk))
            verified = subprocess.run(
                [str(Path(sys.executable).with_name("sangam")), "events", "verify"],
                env={**os.environ, "EVENT_STORE_URL": stack.cell.admin_url()},
                capture_output=True,
                text=True,
            )
            if verified.returncode:
                raise RuntimeError(verified.stdout + verified.stderr)
            print(f"{made} transfers, each made once; {verified.stdout.splitlines()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
