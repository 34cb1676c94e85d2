"""`sangam trace`: a request's events with what they caused, beside what the services' logs say of its HTTP."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from command import Writer, sangam
from events.checkpoint import DDL

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


async def test_one_request(cell: "Cell", tmp_path: Path) -> None:
    async with Writer(cell) as writer:
        await writer.log("ledger-other", correlation_id="request-2")
        cause = await writer.log("ledger-a", correlation_id="request-1")
        effect = await writer.log("ledger-b", causation_id=cause)
        database = await asyncpg.connect(cell.admin_url("wealth"))
        await database.execute(DDL)
        await database.execute("INSERT INTO consumed (consumer, position) VALUES ('wealth.a', 3), ('wealth.b', 2)")
        await database.close()
        for name in ("identity", "ledger_transfer", "sync_gateway", "notifier", "search"):
            cell.admin_url(name)
        logged = {
            "event": "request", "correlation_id": "request-1", "service": "ledger_transfer", "method": "POST",
            "route": "/api/transfers", "status": 201, "duration_ms": 4.5, "timestamp": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        lines = ["not JSON, request-1", json.dumps(logged), json.dumps({**logged, "correlation_id": "request-2"})]
        (tmp_path / "ledger_transfer.log").write_text("\n".join(lines))

        traced = (await sangam(cell, "trace", "request-1", "--logs", tmp_path, "--json")).json
        assert [(each["event_id"], each["depth"]) for each in traced["events"]] == [(str(cause), 0), (str(effect), 1)]
        assert [(each["route"], each["duration_ms"]) for each in traced["requests"]] == [("/api/transfers", 4.5)]
        assert traced["consumed"] == {"wealth.a": True, "wealth.b": False}
        drawn = await sangam(cell, "trace", "request-1", "--logs", tmp_path)
        assert drawn.code == 0
        for words in ("POST /api/transfers 201  4.5 ms", "ledger-b@1", "position 3", "wealth.b (1 to go)"):
            assert words in drawn.out
        assert "ledger-other" not in drawn.out
        nothing = await sangam(cell, "trace", "request", "--logs", tmp_path)
        assert (nothing.code, nothing.out) == (1, "")
        assert (await sangam(cell, "trace", "request-1", "--horizon", 1, "--logs", tmp_path / "none")).code == 1
