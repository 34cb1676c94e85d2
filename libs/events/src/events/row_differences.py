"""Rows that differ between a live table and the same table in another schema."""

from typing import Any

import asyncpg

_DIFF_ROWS = 20


async def differences(db: asyncpg.Connection, schema: str, table: str) -> dict[str, Any] | None:
    """How many rows of a table differ between `public` and `schema`, with some of them; None where none does."""
    if not await db.fetchval("SELECT to_regclass($1) IS NOT NULL", f'public."{table}"'):
        return {"only_new": await db.fetchval(f'SELECT count(*) FROM "{schema}"."{table}"'), "no_live": True}
    key = await _primary_key(db, f'"{schema}"."{table}"')
    live, new = (
        f'(SELECT to_jsonb(t) AS r{{}} FROM public."{table}" t) l',
        (f'(SELECT to_jsonb(t) AS r{{}} FROM "{schema}"."{table}" t) n'),
    )
    if key:
        columns = "".join(f', t."{column}"::text AS k{n}' for n, column in enumerate(key))
        names = ", ".join(f"k{n}" for n in range(len(key)))
        joined = f"{live.format(columns)} FULL JOIN {new.format(columns)} USING ({names})"
    else:  # the same row any number of times: compared by how often it is there
        each = "(SELECT r, row_number() OVER (PARTITION BY r) AS k FROM {}) {}"
        joined = (
            f"{each.format(live.format(''), 'l')} FULL JOIN {each.format(new.format(''), 'n')}"
            " ON l.r = n.r AND l.k = n.k"
        )
    counts = await db.fetchrow(
        "SELECT count(*) FILTER (WHERE n.r IS NULL) AS only_live, count(*) FILTER (WHERE l.r IS NULL) AS only_new,"
        f" count(*) FILTER (WHERE l.r <> n.r) AS changed FROM {joined} WHERE l.r IS DISTINCT FROM n.r"
    )
    assert counts is not None
    if not any(counts):
        return None
    rows = await db.fetch(
        f"SELECT l.r::text AS live, n.r::text AS new FROM {joined} WHERE l.r IS DISTINCT FROM n.r LIMIT {_DIFF_ROWS}"
    )
    return {**counts, "rows": [dict(row) for row in rows]}


async def _primary_key(db: asyncpg.Connection, table: str) -> list[str]:
    rows = await db.fetch(
        "SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, n)"
        " JOIN pg_attribute a ON a.attnum = k.attnum"
        " WHERE i.indrelid = $1::regclass AND i.indisprimary AND a.attrelid = i.indrelid ORDER BY k.n",
        table,
    )
    return [row["attname"] for row in rows]
