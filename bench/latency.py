"""Command accepted over HTTP → its event on the customer's WebSocket, at a steady rate, through the whole product."""

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import websockets
from customers import Customer, make_customer
from report import ROUNDS, Figure, Line, quantile

if TYPE_CHECKING:
    from stack import Stack

CUSTOMERS = 10
COMMANDS_PER_S = 100
SECONDS = 10


async def _listen(stack: "Stack", customer: Customer, arrived: dict[str, float], ready: asyncio.Event) -> None:
    url = stack.origin.replace("http", "ws") + "/ws/sync"
    async with websockets.connect(url, subprotocols=["bearer", customer.access_token]) as socket:  # type: ignore[list-item]
        await socket.send(json.dumps({"type": "subscribe", "topics": ["ledger.transfer.completed"]}))
        async for message in socket:
            now_s = time.perf_counter()
            frame = json.loads(message)
            if frame["type"] == "subscribed":
                ready.set()
            elif frame["type"] == "event":
                arrived[frame["event"]["data"]["transfer_id"]] = now_s


async def _one_round(stack: "Stack", http: aiohttp.ClientSession, customers: list[Customer]) -> dict[str, list[float]]:
    arrived: dict[str, float] = {}
    ready = [asyncio.Event() for _ in customers]
    listening = [
        asyncio.create_task(_listen(stack, customer, arrived, event))
        for customer, event in zip(customers, ready, strict=True)
    ]
    all_ready = asyncio.gather(*(event.wait() for event in ready))
    first: set[asyncio.Future[Any]] = {all_ready, *listening}
    async with asyncio.timeout(20):
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    for task in listening:
        if task.done():
            task.result()  # raises why it ended
    sent: dict[str, tuple[float, float]] = {}

    async def command(n: int, due_s: float) -> None:
        # Open loop: latency counts from when the command was due, not from when we got round to it.
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        customer = customers[n % len(customers)]
        async with http.post(
            f"{stack.origin}/api/transfers",
            json={
                "from_account_id": customer.savings,
                "to_account_id": customer.wallet,
                "amount": "1.00",
                "currency": "INR",
            },
            headers={**customer.headers, "Idempotency-Key": uuid4().hex},
        ) as response:
            body = await response.json()
            assert response.status == 201, body
            sent[body["transfer_id"]] = (due_s, time.perf_counter())

    start_s = time.perf_counter() + 0.2
    count = COMMANDS_PER_S * SECONDS
    await asyncio.gather(*(command(n, start_s + n / COMMANDS_PER_S) for n in range(count)))
    async with asyncio.timeout(10):
        while len(arrived) < count:
            await asyncio.sleep(0.01)  # the listeners fill it
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    return {
        "request → frame": [(arrived[key] - due_s) * 1000 for key, (due_s, _) in sent.items()],
        "accepted → frame": [(arrived[key] - done_s) * 1000 for key, (_, done_s) in sent.items()],
        "request → answer": [(done_s - due_s) * 1000 for due_s, done_s in sent.values()],
    }


async def measure(stack: "Stack") -> list[Line]:
    """The HTTP-to-WebSocket lines of the report."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        customers = [await make_customer(stack, http) for _ in range(CUSTOMERS)]
        await _one_round(stack, http, customers)  # warm-up
        rounds = [await _one_round(stack, http, customers) for _ in range(ROUNDS)]
    lines = []
    for name in rounds[0]:
        for label, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            figure = Figure([quantile(one[name], q) for one in rounds])
            bar = "≤ 25 ms" if (name, label) == ("accepted → frame", "p95") else ""
            lines.append(Line(f"transfer at {COMMANDS_PER_S}/s, {name}, {label}", figure, "ms", "", None, bar))
    return lines
