"""The supervisor, with small programs of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import given
import psutil
import pytest
from processes import MARKER, belonging_to
from supervisor import Program, StartFailure, Supervisor

pytestmark = pytest.mark.integration


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setattr("supervisor._LOOK_EVERY_S", 0.05)
    started = Supervisor(tmp_path / "logs", str(tmp_path))
    yield started
    assert started.close() == []
    assert belonging_to(str(tmp_path)) == []


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    def make(name: str, source: str, *, ready_file: str = "", grace_s: float = 5.0) -> Program:
        ready = tmp_path / ready_file
        return Program(
            name=name,
            argv=[sys.executable, "-c", source],
            environment={},
            directory=tmp_path,
            address="127.0.0.1:1",
            ready=lambda: None if ready.exists() else f"{ready.name} is missing",
            grace_s=grace_s,
        )

    return make


def wait_until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


SLEEP = "import time; time.sleep(600)"


def test_a_killed_program_is_started_again(supervisor: Supervisor, program: Callable[..., Program]) -> None:
    supervisor.start([program("sleeper", SLEEP)])
    before = supervisor.kill("sleeper", signal.SIGKILL)
    supervisor.wait_ready(["sleeper"], timeout_s=10)
    assert supervisor.pid("sleeper") != before
    assert supervisor.snapshot()["sleeper"]["restarts"] == 1


def test_a_paused_program_stays_down_until_resumed(supervisor: Supervisor, program: Callable[..., Program]) -> None:
    supervisor.start([program("sleeper", SLEEP)])
    pid = supervisor.pid("sleeper")
    supervisor.pause("sleeper", signal.SIGKILL)
    time.sleep(0.5)
    assert not psutil.pid_exists(pid)
    with pytest.raises(RuntimeError, match="paused"):
        supervisor.pid("sleeper")
    supervisor.resume("sleeper")
    supervisor.wait_ready(["sleeper"], timeout_s=10)


def test_a_program_that_runs_and_stays_broken_is_started_again(
    supervisor: Supervisor, program: Callable[..., Program]
) -> None:
    looks: list[bool] = []

    def broken_twice_then_well_then_for_good() -> str | None:
        looks.append(len(looks) in (0, 1) or len(looks) > 3)
        return "it says so" if looks[-1] else None

    supervisor.start(
        [replace(program("sick", SLEEP), broken=broken_twice_then_well_then_for_good), program("well", SLEEP)]
    )
    before = {name: supervisor.pid(name) for name in ("sick", "well")}
    wait_until(lambda: supervisor.snapshot()["sick"]["restarts"])
    assert looks[:7] == [True, True, False, False, True, True, True], "two looks in a row are not enough"
    assert supervisor.pid("sick") != before["sick"]
    assert supervisor.pid("well") == before["well"]
    assert "runs, but is broken: it says so" in supervisor.log_tail("sick")


def test_a_program_that_crashes_at_start_fails_with_its_last_words(
    supervisor: Supervisor, program: Callable[..., Program]
) -> None:
    supervisor.start([program("broken", "raise SystemExit('no such setting')", ready_file="never")])
    with pytest.raises(StartFailure, match=r"broken crashes at start\n(.*\n)*.*broken \| no such setting"):
        supervisor.wait_ready(timeout_s=20)


def test_a_program_that_is_never_ready_fails_with_the_reason(
    supervisor: Supervisor, program: Callable[..., Program]
) -> None:
    supervisor.start([program("idle", SLEEP, ready_file="never")])
    with pytest.raises(StartFailure, match=r"idle is not ready after 1 s: never is missing"):
        supervisor.wait_ready(timeout_s=1)


def test_children_of_a_program_die_with_it(
    supervisor: Supervisor, program: Callable[..., Program], tmp_path: Path
) -> None:
    source = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n" + SLEEP
    )
    supervisor.start([program("parent", source, ready_file="child")])
    supervisor.wait_ready(timeout_s=10)
    wait_until((tmp_path / "child").read_text)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    supervisor.stop(["parent"])
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(
    supervisor: Supervisor, program: Callable[..., Program]
) -> None:
    source = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path('deaf').touch()\n" + SLEEP
    )
    supervisor.start([program("deaf", source, ready_file="deaf", grace_s=0.3)])
    supervisor.wait_ready(timeout_s=10)
    pid = supervisor.pid("deaf")
    supervisor.stop(["deaf"])
    assert not psutil.pid_exists(pid)


def test_a_stray_with_the_stacks_mark_is_found_and_ended(tmp_path: Path) -> None:
    marker = str(tmp_path)
    supervisor = Supervisor(tmp_path / "logs", marker)
    stray = subprocess.Popen([sys.executable, "-c", SLEEP], env={MARKER: marker}, start_new_session=True)
    wait_until(lambda: [process.pid for process in belonging_to(marker)] == [stray.pid])
    assert supervisor.close() == []
    assert stray.wait(timeout=5) == -signal.SIGKILL


def test_an_exported_local_env_is_not_taken_for_somebodys_servers(tmp_path: Path) -> None:
    local_env = tmp_path / "local.env"
    local_env.write_text("AMQP_URL=amqp://admin:x@127.0.0.1:1/sangam\nDEMO_EMAIL=a@example.com\n")
    environ = {"AMQP_URL": "amqp://admin:x@127.0.0.1:1/sangam", "PATH": "/bin"}
    assert given.without_our_own(environ, local_env) == {"PATH": "/bin"}
    theirs = {"AMQP_URL": "amqp://guest:guest@broker/"}
    assert given.without_our_own(theirs, local_env) == theirs
    assert given.without_our_own(theirs, tmp_path / "missing") == theirs
