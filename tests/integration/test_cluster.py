"""The job `migrate` of a cluster, on real servers that somebody else runs."""

import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from provision import DATABASES
from rabbitmq import ADMIN, RELAY, SERVICES, VHOST, Management

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).parents[2] / "deploy" / "docker" / "cell.py"
MESSAGE = {"routing_key": "", "payload": "x", "payload_encoding": "string", "properties": {}}
MONITOR = "a password for the one who looks on"


def environment(stack: "Stack") -> dict[str, str]:
    passwords = stack.credentials.passwords
    management = stack.cell.management
    return {
        "DATABASE_URL": stack.cell.admin_url(),
        "RABBITMQ_MANAGEMENT_URL": management.url,
        "RABBITMQ_USERNAME": ADMIN,
        "RABBITMQ_PASSWORD": passwords[ADMIN],
        "PASSWORD_MONITOR": MONITOR,
        **{f"PASSWORD_{name.upper()}": passwords[name] for name in (*SERVICES, RELAY)},
    }


def migrate(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), "migrate"], env=environ, capture_output=True, text=True, timeout=60
    )


def test_migrating_a_cell_again_changes_nothing(infrastructure: "Stack") -> None:
    before = infrastructure.cell.management.call("GET", f"/definitions/{VHOST}")
    for _ in range(2):
        done = migrate(environment(infrastructure))
        assert done.returncode == 0, done.stderr
    assert infrastructure.cell.management.call("GET", f"/definitions/{VHOST}") == before
    assert len(DATABASES) == 8


def test_the_watcher_of_queues_may_look_and_do_nothing_else(infrastructure: "Stack") -> None:
    assert migrate(environment(infrastructure)).returncode == 0
    monitor = Management(infrastructure.cell.management.url, "monitor", MONITOR)
    # What KEDA asks.
    assert monitor.call("GET", f"/queues/{VHOST}/sangam.dead")["name"] == "sangam.dead"
    for method, path, body in (
        ("DELETE", f"/queues/{VHOST}/sangam.dead", None),
        ("PUT", f"/queues/{VHOST}/mine", {}),
        ("POST", f"/exchanges/{VHOST}/sangam.log/publish", MESSAGE),
        ("GET", "/definitions", None),
    ):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            monitor.call(method, path, body)
        assert refusal.value.code in (400, 401, 403), (method, path)


def test_what_is_missing_is_named(infrastructure: "Stack") -> None:
    told = environment(infrastructure)
    del told["PASSWORD_WEALTH"]
    done = migrate(told)
    assert (done.returncode, done.stderr) == (1, "PASSWORD_WEALTH is not set\n")
