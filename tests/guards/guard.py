"""A guard, and the tests that must notice when it is gone."""

from typing import NamedTuple


class Guard(NamedTuple):
    """What is guarded against, where, how the guard reads and how the code reads without it, and who must notice."""

    against: str
    file: str
    guarded: str
    unguarded: str
    tests: tuple[str, ...]


def tests_in(folder: str, *names: str) -> tuple[str, ...]:
    """Tests by `file` or `file::test`, both without their `test_`."""
    paths = []
    for name in names:
        file, _, test = name.partition("::")
        paths.append(f"{folder}/test_{file}.py" + (f"::test_{test}" if test else ""))
    return tuple(paths)
