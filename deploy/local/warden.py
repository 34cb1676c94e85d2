"""Outlives a supervisor that was killed, and takes its children down.

The supervisor starts this as its own process and writes to its stdin: `watch <pgid>` and `forget <pgid>` as
children come and go, `remove <path>` for data nobody wants afterwards, `done` after an orderly stop. The end
of the stream without `done` means that the supervisor died: every process it left is killed. The supervisor's
lock file is inherited, so a new supervisor cannot begin before this has finished.
"""

import contextlib
import os
import shutil
import signal
import sys

from processes import kill_marked


def main(marker: str) -> None:
    groups: set[int] = set()
    doomed: list[str] = []
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "watch":
            groups.add(int(argument))
        elif command == "forget":
            groups.discard(int(argument))
        elif command == "remove":
            doomed.append(argument)
        elif command == "done":
            return
    # SIGKILL at once: PostgreSQL and RabbitMQ recover from it, and a half-dead stack helps nobody.
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    kill_marked(marker)
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
