import asyncio
import threading
from importlib.resources import files
from typing import ClassVar

import pytest
from argon2 import PasswordHasher
from identity.passwords import COMMON, LENGTH_MAX, LENGTH_MIN, Argon2id, Overloaded, PasswordHashing, weakness


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("", "at least"),
        ("x7!Kq2@Lm9$", "at least"),
        ("x7!Kq2@Lm9$z", None),
        ("correct horse battery staple", None),
        ("मेरा पासवर्ड लंबा है", None),
        ("password1234", "most common"),
        ("PassWord1234", "most common"),
        ("qwertyuiop123", "most common"),
        ("ｐａｓｓｗｏｒｄ１２３４", "most common"),  # full-width letters are the same password
        ("x" * LENGTH_MAX, None),
        ("x" * (LENGTH_MAX + 1), "at most"),
    ],
)
def test_weakness(password: str, reason: str | None) -> None:
    found = weakness(password)
    assert found is None if reason is None else found is not None and reason in found


def test_the_list_holds_what_the_length_rule_lets_through() -> None:
    lines = (files("identity") / "common_passwords.txt").read_text("ascii").splitlines()
    assert len(lines) == len(COMMON) == 343
    assert all(len(line) >= LENGTH_MIN and line == line.casefold() for line in lines)


async def test_hash_and_verify() -> None:
    hashing = PasswordHashing(threads=1)
    stored = await hashing.hash("correct horse battery staple")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hashing.verify(stored, "correct horse battery staple")
    assert not await hashing.verify(stored, "correct horse battery stable")
    # One password, typed on keyboards that compose differently.
    accented = await hashing.hash("caf\u00e9 au lait noir")
    assert await hashing.verify(accented, "cafe\u0301 au lait noir")
    hashing.close()


@pytest.mark.parametrize("password", ["correct horse battery staple", "x" * LENGTH_MAX, "मेरा पासवर्ड लंबा है"])
async def test_another_implementation_agrees(password: str) -> None:
    """Argon2's own library, which hashes were made with at first, opens ours, and ours its."""
    hashing, reference = PasswordHashing(threads=1), PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
    assert reference.verify(await hashing.hash(password), password)
    assert await hashing.verify(reference.hash(password), password)
    assert not await hashing.verify(reference.hash(password), password + "?")
    hashing.close()


class SlowHasher:
    """Hashes when told to, so that a test can look at a busy pool."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.gate = threading.Event()

    def hash(self, _: str) -> str:
        self.begun.set()
        return "done" if self.gate.wait(10) else "late"


class CountingHasher(Argon2id):
    """The real one, remembering what it verified against."""

    verified: ClassVar[list[str]] = []

    def verify(self, stored: str, text: str) -> bool:
        self.verified.append(stored)
        return super().verify(stored, text)


async def test_nobody_takes_a_real_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = PasswordHashing(threads=1)
    monkeypatch.setattr(hashing, "_hasher", CountingHasher())
    assert not await hashing.verify(None, "correct horse battery staple")
    assert len(CountingHasher.verified) == 1
    assert CountingHasher.verified[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    hashing.close()


async def test_a_full_queue_refuses_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, slow = PasswordHashing(threads=1, waiting_max=2), SlowHasher()
    monkeypatch.setattr(hashing, "_hasher", slow)
    waiting = [asyncio.create_task(hashing.hash("x")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await hashing.hash("x")
    slow.gate.set()
    assert await asyncio.gather(*waiting) == ["done"] * 3
    assert await hashing.hash("x") == "done"
    hashing.close()


async def test_a_caller_that_went_away_does_not_free_a_busy_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, slow = PasswordHashing(threads=1, waiting_max=0), SlowHasher()
    monkeypatch.setattr(hashing, "_hasher", slow)
    task = asyncio.create_task(hashing.hash("x"))
    await asyncio.to_thread(slow.begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(Overloaded):
        await hashing.hash("x")
    slow.gate.set()
    await asyncio.to_thread(hashing.close)
