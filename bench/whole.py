"""The whole product at a fixed rate: feed items and transfers in, every read model of all six services up to date.

Four fifths of the events aimed at are what the platforms report (an item, and the ledger's posting of it), a fifth are
transfers; what follows from them (notifications) comes on top. The load comes from this process, on the same cores.
What counts are positions of the log that the slowest consumer has passed; the backlog of each consumer is sampled
every second, and is flat or not.
"""

import asyncio
import json
import os
import statistics
import time
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import aiohttp
import asyncpg
import psutil
from customers import Customer, call, make_customer, refresh
from report import Figure, Line
from standardwebhooks import Webhook

if TYPE_CHECKING:
    from stack import Stack

RATES = (1_500, 3_000)
"""Events per second that are aimed at."""
SECONDS = 30
CUSTOMERS = 40
SETTLE_S = 5
"""From the load's start to the first sample, and what a backlog at the end may be worth."""
_PER_BATCH = 50
_PER_BULK = 50
_TRANSFERS_SHARE = 0.2
"""Of the events aimed at."""
_SERVICES = ("identity", "ledger_transfer", "sync_gateway", "wealth", "notifier", "search")


class _Sample(NamedTuple):
    at_s: float
    head: int
    positions: dict[str, int]
    """By consumer."""


class _Load:
    """Feed batches and bulk transfers, each at its time whatever the answers take."""

    def __init__(self, stack: "Stack", http: aiohttp.ClientSession, customers: list[Customer], tags: list[str]) -> None:
        self._stack, self._http, self.customers, self._tags = stack, http, customers, tags
        self._signers = {platform: Webhook(secret) for platform, secret in stack.credentials.feed_secrets.items()}
        self._run = uuid4().hex[:8]
        self._next = 0
        self.late = 0
        """Batches that could not be sent at their time, because too many waited for their answers."""

    async def run(self, events_per_s: float, until_s: float) -> None:
        items_per_s = events_per_s * (1 - _TRANSFERS_SHARE) / 2  # each is an item and a posting
        transfers_per_s = events_per_s * _TRANSFERS_SHARE
        await asyncio.gather(
            self._at_rate(items_per_s / _PER_BATCH, until_s, self._batch),
            self._at_rate(transfers_per_s / _PER_BULK, until_s, self._bulk),
        )

    async def _at_rate(self, per_s: float, until_s: float, one: Any) -> None:
        under_way: set[asyncio.Task[None]] = set()
        started_s, sent = time.monotonic(), 0
        while (now_s := time.monotonic()) < until_s:
            await asyncio.sleep(max(0.0, started_s + sent / per_s - now_s))
            if len(under_way) >= 8:
                self.late += 1
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(one(sent))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            sent += 1
        await asyncio.gather(*under_way)

    async def _batch(self, n: int) -> None:
        platform = ("bfc", "vyomo")[n % 2]
        items = []
        for _ in range(_PER_BATCH):
            self._next += 1
            items.append(self._item(platform, self._next))
        body = json.dumps({"items": items})
        url = f"{self._stack.origin}/api/sync/feeds/{platform}"
        message_id = f"msg_{uuid4().hex}"
        while True:
            now = datetime.now(UTC)
            headers = {
                "Content-Type": "application/json",
                "webhook-id": message_id,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": self._signers[platform].sign(message_id, now, body),
            }
            async with self._http.post(url, data=body, headers=headers) as answer:
                if answer.status == 429:
                    await asyncio.sleep(0.1)
                    continue
                assert answer.status == 200, await answer.text()
                told = (await answer.json())["items"]
                assert all(item["status"] == "accepted" for item in told), told[:3]
                return

    def _item(self, platform: str, n: int) -> dict[str, Any]:
        tag = self._tags[n % len(self._tags)]
        about = (
            {"account_id": f"SB-{tag}", "transaction_id": f"T{n}", "category": "groceries"}
            if platform == "bfc"
            else {"wallet_id": f"TW-{tag}", "movement_id": f"M{n}", "reason": "other"}
        )
        return {
            "id": f"{self._run}-{n}",
            "type": "transaction.posted" if platform == "bfc" else "wallet.posted",
            "occurred_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "customer_id": f"{'BFC' if platform == 'bfc' else 'VY'}-{tag}",
            "data": {**about, "direction": "credit", "amount": "1.00", "currency": "INR"},
        }

    async def _bulk(self, n: int) -> None:
        customer = self.customers[n % len(self.customers)]
        ends = (
            (customer.savings, customer.wallet) if n // len(self.customers) % 2 else (customer.wallet, customer.savings)
        )
        one = {"from_account_id": ends[0], "to_account_id": ends[1], "amount": "0.01", "currency": "INR"}
        headers = {**customer.headers, "Idempotency-Key": uuid4().hex}
        body = {"mode": "independent", "items": [one] * _PER_BULK}
        url = f"{self._stack.origin}/api/transfers/bulk"
        async with self._http.post(url, json=body, headers=headers) as answer:
            assert answer.status in (200, 201), await answer.text()


class _Watch:
    """The log's head, each consumer's position, and what every process has used."""

    def __init__(self, stack: "Stack") -> None:
        self._stack = stack
        self._connections: dict[str, asyncpg.Connection[Any]] = {}

    async def __aenter__(self) -> "_Watch":
        self._store = await asyncpg.connect(self._stack.cell.admin_url())
        for service in _SERVICES:
            self._connections[service] = await asyncpg.connect(self._stack.cell.admin_url(service))
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in (self._store, *self._connections.values()):
            await connection.close()

    async def sample(self) -> _Sample:
        positions = {}
        for service, connection in self._connections.items():
            for row in await connection.fetch("SELECT consumer, position FROM consumed"):
                positions[row["consumer"] if "." in row["consumer"] else f"{service}.{row['consumer']}"] = row[
                    "position"
                ]
        # Last, so that nobody seems to be ahead of it.
        head = await self._store.fetchval("SELECT position FROM store.head()")
        return _Sample(time.monotonic(), head, positions)

    def cpu_s(self) -> dict[str, float]:
        """By process of the stack, with its children; and this one."""
        used: defaultdict[str, float] = defaultdict(float)
        for name in self._stack.names():
            if name == "epmd":
                continue
            root = psutil.Process(self._stack.pid(name))
            for each in (root, *root.children(recursive=True)):
                try:
                    times = each.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                used[name] += times.user + times.system
                if name == "postgres" and (whose := _whose(each)):
                    used[f"postgres: {whose}"] += times.user + times.system
        own = time.process_time()
        used["the load"] = own
        return dict(used)


def _whose(process: psutil.Process) -> str | None:
    """The role that a backend of PostgreSQL serves, by its title: `postgres: role database host state`."""
    try:
        title = " ".join(process.cmdline()).removeprefix("postgres: ").split()
    except psutil.Error:
        return None
    return title[0] if title else None


class _Result(NamedTuple):
    events_per_s: float
    """Through the slowest consumer."""
    appended_per_s: float
    backlog_first: int
    backlog_last: int
    slope_per_s: float
    """How fast the largest backlog grows, in events per second: a line through the samples."""
    worst: str
    late: int
    cpu_ms_per_event: dict[str, float]

    @property
    def flat(self) -> bool:
        """It grows by less than a fiftieth of the rate, and what waits is seconds' worth."""
        return self.slope_per_s < self.appended_per_s / 50 and self.backlog_last < SETTLE_S * self.appended_per_s


async def _one_rate(load: _Load, watch: _Watch, rate: float) -> _Result:
    began_s = time.monotonic()
    loading = asyncio.create_task(load.run(rate, began_s + SETTLE_S + SECONDS))
    await asyncio.sleep(SETTLE_S)
    before = watch.cpu_s()
    samples = [await watch.sample()]
    while time.monotonic() < began_s + SETTLE_S + SECONDS:
        if loading.done():
            loading.result()
        await asyncio.sleep(1 - (time.monotonic() - began_s) % 1)
        samples.append(await watch.sample())
    after = watch.cpu_s()
    await loading
    first, last = samples[0], samples[-1]
    seconds = last.at_s - first.at_s
    passed = {name: last.positions[name] - first.positions[name] for name in first.positions}
    backlogs = [max(each.head - position for position in each.positions.values()) for each in samples]
    slope, _ = statistics.linear_regression([each.at_s for each in samples], backlogs)
    worst = min(last.positions, key=lambda name: last.positions[name])
    appended = last.head - first.head
    return _Result(
        events_per_s=min(passed.values()) / seconds,
        appended_per_s=appended / seconds,
        backlog_first=backlogs[0],
        backlog_last=backlogs[-1],
        slope_per_s=slope,
        worst=worst,
        late=load.late,
        cpu_ms_per_event={name: 1000 * (after[name] - before.get(name, 0.0)) / appended for name in after},
    )


async def _caught_up(watch: _Watch) -> float:
    """Waits until every consumer is at the head; how long it took, in seconds."""
    began_s = time.monotonic()
    async with asyncio.timeout(300):
        while (now := await watch.sample()).head > min(now.positions.values()):
            await asyncio.sleep(0.2)
    return time.monotonic() - began_s


async def measure(stack: "Stack") -> list[Line]:
    """The lines of the report; prints what each process costs per event."""
    rates = [int(rate) for rate in os.environ.get("WHOLE_RATES", "").split(",") if rate] or list(RATES)
    lines = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http, _Watch(stack) as watch:
        customers = [await make_customer(stack, http, wallet="100000.00") for _ in range(CUSTOMERS)]
        tags = []
        for customer in customers:
            listed = await call(http, "GET", f"{stack.origin}/api/accounts", headers=customer.headers)
            tags.append(listed.body["items"][0]["platform_account_id"].split("-", 1)[1])
        load = _Load(stack, http, customers, tags)
        await load.run(500, time.monotonic() + 5)  # warm-up
        await _caught_up(watch)
        for rate in rates:
            load.late = 0
            load.customers = [await refresh(stack, http, customer) for customer in load.customers]
            result = await _one_rate(load, watch, rate)
            behind_s = await _caught_up(watch)
            print(
                f"aimed at {rate:,}/s: {result.appended_per_s:,.0f} appended, {result.events_per_s:,.0f} through"
                f" {result.worst}; backlog {result.backlog_first:,} → {result.backlog_last:,},"
                f" {result.slope_per_s:+.0f}/s, {'flat' if result.flat else 'growing'};"
                f" caught up {behind_s:.1f} s after; {result.late} requests late"
            )
            for name, cost in sorted(result.cpu_ms_per_event.items(), key=lambda each: -each[1]):
                if cost >= 0.005:
                    print(f"    {name:32} {cost:.3f} ms of CPU per event")
            shape = "flat" if result.flat else "growing"
            bar = {RATES[0]: "≥ 1,500/s, flat", RATES[1]: "stretch: 3,000/s, flat"}.get(rate, "")
            what = f"whole pipeline, aimed at {rate:,}/s: backlog {shape}, {result.backlog_last:,} at the end"
            lines.append(
                Line(what, Figure([result.events_per_s]), "events/s", "reference system", Figure([150.0]), bar)
            )
    return lines
