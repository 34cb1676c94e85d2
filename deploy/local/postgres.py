"""A private PostgreSQL server: its data directory, configuration, and how to tell that it answers."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import asyncpg
from packages import find
from supervisor import Program

SUPERUSER = "postgres"
T = TypeVar("T")


def run_blocking(work: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine to its end from synchronous code, also where an event loop is already running."""

    async def call() -> T:
        return await work()

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(lambda: asyncio.run(call())).result()


def url(user: str, password: str, host: str, port: int, database: str) -> str:
    return f"postgresql://{quote(user)}:{quote(password)}@{host}:{port}/{quote(database)}"


class PostgresServer:
    """PostgreSQL under `directory/postgres`, on loopback and a socket in its data directory.

    Args:
        directory: the stack's data directory, which the user postgres can enter.
        durable: False turns fsync off, for tests that are not about crashes of the machine.
    """

    def __init__(self, directory: Path, port: int, password: str, *, durable: bool, disposable: bool) -> None:
        self.port = port
        self.data = directory / "postgres"
        self.admin_url = url(SUPERUSER, password, "127.0.0.1", port, "postgres")
        self._password = password
        self._durable = durable
        self._disposable = disposable

    def prepare(self) -> None:
        """Create the cluster when there is none, and write its configuration."""
        if not (self.data / "PG_VERSION").exists():
            shutil.rmtree(self.data, ignore_errors=True)  # what an interrupted initdb left
            self.data.mkdir(mode=0o700)
            self._own(self.data)
            password_file = self.data.parent / "initdb.password"
            password_file.touch(mode=0o600)
            password_file.write_text(self._password)
            self._own(password_file)
            try:
                subprocess.run(
                    [
                        *self._as_postgres(),
                        str(self.binary("initdb")),
                        f"--pgdata={self.data}",
                        f"--username={SUPERUSER}",
                        f"--pwfile={password_file}",
                        "--auth=scram-sha-256",
                        "--encoding=UTF8",
                        f"--locale={'C.UTF-8' if sys.platform == 'linux' else 'en_US.UTF-8'}",
                        "--no-sync",
                    ],
                    cwd=self.data,
                    check=True,
                    capture_output=True,
                    text=True,
                )
            except subprocess.CalledProcessError as failure:
                raise RuntimeError(f"initdb failed:\n{failure.stdout}{failure.stderr}") from failure
            finally:
                password_file.unlink()
        configuration = self.data / "postgresql.auto.conf"
        configuration.write_text(self._configuration())
        self._own(configuration)

    def program(self) -> Program:
        return Program(
            name="postgres",
            argv=[*self._as_postgres(), str(self.binary("postgres")), "-D", str(self.data)],
            environment={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            directory=self.data,
            address=f"127.0.0.1:{self.port}",
            ready=self.why_not_ready,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
            grace_s=30,
            disposable=self._disposable,
        )

    def why_not_ready(self) -> str | None:
        async def connect() -> None:
            connection = await asyncpg.connect(self.admin_url, timeout=3)
            await connection.close()

        try:
            run_blocking(connect)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            return f"no connection: {error}"
        return None

    def _configuration(self) -> str:
        # In postgresql.auto.conf because it is read last and is ours alone.
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.data),
            "max_connections": "300",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "log_line_prefix": "%m [%p] %q%u@%d ",
            "log_checkpoints": "off",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "synchronous_commit": "on",
        }
        return "".join(f"{name} = '{value}'\n" for name, value in settings.items())

    def binary(self, name: str) -> Path:
        """A program that came with the server."""
        postgres = find("postgres")
        assert postgres is not None, "packages.require comes first"
        return postgres.with_name(name)

    def _as_postgres(self) -> list[str]:
        """PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={SUPERUSER}", f"--regid={SUPERUSER}", "--init-groups"]

    def _own(self, path: Path) -> None:
        if os.geteuid() == 0:
            entry = pwd.getpwnam(SUPERUSER)
            os.chown(path, entry.pw_uid, entry.pw_gid)
