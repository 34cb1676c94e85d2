"""A guard, and the tests that must notice when it is gone."""

from typing import NamedTuple


class Guard(NamedTuple):
    """What is guarded against, where, how the guard reads and how the code reads without it, and who must notice."""

    against: str
    file: str
    guarded: str
    unguarded: str
    tests: tuple[str, ...]
