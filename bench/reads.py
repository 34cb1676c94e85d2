"""API reads of all six services through the origin, open loop: 200 a second, mixed, while nothing else happens.

Each customer has a month of transactions, transfers and what notifier and search made of them.
"""

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING
from uuid import uuid4

import aiohttp
from customers import Customer, call, make_customer, transfer
from report import ROUNDS, Figure, Line, quantile

if TYPE_CHECKING:
    from stack import Stack

CUSTOMERS = 10
READS_PER_S = 200
SECONDS = 10
POSTINGS = 60
"""Transactions of each customer."""
TRANSFERS = 5

READS = (
    "/api/auth/status",
    "/api/auth/sessions",
    "/api/accounts",
    "/api/transactions?limit=20",
    "/api/transactions/summary?from=2026-01-01&to=2026-12-31&group_by=category",
    "/api/transfers/limits",
    "/api/sync/health",
    "/api/sync/pending",
    "/api/sync/conflicts",
    "/api/wealth/net-worth",
    "/api/wealth/performance?period=30",
    "/api/wealth/summary",
    "/api/notifications/smart",
    "/api/notifications/preferences",
    "/api/search?q=salary",
    "/api/search/suggestions?q=sal",
)
"""What the screens of an app ask for, each as often as any other."""


async def _history(stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> None:
    """Something to read."""
    listed = await call(http, "GET", f"{stack.origin}/api/accounts", headers=customer.headers)
    tag = listed.body["items"][0]["platform_account_id"].split("-", 1)[1]
    items = [
        {
            "customer_id": f"BFC-{tag}",
            "type": "transaction.posted",
            "occurred_at": f"2026-02-{1 + n % 28:02d}T09:00:00Z",
            "data": {
                "transaction_id": f"T{n}",
                "account_id": f"SB-{tag}",
                "direction": "credit" if n % 3 else "debit",
                "amount": f"{100 + n}.00",
                "currency": "INR",
                "category": ("salary", "groceries", "rent")[n % 3],
                "counterparty": "Acme Ltd",
                "memo": "Feb salary",
            },
        }
        for n in range(POSTINGS)
    ]
    url = f"{stack.url('simulator-bfc')}/events/batch"
    assert (await call(http, "POST", url, json={"items": items})).status == 200
    for _ in range(TRANSFERS):
        assert (await transfer(stack, http, customer, "10.00", uuid4().hex)).status == 201
    async with asyncio.timeout(60):
        found = f"{stack.origin}/api/search?q=salary&types=transaction"
        while (await call(http, "GET", found, headers=customer.headers)).body["total"] < POSTINGS // 3:
            await asyncio.sleep(0.2)


async def _one_round(stack: "Stack", http: aiohttp.ClientSession, customers: list[Customer]) -> dict[str, list[float]]:
    """Latencies in ms by read, counted from when each was due."""
    taken: defaultdict[str, list[float]] = defaultdict(list)

    async def read(n: int, due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        # Every customer reads everything in turn.
        path, customer = READS[n % len(READS)], customers[n // len(READS) % len(customers)]
        async with http.get(stack.origin + path, headers=customer.headers) as response:
            body = await response.read()
            assert response.status == 200, (path, body)
        taken[path].append((time.perf_counter() - due_s) * 1000)

    start_s = time.perf_counter() + 0.2
    await asyncio.gather(*(read(n, start_s + n / READS_PER_S) for n in range(READS_PER_S * SECONDS)))
    return taken


async def measure(stack: "Stack") -> list[Line]:
    """The line of the report; prints the slowest reads."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        customers = [await make_customer(stack, http) for _ in range(CUSTOMERS)]
        await asyncio.gather(*(_history(stack, http, customer) for customer in customers))
        await asyncio.sleep(6)  # notifications gather for five seconds
        await _one_round(stack, http, customers)  # warm-up
        rounds = [await _one_round(stack, http, customers) for _ in range(ROUNDS)]
    for path in sorted(READS, key=lambda path: -quantile(rounds[0][path], 0.95)):
        print(f"{path:80} p95 {Figure([quantile(one[path], 0.95) for one in rounds])} ms")
    lines = []
    for label, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        figure = Figure([quantile([ms for each in one.values() for ms in each], q) for one in rounds])
        what = f"API reads of all services at {READS_PER_S}/s, {label}"
        lines.append(
            Line(
                what,
                figure,
                "ms",
                "reference system",
                Figure([150.0]) if q == 0.95 else None,
                "≤ 15 ms" if q == 0.95 else "",
            )
        )
    return lines
