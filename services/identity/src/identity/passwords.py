"""Passwords: which are accepted, and argon2id in a bounded pool of threads."""

import asyncio
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.resources import files
from typing import TypeVar

from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

LENGTH_MIN = 12
LENGTH_MAX = 256
"""In characters. Longer ones only cost memory and time."""

COMMON = frozenset((files("identity") / "common_passwords.txt").read_text("ascii").splitlines())
"""The common passwords of at least `LENGTH_MIN` characters; shorter ones are refused for their length.
Sources and licences: `common_passwords.LICENSES.txt`."""

_PASSES = 2
_MEMORY_BYTES = 19 * 1024 * 1024

T = TypeVar("T")


class Overloaded(Exception):
    """Too many hashes are waiting; trying again in a second is better than waiting here."""


def normalised(password: str) -> str:
    """One form for what different keyboards send (NFKC, as NIST SP 800-63B asks)."""
    return unicodedata.normalize("NFKC", password)


def weakness(password: str) -> str | None:
    """Why a new password is refused, in words for its owner; None if it is accepted."""
    text = normalised(password)
    if len(text) < LENGTH_MIN:
        return f"must have at least {LENGTH_MIN} characters"
    if len(text) > LENGTH_MAX:
        return f"must have at most {LENGTH_MAX} characters"
    if text.casefold() in COMMON:
        return "is among the most common passwords"
    return None


class Argon2id:
    """argon2id as libsodium computes it: 19 MiB, 2 passes, 1 lane (docs/decisions/0095). Frees the GIL meanwhile."""

    def hash(self, text: str) -> str:
        """The encoded hash (PHC string format), with a salt of its own."""
        return argon2id.str(text.encode(), opslimit=_PASSES, memlimit=_MEMORY_BYTES).decode()

    def verify(self, stored: str, text: str) -> bool:
        """Whether `stored`, with the parameters it was made with, is the text's. Also False when memory is out."""
        try:
            return argon2id.verify(stored.encode(), text.encode())
        except InvalidkeyError:
            return False


class PasswordHashing:
    """argon2id off the event loop, on at most as many threads as cores.

    At most `waiting_max` requests wait for a thread; one more is refused, so that a flood of logins
    costs neither memory nor everybody's time.
    """

    def __init__(self, *, threads: int | None = None, waiting_max: int = 64) -> None:
        threads = threads or os.cpu_count() or 1
        self._hasher = Argon2id()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._open = 0
        self._open_max = threads + waiting_max
        # Verified where there is no user, so that the answer takes as long as for a wrong password.
        self._nobody = self._hasher.hash(os.urandom(16).hex())

    async def hash(self, password: str) -> str:
        """The encoded hash to store.

        Raises:
            Overloaded
        """
        return await self._run(lambda: self._hasher.hash(normalised(password)))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is the stored one. Without a stored hash it takes as long and says no.

        Raises:
            Overloaded
        """

        matches = await self._run(lambda: self._hasher.verify(stored or self._nobody, normalised(password)))
        return matches and stored is not None

    def close(self) -> None:
        """Waits for the hashes under way."""
        self._executor.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._open >= self._open_max:
            raise Overloaded
        self._open += 1
        loop = asyncio.get_running_loop()
        future: Future[T] = self._executor.submit(work)
        # Counted until the thread is done: a caller that went away does not free its place.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._finished))
        return await asyncio.wrap_future(future)

    def _finished(self) -> None:
        self._open -= 1
