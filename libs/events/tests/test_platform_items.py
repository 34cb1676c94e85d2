"""An item that arrives while its customer is being linked comes out exactly once, in order, always."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest
from events.contracts import Event, banking, contract_of, encode, identity
from events.envelope import Metadata, RecordedEvent, new_id, platform_stream
from events.platform_items import PlatformItems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from recording import recorded

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


def log_of(script: list[tuple[str, int]]) -> list[RecordedEvent]:
    """A log of items and links, `("item" | "link", customer)`, with dense positions."""
    versions: dict[str, int] = {}
    log = []
    for position, (kind, customer) in enumerate(script, 1):
        customer_id = f"BFC-{customer}"
        payload: Event
        if kind == "item":
            stream, subject = platform_stream("bfc", customer_id), None
            payload = banking.KycCompleted(
                item_id=str(position), customer_id=customer_id, occurred_at=datetime.now(UTC), level="full"
            )
        else:
            subject = new_id()
            stream = f"user-{subject}"
            payload = identity.LinkConfirmed(
                link_id=new_id(),
                platform="bfc",
                platform_customer_id=customer_id,
                platform_stream=platform_stream("bfc", customer_id),
            )
        versions[stream] = versions.get(stream, 0) + 1
        log.append(
            recorded(
                payload,
                position=position,
                stream=stream,
                version=versions[stream],
                subject=subject,
                metadata=Metadata(correlation_id="c"),
                at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=position),
            )
        )
    return log


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    customers=st.lists(st.lists(st.just("item"), max_size=6), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    cuts=st.sets(st.integers(0, 30), max_size=8),
)
async def test_every_item_once_and_in_order(cell: "Cell", customers: list[list[str]], order, cuts: set[int]) -> None:  # type: ignore[no-untyped-def]
    script = [("item", n) for n, items in enumerate(customers) for _ in items]
    script += [("link", n) for n in range(len(customers))]
    order.shuffle(script)
    log = log_of(script)
    items = PlatformItems()
    db = await asyncpg.connect(cell.database_url("ledger_transfer"))
    await db.execute(items.ddl + "TRUNCATE platform_link, platform_item")
    due = []
    edges = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    for start, end in itertools.pairwise(edges):
        transaction = db.transaction()
        await transaction.start()
        await items.resolve(db, log[start:end])
        await transaction.rollback()  # a crash before the position was saved: the same batch comes again
        async with db.transaction():
            due += await items.resolve(db, log[start:end])
    assert await db.fetchval("SELECT count(*) FROM platform_item") == 0
    await db.close()
    owner = {e.payload.platform_stream: e.subject for e in log if isinstance(e.payload, identity.LinkConfirmed)}
    expected = [e for e in log if isinstance(e.payload, banking.KycCompleted)]
    assert sorted(item.position for _, item in due) == [e.position for e in expected]
    for user_id, item in due:
        assert user_id == owner[item.stream]
        assert item == log[item.position - 1]
    for stream in owner:
        positions = [item.position for _, item in due if item.stream == stream]
        assert positions == sorted(positions)


async def test_items_after_a_link_was_removed_wait_for_the_next_owner(cell: "Cell") -> None:
    items = PlatformItems()
    script = [("link", 1), ("item", 1), ("link", 2), ("item", 1), ("item", 1), ("link", 1), ("item", 1)]
    log = log_of(script)
    first, second = log[0].subject, log[5].subject
    stream = platform_stream("bfc", "BFC-1")
    removed = identity.LinkRemoved(
        link_id=new_id(), platform="bfc", platform_customer_id="BFC-1", platform_stream=stream
    )
    # In place of the unrelated link: the first owner's is removed; at the end the second owner is erased.
    log[2] = structs.replace(log[2], type=contract_of(removed).type, data=encode(removed), subject=first)
    assert second is not None
    gone = identity.UserErased(user_id=second, erased_at=datetime.now(UTC))
    log.append(structs.replace(log[2], position=8, type=contract_of(gone).type, data=encode(gone), subject=second))
    log.append(structs.replace(log[6], position=9))
    for batch in (1, 3, len(log)):
        db = await asyncpg.connect(cell.database_url("ledger_transfer"))
        await db.execute(items.ddl + "TRUNCATE platform_link, platform_item")
        due = []
        for start in range(0, len(log), batch):
            async with db.transaction():
                due += await items.resolve(db, log[start : start + batch])
        assert [(user, item.position) for user, item in due] == [(first, 2), (second, 4), (second, 5), (second, 7)]
        assert await db.fetchval("SELECT count(*) FROM platform_item") == 1, "after the erasure it waits"
        assert await db.fetchval("SELECT count(*) FROM platform_link") == 0
        await db.close()
