"""A private RabbitMQ node with its own epmd, and everything that is declared on it."""

import base64
import hashlib
import json
import os
import secrets
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from health import why_closed
from packages import find
from supervisor import Program

ADMIN = "admin"
SERVICES = ("identity", "ledger_transfer", "sync_gateway", "wealth", "notifier", "search")
RELAY = "relay"
VHOST = "sangam"

DISK_FREE_LIMIT = 200_000_000
"""Bytes. With less on its disk the broker takes no messages. It still needs room itself: for the write-ahead log it is
writing, the one before, and the segments that is written out to."""
WAL_BYTES_MAX = 64_000_000

LOG_ARGUMENTS = {"alternate-exchange": "sangam.unrouted"}
UNROUTED_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "classic",
    "x-max-length": 10_000,
    "x-max-length-bytes": 64 * 1024 * 1024,
    "x-overflow": "drop-head",
}
DEAD_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-max-length": 100_000,
    "x-max-length-bytes": 256 * 1024 * 1024,
    "x-overflow": "drop-head",
}
SUBSCRIBER_POLICY = {"max-length-bytes": 256 * 1024 * 1024, "overflow": "drop-head"}


def permissions_of(user: str) -> dict[str, str]:
    """What `user` may configure, write and read: regular expressions on names of queues and exchanges."""
    if user == ADMIN:
        return {"configure": ".*", "write": ".*", "read": ".*"}
    if user == RELAY:
        # Declaring an exchange with an alternate needs `read` on it as well.
        return {
            "configure": r"^sangam\..*$",
            "write": r"^sangam\..*$",
            "read": r"^sangam\.(log|events|control|unrouted)$",
        }
    own = rf"{user}\..*"
    # Only identity revokes, and reads who has applied it. Everybody may answer that (chassis.control), and may bury a
    # message that is no batch of the log (events.feed).
    writable, readable = r"sangam\.dead|sangam\.receipts", r"sangam\.log|sangam\.control"
    if user == "identity":
        writable, readable = rf"{writable}|sangam\.control", rf"{readable}|sangam\.receipts"
    return {
        "configure": f"^{own}$",
        "write": f"^({writable}|{own})$",
        "read": rf"^({readable}|{own})$",
    }


def definitions(vhost: str, passwords: Mapping[str, str], *, prefix: str = "") -> dict[str, Any]:
    """The whole broker as RabbitMQ definitions: vhost, users, permissions, topology, policy.

    Args:
        passwords: by user; these users are created. Their names get `prefix`.
    """

    def exchange(name: str, kind: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "name": name,
            "vhost": vhost,
            "type": kind,
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": dict(arguments or {}),
        }

    def queue(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "vhost": vhost,
            "durable": True,
            "auto_delete": False,
            "arguments": dict(arguments),
        }

    def binding(name: str) -> dict[str, Any]:
        return {
            "source": name,
            "vhost": vhost,
            "destination": name,
            "destination_type": "queue",
            "routing_key": "",
            "arguments": {},
        }

    return {
        "users": [
            {
                "name": prefix + user,
                "password_hash": password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator" if user == ADMIN else "",
            }
            for user, password in passwords.items()
        ],
        "vhosts": [{"name": vhost}],
        "permissions": [{"user": prefix + user, "vhost": vhost, **permissions_of(user)} for user in passwords],
        "exchanges": [
            exchange("sangam.log", "fanout", LOG_ARGUMENTS),
            exchange("sangam.events", "topic"),
            exchange("sangam.control", "fanout"),
            exchange("sangam.receipts", "fanout"),
            exchange("sangam.dead", "fanout"),
            exchange("sangam.unrouted", "fanout"),
        ],
        "queues": [queue("sangam.unrouted", UNROUTED_ARGUMENTS), queue("sangam.dead", DEAD_ARGUMENTS)],
        "bindings": [binding("sangam.unrouted"), binding("sangam.dead")],
        "policies": [
            {
                "vhost": vhost,
                "name": "subscribers-are-bounded",
                "pattern": r"^subscriber\.",
                "apply-to": "queues",
                "definition": SUBSCRIBER_POLICY,
                "priority": 0,
            }
        ],
    }


def password_hash(password: str) -> str:
    """As RabbitMQ keeps it: a salt of 4 bytes, then SHA-256 over salt and password."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class Management:
    """The management API of a RabbitMQ server."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url.rstrip("/")
        self.user = user
        self.password = password
        self._authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        # A proxy from the environment must not see, nor break, what is on loopback.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, body: object = None, timeout_s: float = 30) -> Any:
        """`path` below `/api`, already quoted. Returns the decoded answer.

        Raises:
            OSError: no answer, or (`urllib.error.HTTPError`) a refusal.
        """
        request = urllib.request.Request(  # noqa: S310 - the URL is ours
            f"{self.url}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=timeout_s) as response:
            content = response.read()
        return json.loads(content) if content else None

    def define(self, broker: Mapping[str, Any]) -> None:
        """Create or update what `definitions` describes."""
        self.call("POST", "/definitions", broker)

    def delete_vhost(self, vhost: str) -> None:
        try:
            self.call("DELETE", f"/vhosts/{quote(vhost, safe='')}")
        except urllib.error.HTTPError as refusal:
            if refusal.code != 404:
                raise

    def delete_user(self, user: str) -> None:
        try:
            self.call("DELETE", f"/users/{quote(user, safe='')}")
        except urllib.error.HTTPError as refusal:
            if refusal.code != 404:
                raise


def amqp_url(user: str, password: str, host: str, port: int, vhost: str) -> str:
    return f"amqp://{quote(user)}:{quote(password)}@{host}:{port}/{quote(vhost, safe='')}"


# A quorum queue that was declared within the last seconds before a SIGKILL comes back as a follower without an
# election timer when it is the only member: it has no leader for ever, and whoever consumes from it hangs
# (reproduced on 3.10). The other members of a real cluster would hold the election. No blanks: the start script
# splits its arguments on them.
_ELECT_LEADERS = (
    "spawn(fun()->rabbit:await_startup(),"
    "[ra:trigger_election(amqqueue:get_pid(Q))||Q<-rabbit_amqqueue:list_by_type(rabbit_quorum_queue),"
    "element(1,ra:members(amqqueue:get_pid(Q),1000))=/=ok]end)."
)


class RabbitServer:
    """A node under `directory/rabbitmq`, on loopback, with the management plugin.

    Args:
        name: the node's, at localhost.
        cluster: names of the nodes that it joins when it first starts, its own among them. They share an epmd, and the
            file `rabbitmq/home/.erlang.cookie`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int,
        management_port: int,
        distribution_port: int,
        epmd_port: int,
        passwords: Mapping[str, str],
        disposable: bool,
        name: str = "sangam",
        cluster: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._cluster = cluster
        self.directory = directory / "rabbitmq"
        self.port = port
        self.management = Management(f"http://127.0.0.1:{management_port}", ADMIN, passwords[ADMIN])
        self._management_port = management_port
        self._distribution_port = distribution_port
        self._epmd_port = epmd_port
        self._passwords = passwords
        self._disposable = disposable

    def prepare(self) -> None:
        """Write the node's configuration and definitions."""
        for folder in (self.directory, self.directory / "home", self.directory / "log"):
            folder.mkdir(mode=0o700, exist_ok=True)
        definitions_file = self.directory / "definitions.json"
        definitions_file.touch(mode=0o600)
        definitions_file.write_text(json.dumps(definitions(VHOST, self._passwords), indent=1))
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self._management_port}\n"
            f"load_definitions = {definitions_file}\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
            f"disk_free_limit.absolute = {DISK_FREE_LIMIT}\n"
            f"raft.wal_max_size_bytes = {WAL_BYTES_MAX}\n"
            + "".join(
                f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n"
                for number, name in enumerate(self._cluster, 1)
            )
        )
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n")

    def programs(self) -> list[Program]:
        """epmd and the node, in the order of their start."""
        epmd, server = find("epmd"), find("rabbitmq-server")
        assert epmd is not None, "packages.require comes first"
        assert server is not None, "packages.require comes first"
        environment = self._environment()
        return [
            Program(
                name="epmd",
                argv=[str(epmd), "-port", str(self._epmd_port), "-address", "127.0.0.1"],
                environment=environment,
                directory=self.directory,
                address=f"127.0.0.1:{self._epmd_port}",
                ready=lambda: why_closed(self._epmd_port),
                disposable=True,
            ),
            Program(
                name="rabbitmq",
                argv=[str(server)],
                environment=environment,
                directory=self.directory,
                address=f"127.0.0.1:{self.port}",
                ready=self.why_not_ready,
                broken=None if self._cluster else self.why_broken,  # there a queue may just lack its majority
                grace_s=40,
                disposable=self._disposable,
            ),
        ]

    def why_not_ready(self) -> str | None:
        try:
            # The listener opens last, after recovery and the import of the definitions.
            self.management.call("GET", f"/health/checks/port-listener/{self.port}", timeout_s=3)
            self.management.call("GET", f"/vhosts/{VHOST}", timeout_s=3)
        except OSError as error:
            return f"management API: {error}"
        return why_closed(self.port)

    def why_broken(self) -> str | None:
        """Names a quorum queue that has no process any more, once there is room on the disk to start one.

        A write that fails, as on a full disk, ends the write-ahead log that all quorum queues share. When it has
        ended a few times in a second, it stays ended and the queues with it, while the node runs on (seen on 3.10).
        """
        if shutil.disk_usage(self.directory).free < DISK_FREE_LIMIT:
            return None
        columns = "page=1&page_size=500&disable_stats=true&enable_queue_totals=true&columns=name,type,leader"
        try:
            queues = self.management.call("GET", f"/queues/{VHOST}?{columns}", timeout_s=3)["items"]
        except OSError:
            return None  # it starts, or is busy
        down = [queue["name"] for queue in queues if queue.get("type") == "quorum" and not queue.get("leader")]
        return f"{len(down)} quorum queues are down, such as {down[0]}" if down else None

    def _environment(self) -> dict[str, str]:
        own = self.directory
        return {
            "PATH": os.environ.get("PATH", ""),
            "LANG": "C.UTF-8",
            "HOME": str(own / "home"),  # the Erlang cookie
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the node instead of staying its parent
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_CONFIG_FILE": str(own / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(own / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(own / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(own / "mnesia"),
            "RABBITMQ_LOG_BASE": str(own / "log"),
            "RABBITMQ_PID_FILE": str(own / "pid"),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": "-start_epmd false",  # ours is supervised; one started by the node would be nobody's
            # Schedulers that spin while idle take the cores from everybody else.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
                f" -eval {_ELECT_LEADERS}"
            ),
            "ERL_CRASH_DUMP": str(own / "log" / "erl_crash.dump"),
        }
