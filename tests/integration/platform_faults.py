"""Both platforms report while they repeat, shuffle, stall and stop, the gateway is killed and RabbitMQ restarts.

Every item goes through the real feed of a platform simulator, and is followed to its customer: stored once, posted once
by the ledger, told once by `/ws/sync`. Used by a test (few items) and by `bench/gateway_faults.py` (many).
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import aiohttp
import asyncpg
import websockets
from customers import Customer, call, log_in_again, make_customer
from websockets.exceptions import InvalidStatus, WebSocketException

if TYPE_CHECKING:
    from stack import Stack

PLATFORMS = ("bfc", "vyomo")
FAULTS = (
    "gateway killed",
    "platform paused",
    "RabbitMQ restarted",
    "gateway killed while RabbitMQ restarts",
    "platforms slow",
)
_AT_ONCE = 2
_PER_REQUEST = 250
_STILL_S = 30
"""Nothing posted for so long: nothing more will be."""
_TYPES = {"bfc": "transaction.posted", "vyomo": "wallet.posted"}
_TOLD = "ledger.account.posted"


class Outcome(NamedTuple):
    """What was found when everything ran again."""

    items: int
    """Emitted by the platforms; each was sent at least once, most of them three times."""
    stored: int
    """Of those, in the log exactly once."""
    posted: int
    """Of those, posted by the ledger exactly once."""
    told: int
    """Of those, told to their customer's socket exactly once, by a connection that resumed after each fault."""
    refused: int
    """Items a platform was told will never be taken."""
    faults: Counter[str]
    connections: int
    """WebSocket connections that it took."""
    seconds: float

    @property
    def success_rate(self) -> float:
        """Percent of all that had to happen: an item is stored, is posted, is told."""
        return 100 * (self.stored + self.posted + self.told) / (3 * self.items)


class _Listener:
    """A customer's socket: comes back with its cursor whenever the connection is lost."""

    def __init__(self, stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> None:
        self._stack, self._http, self._customer = stack, http, customer
        self._url = stack.origin.replace("http", "ws") + "/ws/sync"
        self._cursor: str | None = None
        self.connections = 0
        self.told: Counter[str] = Counter()

    async def run(self) -> None:
        while True:
            try:
                await self._follow()
            except InvalidStatus as error:
                if error.response.status_code == 401:
                    self._customer = await log_in_again(self._stack, self._http, self._customer)
            except (OSError, TimeoutError, WebSocketException):
                pass  # the gateway is away
            await asyncio.sleep(0.1)

    async def _follow(self) -> None:
        bearer: Any = ["bearer", self._customer.access_token]
        async with websockets.connect(self._url, subprotocols=bearer, compression=None) as socket:
            async for message in socket:
                frame = json.loads(message)
                if frame["type"] == "hello":
                    self.connections += 1
                    self._cursor = self._cursor or frame["resume"]
                    await socket.send(json.dumps({"type": "subscribe", "topics": [_TOLD], "resume": self._cursor}))
                elif frame["type"] == "event":
                    self._cursor = frame["cursor"]
                    self.told[frame["event"]["data"]["item_id"]] += 1
                elif frame["type"] == "bye" and frame["code"] == 4401:
                    self._customer = await log_in_again(self._stack, self._http, self._customer)
                elif frame["type"] == "error":
                    raise AssertionError(frame)


class Run:
    """`items` items of `customers` customers, in equal parts, one part during each fault."""

    def __init__(
        self,
        stack: "Stack",
        http: aiohttp.ClientSession,
        *,
        items: int,
        customers: int,
        rounds: int = 1,
        faults: Sequence[str] = FAULTS,
    ) -> None:
        self._stack, self._http = stack, http
        self._customers = customers
        self._rounds = rounds
        acts = (self._kill_gateway, self._pause, self._restart_broker, self._kill_both, self._slow)
        known = dict(zip(FAULTS, acts, strict=True))
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {name: known[name] for name in faults}
        self._part = -(-items // (rounds * len(faults)))
        self._tag = uuid4().hex[:8]
        self._chance = random.Random(4711)
        self._emitted: list[str] = []

    async def __call__(self) -> Outcome:
        started_s = time.perf_counter()
        people = [await make_customer(self._stack, self._http) for _ in range(self._customers)]
        accounts = [await self._accounts(person) for person in people]
        listeners = [_Listener(self._stack, self._http, person) for person in people]
        listening = [asyncio.create_task(listener.run()) for listener in listeners]
        async with asyncio.timeout(30):
            while not all(listener.connections for listener in listeners):
                await asyncio.sleep(0.05)
        await self._disorder()
        happened: Counter[str] = Counter()
        for _ in range(self._rounds):
            for name, fault in self._faults.items():
                await asyncio.gather(self._emit(accounts), fault())
                happened[name] += 1
        for platform in PLATFORMS:
            await self._control(platform, "resume")
        refused = await self._drained()
        stored, posted = await self._in_the_log()
        told = await self._told(listeners, listening)
        return Outcome(
            items=len(self._emitted),
            stored=stored,
            posted=posted,
            told=sum(told[item_id] == 1 for item_id in self._emitted),
            refused=refused,
            faults=happened,
            connections=sum(listener.connections for listener in listeners),
            seconds=time.perf_counter() - started_s,
        )

    # What happens.

    async def _emit(self, accounts: list[dict[str, str]]) -> None:
        first = len(self._emitted)
        self._emitted += [f"{self._tag}-{n}" for n in range(first, first + self._part)]
        parts = iter(range(first, first + self._part, _PER_REQUEST))

        async def work() -> None:
            for start in parts:
                numbers = range(start, min(start + _PER_REQUEST, first + self._part))
                for platform in PLATFORMS:
                    items = [self._item(n, accounts) for n in numbers if PLATFORMS[n % 2] == platform]
                    if items:
                        url = f"{self._stack.url(f'simulator-{platform}')}/events/batch"
                        answer = await call(self._http, "POST", url, json={"items": items})
                        assert answer.status == 200, answer

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))

    def _item(self, n: int, accounts: list[dict[str, str]]) -> dict[str, Any]:
        platform = PLATFORMS[n % 2]
        tag = accounts[n // 2 % len(accounts)][platform]
        holder = {"account_id": f"SB-{tag}"} if platform == "bfc" else {"wallet_id": f"TW-{tag}"}
        about = (
            {"transaction_id": f"T{n}", "category": "salary"}
            if platform == "bfc"
            else {"movement_id": f"M{n}", "reason": "charges"}
        )
        return {
            "id": f"{self._tag}-{n}",
            "customer_id": f"{'BFC' if platform == 'bfc' else 'VY'}-{tag}",
            "type": _TYPES[platform],
            "data": {**holder, **about, "direction": "credit", "amount": "1.00", "currency": "INR"},
        }

    async def _kill_gateway(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 0.6))
        self._stack.kill("sync_gateway")
        await asyncio.to_thread(self._stack.wait_ready, ["sync_gateway"], 60)

    async def _restart_broker(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 0.6))
        self._stack.kill("rabbitmq")
        await asyncio.to_thread(self._stack.wait_ready, ["rabbitmq"], 60)

    async def _kill_both(self) -> None:
        await asyncio.gather(self._restart_broker(), self._kill_gateway())

    async def _pause(self) -> None:
        await self._control("bfc", "pause")
        await asyncio.sleep(1.5)
        await self._control("bfc", "resume")
        await self._disorder()

    async def _slow(self) -> None:
        for platform in PLATFORMS:
            await self._control(platform, "slow", {"delay_s": 0.5})
        await asyncio.sleep(1.5)
        for platform in PLATFORMS:
            await self._control(platform, "slow", {"delay_s": 0})

    async def _disorder(self) -> None:
        """Both platforms send each batch three times, and out of order."""
        for platform in PLATFORMS:
            await self._control(platform, "duplicate")
            await self._control(platform, "shuffle")

    # What came of it.

    async def _drained(self) -> int:
        """Waits until neither platform has anything left to send; how many items were refused for ever."""
        refused = 0
        for platform in PLATFORMS:
            url = f"{self._stack.url(f'simulator-{platform}')}/health/ready"
            async with asyncio.timeout(60 + self._part * self._rounds / 20):
                while (ready := (await call(self._http, "GET", url)).body)["pending"]:
                    await asyncio.sleep(0.2)
            refused += ready["rejected"]
        return refused

    async def _in_the_log(self) -> tuple[int, int]:
        """How many items are there once as the platform's event, and once as the ledger's posting, when it is done."""
        log = await asyncpg.connect(self._stack.cell.admin_url())
        best, moved_s = -1, time.monotonic()
        try:
            while True:
                stored = await self._once(log, "banking.transaction.posted", "trading.wallet.posted")
                posted = await self._once(log, _TOLD)
                if posted > best:
                    best, moved_s = posted, time.monotonic()
                if posted == len(self._emitted) or time.monotonic() - moved_s > _STILL_S:
                    return stored, posted
                await asyncio.sleep(0.5 + len(self._emitted) / 20_000)
        finally:
            await log.close()

    async def _once(self, log: "asyncpg.Connection[Any]", *types: str) -> int:
        rows = await log.fetch(
            "SELECT convert_from(data, 'UTF8')::json ->> 'item_id' AS item_id, count(*) AS n FROM store.events"
            " WHERE type = ANY ($1) GROUP BY 1",
            list(types),
        )
        counted = {row["item_id"]: row["n"] for row in rows}
        return sum(counted.get(item_id) == 1 for item_id in self._emitted)

    async def _told(self, listeners: list[_Listener], listening: "list[asyncio.Task[None]]") -> Counter[str]:
        """Waits until the sockets have been told everything; all that they were told."""
        waited = 0
        while sum(len(listener.told) for listener in listeners) < len(self._emitted) and waited < 300:
            if failed := [task for task in listening if task.done()]:
                failed[0].result()
            await asyncio.sleep(0.2)
            waited += 1
        await asyncio.sleep(0.5)  # what comes twice comes now
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
        return sum((listener.told for listener in listeners), Counter[str]())

    async def _accounts(self, person: Customer) -> dict[str, str]:
        """The tag that this customer's ids at both platforms are made of."""
        listed = await call(self._http, "GET", f"{self._stack.origin}/api/accounts", headers=person.headers)
        return {
            account["platform"]: account["platform_account_id"].split("-", 1)[1] for account in listed.body["items"]
        }

    async def _control(self, platform: str, what: str, body: dict[str, float] | None = None) -> None:
        url = f"{self._stack.url(f'simulator-{platform}')}/control/{what}"
        answer = await call(self._http, "POST", url, json=body or {})
        assert answer.status in (200, 201), answer
