"""Holding services, so that what the machine does meanwhile is somebody else's alone."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack import Stack


@contextmanager
def held(stack: "Stack", names: Sequence[str]) -> Iterator[None]:
    """Stops these services for a while, without their noticing. What they miss is in the log, and is made up for."""
    pids = [stack.pid(name) for name in names]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
