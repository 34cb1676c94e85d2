"""Rebuild and replay on the running product: done by the services' own code, while they serve."""

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest
from customers import make_customer, transfer
from truth import everything_applied

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration


async def run(stack: "Stack", *arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `sangam`, and the document it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from events.cli import app; app()",
        *arguments,
        "--json",
        env={**os.environ, "EVENT_STORE_URL": stack.cell.admin_url()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert out, err.decode()
    assert process.returncode is not None
    return process.returncode, json.loads(out.splitlines()[-1])


async def test_every_services_read_models_are_rebuilt_as_they_are(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)
        for _ in range(3):
            assert (await transfer(sangam, http, customer, "1.00", uuid4().hex)).status == 201
        await everything_applied(sangam.cell)
        services = ("ledger_transfer", "wealth", "notifier", "search", "sync_gateway")
        outcomes = await asyncio.gather(*(run(sangam, "rebuild", service, "all", "--diff") for service in services))
        for service, (code, outcome) in zip(services, outcomes, strict=True):
            assert code == 0, (service, json.dumps(outcome))
            assert outcome["applied"] > 0, service
        code, outcome = await run(sangam, "rebuild", "ledger_transfer", "all", "--promote")
        assert code == 0, outcome
        answer = await transfer(sangam, http, customer, "1.00", uuid4().hex)
        assert answer.status == 201
        # The service's own prepared statements find the new tables.
        async with http.get(
            f"{sangam.origin}/api/transfers/{answer.body['transfer_id']}", headers=customer.headers
        ) as got:
            assert got.status == 200
        code, outcome = await run(sangam, "replay", "ledger_transfer", "reactions", "--dry-run")
        assert code == 0, outcome
        assert outcome["events"] > 0
        assert outcome["appends"] == {}, "what reactions have posted is never posted again"
