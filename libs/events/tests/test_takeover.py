"""Two relays and two replicas of a consumer, each a process: one is killed, the other goes on within seconds."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from backbone import append_one, eventually
from events.store import EventStore

if TYPE_CHECKING:
    from provision import Cell

pytestmark = [pytest.mark.integration, pytest.mark.chaos]

TAKEOVER_S = 5.0

REPLICA = """
import asyncio, os, asyncpg
from backbone import Seen
from events.consumer import Consumer
from events.projections import Projections
from events.store import EventStore

class Signed(Seen):
    ddl = Seen.ddl + "CREATE TABLE IF NOT EXISTS applies (only_row boolean PRIMARY KEY DEFAULT true, number int);"

    async def apply(self, db, events):
        await super().apply(db, events)
        await db.execute("INSERT INTO applies (number) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET number = $1",
                         int(os.environ["NUMBER"]))

async def main():
    store = await EventStore.connect(os.environ["EVENT_STORE_URL"])
    database = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=4)
    consumer = Consumer(name="ledger_transfer.projections", handler=Projections([Signed()]), database=database,
                        store=store, amqp_url=os.environ["AMQP_URL"])
    await consumer.run()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def process(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process, killed at the end."""
    path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_takeover_after_sigkill_of_relays_and_replicas(cell: "Cell") -> None:
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    database = await asyncpg.connect(cell.database_url("ledger_transfer"))
    admin = await asyncpg.connect(cell.admin_url())
    relay = {"EVENT_STORE_URL": cell.store_url("relay"), "AMQP_URL": cell.amqp_url("relay"), "HTTP_PORT": "0"}
    replica = {
        "EVENT_STORE_URL": cell.store_url("ledger_transfer"),
        "DATABASE_URL": cell.database_url("ledger_transfer"),
        "AMQP_URL": cell.amqp_url("ledger_transfer"),
    }
    appended = 0

    async def seen() -> int:
        with contextlib.suppress(asyncpg.UndefinedTableError):
            return await database.fetchval("SELECT count(*) FROM seen")  # type: ignore[no-any-return]
        return 0

    async def write() -> None:
        nonlocal appended
        while True:
            await append_one(store, f"ledger-{appended % 7}")
            appended += 1
            await asyncio.sleep(0.01)

    async def moves_again() -> float:
        """Seconds until what is appended from now on is visible: more than may be under way already."""
        began_s, goal = time.monotonic(), appended + 30

        async def there() -> bool:
            return await seen() >= goal

        await eventually(there, 30)
        return time.monotonic() - began_s

    async def leader_pid() -> int | None:
        return await admin.fetchval(  # type: ignore[no-any-return]
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'sequencer' AND datname = current_database()"
            " AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"
        )

    async with contextlib.AsyncExitStack() as stack:
        relays = [await stack.enter_async_context(process("-m", "events.relay", **relay)) for _ in range(2)]
        replicas = [await stack.enter_async_context(process("-c", REPLICA, NUMBER=str(n), **replica)) for n in range(2)]
        writing = asyncio.create_task(write())
        await moves_again()

        leader = await leader_pid()
        port = await admin.fetchval("SELECT client_port FROM pg_stat_activity WHERE pid = $1", leader)
        leading = next(each for each in relays if _has_port(each.pid, port))
        leading.send_signal(signal.SIGKILL)
        relay_s = await moves_again()
        assert await leader_pid() not in (None, leader)

        consuming = replicas[await database.fetchval("SELECT number FROM applies")]
        consuming.send_signal(signal.SIGKILL)
        replica_s = await moves_again()
        assert await database.fetchval("SELECT number FROM applies") != replicas.index(consuming)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

        async def all_there() -> bool:
            count: int = await admin.fetchval("SELECT count(*) FROM store.events")
            return await seen() == count

        await eventually(all_there, 30)
    print(f"takeover: relay {relay_s:.2f} s, replica {replica_s:.2f} s")
    # The read model fails on anything applied twice or out of order, and such an event would be parked.
    assert await database.fetchval("SELECT count(*) FROM parked") == 0
    assert await database.fetchval("SELECT count(*) FROM seen") >= appended
    assert relay_s < TAKEOVER_S
    assert replica_s < TAKEOVER_S
    await asyncio.gather(store.close(), database.close(), admin.close())


def _has_port(pid: int, port: int) -> bool:
    import psutil

    return any(
        connection.laddr.port == port for connection in psutil.Process(pid).net_connections("tcp") if connection.laddr
    )
