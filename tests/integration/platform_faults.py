"""Both platforms report while they repeat, shuffle, stall and stop, the gateway is killed and RabbitMQ restarts.

Every item goes through the real feed of a platform simulator and is followed to its customer: stored once, posted once
by the ledger, told once to each of their sockets, delivered to their webhook. Transfers go the other way. In the end
the platforms' own books and Sangam's accounts must agree. Used by a test (few items) and by `bench/gateway_faults.py`.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import aiohttp
import asyncpg
import msgspec
from customers import Customer, call, make_customer, transfer
from listeners import TOPIC, Listener, Session
from simulators.journal import Journal

if TYPE_CHECKING:
    from stack import Stack

PLATFORMS = ("bfc", "vyomo")
FAULTS = (
    "platform down",
    "gateway killed",
    "platform paused",
    "RabbitMQ restarted",
    "gateway killed while RabbitMQ restarts",
    "platforms slow",
)
WEBHOOKS = 5
"""Customers who have a webhook too, whose receiver is at the platform that goes down."""

_AT_ONCE = 2
_PER_REQUEST = 250
_STILL_S = 60
"""Nothing moved for so long: nothing will."""
_PROBE_S = 700
"""A webhook that could not be reached for ten minutes is tried again after so long at most."""
_TYPES = {"bfc": "transaction.posted", "vyomo": "wallet.posted"}
_STORED = ("banking.transaction.posted", "trading.wallet.posted")


class Outcome(NamedTuple):
    """What was found when everything ran again."""

    items: int
    """Emitted by the platforms; each was sent at least once, most of them three times."""
    stored: int
    """Of those, in the log exactly once."""
    posted: int
    """Of those, posted by the ledger exactly once."""
    told: int
    """Of those, told exactly once to each of their customer's sockets, over connections that resumed."""
    refused: int
    """Items a platform was told will never be taken."""
    strange: int
    """Frames about another customer's item."""
    transfers: int
    """Made while all that happened; each is announced to both platforms."""
    accounts: int
    agreeing: int
    """Accounts whose balance at the platform, by the platform's own books, is ours."""
    webhooks: int
    """Events that webhooks were to be told of."""
    delivered: int
    """Of those, answered with 2xx, under a sequence number of their own without a gap."""
    attempts: int
    """That it took to deliver them."""
    faults: Counter[str]
    sockets: int
    connections: int
    """WebSocket connections that it took."""
    down_s: float
    """How long the platform was down; none of its processes ran."""
    seconds: float

    @property
    def success_rate(self) -> float:
        """Percent of all that had to happen: an item is stored, is posted, is told; accounts agree; webhooks arrive."""
        happened = self.stored + self.posted + self.told + self.agreeing + self.delivered
        return 100 * happened / (3 * self.items + self.accounts + self.webhooks)


class Run:
    """`items` items of `customers` customers, in equal parts, one part during each of `faults`.

    Args:
        sockets: WebSocket clients, divided among the customers.
        down_s: how long `platform down` lasts.
        transfers: commands during each fault.
        progress: told what happens.
    """

    def __init__(
        self,
        stack: "Stack",
        http: aiohttp.ClientSession,
        *,
        items: int,
        customers: int,
        sockets: int,
        faults: Sequence[str],
        down_s: float,
        transfers: int = 10,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._stack, self._http = stack, http
        self._gateways = [name for name in stack.names() if name.startswith("sync_gateway")]
        self._customers, self._sockets = customers, sockets
        acts: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
        acts = (self._down, self._kill_gateway, self._pause, self._restart_broker, self._kill_both, self._slow)
        known = dict(zip(FAULTS, acts, strict=True))
        self._faults = [(name, known[name]) for name in faults]
        self._down_s = down_s
        self._transfers = transfers
        self._progress = progress
        self._part = -(-items // len(faults))
        self._tag = uuid4().hex[:8]
        self._chance = random.Random(4711)
        self._emitted = 0
        self._away: set[str] = set()
        self._journal = asyncio.Lock()
        self._started_s = time.perf_counter()
        self._was_down_s = 0.0

    async def __call__(self) -> Outcome:
        self._say(f"{self._customers} customers")
        people = [await make_customer(self._stack, self._http) for _ in range(self._customers)]
        self._people = people
        self._tags = [await self._tag_of(person) for person in people]
        hooks = [await self._register_webhook(person) for person in people[:WEBHOOKS]]
        self._sessions = [Session(self._stack, self._http, person) for person in people]
        async with self._socket_client() as sockets:
            url = self._stack.origin.replace("http", "ws") + "/ws/sync"
            room = self._part * len(self._faults)
            listeners = [Listener(url, sockets, self._sessions[n % len(people)], room) for n in range(self._sockets)]
            background = [asyncio.create_task(session.keep()) for session in self._sessions]
            background += [asyncio.create_task(listener.run()) for listener in listeners]
            try:
                return await self._with_listeners(listeners, background, hooks)
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)

    async def _with_listeners(
        self, listeners: list[Listener], background: "list[asyncio.Task[None]]", hooks: list[str]
    ) -> Outcome:
        async with asyncio.timeout(30 + len(listeners) / 10):
            while not all(listener.connections for listener in listeners):
                _raise_of(background)
                await asyncio.sleep(0.05)
        self._say(f"{len(listeners)} sockets listen")
        await self._disorder()
        happened: Counter[str] = Counter()
        transferred = 0
        for name, fault in self._faults:
            self._say(f"{name}: {self._part} items, {self._transfers} transfers")
            over_s = self._down_s if name == "platform down" else 0
            _, _, made = await asyncio.gather(self._emit(over_s), fault(), self._transfer(over_s))
            transferred += made
            happened[name] += 1
            _raise_of(background)
            # The next one strikes a product that is well again; else the faults would be over long before the items.
            await self._taken(self._part)
            await asyncio.to_thread(self._stack.wait_ready, None, 600)
        for platform in PLATFORMS:
            await self._control(platform, "resume")
        self._say("no more faults")
        refused = await self._taken(0)
        self._say("both feeds are taken")
        stored, posted = await self._in_the_log()
        self._say(f"{stored} stored, {posted} posted")
        await self._until_still(background, lambda: sum(listener.frames for listener in listeners))
        told, strange = self._told(listeners)
        self._say(f"{told} told")
        accounts, agreeing = await self._agreeing()
        self._say(f"{agreeing} of {accounts} accounts agree")
        webhooks, delivered, attempts = await self._delivered(hooks)
        self._say(f"{delivered} of {webhooks} delivered to webhooks")
        return Outcome(
            items=self._emitted,
            stored=stored,
            posted=posted,
            told=told,
            refused=refused,
            strange=strange,
            transfers=transferred,
            accounts=accounts,
            agreeing=agreeing,
            webhooks=webhooks,
            delivered=delivered,
            attempts=attempts,
            faults=happened,
            sockets=len(listeners),
            connections=sum(listener.connections for listener in listeners),
            down_s=self._was_down_s,
            seconds=time.perf_counter() - self._started_s,
        )

    # What happens.

    async def _emit(self, over_s: float) -> None:
        """The next part of the items, at once or spread over most of this time."""
        first, began_s = self._emitted, time.monotonic()
        self._emitted += self._part
        step = _PER_REQUEST if not over_s else max(1, min(_PER_REQUEST, self._part // 100))
        parts = iter(range(first, first + self._part, step))

        async def work() -> None:
            for start in parts:
                await asyncio.sleep(began_s + 0.9 * over_s * (start - first) / self._part - time.monotonic())
                numbers = range(start, min(start + step, first + self._part))
                for platform in PLATFORMS:
                    items = [self._item(n) for n in numbers if PLATFORMS[n % 2] == platform]
                    if items:
                        await self._happen(platform, items)

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))

    async def _happen(self, platform: str, items: list[dict[str, Any]]) -> None:
        """At the platform: while its processes are down its books go on, and are all in one place."""
        url = f"{self._stack.url(f'simulator-{platform}')}/events/batch"
        while True:
            async with self._journal:
                if platform in self._away:
                    await asyncio.to_thread(self._write_down, platform, items)
                    return
            try:
                async with self._http.post(url, json={"items": items}) as answer:
                    assert answer.status == 200, await answer.text()
                    return
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(0.1)

    def _write_down(self, platform: str, items: list[dict[str, Any]]) -> None:
        journal = Journal(self._stack.data / "simulators" / platform / f"{platform}.sqlite3")
        try:
            for item in items:
                journal.emit(
                    event_id=item["id"],
                    customer_id=item["customer_id"],
                    type_=item["type"],
                    occurred_at=item["occurred_at"],
                    data=msgspec.json.encode(item["data"]),
                )
        finally:
            journal.close()

    def _owner(self, n: int) -> int:
        """Which customer's the item is."""
        return n // 2 % self._customers

    def _item(self, n: int) -> dict[str, Any]:
        platform = PLATFORMS[n % 2]
        tag = self._tags[self._owner(n)]
        about = (
            {"account_id": f"SB-{tag}", "transaction_id": f"T{n}", "category": "salary"}
            if platform == "bfc"
            else {"wallet_id": f"TW-{tag}", "movement_id": f"M{n}", "reason": "charges"}
        )
        return {
            "id": f"{self._tag}-{n}",
            "customer_id": f"{'BFC' if platform == 'bfc' else 'VY'}-{tag}",
            "type": _TYPES[platform],
            "occurred_at": msgspec.to_builtins(datetime.now(UTC)),
            "data": {**about, "direction": "credit", "amount": "1.00", "currency": "INR"},
        }

    async def _transfer(self, over_s: float) -> int:
        """Commands meanwhile; how many were made."""
        for _ in range(self._transfers):
            customer = self._chance.choice(self._sessions).customer
            answer = await transfer(self._stack, self._http, customer, "1.00", uuid4().hex)
            assert answer.status == 201, answer
            await asyncio.sleep(0.9 * over_s / self._transfers)
        return self._transfers

    async def _down(self) -> None:
        """The bank is gone: nothing of it runs. Meanwhile its customers go on, and so do ours."""
        name, platform = "simulator-bfc", "bfc"
        await asyncio.to_thread(self._stack.pause, name, signal.SIGKILL)
        began_s = time.monotonic()
        async with self._journal:
            self._away.add(platform)
        await asyncio.sleep(self._down_s)
        async with self._journal:
            self._was_down_s += time.monotonic() - began_s
            self._stack.resume(name)
            self._away.remove(platform)
        await asyncio.to_thread(self._stack.wait_ready, [name], 60)
        await self._disorder()

    async def _kill_gateway(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 0.6))
        name = self._chance.choice(self._gateways)
        self._stack.kill(name)
        async with asyncio.timeout(120):
            while (await call(self._http, "GET", f"{self._stack.url(name)}/health/live", timeout_s=120)).status != 200:
                await asyncio.sleep(0.1)

    async def _restart_broker(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, 0.6))
        self._stack.kill("rabbitmq")
        await asyncio.to_thread(self._stack.wait_ready, ["rabbitmq"], 120)

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

    async def _taken(self, left: int) -> int:
        """Waits until neither platform has more than so many items to send; how many were refused for ever."""
        refused = 0
        for platform in PLATFORMS:
            url = f"{self._stack.url(f'simulator-{platform}')}/health/ready"
            least, moved_s = self._emitted + 1, time.monotonic()
            while (ready := (await call(self._http, "GET", url)).body)["pending"] > left:
                if ready["pending"] < least:
                    least, moved_s = ready["pending"], time.monotonic()
                assert time.monotonic() - moved_s < _STILL_S, f"{platform}'s feed stands still: {ready}"
                await asyncio.sleep(0.5)
            refused += ready["rejected"]
        return refused

    async def _in_the_log(self) -> tuple[int, int]:
        """How many items are there once as the platform's event, and once as the ledger's posting, when it is done."""
        log = await asyncpg.connect(self._stack.cell.admin_url())
        best, moved_s = -1, time.monotonic()
        try:
            while True:
                stored = await self._once(log, *_STORED)
                posted = await self._once(log, TOPIC)
                if posted > best:
                    best, moved_s = posted, time.monotonic()
                if posted == self._emitted or time.monotonic() - moved_s > _STILL_S:
                    return stored, posted
                await asyncio.sleep(0.5 + self._emitted / 20_000)
        finally:
            await log.close()

    async def _once(self, log: "asyncpg.Connection[Any]", *types: str) -> int:
        rows = await log.fetch(
            "SELECT convert_from(data, 'UTF8')::json ->> 'item_id' AS item_id, count(*) AS n FROM store.events"
            " WHERE type = ANY ($1) GROUP BY 1",
            list(types),
        )
        counted = {row["item_id"]: row["n"] for row in rows}
        return sum(counted.get(f"{self._tag}-{n}") == 1 for n in range(self._emitted))

    async def _until_still(self, background: "list[asyncio.Task[None]]", count: Callable[[], int]) -> None:
        """Waits until the sockets have been told everything, or nothing more comes."""
        expected = sum(1 for n in range(self._emitted) for _ in self._listening_to(n))
        best, moved_s = -1, time.monotonic()
        while (now := count()) < expected and time.monotonic() - moved_s < _STILL_S:
            _raise_of(background)
            if now > best:
                best, moved_s = now, time.monotonic()
            await asyncio.sleep(0.2)
        await asyncio.sleep(1)  # what comes twice comes now

    def _listening_to(self, n: int) -> list[Listener]:
        return self._sessions[self._owner(n)].sockets

    def _told(self, listeners: list[Listener]) -> tuple[int, int]:
        """Items told once to all who must hear of them, and frames about items of others."""
        told = 0
        theirs = 0
        for n in range(self._emitted):
            counts = [listener.told[n] for listener in self._listening_to(n)]
            told += all(count == 1 for count in counts)
            theirs += sum(counts)
        return told, sum(sum(listener.told) for listener in listeners) - theirs

    async def _agreeing(self) -> tuple[int, int]:
        """Accounts, and those of which both ends say the same; waits until all do, or the bank was probed in vain."""
        deadline_s = time.monotonic() + _STILL_S * 2
        left = list(range(self._customers))
        while True:
            left = [number for number in left if not await self._agree(number)]
            if not left or time.monotonic() > deadline_s:
                total = self._customers * len(PLATFORMS)
                return total, total - len(left) * len(PLATFORMS)
            await asyncio.sleep(1)

    async def _agree(self, number: int) -> bool:
        listed = await call(
            self._http, "GET", f"{self._stack.origin}/api/accounts", headers=self._sessions[number].customer.headers
        )
        ours = {account["platform_account_id"]: account["balance"] for account in listed.body["items"]}
        theirs: dict[str, str] = {}
        for platform, prefix, holder in (("bfc", "BFC", "account_id"), ("vyomo", "VY", "wallet_id")):
            url = f"{self._stack.url(f'simulator-{platform}')}/balances?customer_id={prefix}-{self._tags[number]}"
            stated = await call(self._http, "GET", url)
            theirs |= {item["data"][holder]: item["data"]["balance"] for item in stated.body["items"]}
        return ours == theirs and len(ours) == len(PLATFORMS)

    async def _register_webhook(self, person: Customer) -> str:
        body = {
            "url": f"{self._stack.url('simulator-bfc')}/webhooks",
            "events": [TOPIC],
            # The default of three attempts in twelve seconds is over before the platform is back.
            "retry_delays_s": [2, 10, 30, *[60] * 17],
        }
        url = f"{self._stack.origin}/api/sync/webhooks"
        answer = await call(self._http, "POST", url, json=body, headers=person.headers)
        assert answer.status == 201, answer
        return str(answer.body["id"])

    async def _delivered(self, hooks: list[str]) -> tuple[int, int, int]:
        """Events for webhooks, those delivered under the next number each, and the attempts that took."""
        events, delivered, attempts = 0, 0, 0
        for number, webhook_id in enumerate(hooks):
            expected = sum(self._owner(n) == number for n in range(self._emitted))
            events += expected
            deadline_s = time.monotonic() + (_PROBE_S if self._was_down_s > _STILL_S else _STILL_S * 2)
            while True:
                listed = await self._deliveries(number, webhook_id)
                done = sorted(item["sequence"] for item in listed if item["status"] == "delivered")
                if len(done) >= expected or time.monotonic() > deadline_s:
                    break
                await asyncio.sleep(2)
            if len(done) < expected:
                self._say(f"webhook {webhook_id}: {Counter(item['status'] for item in listed)} of {expected}")
            delivered += len(set(done) & set(range(1, expected + 1)))
            attempts += sum(len(item["attempts"]) for item in listed)
        return events, delivered, attempts

    async def _deliveries(self, number: int, webhook_id: str) -> list[dict[str, Any]]:
        url = f"{self._stack.origin}/api/sync/webhooks/{webhook_id}/deliveries?limit=200"
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            headers = self._sessions[number].customer.headers
            page = (await call(self._http, "GET", url + cursor, headers=headers)).body
            found += page["items"]
            if not page["next_cursor"]:
                return found
            cursor = f"&cursor={page['next_cursor']}"

    async def _tag_of(self, person: Customer) -> str:
        """What this customer's ids at both platforms are made of."""
        listed = await call(self._http, "GET", f"{self._stack.origin}/api/accounts", headers=person.headers)
        return str(listed.body["items"][0]["platform_account_id"].split("-", 1)[1])

    async def _control(self, platform: str, what: str, body: dict[str, float] | None = None) -> None:
        url = f"{self._stack.url(f'simulator-{platform}')}/control/{what}"
        answer = await call(self._http, "POST", url, json=body or {})
        assert answer.status in (200, 201), answer

    def _socket_client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None))

    def _say(self, line: str) -> None:
        self._progress(f"{time.perf_counter() - self._started_s:7.1f} s  {line}")


def _raise_of(background: "list[asyncio.Task[None]]") -> None:
    for task in background:
        if task.done():
            task.result()
            raise AssertionError("a listener ended")
