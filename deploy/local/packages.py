"""Finds PostgreSQL, RabbitMQ and nginx on this machine and installs Debian's packages for what is missing."""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

POLICY = Path("/usr/sbin/policy-rc.d")
LOCK_TIMEOUT_S = 300
"""How long somebody else's apt-get is waited for."""


class MissingSoftware(Exception):
    """Something the local stack needs is not installed and cannot be installed from here."""


class Tool(NamedTuple):
    """An executable, where it is found, and what brings it."""

    places: Sequence[str]
    """Glob patterns in order of preference; a bare name is looked up on PATH."""
    debian: str
    homebrew: str


TOOLS = {
    "postgres": Tool(
        ("/usr/lib/postgresql/*/bin/postgres", "/opt/homebrew/opt/postgresql@*/bin/postgres", "postgres"),
        "postgresql",
        "postgresql@16",
    ),
    "rabbitmq-server": Tool(
        # Not /usr/sbin/rabbitmq-server: that wrapper switches to the user rabbitmq.
        ("/usr/lib/rabbitmq/bin/rabbitmq-server", "/opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server"),
        "rabbitmq-server",
        "rabbitmq",
    ),
    "epmd": Tool(("epmd", "/usr/lib/erlang/bin/epmd"), "erlang-base", "erlang"),
    "nginx": Tool(("nginx", "/usr/sbin/nginx", "/opt/homebrew/bin/nginx"), "nginx", "nginx"),
    # Only tests and benches ask for these: judges of what we export and of our alerts, what the documents' examples
    # use, a browser, a load.
    "hledger": Tool(("hledger",), "hledger", "hledger"),
    "curl": Tool(("curl",), "curl", "curl"),
    "jq": Tool(("jq",), "jq", "jq"),
    "chromium": Tool(("chromium", "/Applications/Chromium.app/Contents/MacOS/Chromium"), "chromium", "chromium"),
    "chromedriver": Tool(("chromedriver",), "chromium-driver", "chromedriver"),
    "promtool": Tool(("promtool",), "prometheus", "prometheus"),
    "wrk": Tool(("wrk",), "wrk", "wrk"),
}
SERVERS = ("postgres", "rabbitmq-server", "epmd", "nginx")


def find(name: str) -> Path | None:
    """The newest executable of that tool, or None."""
    for pattern in TOOLS[name].places:
        if "/" not in pattern:
            if located := shutil.which(pattern):
                return Path(located)
        elif matches := glob.glob(pattern):
            return Path(max(matches, key=_version))
    return None


def require(names: Sequence[str], progress: Callable[[str], None]) -> None:
    """Make sure that `names` can be run, by installing Debian packages where that is possible.

    Raises:
        MissingSoftware: with what to install by hand.
    """
    with _one_at_a_time():  # what another one is installing may be there already, but not ready
        missing = [name for name in names if find(name) is None]
        if missing:
            _bring(missing, progress)


def _bring(missing: Sequence[str], progress: Callable[[str], None]) -> None:
    packages = sorted({TOOLS[name].debian for name in missing})
    if shutil.which("apt-get") is None:
        formulas = " ".join(sorted({TOOLS[name].homebrew for name in missing}))
        raise MissingSoftware(
            f"{', '.join(missing)} not found. macOS: brew install {formulas}. Elsewhere: install them with"
            " your package manager, or give DATABASE_URL and AMQP_URL of running servers, or use"
            " `docker compose up`."
        )
    install(packages, progress)
    if still := [name for name in missing if find(name) is None]:
        raise MissingSoftware(f"{', '.join(still)} still not found after installing {' '.join(packages)}")


def install(packages: Sequence[str], progress: Callable[[str], None]) -> None:
    """Install Debian packages without letting them start their daemons.

    Raises:
        MissingSoftware: not root and no password-less sudo, or apt-get failed; the message has its output.
    """
    privileged = _privileges()
    if privileged is None:
        raise MissingSoftware(f"needed, but not installed: run `sudo apt-get install {' '.join(packages)}`")
    progress(f"installing {' '.join(packages)} (apt-get)")
    with _daemons_stay_down(privileged):
        # The package lists of a fresh image are empty or old.
        _apt_get(privileged, ["update"])
        _apt_get(privileged, ["install", "-y", "--no-install-recommends", *packages])


def _apt_get(privileged: Sequence[str], arguments: Sequence[str]) -> None:
    # Its own timeout covers the lock on what is installed, not the one on the lists, which only its words tell.
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-q"]
    command += ["-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT_S}"]
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        done = subprocess.run(
            [*privileged, *command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        if "Could not get lock" not in done.stderr or time.monotonic() > deadline_s:
            output = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise MissingSoftware(f"apt-get {arguments[0]} failed:\n{output}")
        time.sleep(1)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Stacks and tests that start side by side on a bare machine install once, and the others wait for it."""
    with Path(tempfile.gettempdir(), f"sangam-packages-{os.getuid()}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _privileges() -> list[str] | None:
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], capture_output=True).returncode == 0:
        return [sudo, "-n"]
    return None


@contextlib.contextmanager
def _daemons_stay_down(privileged: Sequence[str]) -> Iterator[None]:
    """Debian's packages start their daemons on installation, unless a policy forbids it."""
    if POLICY.exists():
        yield  # the machine has its own policy (container images forbid daemons this way)
        return
    subprocess.run(
        [*privileged, "sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"],
        check=True,
    )
    try:
        yield
    finally:
        subprocess.run([*privileged, "rm", "-f", str(POLICY)], check=True)


def _version(path: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path)))


if __name__ == "__main__":
    require(SERVERS, print)
