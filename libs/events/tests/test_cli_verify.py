"""`sangam events verify` on real logs that somebody has tampered with."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
from command import Writer, sangam
from events import pg
from events.cli import chain, verification

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

_EVENT = "UPDATE store.events SET {} WHERE id = (SELECT id FROM store.log WHERE position = {})"

TAMPERING = {
    "data": ([_EVENT.format("data = data || ' '", 17)], 17, "event altered"),
    "one bit of data": ([_EVENT.format("data = set_bit(data, 100, 1 - get_bit(data, 100))", 17)], 17, "event altered"),
    "metadata": ([_EVENT.format("""metadata = '{"actor":"user:x"}'""", 9)], 9, "event altered"),
    "recorded_at": ([_EVENT.format("recorded_at = recorded_at + interval '1 microsecond'", 1)], 1, "event altered"),
    "recorded_at beyond what Python knows": (
        [_EVENT.format("recorded_at = 'infinity'", 5)], 5, "event altered"),
    "type": ([_EVENT.format("type = 'ledger.transfer.voided'", 30)], 30, "event altered"),
    "version": ([_EVENT.format("version = version + 1", 22)], 22, "event altered"),
    "version to one that was": ([_EVENT.format("version = 1", 22)], 22, "event altered"),
    "stream": ([_EVENT.format("stream = 'ledger-other'", 22)], 22, "event altered"),
    "event id": ([_EVENT.format("event_id = gen_random_uuid()", 22)], 22, "event altered"),
    "schema version": ([_EVENT.format("schema_version = 2", 22)], 22, "event altered"),
    "subject": ([_EVENT.format("subject = gen_random_uuid()", 8)], 8, "event altered"),
    "subject erased": ([_EVENT.format("subject = NULL", 2)], 2, "event altered"),
    "hash": (["UPDATE store.log SET chain_hash = sha256('') WHERE position = 12"], 12, "hash altered"),
    "hash of the last": (["UPDATE store.log SET chain_hash = sha256('') WHERE position = 40"], 40, "event altered"),
    "deleted from the log": (["DELETE FROM store.log WHERE position = 13"], 13, "position missing"),
    "first deleted from the log": (["DELETE FROM store.log WHERE position = 1"], 1, "position missing"),
    "several deleted": (["DELETE FROM store.log WHERE position BETWEEN 6 AND 14"], 6, "position missing"),
    "end deleted from the log": (["DELETE FROM store.log WHERE position > 35"], None, "not in the log"),
    "end deleted everywhere": (
        ["DELETE FROM store.event_ids i USING store.events e, store.log l"
         " WHERE i.event_id = e.event_id AND e.id = l.id AND l.position > 35",
         "DELETE FROM store.events e USING store.log l WHERE e.id = l.id AND l.position > 35",
         "DELETE FROM store.log WHERE position > 35",
         "SELECT store.save_checkpoint('sangam.log', 40)"], 36, "end missing"),
    "event row deleted": (
        ["DELETE FROM store.events WHERE id = (SELECT id FROM store.log WHERE position = 20)"], 20, "event missing"),
    "event id forgotten": (["DELETE FROM store.event_ids WHERE version = 3 AND stream = 'ledger-1'"], None,
                           "event ids differ"),
    "swapped positions": (
        ["UPDATE store.log SET position = -position WHERE position IN (18, 27)",
         "UPDATE store.log SET position = 45 + position WHERE position < 0"], 18, "event altered"),
    "swapped events": (
        ["UPDATE store.log SET id = -id WHERE position IN (18, 27)",
         "UPDATE store.log a SET id = -b.id FROM (SELECT position, id FROM store.log WHERE id < 0) b"
         " WHERE a.position = 45 - b.position AND a.id < 0"], 18, "event altered"),
}  # fmt: skip


@pytest.fixture
async def writer(cell: "Cell"):  # type: ignore[no-untyped-def]
    """A log of 40 events on five streams, some with a subject."""
    async with Writer(cell) as made:
        for n in range(40):
            await made.log(f"ledger-{n % 5}", subject=uuid4() if n % 2 else None, correlation_id=f"request-{n}")
        yield made


async def _rechain(admin: asyncpg.Connection, start: int) -> None:
    """What somebody with all rights does to hide: computes the whole chain again."""
    await admin.execute(
        "UPDATE store.log SET chain_hash = again.chain_hash FROM (SELECT l.position, store.chain("
        " store.event_bytes(l.position, l.id, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject,"
        " e.data, e.metadata, e.recorded_at), store.genesis()) OVER (ORDER BY l.position) AS chain_hash"
        " FROM store.log l JOIN store.events e ON e.id = l.id) again"
        " WHERE again.position = store.log.position AND again.position >= $1",
        start,
    )


class TestAWholeLog:
    @pytest.mark.parametrize("chunk", [1, 7, 40, 2_000])
    async def test_is_verified(self, writer: Writer, tmp_path: Path, chunk: int) -> None:
        outcome = await sangam(
            writer.cell, "events", "verify", "--json", "--chunk", chunk, "--state", tmp_path / "state"
        )
        head = await writer.admin.fetchval("SELECT encode(chain_hash, 'hex') FROM store.log WHERE position = 40")
        assert outcome.code == 0
        assert outcome.json["ok"]
        assert (outcome.json["verified"], outcome.json["proven_up_to"]) == (40, 40)
        assert outcome.json["chain_hash"] == head

    async def test_says_so_to_people(self, writer: Writer, tmp_path: Path) -> None:
        outcome = await sangam(writer.cell, "events", "verify", "--state", tmp_path / "state")
        assert outcome.code == 0
        assert "verified 40 events" in outcome.out
        assert "superuser" not in outcome.out + outcome.err

    async def test_may_be_empty(self, cell: "Cell", tmp_path: Path) -> None:
        outcome = await sangam(cell, "events", "verify", "--json", "--state", tmp_path / "state")
        assert (outcome.code, outcome.json["verified"]) == (0, 0)

    async def test_in_part(self, writer: Writer, tmp_path: Path) -> None:
        arguments = ("events", "verify", "--json", "--chunk", 4, "--state", tmp_path / "state")
        outcome = await sangam(writer.cell, *arguments, "--from", 11, "--to", 30)
        assert (outcome.code, outcome.json["verified"], outcome.json["proven_up_to"]) == (0, 20, 30)
        # What is outside is not looked at; what is before is taken as it stands.
        await writer.admin.execute(_EVENT.format("data = ''", 10))
        assert (await sangam(writer.cell, *arguments, "--from", 11, "--to", 30)).code == 0
        assert (await sangam(writer.cell, *arguments, "--from", 10, "--to", 30)).code == 1
        assert (await sangam(writer.cell, *arguments, "--to", 41)).code == 2

    async def test_while_events_come(self, writer: Writer, tmp_path: Path) -> None:
        for _ in range(3):
            await writer.append()  # no position yet
        outcome = await sangam(writer.cell, "events", "verify", "--json", "--state", tmp_path / "state")
        assert (outcome.code, outcome.json["verified"]) == (0, 40)

    async def test_with_more_streams_than_are_remembered(self, writer: Writer) -> None:
        """Every event has to be looked up then, across chunks."""
        reader, helper = (pg.Session(writer.cell.admin_url(), application_name="test") for _ in range(2))
        walk = verification.Walk(reader, helper, chunk=3, remembered_streams=2)
        start = verification.Proven(epoch="", first=1, position=0, chain_hash=chain.GENESIS.hex())
        proven, findings = await walk.run(start, 40, lambda _: None)
        assert (proven.position, findings) == (40, [])
        await asyncio.gather(reader.close(), helper.close())


class TestTampering:
    @pytest.mark.parametrize("what", TAMPERING)
    @pytest.mark.parametrize("chunk", [6, 2_000])
    async def test_is_found_where_it_is(self, writer: Writer, tmp_path: Path, what: str, chunk: int) -> None:
        statements, position, problem = TAMPERING[what]
        for statement in statements:
            await writer.admin.execute(statement)
        outcome = await sangam(
            writer.cell, "events", "verify", "--json", "--chunk", chunk, "--state", tmp_path / "state"
        )
        assert outcome.code == 1
        assert not outcome.json["ok"]
        first = outcome.json["findings"][0]
        assert (first["position"], first["problem"]) == (position, problem), first
        if position is not None:
            assert outcome.json["proven_up_to"] == position - 1
        told = await sangam(writer.cell, "events", "verify", "--state", tmp_path / "state")
        assert told.code == 1
        assert problem in told.out

    @pytest.mark.parametrize(
        ("statement", "position"),
        [
            (_EVENT.format("version = version + 1", 22), 22),
            (_EVENT.format("version = version - 1", 22), 22),
            (_EVENT.format("version = 0", 22), 22),
            (_EVENT.format("version = 1", 3), None),
            ("UPDATE store.events SET version = 9 - version WHERE stream = 'ledger-2'", 3),
            (_EVENT.format("stream = 'ledger-4'", 22), 25),  # which has its version 5 twice then
        ],
    )
    @pytest.mark.parametrize("remembered", [2, 1_000])
    async def test_of_the_order_is_found_under_a_forged_chain(
        self, writer: Writer, statement: str, position: int | None, remembered: int
    ) -> None:
        await writer.admin.execute(statement)
        await _rechain(writer.admin, 1)
        reader, helper = (pg.Session(writer.cell.admin_url(), application_name="test") for _ in range(2))
        walk = verification.Walk(reader, helper, chunk=4, remembered_streams=remembered)
        start = verification.Proven(epoch="", first=1, position=0, chain_hash=chain.GENESIS.hex())
        _, findings = await walk.run(start, 40, lambda _: None)
        assert [(f.position, f.problem) for f in findings] == (
            [(position, "version out of order")] if position is not None else []
        )
        await asyncio.gather(reader.close(), helper.close())


class TestResuming:
    async def test_proves_only_what_is_new(self, writer: Writer, tmp_path: Path) -> None:
        arguments = ("events", "verify", "--json", "--state", tmp_path / "state")
        await sangam(writer.cell, *arguments)
        assert (await sangam(writer.cell, *arguments, "--resume")).json["verified"] == 0
        await writer.log(count=3)
        outcome = await sangam(writer.cell, *arguments, "--resume")
        assert (outcome.code, outcome.json["from"], outcome.json["verified"]) == (0, 41, 3)

    async def test_after_a_kill_goes_on_where_it_was(self, writer: Writer, tmp_path: Path) -> None:
        await writer.log(count=3_000)
        state = tmp_path / "state"
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("sangam"),
            *("events", "verify", "--json", "--chunk", "1", "--state", str(state)),
            env={**os.environ, "EVENT_STORE_URL": writer.cell.admin_url()},
        )
        while not state.exists():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        process.kill()
        await process.wait()
        reached = json.loads(state.read_bytes())["position"]
        assert 0 < reached < 3_040
        outcome = await sangam(writer.cell, "events", "verify", "--json", "--state", state, "--resume")
        assert outcome.code == 0
        assert (outcome.json["from"], outcome.json["proven_from"]) == (reached + 1, 1)
        assert outcome.json["proven_up_to"] == 3_040
        # The same from the start: a resumed proof is no other proof.
        again = await sangam(writer.cell, "events", "verify", "--json", "--state", state)
        assert again.json["chain_hash"] == outcome.json["chain_hash"]

    async def test_finds_what_was_changed_after_where_it_was(self, writer: Writer, tmp_path: Path) -> None:
        arguments = ("events", "verify", "--json", "--chunk", 5, "--state", tmp_path / "state")
        await sangam(writer.cell, *arguments, "--to", 20)
        await writer.admin.execute(_EVENT.format("data = ''", 33))
        outcome = await sangam(writer.cell, *arguments, "--resume")
        assert (outcome.code, outcome.json["findings"][0]["position"]) == (1, 33)
        # Once repaired, it goes on from the last good chunk. Here: the same again.
        assert (await sangam(writer.cell, *arguments, "--resume")).json["from"] == 31

    async def test_finds_a_history_that_was_replaced(self, writer: Writer, tmp_path: Path) -> None:
        """A forged chain is flawless in itself; the state file remembers the true one."""
        arguments = ("events", "verify", "--json", "--state", tmp_path / "state")
        await sangam(writer.cell, *arguments)
        await writer.admin.execute(_EVENT.format("data = '{}'", 33))
        await _rechain(writer.admin, 33)
        outcome = await sangam(writer.cell, *arguments, "--resume")
        assert (outcome.code, outcome.json["findings"][0]["problem"]) == (1, "history replaced")

    async def test_finds_an_end_cut_off(self, writer: Writer, tmp_path: Path) -> None:
        arguments = ("events", "verify", "--json", "--state", tmp_path / "state")
        await sangam(writer.cell, *arguments)
        await writer.admin.execute("DELETE FROM store.log WHERE position > 38")
        outcome = await sangam(writer.cell, *arguments, "--resume")
        assert outcome.code == 1
        assert (outcome.json["findings"][0]["position"], outcome.json["findings"][0]["problem"]) == (39, "end missing")

    async def test_needs_a_state_of_this_store(self, writer: Writer, tmp_path: Path) -> None:
        state = tmp_path / "state"
        arguments = ("events", "verify", "--state", state)
        assert (await sangam(writer.cell, *arguments, "--resume")).code == 2
        await sangam(writer.cell, *arguments)
        await writer.admin.execute("UPDATE store.store SET epoch = gen_random_uuid()")
        outcome = await sangam(writer.cell, *arguments, "--resume")
        assert outcome.code == 2
        assert "epoch" in outcome.err
        state.write_text("{")
        assert (await sangam(writer.cell, *arguments, "--resume")).code == 2
