"""Keeps child processes running: starts them, restarts what dies, kills on demand, stops them for good.

Synchronous and thread-safe, so that `stack.py run` and a test process use the same object. A child gets its
own session and process group, its output goes to a log file, and it dies with the supervisor (warden.py).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from processes import MARKER, kill_marked

State = Literal["running", "restarting", "paused", "stopped"]

_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_AFTER_S = 10.0
_CRASHES_AT_START_MAX = 3
_LOG_BYTES_MAX = 20 * 1024 * 1024
_LOOK_EVERY_S = 5.0
_BROKEN_LOOKS_MAX = 3
"""As often in a row a program is found broken before it is killed: what mends itself in seconds is left alone."""


class StartFailure(Exception):
    """A program did not become ready. The message ends with the last lines of its log."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and how to tell that it works."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    directory: Path
    address: str
    """Where it is reached: the URL that answers 200 when it is ready, or host:port."""
    ready: Callable[[], str | None]
    """None when the program does its work, else what is missing. Must return within a few seconds."""
    broken: Callable[[], str | None] | None = None
    """Why only a restart can mend it, although it runs; None while it may do so itself. Within a few seconds, too."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 30.0
    disposable: bool = False
    """Nobody needs its state afterwards: stopped with SIGKILL."""


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    state: State = "stopped"
    started_at: float = 0.0
    restart_at: float = 0.0
    crashes_in_a_row: int = 0
    restarts: int = 0
    was_ready: bool = False
    broken_looks: int = 0
    """How often in a row it was found broken."""


class Supervisor:
    """Supervises the programs of one stack.

    Args:
        logs: directory of the log files, `<name>.log`.
        marker: identifies the stack's processes; see `processes.MARKER`.
        lock: an open file whose lock must outlive every child.
        doomed: directories that are deleted at the end, however it comes.
        on_change: called, from any thread, after a process started, died or stopped.
    """

    def __init__(
        self,
        logs: Path,
        marker: str,
        *,
        lock: IO[bytes] | None = None,
        doomed: Sequence[Path] = (),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.logs = logs
        self._marker = marker
        self._on_change = on_change
        self._doomed = doomed
        self._children: dict[str, _Child] = {}
        self._mutex = threading.RLock()
        self._closing = threading.Event()
        logs.mkdir(parents=True, exist_ok=True)
        self._warden = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warden.py")), marker],
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[lock.fileno()] if lock else [],
        )
        for path in doomed:
            self._tell_warden(f"remove {path}")
        # Two: a look into a program takes seconds, and restarts do not wait for it.
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._watch, self._look_for_the_broken)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, programs: Iterable[Program]) -> None:
        """Start `programs` in the order given, without waiting until they are ready."""
        for program in programs:
            with self._mutex:
                child = _Child(program)
                self._children[program.name] = child
                self._rotate_log(program.name)
                self._spawn(child)

    def wait_ready(self, names: Iterable[str] | None = None, timeout_s: float = 60.0) -> None:
        """Return once all of `names` (default: everything not paused) are ready.

        Raises:
            StartFailure: one was not ready in time, or crashed repeatedly without ever being ready.
        """
        waiting = list(names) if names is not None else self._not_paused()
        reasons: dict[str, str] = {}
        deadline = time.monotonic() + timeout_s
        while waiting:
            reasons = {name: reason for name in waiting if (reason := self.why_not_ready(name)) is not None}
            waiting = list(reasons)
            for name in waiting:
                child = self._child(name)
                if not child.was_ready and child.crashes_in_a_row >= _CRASHES_AT_START_MAX:
                    raise StartFailure(f"{name} crashes at start\n{self.log_tail(name)}")
            if waiting and time.monotonic() > deadline:
                name = waiting[0]
                others = f" (also not ready: {', '.join(waiting[1:])})" if waiting[1:] else ""
                waited = f"{name} is not ready after {timeout_s:.0f} s: {reasons[name]}{others}"
                raise StartFailure(f"{waited}\n{self.log_tail(name)}")
            if waiting:
                time.sleep(0.1)

    def why_not_ready(self, name: str) -> str | None:
        """None when `name` does its work, else what is missing."""
        child = self._child(name)
        if child.state != "running":
            return child.state
        reason = child.program.ready()
        if reason is None:
            child.was_ready = True
        return reason

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL) -> int:
        """Send `sig` to the process group of `name`; returns the pid it had. It is restarted if that ends it.

        After SIGKILL the process is gone when this returns, so `wait_ready` then means its successor.
        """
        with self._mutex:
            process = self._live(name)
            os.killpg(process.pid, sig)
        if sig == signal.SIGKILL:
            process.wait()
            self._reap(name)
        return process.pid

    def pause(self, name: str, sig: signal.Signals = signal.SIGTERM) -> None:
        """End `name` with `sig` and leave it ended until `resume`."""
        with self._mutex:
            child = self._child(name)
            child.state = "paused"
        self._end([child], sig=sig)

    def resume(self, name: str) -> None:
        """Start a paused program again, without waiting until it is ready."""
        with self._mutex:
            child = self._child(name)
            if child.state == "paused":
                child.crashes_in_a_row = 0
                self._spawn(child)

    def pid(self, name: str) -> int:
        """The pid of `name`, which is also its process group.

        Raises:
            RuntimeError: it is not running at the moment.
        """
        return self._live(name).pid

    def names(self) -> list[str]:
        return list(self._children)

    def snapshot(self) -> dict[str, dict[str, object]]:
        """State, pid, restarts and address of every program."""
        with self._mutex:
            return {
                name: {
                    "state": child.state,
                    "pid": child.process.pid if child.process and child.state == "running" else None,
                    "restarts": child.restarts,
                    "address": child.program.address,
                }
                for name, child in self._children.items()
            }

    def log_tail(self, name: str, lines: int = 25) -> str:
        """The last lines of a program's log, each prefixed with its name."""
        with contextlib.suppress(FileNotFoundError), self._log_path(name).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 64 * 1024))
            text = log.read().decode(errors="replace")
            return "\n".join(f"  {name} | {line}" for line in text.splitlines()[-lines:])
        return f"  {name} | (no log)"

    def stop(self, names: Iterable[str]) -> None:
        """Stop `names` together and for good; SIGKILL after their grace period."""
        with self._mutex:
            children = [self._children[name] for name in names if name in self._children]
            for child in children:
                child.state = "stopped"
        self._end(children)

    def close(self) -> list[str]:
        """Stop what is left in reverse order of start, delete what is doomed, and end the supervisor.

        Returns the names of processes of this stack that could not be ended.
        """
        for name in reversed(self.names()):
            self.stop([name])
        self._closing.set()
        for thread in self._threads:
            thread.join()
        survivors = self._kill_strays()
        for path in self._doomed:
            shutil.rmtree(path, ignore_errors=True)
        self._tell_warden("done")
        self._close_warden()
        return survivors

    # --- processes --------------------------------------------------------------------------------

    def _spawn(self, child: _Child) -> None:
        program = child.program
        with self._log_path(program.name).open("ab") as log:
            child.process = subprocess.Popen(
                program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**program.environment, MARKER: self._marker},
                cwd=program.directory,
                start_new_session=True,
            )
        self._tell_warden(f"watch {child.process.pid}")
        child.state = "running"
        child.started_at = time.monotonic()
        self._on_change()

    def _watch(self) -> None:
        while not self._closing.wait(0.05):
            for name in self.names():
                self._reap(name)
                with self._mutex:
                    child = self._children[name]
                    if child.state == "restarting" and time.monotonic() >= child.restart_at:
                        child.restarts += 1
                        self._spawn(child)

    def _look_for_the_broken(self) -> None:
        while not self._closing.wait(_LOOK_EVERY_S):
            for name in self.names():
                child = self._child(name)
                if child.program.broken is None or child.state != "running":
                    continue
                process, reason = child.process, child.program.broken()
                child.broken_looks = child.broken_looks + 1 if reason else 0
                if child.broken_looks >= _BROKEN_LOOKS_MAX:
                    child.broken_looks = 0
                    self._kill_broken(child, process, reason)

    def _kill_broken(self, child: _Child, process: subprocess.Popen[bytes] | None, reason: str | None) -> None:
        with self._mutex:
            if child.process is not process or process is None or child.state != "running":
                return  # ended, stopped or started again meanwhile
            with self._log_path(child.program.name).open("a") as log:
                log.write(f"-- runs, but is broken: {reason}; killing it\n")
            self._kill_group(process)

    def _reap(self, name: str) -> None:
        """Notice that a running process ended, and plan its restart."""
        with self._mutex:
            child = self._children[name]
            process = child.process
            if child.state != "running" or process is None or process.poll() is None:
                return
            self._kill_group(process)
            uptime = time.monotonic() - child.started_at
            child.crashes_in_a_row = 1 if uptime > _HEALTHY_AFTER_S else child.crashes_in_a_row + 1
            delay = _BACKOFF_S[min(child.crashes_in_a_row, len(_BACKOFF_S)) - 1]
            child.restart_at = time.monotonic() + delay
            child.state = "restarting"
            with self._log_path(name).open("a") as log:
                log.write(f"-- ended with status {process.returncode}; restarting in {delay:.1f} s\n")
        self._on_change()

    def _end(self, children: Sequence[_Child], sig: signal.Signals | None = None) -> None:
        ending = [
            (child, child.process) for child in children if child.process is not None and child.process.poll() is None
        ]
        for child, process in ending:
            chosen = sig or (signal.SIGKILL if child.program.disposable else child.program.stop_signal)
            with contextlib.suppress(ProcessLookupError):
                # Only the leader: it knows how to end its own children in order.
                os.kill(process.pid, chosen)
                os.kill(process.pid, signal.SIGCONT)  # a frozen process would never see the signal
        started = time.monotonic()
        for child, process in ending:
            remaining = child.program.grace_s - (time.monotonic() - started)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, remaining))
            self._kill_group(process)
            process.wait()
        self._on_change()

    def _kill_group(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._tell_warden(f"forget {process.pid}")

    def _kill_strays(self) -> list[str]:
        """Orphans of a killed PostgreSQL or RabbitMQ end by themselves; this waits for them, or ends them."""
        return kill_marked(self._marker)

    # --- bookkeeping ------------------------------------------------------------------------------

    def _child(self, name: str) -> _Child:
        return self._children[name]

    def _live(self, name: str) -> subprocess.Popen[bytes]:
        with self._mutex:
            child = self._child(name)
            if child.process is None or child.state != "running" or child.process.poll() is not None:
                raise RuntimeError(f"{name} is not running ({child.state})")
            return child.process

    def _not_paused(self) -> list[str]:
        with self._mutex:
            return [name for name, child in self._children.items() if child.state != "paused"]

    def _log_path(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _rotate_log(self, name: str) -> None:
        path = self._log_path(name)
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))

    def _tell_warden(self, line: str) -> None:
        stream = self._warden.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError), self._mutex:
            stream.write(line.encode() + b"\n")
            stream.flush()

    def _close_warden(self) -> None:
        assert self._warden.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._warden.stdin.close()
        self._warden.wait()
