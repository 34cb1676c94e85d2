"""Where the store and the services' databases are, and what goes wrong on the way there."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import asyncpg
import typer
import uvloop

from events import pg
from events.audit import Act, operator_name, recorded_act
from events.cli.output import complain
from events.store import EventStore

FOUND, CANNOT_CONNECT, INTERRUPTED = 1, 3, 130
"""Exit codes beside 0 and typer's own 2 for wrong usage."""

SERVICES = ("identity", "ledger_transfer", "sync_gateway", "wealth", "notifier", "search")
"""Each has a database of its name beside the event store's."""

_EVENT_STORE = "event_store"
_RUN = ".run"

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The event store as administrator. Default: EVENT_STORE_URL, which unlike an argument no one else sees.",
        show_default=False,
    ),
]
EnvOption = Annotated[
    Path | None,
    typer.Option(
        "--env",
        metavar="PATH",
        help="Take EVENT_STORE_URL from this file. Default: the environment, then .run/local.env here or above.",
        show_default=False,
    ),
]
OperatorOption = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Who you are, for the audit. Default: SANGAM_OPERATOR, else your login name.",
        show_default=False,
    ),
]
ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine output, one JSON document a line.")]


@dataclass(frozen=True)
class Servers:
    """The PostgreSQL server of one cell, as administrator."""

    url: str = field(repr=False)

    @property
    def address(self) -> str:
        """The event store without credentials, for people."""
        parts = urlsplit(self.url)
        return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"

    @property
    def store(self) -> pg.Session:
        """A read-only session of the event store."""
        return _session(self.url)

    def database(self, service: str) -> pg.Session:
        """A read-only session of a service's own database, which is named as the event store's is."""
        return _session(self.database_url(service))

    def writable(self, service: str) -> pg.Session:
        """A session of a service's own database, for what an operator changes there."""
        return pg.Session(self.database_url(service), application_name="sangam", statement_timeout_ms=60_000)

    def database_url(self, service: str) -> str:
        """A service's own database, as administrator.

        Raises:
            typer.BadParameter: its name cannot be told from the event store's.
        """
        parts = urlsplit(self.url)
        before, event_store, after = unquote(parts.path).rpartition(_EVENT_STORE)
        if not event_store:
            raise typer.BadParameter(
                f"the services' databases are found by the store's name, and {parts.path[1:]!r} has no"
                f" {_EVENT_STORE!r} in it"
            )
        return urlunsplit(parts._replace(path=quote(before + service + after)))


def find_servers(store: str | None, env: Path | None) -> Servers:
    """From the options, the environment or the local stack, in this order.

    Raises:
        typer.BadParameter: no URL, or no usable one.
    """
    url = store
    if url is None and env is not None:
        url = read_env(env).get("EVENT_STORE_URL")
        if url is None:
            raise typer.BadParameter(f"{env} does not set EVENT_STORE_URL")
    if url is None:
        url = os.environ.get("EVENT_STORE_URL")
    if url is None and (run := run_directory()) is not None:
        url = read_env(run / "local.env").get("EVENT_STORE_URL")
    if url is None:
        raise typer.BadParameter("where is the event store? Give --store or --env, set EVENT_STORE_URL, or `make up`")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("postgresql", "postgres") and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:  # the URL itself stays unsaid: it holds a password
        raise typer.BadParameter(
            "the event store's URL must look like postgresql://user:password@host:port/event_store"
        )
    return Servers(url)


def run_directory() -> Path | None:
    """`.run` of the checkout that the working directory is in, if a stack has been there."""
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / _RUN / "local.env").is_file():
            return directory / _RUN
    return None


def service_name(name: str) -> str:
    """A service as its database is called; `ledger-transfer` is understood.

    Raises:
        typer.BadParameter: there is no such service.
    """
    known = name.replace("-", "_")
    if known not in SERVICES:
        raise typer.BadParameter(f"no service {name!r}; there are {', '.join(SERVICES)}")
    return known


def consumer_name(service: str, consumer: str) -> str:
    """The full name of a service's consumer, given either way."""
    return consumer if "." in consumer else f"{service}.{consumer}"


@contextlib.asynccontextmanager
async def acting(
    servers: Servers,
    act: str,
    target: str,
    *,
    operator: str | None,
    reason: str | None = None,
    arguments: Mapping[str, object] | None = None,
) -> AsyncIterator[Act]:
    """Records in the log that the operator does something, before it is done, and how it ended."""
    store = await EventStore.connect(servers.url, readers=1)
    try:
        async with recorded_act(
            store, act, target, operator=operator or operator_name(), reason=reason, arguments=arguments
        ) as recorded:
            yield recorded
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def opened(session: pg.Session) -> AsyncIterator[pg.Session]:
    """The session, connected now rather than at first use, and closed at the end."""
    try:
        await session.connection()
        yield session
    finally:
        await session.close()


def run(servers: Servers, work: Callable[[], Coroutine[Any, Any, int]]) -> None:
    """Runs a command to its exit code; turns what a server refuses into one line and code 3."""
    try:
        code = uvloop.run(work())
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        reason = why_unreachable(error)
        if reason is None:
            raise
        complain(f"{servers.address}: {reason}")
        code = CANNOT_CONNECT
    if code:
        raise typer.Exit(code)


def why_unreachable(error: Exception) -> str | None:
    """What to tell about an error that comes from the server or the way to it; None for any other."""
    reasons: dict[type[Exception], str] = {
        asyncpg.InvalidAuthorizationSpecificationError: "the server refuses these credentials",
        asyncpg.InvalidCatalogNameError: "there is no such database",
        asyncpg.InsufficientPrivilegeError: "this role may not read here; the administrator's URL is needed",
        asyncpg.UndefinedTableError: "there is no event store in this database",
        asyncpg.InvalidSchemaNameError: "there is no event store in this database",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, BrokenPipeError) or not pg.is_outage(error):
        return None
    return f"cannot connect ({error or type(error).__name__})"


def _session(url: str) -> pg.Session:
    # Planned for the range at hand: a plan for any range may well join the whole log.
    settings = {"default_transaction_read_only": "on", "plan_cache_mode": "force_custom_plan"}
    return pg.Session(url, application_name="sangam", settings=settings)


def read_env(path: Path) -> dict[str, str]:
    """The variables that a file like `.run/local.env` sets.

    Raises:
        typer.BadParameter: it cannot be read.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error
    pairs = (line.strip().removeprefix("export ").split("=", 1) for line in lines if "=" in line)
    return {name: value.strip("'\"") for name, value in pairs if not name.startswith("#")}
