"""Databases, roles, broker users and the event-store schema: what the product needs on running servers.

One set of them is a *cell*. A stack has one; a test gets a fresh one beside it on the same servers. Doing it
again changes nothing.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
from postgres import run_blocking
from rabbitmq import ADMIN, RELAY, SERVICES, Management, amqp_url, definitions

EVENT_STORE = "event_store"
SUBJECT_KEYS = "subject_keys"
DATABASES = (EVENT_STORE, SUBJECT_KEYS, *SERVICES)

WRITERS: dict[str, Sequence[str]] = {
    "identity": ("user", "sign_in", "email_claim", "platform_link", "session", "signing_key"),
    "sync_gateway": ("bank_customer", "broker_client", "profile", "webhook", "sync_run", "conflict_policy"),
    "ledger_transfer": ("ledger",),
    "wealth": ("wealth",),
    "notifier": ("inbox",),
    "search": (),
}
"""The stream categories that each service may append to."""

AUDIT = "ops_audit"
"""The category that every service may append to besides: who used an operator's token on it."""

KEY_RIGHTS: dict[str, Sequence[str]] = {
    "identity": ("find", "find_or_create", "erase", "own_key"),
    "sync_gateway": ("find", "find_or_create", "own_key"),
    "ledger_transfer": ("find", "find_or_create"),
    "notifier": ("find", "find_or_create"),
    "search": ("find",),
}
"""What each service may do with the keys of data subjects (events.sealing); the others cannot even connect."""


class ProvisionFailure(Exception):
    """The servers do not let us create what the product needs; the message says what to do."""


@dataclass(frozen=True)
class Broker:
    """A RabbitMQ server. Without `management` nothing can be made on it, and `fixed_url` is used as it is."""

    host: str
    port: int
    management: Management | None
    fixed_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Servers:
    """Where PostgreSQL and RabbitMQ are, and how names are kept apart there."""

    postgres_url: str = field(repr=False)
    """As a role that may create roles and databases."""
    broker: Broker
    passwords: Mapping[str, str] = field(repr=False)
    """By role and broker user: the services, `relay` and `admin`."""
    namespace: str = ""
    """Prefix of every database, role, vhost and broker user; empty on private servers."""


class Cell:
    """The databases and the vhost of one running product, with a URL for every role.

    Args:
        tag: tells this cell from others on the same servers; the stack's own has none.
        exists: somebody else creates it; asking for a URL touches no server.
        template: a cell whose event store and keys' database are there, and which nobody uses: new ones are copies.
    """

    def __init__(
        self, servers: Servers, tag: str = "", *, exists: bool = False, template: "Cell | None" = None
    ) -> None:
        self._servers = servers
        self._template = template
        self._tag = tag
        self._created: set[str] = {*DATABASES, "vhost"} if exists else set()
        self.vhost = f"{servers.namespace}sangam{tag}"

    # --- URLs -------------------------------------------------------------------------------------

    def database_name(self, database: str) -> str:
        return f"{self._servers.namespace}{database}{self._tag}"

    def admin_url(self, database: str = EVENT_STORE) -> str:
        """`database` ("event_store" or a service's) as the server's administrator."""
        self.create_database(database)
        return _with(self._servers.postgres_url, database=self.database_name(database))

    def store_url(self, role: str) -> str:
        """The event store as a service or as `relay`."""
        self.create_database(EVENT_STORE)
        return self._as_role(role, EVENT_STORE)

    def keys_url(self, role: str) -> str:
        """The database of the data subjects' keys, as a service of `KEY_RIGHTS`."""
        self.create_database(SUBJECT_KEYS)
        return self._as_role(role, SUBJECT_KEYS)

    def database_url(self, service: str) -> str:
        """The service's own database, as its role."""
        self.create_database(service)
        return self._as_role(service, service)

    def foreign_url(self, role: str, database: str) -> str:
        """`database` with the credentials of another role: what must be refused."""
        self.create_database(database)
        return self._as_role(role, database)

    def amqp_url(self, user: str = ADMIN) -> str:
        """The vhost as a service, `relay` or `admin`."""
        broker = self._servers.broker
        if broker.fixed_url is not None:
            return broker.fixed_url
        self.create_vhost()
        user_name = self._servers.namespace + user
        return amqp_url(user_name, self._servers.passwords[user], broker.host, broker.port, self.vhost)

    @property
    def management(self) -> Management:
        """The broker's management API as administrator.

        Raises:
            ProvisionFailure: a broker given by AMQP_URL without a reachable management API.
        """
        if self._servers.broker.management is None:
            raise ProvisionFailure("this broker has no reachable management API (RABBITMQ_MANAGEMENT_URL)")
        return self._servers.broker.management

    # --- creation ---------------------------------------------------------------------------------

    def create(self) -> None:
        """Roles, all databases, the vhost, the broker's users and the event-store schema."""
        run_blocking(lambda: _create_roles(self._servers))
        for database in DATABASES:
            self.create_database(database)
        self.create_vhost()

    def create_database(self, database: str) -> None:
        """Create `database` with grants; the event store and the keys get their schema."""
        if database in self._created:
            return
        name = self.database_name(database)
        template = None
        if self._template is not None and database in (EVENT_STORE, SUBJECT_KEYS):
            template = self._template.database_name(database)
        run_blocking(lambda: _create_database(self._servers, database, name, template))
        self._created.add(database)
        if template is None and database == EVENT_STORE:
            install_schema(self._servers, _with(self._servers.postgres_url, database=name))
        elif template is None and database == SUBJECT_KEYS:
            install_vault(self._servers, _with(self._servers.postgres_url, database=name))

    def create_vhost(self) -> None:
        """Create the vhost with users and topology. A broker that cannot be managed is left as it is."""
        management = self._servers.broker.management
        if management is None or "vhost" in self._created:
            return
        management.define(definitions(self.vhost, self._servers.passwords, prefix=self._servers.namespace))
        self._created.add("vhost")

    def drop(self) -> None:
        """Delete everything this cell created. Roles and users belong to the servers and stay."""
        names = [self.database_name(database) for database in DATABASES if database in self._created]
        run_blocking(lambda: _drop_databases(self._servers, names))
        if "vhost" in self._created:
            self.management.delete_vhost(self.vhost)
        self._created.clear()

    def _as_role(self, role: str, database: str) -> str:
        return _with(
            self._servers.postgres_url,
            user=self._servers.namespace + role,
            password=self._servers.passwords[role],
            database=self.database_name(database),
        )


def on_database(url: str, service: str) -> str:
    """The administrator's URL of the event store, turned to a service's database beside it."""
    store, _, query = url.partition("?")
    return store.removesuffix(EVENT_STORE) + service + (f"?{query}" if query else "")


def install_schema(servers: Servers, admin_url: str) -> None:
    """Install or update the event store's tables and functions."""
    if importlib.util.find_spec("events.schema") is None:
        raise ProvisionFailure("the package sangam-events is not installed: run `make up`, which installs it")
    from events import schema

    writers = {servers.namespace + role: (*categories, AUDIT) for role, categories in WRITERS.items()}
    run_blocking(lambda: schema.install(admin_url, writers=writers, relay_role=servers.namespace + RELAY))


def install_vault(servers: Servers, admin_url: str) -> None:
    """Install or update the tables and functions of the data subjects' keys."""
    from events import sealing

    rights: dict[str, Sequence[Any]] = {servers.namespace + role: names for role, names in KEY_RIGHTS.items()}
    run_blocking(lambda: sealing.install(admin_url, rights=rights))


def check_rights(servers: Servers) -> None:
    """See that the administrator's role can do what is needed.

    Raises:
        ProvisionFailure: it cannot.
    """
    if not run_blocking(lambda: _may_create(servers)):
        raise ProvisionFailure(
            "the role in DATABASE_URL must be allowed to create roles and databases: ALTER ROLE … CREATEROLE CREATEDB"
        )


def drop_everything(servers: Servers) -> None:
    """Delete what a namespace left on servers that are not ours: databases, roles, broker users, vhosts."""
    assert servers.namespace, "without a namespace this would hit what is not ours"
    run_blocking(lambda: _drop_namespace(servers))
    management = servers.broker.management
    if management is not None:
        for vhost in management.call("GET", "/vhosts"):
            if vhost["name"].startswith(servers.namespace):
                management.delete_vhost(vhost["name"])
        for user in servers.passwords:
            management.delete_user(servers.namespace + user)


# --- SQL ------------------------------------------------------------------------------------------


async def _may_create(servers: Servers) -> bool:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        may: bool = await connection.fetchval(
            "SELECT rolsuper OR (rolcreaterole AND rolcreatedb) FROM pg_roles WHERE rolname = current_user"
        )
        return may
    finally:
        await connection.close()


async def _create_roles(servers: Servers) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        is_superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        for role in (*SERVICES, RELAY):
            name = servers.namespace + role
            if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", name):
                await connection.execute(f"CREATE ROLE {_quoted(name)} NOSUPERUSER NOCREATEDB NOCREATEROLE")
            statement = await connection.fetchval(
                "SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)",
                name,
                servers.passwords[role],
            )
            await connection.execute(statement)
            if not is_superuser:
                await connection.execute(f"GRANT {_quoted(name)} TO CURRENT_USER")  # to give it a schema
    finally:
        await connection.close()


async def _create_database(servers: Servers, database: str, name: str, template: str | None) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            source = f" TEMPLATE {_quoted(template)}" if template else ""
            await connection.execute(f"CREATE DATABASE {_quoted(name)}{source}")
        # A copy of a template has none of the template's grants or settings.
        await connection.execute(f"REVOKE ALL ON DATABASE {_quoted(name)} FROM PUBLIC")
        if database in (EVENT_STORE, SUBJECT_KEYS):
            await connection.execute(f"ALTER DATABASE {_quoted(name)} SET jit = off")
            roles = (*SERVICES, RELAY) if database == EVENT_STORE else KEY_RIGHTS
            everyone = ", ".join(_quoted(servers.namespace + role) for role in roles)
            await connection.execute(f"GRANT CONNECT ON DATABASE {_quoted(name)} TO {everyone}")
            return
        role = _quoted(servers.namespace + database)
        # CREATE: a rebuild fills another schema and swaps.
        await connection.execute(f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {_quoted(name)} TO {role}")
    finally:
        await connection.close()
    connection = await asyncpg.connect(_with(servers.postgres_url, database=name), timeout=10)
    try:
        await connection.execute(f"ALTER SCHEMA public OWNER TO {role}; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    finally:
        await connection.close()


async def _drop_databases(servers: Servers, names: Iterable[str]) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        for name in names:
            await connection.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")
    finally:
        await connection.close()


async def _drop_namespace(servers: Servers) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        names = await connection.fetch(
            "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", servers.namespace
        )
        roles = [servers.namespace + role for role in (*SERVICES, RELAY)]
    finally:
        await connection.close()
    await _drop_databases(servers, [record["datname"] for record in names])
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        for role in roles:
            await connection.execute(f"DROP ROLE IF EXISTS {_quoted(role)}")
    finally:
        await connection.close()


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _with(url: str, *, database: str, user: str | None = None, password: str = "") -> str:
    """`url` with another database and, if given, other credentials."""
    parts = urlsplit(url)
    location = parts.netloc
    if user is not None:
        location = f"{quote(user)}:{quote(password)}@{location.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=location, path="/" + quote(database)))
