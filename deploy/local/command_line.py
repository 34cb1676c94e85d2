"""`python deploy/local/stack.py up|down|status|logs|run|clean`: the stack of this checkout, in `.run/`."""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import asyncpg
from health import why_closed, why_not_200
from packages import MissingSoftware
from ports import PortTaken
from processes import belonging_to, kill_marked
from provision import ProvisionFailure, on_database
from rabbitmq import SERVICES
from stack import Stack, StackBusy
from supervisor import StartFailure

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / ".run"
STATE = RUN / "state.json"
DEFAULT_PORT = 4025
_STOP_TIMEOUT_S = 90.0

State = dict[str, Any]


class StopRequested(BaseException):
    """The supervisor was told to end."""


# --- run: the supervisor itself -------------------------------------------------------------------


def run() -> int:
    """Start the stack in the foreground and keep it until SIGTERM or SIGINT."""
    state: State = {"pid": os.getpid(), "phase": "starting", "progress": [], "processes": {}, "error": None}
    writing = threading.Lock()

    def save(**changes: Any) -> None:
        with writing:
            state.update(changes)
            beside = STATE.with_suffix(".new")
            beside.write_text(json.dumps(state, indent=1))
            beside.replace(STATE)

    def progress(line: str) -> None:
        print(line, flush=True)
        state["progress"].append(line)
        save()

    def on_change() -> None:
        # The first change comes while the stack is still putting its supervisor in place.
        with contextlib.suppress(RuntimeError):
            save(processes=stack.supervisor.snapshot())

    def request_stop(number: int, frame: FrameType | None) -> NoReturn:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)  # one is enough; the stop itself must not be interrupted
        raise StopRequested

    port = int(os.environ.get("SANGAM_PORT", DEFAULT_PORT))
    stack = Stack(RUN, port=port, progress=progress, on_change=on_change)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, request_stop)
    try:
        save()
        stack.start()
        save(phase="running", origin=stack.origin, processes=stack.supervisor.snapshot())
        while True:
            signal.pause()
    except StopRequested:
        save(phase="stopping")
        survivors = stack.stop()
        save(phase="stopped", processes={})
        return _complain(survivors)
    except StackBusy as busy:
        print(busy, file=sys.stderr)
        return 1
    except (StartFailure, MissingSoftware, PortTaken, ProvisionFailure) as failure:
        save(phase="failed", error=str(failure), processes={})
        return 1
    except Exception as error:
        save(phase="failed", error=f"{type(error).__name__}: {error}", processes={})
        raise


# --- commands -------------------------------------------------------------------------------------


def up() -> int:
    """Start the stack in the background and wait until everything is ready."""
    RUN.mkdir(mode=0o700, exist_ok=True)
    started = time.monotonic()
    supervisor: subprocess.Popen[bytes] | None = None
    if not _is_running():
        STATE.unlink(missing_ok=True)
        with (RUN / "supervisor.log").open("wb") as log:
            supervisor = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("stack.py")), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
            )
    try:
        state = _follow_start(supervisor)
    except KeyboardInterrupt:
        down()
        return 130
    if state.get("phase") != "running":
        print(state.get("error") or (RUN / "supervisor.log").read_text()[-3000:], file=sys.stderr)
        return 1
    if not_ready := _why_not_ready(state):
        for name, reason in not_ready.items():
            print(f"{name} is not ready: {reason}", file=sys.stderr)
        return 1
    already = "" if supervisor else " (it was running already)"
    print(f"ready in {time.monotonic() - started:.0f} s{already}: {state['origin']}")
    print("addresses and secrets: .run/local.env   logs: .run/logs/   stop: make down")
    return 0


def down() -> int:
    """Stop the stack; verify that no process of it is left."""
    state = _read_state()
    if _is_running():
        print("stopping")
        os.kill(state["pid"], signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while _is_running():
            if time.monotonic() > deadline:
                print("the supervisor does not end; killing it", file=sys.stderr)
                os.kill(state["pid"], signal.SIGKILL)
                break
            time.sleep(0.05)
    data = RUN / "data"
    survivors: list[str] = []
    if data.is_symlink():
        if strays := belonging_to(str(data.readlink())):
            print(f"killing what was left: {', '.join(process.name() for process in strays)}", file=sys.stderr)
        survivors = kill_marked(str(data.readlink()))
    status_code = _complain(survivors)
    if status_code == 0:
        print("stopped; no process is left")
    return status_code


def status() -> int:
    """Print what runs, how it is, and how far each consumer is behind. Exit 0 when everything is ready."""
    state = _read_state()
    if not _is_running():
        print("not running (make up starts it)")
        return 3
    print(f"{state['phase']}   {state.get('origin', '')}")
    not_ready = _why_not_ready(state)
    for name, process in state["processes"].items():
        verdict = not_ready.get(name, "ready")
        print(
            f"  {name:<18} {verdict:<10} pid {process['pid'] or '-':<8} restarts {process['restarts']:<4}"
            f" {process['address']}"
        )
    for line in asyncio.run(_lag(_local_env())):
        print(line)
    return 1 if not_ready else 0


def logs(names: list[str]) -> int:
    """Follow the logs."""
    paths = [RUN / "logs" / f"{name}.log" for name in names] or sorted((RUN / "logs").glob("*.log"))
    if not paths:
        print("no logs yet (make up)", file=sys.stderr)
        return 1
    with contextlib.suppress(KeyboardInterrupt):
        subprocess.run(["tail", "-n", "15", "-F", *map(str, paths)])
    return 0


def clean() -> int:
    """Stop the stack and delete its data, secrets and logs. The tools in .run/tools stay."""
    code = down()
    data = RUN / "data"
    if data.is_symlink():
        shutil.rmtree(data.readlink(), ignore_errors=True)
        data.unlink()
    shutil.rmtree(RUN / "logs", ignore_errors=True)
    for name in ("secrets.json", "local.env", "ports.json", "state.json", "supervisor.log"):
        (RUN / name).unlink(missing_ok=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog="stack.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (up, down, status, run, clean):
        commands.add_parser(command.__name__, help=(command.__doc__ or "").splitlines()[0])
    follow = commands.add_parser("logs", help="Follow the logs.")
    follow.add_argument("names", nargs="*", help="processes; default: all")
    arguments = parser.parse_args()
    if arguments.command == "logs":
        return logs(arguments.names)
    chosen = {"up": up, "down": down, "status": status, "run": run, "clean": clean}[arguments.command]
    return chosen()


# --- looking at the supervisor from outside -------------------------------------------------------


def _read_state() -> State:
    try:
        state: State = json.loads(STATE.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return state


def _is_running() -> bool:
    """A supervisor lives: it holds the lock and has said which process it is."""
    pid = _read_state().get("pid")
    path = RUN / "supervisor.lock"
    if pid is None or not path.exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _follow_start(supervisor: subprocess.Popen[bytes] | None) -> State:
    """Print progress until the start succeeded or failed."""
    printed = 0
    while True:
        ended = supervisor.poll() is not None if supervisor else not _is_running()
        state = _read_state()
        lines = state.get("progress", [])
        if supervisor:
            for line in lines[printed:]:
                print(f"  {line}", flush=True)
        printed = len(lines)
        if ended or state.get("phase") == "running":
            return state
        time.sleep(0.1)


def _why_not_ready(state: State) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for name, process in state["processes"].items():
        address = process["address"]
        if process["state"] != "running":
            reasons[name] = process["state"]
        elif address.startswith("http"):
            if reason := why_not_200(address):
                reasons[name] = reason
        elif reason := why_closed(int(address.rpartition(":")[2])):
            reasons[name] = reason
    return reasons


def _local_env() -> dict[str, str]:
    lines = (RUN / "local.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


async def _lag(env: dict[str, str]) -> list[str]:
    """Per consumer, how many positions of the log it has not applied yet."""
    lines: list[str] = []
    try:
        store = await asyncpg.connect(env["EVENT_STORE_URL"], timeout=3)
        head = await store.fetchval("SELECT coalesce(max(position), 0) FROM store.log")
        await store.close()
        lines.append(f"log head {head}; behind, by consumer:")
        for service in SERVICES:
            database = await asyncpg.connect(on_database(env["EVENT_STORE_URL"], service), timeout=3)
            exists = await database.fetchval("SELECT to_regclass('consumed') IS NOT NULL")
            rows = await database.fetch("SELECT consumer, position FROM consumed ORDER BY 1") if exists else []
            await database.close()
            lines += [f"  {row['consumer']:<30} {head - row['position']}" for row in rows]
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        lines.append(f"lag unknown: {error}")
    return lines


def _complain(survivors: list[str]) -> int:
    if survivors:
        print(f"could not be ended: {', '.join(survivors)}", file=sys.stderr)
    return 1 if survivors else 0
