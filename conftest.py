"""Fixtures over real PostgreSQL and RabbitMQ: private servers, started once per run, gone at its end.

- `infrastructure`: the servers (a `stack.Stack` without applications), once per run, fsync off.
- `cell`: new, empty databases and a new vhost for one test (a `provision.Cell`).
- `sangam`: the whole product on free ports (a `stack.Stack`), once per run; `.origin`, `.env`, `.cell`.
- `make_stack`: stacks of a test's own, e.g. to kill their processes; fsync on.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

for _shared in ("deploy/local", "tests/shared"):
    sys.path.insert(0, str(Path(__file__).parent / _shared))

if TYPE_CHECKING:
    from provision import Cell
    from stack import Stack

# A shell's background job is deaf to Ctrl-C, and so would be every program that a test starts and then interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing in a test run should meet its own rate limit by being fast; limits have a test of their own.
REQUESTS_PER_S = 20_000


@pytest.fixture(scope="session")
def infrastructure(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    """PostgreSQL and RabbitMQ, provisioned."""
    from stack import Stack

    with Stack(
        tmp_path_factory.mktemp("infrastructure"), durable=False, disposable=True, applications=False
    ) as started:
        yield started


@pytest.fixture
def cell(infrastructure: "Stack") -> Iterator["Cell"]:
    """Empty databases (made on first use) and a vhost that no other test has seen."""
    fresh = infrastructure.fresh_cell()
    yield fresh
    fresh.drop()


@pytest.fixture(scope="session")
def sangam(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stack"]:
    """The running product, behind nginx, shared by all tests of the run: create customers of your own."""
    from stack import Stack

    with Stack(
        tmp_path_factory.mktemp("sangam"), durable=False, disposable=True, requests_per_s=REQUESTS_PER_S
    ) as started:
        yield started


@pytest.fixture
def make_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., "Stack"]]:
    """Starts disposable stacks with fsync on; options as for `stack.Stack`. Stopped after the test."""
    from stack import Stack

    started: list[Stack] = []

    def make(directory: Path | None = None, **options: Any) -> Stack:
        settings: dict[str, Any] = {"disposable": True, "requests_per_s": REQUESTS_PER_S, **options}
        stack = Stack(directory or tmp_path_factory.mktemp("stack"), **settings)
        stack.start()
        started.append(stack)
        return stack

    yield make
    for stack in reversed(started):
        stack.stop()
