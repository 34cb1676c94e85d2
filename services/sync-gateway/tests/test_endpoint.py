"""What one webhook has under way."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from sync_gateway.endpoint import Endpoint
from sync_gateway.ledger import Delivery

AT_ONCE = 3


def due(n: int) -> Delivery:
    row = {
        "n": n, "kind": "event", "event_id": uuid4(), "event_type": "ledger.transfer.completed", "chain": f"stream-{n}",
        "sequence": n, "body": b"{}", "tries": 0, "attempts": 0, "next_attempt_at": None,
    }  # fmt: skip
    return Delivery(cast("Any", row), datetime.now(UTC))


async def test_a_ledger_that_is_slow_holds_up_sending() -> None:
    """What was answered and is not written down is sent again after a crash: there may not be any number of it."""
    posted: list[bytes] = []
    durable = asyncio.Event()

    async def load(_: object, after: int) -> list[Delivery]:
        return [due(n) for n in range(after + 1, 101)]

    async def record(_: object) -> None:
        await durable.wait()

    async def post(_: str, __: object, body: bytes, **___: object) -> Any:
        await asyncio.sleep(0)
        posted.append(body)
        return SimpleNamespace(status=200, error=None, retry_after=None)

    nothing = SimpleNamespace(count=lambda *_: None, latency=lambda *_: None)
    sender: Any = SimpleNamespace(
        ledger=SimpleNamespace(load=load, record=record),
        egress=SimpleNamespace(post=post),
        box=SimpleNamespace(open=lambda *_: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        meter=nothing,
        may_start=True,
    )
    row: Any = {
        "failures": 0, "failing_since": None, "probes": 0, "next_probe_at": None, "revision": 1, "url": "https://a.example",
        "platform": None, "retry_delays_s": [1], "concurrency_max": AT_ONCE, "rate_per_s": 1_000_000,
        "state": "active", "sealed_secret": "", "previous_sealed_secret": None,
    }  # fmt: skip
    endpoint = Endpoint(sender, uuid4(), row)
    running = asyncio.create_task(endpoint.run())
    try:
        await asyncio.sleep(0.1)
        assert len(posted) == 2 * AT_ONCE
        durable.set()
        async with asyncio.timeout(5):
            while len(posted) < 100:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
