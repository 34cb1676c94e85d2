"""The local stack: private PostgreSQL, RabbitMQ and nginx, the services and simulators, under one supervisor.

`make up` and the tests use the same class. A stack has a directory for what its owner looks at (logs, ports,
secrets) and a data directory in the system's temporary folder, linked from there, because the user postgres
must be able to enter it whatever the permissions of the clone are.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import credentials
import given
import packages
import ports
from applications import PREFERRED_PORTS, SIMULATORS, Applications, Place, replicas_of
from nginx import NginxServer
from postgres import SUPERUSER, PostgresServer
from processes import kill_marked
from provision import EVENT_STORE, SUBJECT_KEYS, Broker, Cell, Servers, check_rights, drop_everything
from rabbitmq import SERVICES, RabbitServer
from supervisor import Program, Supervisor

_INFRASTRUCTURE_PORTS = ("postgres", "rabbitmq", "management", "distribution", "epmd")
_LOCK_WAIT_S = 20.0
_LOCAL_ENV = Path(__file__).parents[2] / ".run" / "local.env"
_START_TIMEOUT_S = 90.0


class StackBusy(Exception):
    """Another supervisor runs the stack of this directory."""


class Stack:
    """One stack; also a context manager that starts and stops it. Its methods block: call them from threads.

    Args:
        directory: created when missing, private to its owner.
        port: of the public origin; None takes a free one.
        durable: False turns PostgreSQL's fsync off.
        disposable: data and databases are deleted at the end, and servers are stopped without ceremony.
        applications: False starts PostgreSQL and RabbitMQ only.
        replicas: processes of each service. The first has the service's name, the others `wealth-2` and so on.
        requests_per_s: nginx's limit for one client address.
        environment: further environment by process name.
        progress: told what happens during start and stop.
        on_change: called, from any thread, after a process started, died or stopped.

    Attributes, once started: `cell` (URLs of databases and vhost), `credentials`, `origin`, `data`.
    """

    cell: Cell
    credentials: credentials.Credentials
    origin: str
    data: Path

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        durable: bool = True,
        disposable: bool = False,
        applications: bool = True,
        replicas: int = 1,
        requests_per_s: int = 300,
        environment: Mapping[str, Mapping[str, str]] | None = None,
        progress: Callable[[str], None] = lambda line: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = directory
        self._port = port
        self._durable = durable
        self._disposable = disposable
        self._with_applications = applications
        self._replicas = replicas
        self._requests_per_s = requests_per_s
        self._environment = environment or {}
        self._progress = progress
        self._on_change = on_change
        self._supervisor: Supervisor | None = None
        self._containers: given.Containers | None = None
        self._lock: IO[bytes] | None = None
        self._servers: Servers | None = None
        self._ports: dict[str, int] = {}
        self._infrastructure_tiers: list[list[str]] = []
        self._application_tiers: list[list[str]] = []
        self._tags = itertools.count(1)
        self._template: Cell | None = None
        self._template_mutex = threading.Lock()

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and wait until it is ready. On failure everything is stopped again.

        Raises:
            StartFailure: with the last log lines of what failed.
            StackBusy: another supervisor has this directory.
            packages.MissingSoftware, ports.PortTaken, provision.ProvisionFailure: with what to do.
        """
        try:
            self._start_infrastructure()
            if self._with_applications:
                self._start_applications()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> list[str]:
        """Stop everything in reverse order. Returns the names of processes that could not be ended."""
        survivors: list[str] = []
        if self._supervisor is not None:
            self._stop_tiers(self._application_tiers)
            if self._disposable and self._servers is not None and self._servers.namespace:
                drop_everything(self._servers)
            self._stop_tiers(self._infrastructure_tiers)
            survivors = self._supervisor.close()
            self._supervisor = None
        if self._containers is not None:
            self._containers.stop()
            self._containers = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        return survivors

    def __enter__(self) -> "Stack":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- control, for tests that break things -----------------------------------------------------

    @property
    def supervisor(self) -> Supervisor:
        """The running supervisor: log tails, snapshots.

        Raises:
            RuntimeError: the stack is not running.
        """
        if self._supervisor is None:
            raise RuntimeError("the stack is not running")
        return self._supervisor

    def names(self) -> list[str]:
        """Of the processes: epmd, rabbitmq, postgres, relay-1, relay-2, services, simulators, nginx."""
        return self.supervisor.names()

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL) -> int:
        """Send `sig` to a process group; returns the pid it had. What it ends is restarted."""
        return self.supervisor.kill(name, sig)

    def pause(self, name: str, sig: signal.Signals = signal.SIGTERM) -> None:
        """End a process and leave it ended until `resume`."""
        self.supervisor.pause(name, sig)

    def resume(self, name: str) -> None:
        """Start a paused process again, without waiting until it is ready."""
        self.supervisor.resume(name)

    def pid(self, name: str) -> int:
        return self.supervisor.pid(name)

    def wait_ready(self, names: Iterable[str] | None = None, timeout_s: float = 60.0) -> None:
        """Return once `names` (default: all that are not paused) are ready.

        Raises:
            StartFailure: one is not, in time; with its last log lines.
        """
        self.supervisor.wait_ready(names, timeout_s)

    def url(self, name: str) -> str:
        """Where a service, simulator or relay serves HTTP, past nginx."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def fresh_cell(self) -> Cell:
        """New, empty databases and a new vhost on this stack's servers; `Cell.drop` them afterwards."""
        assert self._servers is not None
        with self._template_mutex:
            if self._template is None:
                template = Cell(self._servers, "_template")
                for database in (EVENT_STORE, SUBJECT_KEYS):
                    template.create_database(database)
                self._template = template
        return Cell(self._servers, f"_{next(self._tags)}", template=self._template)

    # --- start ------------------------------------------------------------------------------------

    def _start_infrastructure(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._acquire_lock()
        self.data = self._data_directory()
        kill_marked(str(self.data))  # of a stack that lost its supervisor and its warden
        self.credentials = credentials.load_or_create(self.directory / "secrets.json")
        passwords = self.credentials.passwords
        broker_passwords = {user: password for user, password in passwords.items() if user != SUPERUSER}

        environ: Mapping[str, str] = given.without_our_own(os.environ, _LOCAL_ENV)
        if given.containers_are_wanted():
            self._progress("starting containers")
            self._containers = given.Containers()
            environ = self._containers.start()
        postgres_url = given.postgres_url(environ)
        broker = given.broker(self._progress, environ)
        needed = [] if postgres_url else ["postgres"]
        needed += [] if broker else ["rabbitmq-server", "epmd"]
        needed += ["nginx"] if self._with_applications else []
        packages.require(needed, self._progress)
        self._ports = self._assign_ports()
        self.origin = f"http://localhost:{self._ports['nginx']}"

        self._supervisor = Supervisor(
            self.directory / "logs",
            str(self.data),
            lock=self._lock,
            doomed=[self.data] if self._disposable else [],
            on_change=self._on_change,
        )
        if broker is None:
            rabbit = RabbitServer(
                self.data,
                port=self._ports["rabbitmq"],
                management_port=self._ports["management"],
                distribution_port=self._ports["distribution"],
                epmd_port=self._ports["epmd"],
                passwords=broker_passwords,
                disposable=self._disposable,
            )
            rabbit.prepare()
            for program in rabbit.programs():
                self._start_tier(self._infrastructure_tiers, [program])
            broker = Broker("127.0.0.1", rabbit.port, rabbit.management)
        if postgres_url is None:
            postgres = PostgresServer(
                self.data,
                self._ports["postgres"],
                passwords[SUPERUSER],
                durable=self._durable,
                disposable=self._disposable,
            )
            postgres.prepare()
            self._start_tier(self._infrastructure_tiers, [postgres.program()])
            postgres_url = postgres.admin_url
        self.supervisor.wait_ready(timeout_s=_START_TIMEOUT_S)
        namespace = "" if self._all_private(environ) else self._namespace()
        servers = Servers(postgres_url, broker, broker_passwords, namespace)
        self._progress("creating databases, roles and broker users")
        self.cell = Cell(servers)
        check_rights(servers)
        self._servers = servers  # from here on there is something to drop
        self.cell.create()

    def _start_applications(self) -> None:
        credentials.write_private(
            self.directory / "local.env", "".join(f"{name}={value}\n" for name, value in self.env.items())
        )
        applications = Applications(
            self.data,
            cell=self.cell,
            credentials=self.credentials,
            places={name: Place(port) for name, port in self._ports.items() if name not in _INFRASTRUCTURE_PORTS},
            origin=self.origin,
            extra=self._environment,
            replicas=self._replicas,
        )
        nginx = NginxServer(
            self.data,
            port=self._ports["nginx"],
            upstreams={
                service: [self._ports[name] for name in replicas_of(service, self._replicas)] for service in SERVICES
            },
            requests_per_s=self._requests_per_s,
            disposable=self._disposable,
        )
        nginx.prepare()
        self._start_tier(self._application_tiers, applications.relays())
        self._start_tier(self._application_tiers, [*applications.services(), *applications.simulators()])
        self._start_tier(self._application_tiers, [nginx.program()])
        for tier in self._application_tiers:
            self.supervisor.wait_ready(tier, timeout_s=_START_TIMEOUT_S)
            self._progress(f"ready: {', '.join(tier)}")

    @property
    def env(self) -> dict[str, str]:
        """What `.run/local.env` holds: addresses and secrets for people and tests."""
        return {
            "ORIGIN_URL": self.origin,
            "AMQP_URL": self.cell.amqp_url(),
            "EVENT_STORE_URL": self.cell.admin_url(),
            "BFC_URL": self.url(SIMULATORS["bfc"]),
            "VYOMO_URL": self.url(SIMULATORS["vyomo"]),
            "FEED_SECRET_BFC": self.credentials.feed_secrets["bfc"],
            "FEED_SECRET_VYOMO": self.credentials.feed_secrets["vyomo"],
            "OPS_CLIENT_ID": self.credentials.ops_client_id,
            "OPS_CLIENT_SECRET": self.credentials.ops_client_secret,
            "DEMO_EMAIL": self.credentials.demo_email,
            "DEMO_PASSWORD": self.credentials.demo_password,
        }

    def _start_tier(self, tiers: list[list[str]], programs: list[Program]) -> None:
        names = [program.name for program in programs]
        self._progress(f"starting {', '.join(names)}")
        tiers.append(names)
        self.supervisor.start(programs)

    def _stop_tiers(self, tiers: list[list[str]]) -> None:
        """The last one started first; what is in one tier stops together."""
        while tiers:
            names = tiers.pop()
            self._progress(f"stopping {', '.join(names)}")
            self.supervisor.stop(names)

    def _acquire_lock(self) -> IO[bytes]:
        lock = (self.directory / "supervisor.lock").open("ab")
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except OSError:
                # The warden of a supervisor that was killed holds it until it has cleaned up.
                if time.monotonic() > deadline:
                    lock.close()
                    raise StackBusy(f"a supervisor already runs the stack in {self.directory}") from None
                time.sleep(0.1)

    def _data_directory(self) -> Path:
        link = self.directory / "data"
        with contextlib.suppress(OSError):
            target = link.readlink()
            if target.is_dir() and target.stat().st_uid == os.geteuid():
                return target
        link.unlink(missing_ok=True)
        # Not TMPDIR: that may be a folder which only its owner can enter.
        data = Path(tempfile.mkdtemp(prefix="sangam-", dir="/var/tmp"))
        data.chmod(0o711)
        link.symlink_to(data)
        return data

    def _assign_ports(self) -> dict[str, int]:
        if self._port is not None and not ports.is_free(self._port):
            raise ports.PortTaken(
                f"port {self._port} is taken by another program; stop it, or set SANGAM_PORT to another port"
            )
        # A stack with a fixed origin is the one people look at: its services get the documented ports.
        documented = self._port is not None
        wishes = {
            "nginx": self._port,
            **dict.fromkeys(_INFRASTRUCTURE_PORTS),
            **{name: port if documented else None for name, port in PREFERRED_PORTS.items()},
            **dict.fromkeys(
                name for service in SERVICES for name in replicas_of(service, self._replicas) if name != service
            ),
        }
        return ports.assign(self.directory / "ports.json", wishes)

    def _all_private(self, environ: Mapping[str, str]) -> bool:
        return not (environ.get("DATABASE_URL") or environ.get("AMQP_URL"))

    def _namespace(self) -> str:
        """Keeps this stack's names apart on servers that others use too."""
        if self._disposable:
            return f"sangam_{secrets.token_hex(4)}_"
        return f"sangam_{hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:8]}_"


if __name__ == "__main__":
    import command_line

    sys.exit(command_line.main())
