"""Installs the event store: tables, functions, and who may do what."""

from collections.abc import Mapping, Sequence
from importlib import resources

import asyncpg

from events.passwords import connect_postgres

_SERVICE_FUNCTIONS = (
    "append",
    "append_one",
    "read_types",
    "read_cloud_events",
    "read_positions",
    "read_stream",
    "find_event",
    "positions_of",
    "head",
    "save_snapshot",
    "read_snapshot",
)
OPERATIONS = "operation"
"""The stream category of what operators do; the administrator writes it (events.audit)."""

_RELAY_FUNCTIONS = (
    "sequence",
    "ensure_partitions",
    "last_event_id",
    "save_checkpoint",
    "read_checkpoint",
    "read_unpublished",
    "read_cloud_events",
    "head",
    "chain_head",
)


async def install(admin_url: str, *, writers: Mapping[str, Sequence[str]], relay_role: str) -> None:
    """Creates or updates the schema `store`. Safe to run again, and while services work.

    Args:
        admin_url: the event-store database, as a role that may create schemas and grant.
        writers: the stream categories each login role may append to and read. A role with none
            may still read the log.
        relay_role: the login role of the relay.
    """
    connection = await connect_postgres(admin_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('store.install'))")
            await connection.execute(resources.files("events").joinpath("schema.sql").read_text())
            # Compiling these short statements costs more than running them (45-70 ms a call, measured).
            database = await connection.fetchval("SELECT quote_ident(current_database())")
            await connection.execute(f"ALTER DATABASE {database} SET jit = off")
            # Nothing for PUBLIC; each role gets the functions it needs and no table.
            await connection.execute("REVOKE ALL ON ALL TABLES IN SCHEMA store FROM PUBLIC")
            await connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA store FROM PUBLIC")
            await connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            for role in writers:
                await _grant(connection, role, _SERVICE_FUNCTIONS)
            await _grant(connection, relay_role, _RELAY_FUNCTIONS)
            await connection.execute(
                "INSERT INTO store.writers (category, role) VALUES ($1, session_user) ON CONFLICT DO NOTHING",
                OPERATIONS,
            )
            await connection.execute("DELETE FROM store.writers WHERE role = ANY ($1::name[])", list(writers))
            await connection.executemany(
                "INSERT INTO store.writers (role, category) VALUES ($1, $2)",
                [(role, category) for role, categories in writers.items() for category in categories],
            )
    finally:
        await connection.close()


async def _grant(connection: asyncpg.Connection, role: str, functions: Sequence[str]) -> None:
    quoted = '"' + role.replace('"', '""') + '"'
    await connection.execute(f"GRANT USAGE ON SCHEMA store TO {quoted}")
    for function in functions:
        await connection.execute(f"GRANT EXECUTE ON FUNCTION store.{function} TO {quoted}")
