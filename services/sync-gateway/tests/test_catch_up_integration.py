"""`GET /api/sync/events` for outside subscribers: everyone's public events, page by page, and nothing private."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from events.contracts import identity
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from gateway_harness import append

if TYPE_CHECKING:
    from gateway_harness import Gateway

pytestmark = pytest.mark.integration


def ops_token(gateway: "Gateway", scope: str = "sync:admin") -> str:
    return gateway.token(uuid4(), aud="sangam-ops", scope=scope, client_id="tax-office", acr=0)


async def test_an_operators_token_gets_everyones_public_events(gateway: "Gateway", ledger_store: EventStore) -> None:
    ours = [uuid4() for _ in range(3)]
    for number, user_id in enumerate(ours):
        await append(ledger_store, user_id, number * 10 + 1, number * 10 + 2)
    async with gateway.store("identity") as private:
        secret = identity.UserRegistered(user_id=ours[0], sealed_profile="x")
        await private.append([StreamAppend(f"user-{ours[0]}", (secret,), 0)], event_id=new_id(), subject=ours[0])
    token = ops_token(gateway)
    subjects = {str(user_id) for user_id in ours}
    deadline = time.monotonic() + 15
    items: list[dict[str, Any]] = []
    while len(items) < 6:
        assert time.monotonic() < deadline, "the log does not move"
        items, cursor, after = [], None, 0
        while True:
            query = f"limit=2&types=ledger.%23,identity.%23{f'&cursor={cursor}' if cursor else ''}"
            answer = await gateway.get(f"/api/sync/events?{query}", token)
            assert answer.status == 200, answer.body
            items += [item for item in answer.body["items"] if item.get("subject") in subjects]
            cursor = answer.body["next_cursor"]
            if cursor is None:
                break
    assert [item["data"]["amount_minor"] for item in items] == [1, 2, 11, 12, 21, 22], "in order, none of them private"
    positions = [item["position"] for item in items]
    assert positions == sorted(set(positions))
    after = items[3]["position"]
    rest = (await gateway.get(f"/api/sync/events?after={after}&types=ledger.%23", token)).body["items"]
    assert [item["data"]["amount_minor"] for item in rest if item.get("subject") in subjects] == [21, 22]


async def test_who_may_not(gateway: "Gateway", ledger_store: EventStore) -> None:
    user_id = uuid4()
    await append(ledger_store, user_id, 5)
    narrow = await gateway.get("/api/sync/events", ops_token(gateway, "notifications:write"))
    assert (narrow.status, narrow.body["code"]) == (403, "insufficient_scope")
    customer = await gateway.get(f"/api/sync/events?user_id={user_id}", gateway.token(uuid4()))
    assert customer.status == 403
    other = await gateway.get("/api/sync/events", gateway.token(uuid4()))
    assert other.body["items"] == []
    cursor = (await gateway.get("/api/sync/events?limit=1", ops_token(gateway))).body["next_cursor"]
    stolen = await gateway.get(f"/api/sync/events?cursor={cursor}", gateway.token(user_id))
    assert (stolen.status, stolen.body["code"]) == (400, "invalid_cursor")


async def test_the_example_in_another_language_catches_up_and_resumes(
    gateway: "Gateway", ledger_store: EventStore, tmp_path: Path
) -> None:
    script = Path(__file__).parents[3] / "docs" / "examples" / "subscriber.mjs"
    user_id = uuid4()

    async def caught_up() -> list[int]:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("node")),
            str(script),
            "ledger.transfer.*",
            env={
                "PATH": os.environ["PATH"],
                "ORIGIN_URL": gateway.http,
                "ACCESS_TOKEN": ops_token(gateway),
                "STATE": str(tmp_path / "state"),
            },
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        events = [json.loads(line) for line in out.splitlines()]
        return [event["data"]["amount_minor"] for event in events if event["subject"] == str(user_id)]

    async def until(expected: list[int]) -> None:
        got: list[int] = []
        async with asyncio.timeout(20):
            while got != expected:
                got += await caught_up()
                assert len(got) <= len(expected), "nothing twice"

    await append(ledger_store, user_id, *range(1, 251))
    await until(list(range(1, 251)))
    await append(ledger_store, user_id, 251, 252)
    await until([251, 252])


def test_sealed_fields_stay_inside() -> None:
    from sync_gateway.catch_up import _outward

    event = b'{"id":"1","data":{"fields":["phone"],"sealed_fields":"x","to_sealed":"y","unsealed":1}}'
    assert _outward(event) == {"id": "1", "data": {"fields": ["phone"], "unsealed": 1}}
