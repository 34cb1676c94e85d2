"""The drills of docs/runbook.md, as an operator runs them, on the running product with customers at work."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import aiohttp
import packages
import pytest
from customers import Customer, make_customer, transfer

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

DRILLS = Path(__file__).parents[2] / "docs" / "drills"


async def drill(stack: "Stack", name: str, **environment: str) -> str:
    """What the script said; fails with it if the script does."""
    packages.require(["jq"], print)
    state = {"processes": {name: {"pid": stack.pid(name)} for name in stack.names()}}
    (stack.directory / "state.json").write_text(json.dumps(state))
    process = await asyncio.create_subprocess_exec(
        "bash",
        str(DRILLS / f"{name}.sh"),
        cwd=DRILLS.parents[1],
        env={
            **os.environ,
            "RUN": str(stack.directory),
            "SANGAM": str(Path(sys.executable).with_name("sangam")),
            "COLUMNS": "200",
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, f"{name}:\n{out.decode()}"
    return out.decode()


@contextlib.asynccontextmanager
async def at_work(stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> AsyncIterator[None]:
    """A customer who moves a rupee now and then."""

    async def work() -> None:
        while True:
            assert (await transfer(stack, http, customer, "1.00", uuid4().hex)).status == 201
            await asyncio.sleep(0.3)

    working = asyncio.create_task(work())
    try:
        yield
        assert not working.done(), working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


SAYS = {
    "poison-event": ("parked again", "every row is the same as the live one"),
    "replay-last-tuesday": ("rows would change", "no row would change"),
    "wrong-projection": ("rows differ", "live since position"),
    "tampered-row": ("event altered", "the log is what was written"),
    "stuck-consumer": ("FOR UPDATE",),
    "lost-broker": ("as expected", "the log is what was written"),
}
ENVIRONMENT = {"replay-last-tuesday": {"SINCE": "1h", "UNTIL": "0s", "LOST_SINCE": "2026-01-01", "RATE": "5000"}}


@pytest.mark.parametrize("name", SAYS)
async def test_a_drill_ends_well(sangam: "Stack", name: str) -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)
        async with at_work(sangam, http, customer) if name == "poison-event" else contextlib.nullcontext():
            told = await drill(sangam, name, **ENVIRONMENT.get(name, {}))
    for words in SAYS[name]:
        assert words in told, told


def test_each_drill_is_in_the_runbook_and_here() -> None:
    runbook = (DRILLS.parent / "runbook.md").read_text()
    scripts = {path.stem for path in DRILLS.glob("*.sh")} - {"lib"}
    assert scripts == set(SAYS)
    assert all(f"docs/drills/{name}.sh" in runbook for name in scripts)
