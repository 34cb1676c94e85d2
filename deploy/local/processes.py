"""Finding the processes that belong to a stack, whatever became of their parents."""

import os
import time
from pathlib import Path

import psutil

MARKER = "SANGAM_STACK"
"""Environment variable that every process of a stack carries; its value is the stack's data directory."""

_REWRITE_ENVIRONMENT = frozenset({"postgres", "nginx"})
"""These overwrite their environment with a process title; they are known by their working directory."""


def belonging_to(marker: str) -> list[psutil.Process]:
    """The live processes of the stack whose data directory is `marker`, except the caller."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.name() in _REWRITE_ENVIRONMENT:
                directory = Path(process.cwd())
                if directory == Path(marker) or Path(marker) in directory.parents:
                    found.append(process)
            elif process.environ().get(MARKER) == marker:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    return found


def kill_marked(marker: str, timeout_s: float = 10) -> list[str]:
    """Kill all that `belonging_to` finds. Returns the names of what could not be killed."""
    deadline = time.monotonic() + timeout_s
    while remaining := belonging_to(marker):
        if time.monotonic() > deadline:
            return [f"{process.name()} ({process.pid})" for process in remaining]
        for process in remaining:
            try:
                process.kill()
            except psutil.Error:
                continue
        time.sleep(0.05)
    return []
