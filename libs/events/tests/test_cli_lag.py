"""`sangam lag` and `sangam parked` on real databases."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg
import pytest
from backbone import eventually, running_consumer, running_relay
from command import SERVICES, Writer, sangam
from events.checkpoint import DDL
from events.consumer import Consumer
from events.envelope import RecordedEvent
from events.store import EventStore

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


async def _stand(cell: "Cell", consumer: str, position: int, epoch: object = None) -> None:
    database = await asyncpg.connect(cell.admin_url(consumer.split(".")[0]))
    await database.execute(DDL)
    await database.execute("INSERT INTO consumed VALUES ($1, $2, $3)", consumer, position, epoch)
    await database.close()


class TestLag:
    async def test_in_positions_and_seconds(self, cell: "Cell") -> None:
        for service in SERVICES:
            cell.admin_url(service)
        async with Writer(cell) as writer:
            await writer.log(count=100)
            await writer.append(count=5)
            await writer.admin.execute(
                "UPDATE store.events e SET recorded_at = now() - interval '90 s' FROM store.log l"
                " WHERE l.id = e.id AND l.position > 70;"
                "UPDATE store.events SET recorded_at = now() - interval '20 s'"
                " WHERE id IN (SELECT id FROM store.pending);"
                "SELECT store.save_checkpoint('sangam.log', 60)"
            )
            epoch = await writer.admin.fetchval("SELECT epoch FROM store.store")
        await _stand(cell, "ledger_transfer.reactions", 70, epoch)
        await _stand(cell, "ledger_transfer.projections", 100, epoch)
        await _stand(cell, "wealth.projections", 40, "00000000-0000-0000-0000-000000000001")
        outcome = await sangam(cell, "lag", "--json")
        assert outcome.code == 0
        lag = outcome.json
        assert lag["head"] == 100
        assert lag["pending"] == 5
        assert 20 <= lag["oldest_pending_s"] < 60
        consumers = {each["consumer"]: each for each in lag["consumers"]}
        assert {name: each["lag"] for name, each in consumers.items()} == {
            "ledger_transfer.reactions": 30, "ledger_transfer.projections": 0, "wealth.projections": 60,
        }  # fmt: skip
        assert 90 <= consumers["ledger_transfer.reactions"]["lag_s"] < 150
        assert consumers["ledger_transfer.projections"]["lag_s"] == 0
        assert [consumers[name]["other_epoch"] for name in sorted(consumers)] == [False, False, True]
        assert {each["publisher"]: each["lag"] for each in lag["publishers"]} == {
            "sangam.log": 40,
            "sangam.events": 100,
        }
        assert lag["idle_services"] == ["identity", "notifier", "search", "sync_gateway"]
        told = (await sangam(cell, "lag")).out
        assert "ledger_transfer.reactions" in told
        assert "another epoch" in told
        # As a check in a script.
        only = ("lag", "--service", "ledger-transfer", "--json")
        assert (await sangam(cell, *only, "--max", "100")).code == 0
        assert (await sangam(cell, *only, "--max", "99")).code == 1, "the relay is 100 behind"

    async def test_a_database_that_is_not_there_is_code_3_and_the_rest_is_shown(self, cell: "Cell") -> None:
        await _stand(cell, "wealth.projections", 0)
        outcome = await sangam(cell, "lag", "--json")
        assert outcome.code == 3
        assert [each["consumer"] for each in outcome.json["consumers"]] == ["wealth.projections"]
        assert {each["service"] for each in outcome.json["errors"]} == set(SERVICES) - {"wealth"}
        assert (await sangam(cell, "lag", "--service", "wealth")).code == 0

    async def test_a_services_own_role_may_not_look(self, cell: "Cell") -> None:
        outcome = await sangam(cell, "lag", "--store", cell.store_url("wealth"))
        assert outcome.code == 3
        assert "administrator" in outcome.err


class _Poisoned:
    ddl = "CREATE TABLE IF NOT EXISTS digested (position bigint)"
    types = frozenset({"ledger.transfer.settled"})

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        if any(event.stream == "ledger-bad" for event in events):
            raise ValueError("cannot digest \x1b[2J this")


class TestParked:
    async def test_what_a_consumer_has_parked(self, cell: "Cell") -> None:
        for service in SERVICES:
            cell.admin_url(service)
        name = "ledger_transfer.projections"
        async with Writer(cell) as writer:
            await writer.log("ledger-good")
            event_id = await writer.log("ledger-bad", count=2)
            await writer.log("ledger-good")
        store = await EventStore.connect(cell.store_url("ledger_transfer"))
        database = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=4)
        consumer = Consumer(
            name=name,
            handler=_Poisoned(),
            database=database,
            store=store,
            amqp_url=cell.amqp_url("ledger_transfer"),
        )

        async def applied() -> bool:
            return consumer.position == 4

        async with running_relay(cell), running_consumer(consumer):
            await eventually(applied)
        await asyncio.gather(store.close(), database.close())
        listed = await sangam(cell, "parked", "list", "--json")
        assert listed.code == 0
        assert [(row["consumer"], row["position"], row["reason"]) for row in listed.lines] == [
            (name, 2, "failed"), (name, 3, "behind"),
        ]  # fmt: skip
        assert (await sangam(cell, "parked", "list", "--service", "wealth", "--json")).out == ""
        assert "nothing is parked" in (await sangam(cell, "parked", "list", "--service", "wealth")).out
        told = await sangam(cell, "parked", "list", "--limit", "1")
        assert "cannot digest" in told.out
        assert "1 more" in told.err

        shown = (await sangam(cell, "parked", "show", "ledger-transfer", "projections", "2", "--json")).json
        assert shown["event"]["id"] == shown["event_id"] == str(event_id)
        assert "cannot digest" in shown["error"]
        assert (shown["first_of_stream"], shown["behind_it"]) == (2, 1)
        told = await sangam(cell, "parked", "show", "ledger-transfer", name, "3")
        assert "an earlier event of its stream is parked, position 2" in told.out
        assert "\x1b" not in (await sangam(cell, "parked", "show", "ledger-transfer", name, "2")).out
        assert (await sangam(cell, "parked", "show", "ledger-transfer", "projections", "1")).code == 1
        assert (await sangam(cell, "parked", "show", "wealth", "projections", "1")).code == 1

        lag = (await sangam(cell, "lag", "--json")).json
        assert [(each["parked"], each["parked_streams"]) for each in lag["consumers"]] == [(2, 1)]


async def test_a_relay_that_has_published_all_has_no_lag(cell: "Cell") -> None:
    async with Writer(cell) as writer:
        await writer.append(count=3)
    cell.admin_url("wealth")
    admin = await asyncpg.connect(cell.admin_url())

    async def published() -> bool:
        positions = await admin.fetch("SELECT position FROM store.checkpoints")
        return [row["position"] for row in positions] == [3, 3]

    async with running_relay(cell):
        await eventually(published)
    await admin.close()
    lag = (await sangam(cell, "lag", "--json", "--service", "wealth", "--max", "0")).json
    assert (lag["head"], lag["pending"]) == (3, 0)
    assert [each["lag"] for each in lag["publishers"]] == [0, 0]
