"""What must hold after anything: the log adds up, nothing is parked, and live read models equal rebuilt ones."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg
from chassis.access import access_models
from events.contracts import ledger
from events.envelope import RecordedEvent
from events.platform_items import PlatformItems
from events.projections import Projection, Projections, rebuild
from events.sealing import SubjectKeys
from events.store import EventStore
from events.texts import Texts
from ledger_transfer.projections import PROJECTIONS as LEDGER
from ledger_transfer.reactions import Reactions
from notifier.projections import PROJECTIONS as NOTIFIER
from search.projections import PROJECTIONS as SEARCH
from search.projections import projections as search_projections
from sync_gateway.projections import PROJECTIONS as SYNC
from wealth.projections import PROJECTIONS as WEALTH

if TYPE_CHECKING:
    from provision import Cell
    from stack import Stack


class _WaitingItems:
    """The ledger's links and waiting items, which its consumer `reactions` keeps."""

    name = "items"
    types = Reactions.types

    def __init__(self) -> None:
        self._items = PlatformItems()
        self.ddl = self._items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        await self._items.resolve(db, events)


_KEPT_BY_CONSUMERS = frozenset({"consumed", "operation", "generation", "parked", "skipped", "table_shape", "past_link"})
"""Tables that are about consumers, or that only a reaction keeps, with what it appends."""

READ_MODELS: dict[str, Sequence[Projection]] = {
    service: (*access_models(), *projections)
    for service, projections in {
        "identity": (),
        "ledger_transfer": (*LEDGER, _WaitingItems()),
        "notifier": NOTIFIER,
        "search": SEARCH,
        "sync_gateway": SYNC,
        "wealth": WEALTH,
    }.items()
}
SERVICES = tuple(READ_MODELS)


async def everything_applied(cell: "Cell", timeout_s: float = 60) -> int:
    """Waits until every consumer of every service stands at the head of a log with nothing pending; returns it."""
    admin = await asyncpg.connect(cell.admin_url())
    databases = {service: await asyncpg.connect(cell.admin_url(service)) for service in SERVICES}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                pending = await admin.fetchval("SELECT count(*) FROM store.pending")
                head: int = await admin.fetchval("SELECT max(position) FROM store.log")
                positions = {
                    row["consumer"]: row["position"]
                    for database in databases.values()
                    for row in await database.fetch("SELECT consumer, position FROM consumed")
                }
                # Groups of facts that the notifier will tell within seconds; what is held for longer stays.
                untold = await databases["notifier"].fetchval(
                    "SELECT (SELECT count(*) FROM outbox)"
                    " + (SELECT count(*) FROM lane WHERE deadline < now() + interval '2 minutes')"
                )
                if not pending and not untold and set(positions.values()) == {head}:
                    # What reacted to the last events may have appended more.
                    await asyncio.sleep(0.3)
                    if await admin.fetchval("SELECT max(id) FROM store.events") == await admin.fetchval(
                        "SELECT id FROM store.log WHERE position = $1", head
                    ):
                        return head
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"head {head}, pending {pending}, consumers at {positions}") from None
    finally:
        for connection in (admin, *databases.values()):
            await connection.close()


async def nothing_parked(cell: "Cell") -> None:
    """No consumer of any service has given up on an event."""
    for service in SERVICES:
        database = await asyncpg.connect(cell.admin_url(service))
        parked = await database.fetch("SELECT consumer, type, reason, error FROM parked LIMIT 3")
        await database.close()
        assert not parked, f"{service} parked {parked}"


async def read_log(cell: "Cell") -> list[RecordedEvent]:
    """The whole log; asserts that positions are dense and versions in order."""
    store = await EventStore.connect(cell.store_url("search"))
    log: list[RecordedEvent] = []
    while page := await store.read_log(len(log), 5_000):
        log += page
    await store.close()
    assert [event.position for event in log] == list(range(1, len(log) + 1))
    versions: dict[str, int] = defaultdict(int)
    for event in log:
        versions[event.stream] += 1
        assert event.version == versions[event.stream]
    return log


def books_balance(log: list[RecordedEvent]) -> dict[str, int]:
    """Σ debits = Σ credits after every event; returns the balance of each customer account, from the legs alone."""
    balances: dict[str, int] = defaultdict(int)
    for event in log:
        if not event.type.startswith("ledger."):
            continue
        legs = getattr(event.payload, "legs", ())
        assert sum(leg.amount_minor for leg in legs) == 0, event
        for leg in legs:
            balances[leg.account_id] += leg.amount_minor
            if leg.balance_after_minor is not None:
                assert balances[leg.account_id] == leg.balance_after_minor, event
        if isinstance(event.payload, ledger.TransferCompleted):
            assert balances[event.payload.legs[0].account_id] >= 0, "no transfer overdraws"
    return balances


async def read_models_equal_a_rebuild(stack: "Stack", head: int) -> None:
    """Every table of every read model, row for row."""
    cell = stack.cell
    keys = await SubjectKeys.connect(cell.keys_url("search"), stack.credentials.subject_master_key)
    texts = Texts(keys)
    for service, projections in {**READ_MODELS, "search": (*access_models(), *search_projections(keys))}.items():
        store = await EventStore.connect(cell.store_url(service))
        if service != "wealth":  # it has no right to keys, and uses no texts
            store.opens_with(texts.open_events)
        again = await asyncpg.connect(cell.database_url(service))
        await rebuild(Projections(projections), store, again, "again", up_to=head)
        tables = [row[0] for row in await again.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'again'")]
        assert tables, service
        if service == "ledger_transfer":
            every = [row[0] for row in await again.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
            assert set(every) == {*tables, *_KEPT_BY_CONSUMERS}, "a table that nobody compares"
        for table in tables:
            for left, right in (("public", "again"), ("again", "public")):
                query = f'SELECT * FROM "{left}"."{table}" EXCEPT ALL SELECT * FROM "{right}"."{table}" LIMIT 3'
                rows = await again.fetch(query)
                assert not rows, f"{service}.{table}: only in {left}: {rows}"
        await again.execute("DROP SCHEMA again CASCADE")
        await again.close()
        await store.close()
    await keys.close()
