"""The store's functions touch what they were asked for, however large the log and whatever the planner thinks of it.

A plan that joins or scans whole tables is right on an empty database and on a developer's, and ruins a year-old one.
"""

import itertools
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from events.envelope import new_id

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

ROWS = 20_000
ENOUGH = 40
"""Rows (heap and index) that a call may touch for each row it is asked for."""

_FILL = f"""
    INSERT INTO store.streams SELECT 'ledger-' || n, 1 FROM generate_series(1, {ROWS}) n;
    INSERT INTO store.events SELECT n, 'ledger-' || n, 1, gen_random_uuid(), 'x.y.z', 1, NULL, '{{}}', '{{}}', now()
      FROM generate_series(1, {ROWS}) n;
    INSERT INTO store.event_ids SELECT event_id, stream, version, '' FROM store.events;
    INSERT INTO store.log SELECT id, id, '' FROM store.events WHERE id <= {ROWS} - 500;
    INSERT INTO store.pending SELECT id FROM store.events WHERE id > {ROWS} - 500;
    SELECT setval('store.event_id', {ROWS});
"""


@pytest.fixture(params=["analysed", "never analysed"])
async def store(cell: "Cell", request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    connection = await asyncpg.connect(cell.admin_url())
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(_FILL)
    if request.param == "analysed":
        await connection.execute("ANALYZE")
    await connection.execute("INSERT INTO store.writers VALUES ('ledger', session_user) ON CONFLICT DO NOTHING")
    yield connection
    await connection.close()


async def _touched(store: asyncpg.Connection, query: str, *arguments: Any) -> int:
    """Rows that the call reads from the store's tables. Several times: plans turn generic at the sixth."""
    async with store.transaction():
        counts: list[int] = []
        for _ in range(7):
            counts.append(
                await store.fetchval(
                    "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint"
                    " FROM pg_stat_xact_all_tables WHERE schemaname = 'store'"
                )
            )
            savepoint = store.transaction()
            await savepoint.start()
            await store.fetch(query, *arguments)
            await savepoint.rollback()
    return max(after - before for before, after in itertools.pairwise(counts))


async def test_a_slice_of_the_log_is_read_as_a_slice(store: asyncpg.Connection) -> None:
    for after in (0, ROWS // 2):
        assert (
            await _touched(
                store, "SELECT * FROM store.read_cloud_events($1::bigint, $1::bigint + 100, NULL, 30)", after
            )
            < 100 * ENOUGH
        )


async def test_a_slice_with_a_late_commit_in_it_too(store: asyncpg.Connection) -> None:
    # Swap the ids of two positions that are far from each other.
    await store.execute("UPDATE store.log SET id = 0 WHERE position = 50")
    await store.execute(f"UPDATE store.log SET id = 50 WHERE position = {ROWS} - 600")
    await store.execute(f"UPDATE store.log SET id = {ROWS} - 600 WHERE position = 50")
    rows = await store.fetch("SELECT position, stream FROM store.read_types(0, 100, NULL)")
    assert [row["position"] for row in rows] == list(range(1, 101))
    assert rows[49]["stream"] == f"ledger-{ROWS - 600}"
    assert await _touched(store, "SELECT * FROM store.read_types(0, 100, NULL)") < 100 * ENOUGH
    late = "SELECT * FROM store.read_cloud_events(0, 100, NULL, 30)"
    assert [(row["first"], row["last"]) for row in await store.fetch(late)] == [(1, 30), (31, 60), (61, 90), (91, 100)]
    assert await _touched(store, late) < 100 * ENOUGH


async def test_sequencing_reads_what_is_pending(store: asyncpg.Connection) -> None:
    high = ROWS - 500
    assert await _touched(store, "SELECT * FROM store.sequence($1, $2, 100)", high, [1, 2, 3]) < 100 * ENOUGH


async def test_an_append_reads_its_streams(store: asyncpg.Connection) -> None:
    many = [f"ledger-{n}" for n in range(1001, 1101)]
    ids = [new_id() for _ in many]
    ones = [1] * len(many)
    order = list(range(1, len(many) + 1))
    for expected in (1, 7):  # as it should be, and in conflict
        touched = await _touched(
            store,
            "SELECT * FROM store.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)",
            *(many, ones, ids, [b""] * len(many), order, order, [expected] * len(many), [0] * len(many), ones, order),
            *(ones, ids, ["x.y.z"] * len(many), ones, [None] * len(many), [b"{}"] * len(many), [b"{}"] * len(many)),
        )
        assert touched < len(many) * ENOUGH
    one = "SELECT store.append_one($1, $2, $3, '', 'x.y.z', 1, NULL, '{}', '{}')"
    assert await _touched(store, one, "ledger-5", 1, new_id()) < ENOUGH
    assert await _touched(store, one, "ledger-5", 9, new_id()) < ENOUGH


async def test_reading_a_stream_or_an_event_reads_no_more(store: asyncpg.Connection) -> None:
    event_id = await store.fetchval("SELECT event_id FROM store.events WHERE id = 77")
    assert await _touched(store, "SELECT * FROM store.read_stream('ledger-77', 0, 10)") < ENOUGH
    assert await _touched(store, "SELECT * FROM store.find_event($1)", event_id) < ENOUGH
    assert await _touched(store, "SELECT * FROM store.positions_of($1)", [event_id]) < ENOUGH
