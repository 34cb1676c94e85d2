"""Servers that are already there: named by the environment, or in containers where nothing else is possible.

`DATABASE_URL` names a PostgreSQL role that may create roles and databases. `AMQP_URL` names a RabbitMQ
administrator; its management API is looked for at `RABBITMQ_MANAGEMENT_URL`, else on port 15672 of the same
host, and everything gets names of this stack's own. Where there is no management API the URL is used as it
is, by every service: least privilege is then up to whoever runs that broker, and the topology of
`rabbitmq.definitions` must exist in its vhost.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packages import find
from provision import Broker
from rabbitmq import Management

_AMQP_PORT = 5672
_MANAGEMENT_PORT = 15672


def without_our_own(environ: Mapping[str, str], local_env: Path) -> dict[str, str]:
    """The environment less what somebody exported from `local_env`: that names our servers, not theirs."""
    try:
        ours = set(local_env.read_text().splitlines())
    except FileNotFoundError:
        ours = set()
    return {name: value for name, value in environ.items() if f"{name}={value}" not in ours}


def postgres_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """The administrator's URL of a running PostgreSQL, if the environment names one."""
    url = environ.get("DATABASE_URL")
    # SQLAlchemy's spelling of the driver means nothing to asyncpg.
    return "postgresql://" + url.partition("://")[2] if url else None


def broker(progress: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> Broker | None:
    """A running RabbitMQ, if the environment names one."""
    url = environ.get("AMQP_URL")
    if not url:
        return None
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or _AMQP_PORT
    management = Management(
        environ.get("RABBITMQ_MANAGEMENT_URL") or f"http://{host}:{_MANAGEMENT_PORT}",
        unquote(parts.username or "guest"),
        unquote(parts.password or "guest"),
    )
    try:
        management.call("GET", "/whoami", timeout_s=3)
    except OSError as error:
        progress(f"AMQP_URL: no management API at {management.url} ({error}); using its vhost as it is")
        return Broker(host, port, None, fixed_url=url)
    return Broker(host, port, management)


class Containers:
    """PostgreSQL and RabbitMQ in Docker: see `containers_are_wanted`."""

    def __init__(self) -> None:
        from testcontainers.core.container import DockerContainer

        self._postgres = (
            DockerContainer("postgres:15-alpine")
            .with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
            .with_command("postgres -c max_connections=300")
            .with_exposed_ports(5432)
        )
        self._rabbit = DockerContainer("rabbitmq:3.13-management-alpine").with_exposed_ports(
            _AMQP_PORT, _MANAGEMENT_PORT
        )

    def start(self) -> dict[str, str]:
        """Start both; returns the environment that names them."""
        self._postgres.start()
        self._rabbit.start()
        rabbit_host = self._rabbit.get_container_host_ip()
        postgres_location = f"{self._postgres.get_container_host_ip()}:{self._postgres.get_exposed_port(5432)}"
        return {
            "DATABASE_URL": f"postgresql://postgres@{postgres_location}/postgres",
            "AMQP_URL": f"amqp://guest:guest@{rabbit_host}:{self._rabbit.get_exposed_port(_AMQP_PORT)}/",
            "RABBITMQ_MANAGEMENT_URL": f"http://{rabbit_host}:{self._rabbit.get_exposed_port(_MANAGEMENT_PORT)}",
        }

    def stop(self) -> None:
        self._rabbit.stop()
        self._postgres.stop()


def containers_are_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """True when asked for, or when a Docker engine answers and nothing else can be had."""
    if environ.get("SANGAM_USE_DOCKER") == "1":
        return True
    if (find("postgres") and find("rabbitmq-server")) or shutil.which("apt-get"):
        return False
    return bool(shutil.which("docker")) and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
