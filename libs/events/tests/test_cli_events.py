"""`sangam events tail|show|stats` on a real log."""

import asyncio
import json
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from command import Writer, sangam
from events.envelope import new_id

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


@pytest.fixture
async def writer(cell: "Cell"):  # type: ignore[no-untyped-def]
    async with Writer(cell) as made:
        yield made


async def _tail(writer: Writer, *arguments: str | int | UUID) -> list[int]:
    outcome = await sangam(writer.cell, "events", "tail", "--json", *arguments)
    assert outcome.code == 0
    return [event["position"] for event in outcome.lines]


class TestTail:
    async def test_the_newest(self, writer: Writer) -> None:
        assert await _tail(writer) == []
        await writer.log(count=1_500)
        assert await _tail(writer) == list(range(1_481, 1_501))
        assert await _tail(writer, "--limit", 3) == [1_498, 1_499, 1_500]
        assert await _tail(writer, "--limit", 0) == []
        assert len(await _tail(writer, "--limit", 1_200)) == 1_200
        assert await _tail(writer, "--since", 1_499) == [1_499, 1_500]
        assert await _tail(writer, "--since", 1) == list(range(1, 1_501))
        assert await _tail(writer, "--since", 1_499, "-n", 1) == [1_500]
        assert await _tail(writer, "--since", 9_999) == []

    async def test_a_line_is_a_cloud_event(self, writer: Writer) -> None:
        user = uuid4()
        event_id = await writer.log("ledger-a", subject=user, correlation_id="request-1")
        outcome = await sangam(writer.cell, "events", "tail", "--json")
        [event] = outcome.lines
        assert event["specversion"] == "1.0"
        assert event["id"] == str(event_id)
        assert event["subject"] == str(user)
        assert event["correlationid"] == "request-1"
        stored = await writer.admin.fetchval("SELECT data FROM store.events")
        assert event["data"] == json.loads(stored)
        assert stored.decode() in outcome.out, "as it is stored"

    async def test_a_line_for_people(self, writer: Writer) -> None:
        await writer.log("ledger-a", count=2)
        lines = (await sangam(writer.cell, "events", "tail")).out.splitlines()
        assert len(lines) == 2
        assert re.match(
            r" +2  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z  ledger\.transfer\.settled  ledger-a@2  {", lines[1]
        )

    async def test_damaged_events_are_shown_all_the_same(self, writer: Writer) -> None:
        await writer.log(count=3)
        await writer.admin.execute(
            "UPDATE store.events SET data = '\\xff1b5b324a', metadata = 'gone' WHERE version = 1;"
            "UPDATE store.events SET data = E'{\\n}' WHERE version = 2"
        )
        outcome = await sangam(writer.cell, "events", "tail", "--json")
        assert outcome.lines[0]["data_base64"] == "/xtbMko="
        assert outcome.lines[1]["data"] == {}
        assert "\x1b" not in (await sangam(writer.cell, "events", "tail")).out
        assert (await sangam(writer.cell, "events", "show", 1)).code == 0

    async def test_filters(self, writer: Writer) -> None:
        asha, ravi = new_id(), new_id()
        await writer.log(f"ledger-{asha}", subject=asha, correlation_id="r-1")
        await writer.log(f"ledger-{ravi}", subject=ravi, correlation_id="r-2")
        await writer.log(f"ledger-{asha}", count=2, correlation_id="r-11")
        await writer.log("ledger-z", subject=asha, correlation_id="r-1", causation_id=new_id())
        await writer.admin.execute("UPDATE store.events SET type = 'ledger.account.opened' WHERE id % 2 = 0")
        odd, even = "ledger.transfer.settled", "ledger.account.opened"
        types = [event["type"] for event in (await sangam(writer.cell, "events", "tail", "--json")).lines]
        settled = [n for n, kind in enumerate(types, 1) if kind == odd]
        opened = [n for n, kind in enumerate(types, 1) if kind == even]
        for more in ([], ["--since", "1"], ["--since", "1h"], ["--limit", "100"]):
            assert await _tail(writer, "--type", "ledger.transfer.*", *more) == settled
            assert await _tail(writer, "--type", "#.opened", *more) == opened
            assert await _tail(writer, "--type", "*", *more) == []
            assert await _tail(writer, "--customer", asha, *more) == [1, 3, 4, 5]
            assert await _tail(writer, "--stream", f"ledger-{asha}", *more) == [1, 3, 4]
            assert await _tail(writer, "--correlation", "r-1", *more) == [1, 5]
            assert await _tail(writer, "--correlation", "r-1", "--stream", "ledger-z", *more) == [5]

    async def test_since_a_time(self, writer: Writer) -> None:
        """Recorded times that disagree with positions by less than a transaction lasts."""
        await writer.log(count=400)
        now = datetime.now(UTC)
        await writer.admin.execute(
            "UPDATE store.events e SET recorded_at = $1::timestamptz - (400 - l.position) * interval '1 minute'"
            " - (l.position % 2) * interval '50 seconds' FROM store.log l WHERE l.id = e.id",
            now,
        )
        for minutes in (0, 1, 59, 200, 5_000):
            moment = now - timedelta(minutes=minutes, seconds=30)
            expected = await writer.admin.fetch(
                "SELECT l.position FROM store.log l JOIN store.events e ON e.id = l.id"
                " WHERE recorded_at >= $1 ORDER BY 1",
                moment,
            )
            assert await _tail(writer, "--since", moment.isoformat()) == [row["position"] for row in expected]

    async def test_follow(self, writer: Writer) -> None:
        await writer.log(count=3)
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("sangam"),
            *("events", "tail", "--follow", "--json", "--limit", "1", "--stream", "ledger-a"),
            env={**os.environ, "EVENT_STORE_URL": writer.cell.admin_url()},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None

        async def position() -> int:
            assert process.stdout is not None
            return int(json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["position"])

        assert await position() == 3
        await writer.log("ledger-b")
        await writer.log(count=2)
        assert [await position(), await position()] == [5, 6]
        # The database goes away and comes back.
        await writer.admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'sangam' AND datname = current_database()"
        )
        await writer.log()
        assert await position() == 7
        process.send_signal(2)
        assert await asyncio.wait_for(process.wait(), 10) == 130
        assert b"Traceback" not in await process.stderr.read()


class TestShow:
    async def test_the_tree(self, writer: Writer) -> None:
        """a → b → (c, d → e); f is of the same request; g is of another."""
        request = {"correlation_id": "request-1"}
        a = await writer.log("ledger-1", **request)
        b = await writer.log("ledger-2", causation_id=a, **request)
        c = await writer.log("ledger-2", causation_id=b, **request)
        f = await writer.log("ledger-3", **request)
        await writer.log("ledger-2", correlation_id="request-2", causation_id=new_id())
        d = await writer.log("ledger-4", causation_id=b)
        e = await writer.log("ledger-5", causation_id=d, **request)

        def ids(node: dict[str, Any]) -> Any:
            return [node["event_id"], [ids(child) for child in node["consequences"]]]

        tree = [str(a), [[str(b), [[str(c), []], [str(d), [[str(e), []]]]]]]]
        of_the_request = (await sangam(writer.cell, "events", "show", f, "--json")).json["same_request"]
        assert [event["event_id"] for event in of_the_request] == [str(a), str(b), str(c), str(e)], "before it too"
        for which in (b, 2):
            shown = (await sangam(writer.cell, "events", "show", which, "--json")).json
            assert shown["event"]["id"] == str(b)
            assert ids(shown["tree"]) == tree
            assert [event["event_id"] for event in shown["same_request"]] == [str(f)]
            assert shown["stream"]["previous"] is None
            assert shown["stream"]["next"]["event_id"] == str(c)
            assert shown["stream"]["last_version"] == 3
            assert len(shown["chain_hash"]) == 64
        assert ids((await sangam(writer.cell, "events", "show", e, "--json")).json["tree"]) == tree
        assert ids((await sangam(writer.cell, "events", "show", b, "--json", "--horizon", "1")).json["tree"]) == [
            str(a), [[str(b), [[str(c), []]]]],
        ]  # fmt: skip
        told = (await sangam(writer.cell, "events", "show", c)).out
        drawn = [line for line in told.partition("causes and consequences")[2].splitlines() if "ledger-" in line]
        assert [line.find("── ") // 4 for line in drawn] == [-1, 0, 1, 1, 2, -1]
        assert [n for n, line in enumerate(drawn) if "this one" in line] == [2]
        assert "ledger-2, version 2 of 3" in told

    async def test_a_cause_that_is_not_there(self, writer: Writer) -> None:
        lost = new_id()
        await writer.log(causation_id=lost)
        assert (await sangam(writer.cell, "events", "show", "1", "--json")).json["lost_cause"] == str(lost)
        assert str(lost) in (await sangam(writer.cell, "events", "show", "1")).out

    async def test_causes_in_a_circle_end(self, writer: Writer) -> None:
        first, second = await writer.log(), await writer.log()
        for event_id, cause in ((first, second), (second, first)):
            await writer.admin.execute(
                "UPDATE store.events SET metadata = convert_to($2, 'UTF8') WHERE event_id = $1",
                event_id,
                json.dumps({"causation_id": str(cause)}, separators=(",", ":")),
            )
        assert (await sangam(writer.cell, "events", "show", "1")).code == 0

    async def test_not_sequenced_yet(self, writer: Writer) -> None:
        event_id = await writer.append()
        shown = (await sangam(writer.cell, "events", "show", event_id, "--json")).json
        assert (shown["sequenced"], shown["chain_hash"]) == (False, None)
        assert "waits for the relay" in (await sangam(writer.cell, "events", "show", event_id)).out

    async def test_nothing_there_is_code_1(self, writer: Writer) -> None:
        for which in (1, new_id()):
            outcome = await sangam(writer.cell, "events", "show", which)
            assert (outcome.code, outcome.out) == (1, "")
            assert "no event" in outcome.err


async def test_stats(writer: Writer) -> None:
    empty = (await sangam(writer.cell, "events", "stats", "--json")).json
    assert (empty["head"], empty["window"]["events"], empty["oldest_pending_s"]) == (0, 0, None)
    await writer.log(count=10)
    await writer.append(count=4)
    await writer.admin.execute(
        "UPDATE store.events SET recorded_at = recorded_at - interval '2 hours' WHERE version <= 3"
    )
    await writer.admin.execute("UPDATE store.events SET type = 'identity.user.registered' WHERE version IN (1, 9)")
    await writer.admin.execute("UPDATE store.events SET recorded_at = now() - interval '30 s' WHERE version = 11")
    hour = (await sangam(writer.cell, "events", "stats", "--json")).json
    assert (hour["head"], hour["pending"]) == (10, 4)
    assert 30 <= hour["oldest_pending_s"] < 90
    assert {name: figure["events"] for name, figure in hour["types"].items()} == {
        "ledger.transfer.settled": 6, "identity.user.registered": 1,
    }  # fmt: skip
    assert hour["types"]["ledger.transfer.settled"]["per_s"] == round(6 / hour["window"]["seconds"], 4)
    everything = (await sangam(writer.cell, "events", "stats", "--window", "all", "--json")).json
    assert {name: figure["events"] for name, figure in everything["contexts"].items()} == {"ledger": 8, "identity": 2}
    assert everything["window"]["seconds"] > 7_000
    told = (await sangam(writer.cell, "events", "stats")).out
    assert "head 10 " in told
    assert "waiting for the relay 4" in told
