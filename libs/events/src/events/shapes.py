"""The shape of a service's tables: what this version of the code expects, and what the database has.

Two kinds of tables, two ways to change them. *Read models* are consequences of the log: each has a fingerprint, and
where a database holds another one the read model is built anew (`events.succession`). *State* (deliveries, settings,
what waits) is not in the log: `bring_up` adds the columns that the DDL has gained and refuses any other change.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import asyncpg
import msgspec

PUBLIC = "public"
_LOCK = "consumer.ddl"
"""Replicas start together, and CREATE … IF NOT EXISTS is not safe against itself."""

_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS \"?(\w+)", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*")
_SCRATCH = "scratch_shape"

DDL = """
    CREATE TABLE IF NOT EXISTS table_shape (
        owner text PRIMARY KEY,
        fingerprint text NOT NULL,
        since timestamptz NOT NULL DEFAULT now()
    );
"""


class NotAdditive(Exception):
    """The DDL of tables that cannot be built anew has changed by more than columns with defaults."""

    def __init__(self, owner: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"the tables of {owner} differ from its DDL, and only columns with a default or without NOT NULL are added"
            f" by themselves: {'; '.join(differences)}. Write the change into the DDL (docs/runbook.md, 'Deploying')"
        )


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One read model as a version of the code has it."""

    fingerprint: str
    tables: list[str]


Models = Mapping[str, Model]


class Fingerprinted(Protocol):
    """What of a read model is its shape. `version`, where it has one, is raised when its rows change their meaning."""

    @property
    def name(self) -> str: ...
    @property
    def ddl(self) -> str: ...
    @property
    def types(self) -> frozenset[str]: ...


class Owner(Protocol):
    """Whatever has tables: a read model, or a consumer's handler. Of `effects` and `kept` see `consumer.Handler`."""

    @property
    def ddl(self) -> str: ...


def derived_tables(owner: Owner) -> list[str]:
    """The tables that the log alone can fill again."""
    others = {*getattr(owner, "effects", ()), *getattr(owner, "kept", ())}
    return sorted(set(_TABLE.findall(owner.ddl)) - others)


def model_of(projection: Fingerprinted) -> Model:
    """The fingerprint covers tables, the explicit `version`, and the event types.

    A read model that takes one more type lacks what the version before has passed over.
    """
    version = getattr(projection, "version", 1)
    text = "\n".join([_plain(projection.ddl), str(version), *sorted(projection.types)])
    return Model(fingerprint=_digest(text), tables=derived_tables(projection))


def shape_of(models: Models) -> str:
    """One word for all read models of a consumer."""
    return _digest("\n".join(f"{name} {models[name].fingerprint}" for name in sorted(models)))


def schema_of(shape: str) -> str:
    """Where the tables of a version are that is not live. It comes first in the search path of that version's
    processes: when its tables are moved there, their statements find them without anybody telling them."""
    return f"shape_{shape}"


def changed(live: Models, ours: Models) -> list[str]:
    """The read models of `ours` that `live` does not have like that."""
    return [name for name, model in ours.items() if name not in live or live[name].fingerprint != model.fingerprint]


def _plain(ddl: str) -> str:
    return " ".join(_COMMENT.sub("", ddl).split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- what a database has ----------------------------------------------------------------------------

Catalog = dict[str, dict[str, str]]
"""By table: each column, constraint and index with its definition."""

_CATALOG = """
    SELECT c.relname AS table, 'column ' || a.attname AS part,
           format_type(a.atttypid, a.atttypmod)
           || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
           || CASE WHEN a.attidentity <> '' THEN ' GENERATED ALWAYS AS IDENTITY'
                   WHEN a.attgenerated <> ''
                        THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ') STORED'
                   WHEN d.adbin IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid)
                   ELSE '' END AS definition
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY ($2) AND c.relkind IN ('r', 'p')
    UNION ALL
    SELECT c.relname, 'constraint ' || k.conname, pg_get_constraintdef(k.oid)
    FROM pg_class c JOIN pg_constraint k ON k.conrelid = c.oid
    WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY ($2)
      AND k.contype <> 'n' -- which newer servers list beside the column
    UNION ALL
    SELECT tablename, 'index ' || indexname, replace(indexdef, ' ' || schemaname || '.', ' ')
    FROM pg_indexes WHERE schemaname = $1 AND tablename = ANY ($2)
"""


async def catalog(db: asyncpg.Connection, schema: str, tables: Iterable[str]) -> Catalog:
    """The tables of a schema as they are."""
    found: Catalog = {}
    for row in await db.fetch(_CATALOG, schema, list(tables)):
        definition = row["definition"].replace(f"{schema}.", "")
        found.setdefault(row["table"], {})[row["part"]] = definition
    return found


async def expected(db: asyncpg.Connection, ddl: str) -> Catalog:
    """The tables as a DDL makes them where there is nothing. In a transaction, which ends with search path `public`."""
    await db.execute(f'DROP SCHEMA IF EXISTS "{_SCRATCH}" CASCADE; CREATE SCHEMA "{_SCRATCH}"')
    await _search(db, _SCRATCH)
    await db.execute(ddl)
    wanted = await catalog(db, _SCRATCH, _TABLE.findall(ddl))
    await _search(db, PUBLIC)
    await db.execute(f'DROP SCHEMA "{_SCRATCH}" CASCADE')
    return wanted


async def lock_tables(db: asyncpg.Connection) -> None:
    """Inside a transaction: whoever creates or changes tables of this database waits here for the others.

    What is created then is in `public`, whatever this process finds first.
    """
    await db.execute("SELECT pg_advisory_xact_lock(hashtext($1))", _LOCK)
    await _search(db, PUBLIC)


async def _search(db: asyncpg.Connection, schema: str) -> None:
    await db.execute("SELECT set_config('search_path', $1, true)", schema)


# --- state ------------------------------------------------------------------------------------------


async def bring_up(db: asyncpg.Connection, owner: str, ddl: str) -> list[str]:
    """Creates the tables of `ddl`, or gives those that exist the columns they lack. Gives what was added.

    Call it in a transaction, after `lock_tables`. The comparison is made once for each text of a DDL; a column that
    the DDL no longer has stays, as long as it takes rows that do not name it, since an older version may be running.

    Raises:
        NotAdditive: the tables differ from the DDL by more than that.
    """
    await db.execute(DDL)
    fingerprint = _digest(_plain(ddl))
    known = await db.fetchval("SELECT fingerprint FROM table_shape WHERE owner = $1", owner)
    added: list[str] = []
    wanted: Catalog = {}
    # Where none of the tables is there, the DDL makes them as it should.
    differs = known != fingerprint and bool(await catalog(db, PUBLIC, _TABLE.findall(ddl)))
    if differs:
        wanted = await expected(db, ddl)
        have = await catalog(db, PUBLIC, wanted)
        for table in wanted.keys() & have.keys():
            for part, definition in wanted[table].items():
                kind, _, name = part.partition(" ")
                if kind == "column" and part not in have[table] and _may_be_added(definition):
                    await db.execute(f'ALTER TABLE "{table}" ADD COLUMN "{name}" {definition}')
                    added.append(f"{table}.{name}")
    await db.execute(ddl)
    if differs and (differences := _differences(wanted, await catalog(db, PUBLIC, wanted))):
        raise NotAdditive(owner, differences)
    if known != fingerprint:
        await db.execute(
            "INSERT INTO table_shape (owner, fingerprint) VALUES ($1, $2)"
            " ON CONFLICT (owner) DO UPDATE SET fingerprint = excluded.fingerprint, since = now()",
            owner,
            fingerprint,
        )
    return added


async def create_tables(database: asyncpg.Pool, owner: str, ddl: str) -> None:
    """`bring_up` for tables that belong to no consumer.

    Raises:
        NotAdditive: as `bring_up`.
    """
    async with database.acquire() as connection, connection.transaction():
        await lock_tables(connection)  # type: ignore[arg-type]  # a proxy of one
        await bring_up(connection, owner, ddl)  # type: ignore[arg-type]


def _may_be_added(definition: str) -> bool:
    return "NOT NULL" not in definition or "DEFAULT" in definition or "GENERATED" in definition


def _differences(wanted: Catalog, have: Catalog) -> list[str]:
    found = []
    for table, parts in sorted(wanted.items()):
        there = have.get(table, {})
        found += [
            f"{table}: {part} should be {definition}, and is {there.get(part, 'missing')}"
            for part, definition in parts.items()
            if there.get(part) != definition
        ]
        found += [
            f"{table}: {part} is {definition}, and not in the DDL"
            for part, definition in there.items()
            if part not in parts
            and not (part.startswith("column ") and _may_be_added(definition))
            # An index more only costs writes; one that refuses rows changes what may be stored.
            and not (part.startswith("index ") and "UNIQUE" not in definition)
        ]
    return found
