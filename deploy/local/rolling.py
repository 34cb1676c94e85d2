"""Restarts every replica of every service under load: `make rolling`. Prints `0 failed of N requests`.

On a stack of its own with two replicas each, on free ports. The relays go one after the other, then the first replica
of every service at once, then the second ones, as a cluster does when a new image comes. Customers read and move money
the whole time; each request is sent once and every answer that is not the one expected is a failure: no retry by the
client, no error excused. At the end each customer's balance must be what the answers said.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
from applications import RELAYS, replicas_of
from rabbitmq import SERVICES
from stack import Stack

REPLICAS = 2
_PIN = "1234"
_SIGN_IN_EVERY_S = 60.0
_PASSWORD = "correct horse battery staple"  # noqa: S105 - of customers that live for a minute
_READS = (
    "/api/accounts",
    "/api/transactions",
    "/api/wealth/net-worth",
    "/api/notifications/smart",
    "/api/search?q=salary",
    "/api/auth/sessions",
    "/api/sync/conflicts",
)


class Person(NamedTuple):
    """A customer with money at the bank and a wallet at the broker, who is signed in."""

    email: str
    headers: dict[str, str]
    savings: str
    wallet: str


class Load:
    """Requests at a steady rate, each sent once, counted by route and outcome.

    Args:
        rate: requests a second.
        seed: of what is sent, idempotency keys among it: another one for every load that the same people get.
    """

    def __init__(
        self, http: aiohttp.ClientSession, origin: str, people: Sequence[Person], rate: float, *, seed: int = 4025
    ) -> None:
        self._http, self._origin, self._people, self._rate = http, origin, people, rate
        self.sent = 0
        self.failed: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.moved: Counter[str] = Counter()
        """Rupees that each customer's wallet has got, by the account's id."""
        self._random = random.Random(seed)  # noqa: S311 - a load, no secret
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`, then until every answer is there."""
        async with asyncio.TaskGroup() as group:
            due_s = signed_in_s = time.monotonic()
            while not self._stopping.is_set():
                if time.monotonic() - signed_in_s > _SIGN_IN_EVERY_S:  # an access token lives for five minutes
                    signed_in_s = time.monotonic()
                    for person in self._people:
                        group.create_task(self._sign_in(person))
                person = self._random.choice(self._people)
                group.create_task(self._move(person) if self._random.random() < 0.3 else self._read(person))
                due_s += 1 / self._rate
                await asyncio.sleep(max(due_s - time.monotonic(), 0))

    async def _read(self, person: Person) -> None:
        await self._once("GET", self._random.choice(_READS), person)

    async def _move(self, person: Person) -> None:
        body = {
            "from_account_id": person.savings,
            "to_account_id": person.wallet,
            "amount": "1.00",
            "currency": "INR",
        }
        if await self._once("POST", "/api/transfers", person, json=body) is not None:
            self.moved[person.wallet] += 1

    async def _sign_in(self, person: Person) -> None:
        body = {"email": person.email, "password": _PASSWORD, "platform": "bfc"}
        if (answer := await self._once("POST", "/api/auth/login", person, json=body)) is not None:
            person.headers["Authorization"] = f"Bearer {json.loads(answer)['access_token']}"

    async def _once(self, method: str, path: str, person: Person, **request: Any) -> Any:
        headers = dict(person.headers)
        if method == "POST":
            headers["Idempotency-Key"] = f"{self._random.getrandbits(64):x}"
        self.sent += 1
        started_s = time.monotonic()
        try:
            async with self._http.request(method, self._origin + path, headers=headers, **request) as response:
                text = await response.text()
                if response.status in (200, 201):
                    return text
                problem = f"{response.status} {text[:120]}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = repr(error)
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
        self.failed[f"{method} {path.partition('?')[0]}: {problem}"] += 1
        return None


async def roll(stack: Stack, say: Callable[[str], None], *, rate: float = 60.0, customers: int = 4) -> Load:
    """Restarts everything, replica by replica, under load; gives what the load met.

    Raises:
        RuntimeError: the wallets do not hold what the answers said.
    """
    timeout = aiohttp.ClientTimeout(total=30)
    replicas = zip(*(replicas_of(service, REPLICAS) for service in SERVICES), strict=True)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        people = [await make_person(stack, http, number) for number in range(customers)]
        before = {person.wallet: await _balance(stack, http, person) for person in people}
        load = Load(http, stack.origin, people, rate)
        running = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(1)
            for names in [*((relay,) for relay in RELAYS), *replicas]:
                started_s = time.monotonic()
                failed = load.failed.total()
                await asyncio.gather(*(_restart(stack, name) for name in names))
                taken_s = time.monotonic() - started_s
                failed = load.failed.total() - failed
                say(f"{', '.join(names)}: restarted in {taken_s:.1f} s, {failed} failed, {load.sent} sent")
            await asyncio.sleep(0.5)
        finally:
            load.stop()
            await running
        for person in people:
            said, moved = load.moved[person.wallet], Decimal(-1)
            deadline_s = time.monotonic() + 10
            while not load.failed and moved != said:
                if time.monotonic() > deadline_s:
                    raise RuntimeError(f"{said} rupees moved by the answers, {moved} by the balance")
                moved = await _balance(stack, http, person) - before[person.wallet]
    return load


async def _balance(stack: Stack, http: aiohttp.ClientSession, person: Person) -> Decimal:
    async with http.get(f"{stack.origin}/api/accounts/{person.wallet}/balance", headers=person.headers) as response:
        return Decimal((await response.json())["balance"])


async def _restart(stack: Stack, name: str) -> None:
    await asyncio.to_thread(stack.pause, name)
    stack.resume(name)
    await asyncio.to_thread(stack.wait_ready, [name], 90)


async def make_person(stack: Stack, http: aiohttp.ClientSession, number: int) -> Person:
    """Registered, linked to both platforms by proof, with an account at each."""

    async def post(url: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        async with http.post(url, json=body, headers=headers) as response:
            if response.status >= 300:
                raise RuntimeError(f"{url}: {response.status} {await response.text()}")
            return await response.json()

    api, tag = stack.origin, f"rolling{number}"
    email = f"{tag}@example.com"
    await post(
        f"{api}/api/auth/register",
        {"email": email, "password": _PASSWORD, "full_name": "Chitra Iyer", "phone": "+919800000000"},
    )
    login = await post(f"{api}/api/auth/login", {"email": email, "password": _PASSWORD, "platform": "bfc"})
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    for platform, field, kind, data in (
        ("bfc", "bfc_customer_id", "account.opened", {"account_id": f"SB-{tag}", "kind": "savings"}),
        ("vyomo", "vyomo_client_id", "wallet.opened", {"wallet_id": f"TW-{tag}"}),
    ):
        simulator, customer_id = stack.url(f"simulator-{platform}"), f"{platform.upper()}-{tag}"
        opening = {"currency": "INR", "opening_balance": "100000.00" if platform == "bfc" else "0.00"}
        await post(f"{simulator}/customers", {"customer_id": customer_id, "pin": _PIN})
        await post(f"{simulator}/events", {"customer_id": customer_id, "type": kind, "data": {**data, **opening}})
        link = await post(f"{api}/api/auth/link-{platform}", {field: customer_id}, headers)
        proof = await post(f"{simulator}/customers/{customer_id}/link-assertion", {"nonce": link["nonce"], "pin": _PIN})
        confirmation = {"link_id": link["link_id"], "assertion": proof["assertion"]}
        await post(f"{api}/api/auth/link-{platform}/confirm", confirmation, headers)
    async with asyncio.timeout(30):
        while True:
            async with http.get(f"{api}/api/accounts", headers=headers) as response:
                accounts = {each["kind"]: each["id"] for each in (await response.json()).get("items", [])}
            if len(accounts) == 2:
                return Person(email, headers, accounts["savings"], accounts["trading_wallet"])
            await asyncio.sleep(0.1)


def main() -> int:
    """Runs it and says how it went; 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second")
    parser.add_argument("--customers", type=int, default=4)
    arguments = parser.parse_args()
    with (
        TemporaryDirectory(prefix="sangam-rolling-") as directory,
        Stack(Path(directory), replicas=REPLICAS, disposable=True, requests_per_s=20_000, progress=print) as stack,
    ):
        load = asyncio.run(roll(stack, print, rate=arguments.rate, customers=arguments.customers))
    for failure, count in load.failed.most_common(10):
        print(f"  {count} × {failure}")
    print(f"{load.failed.total()} failed of {load.sent} requests; the slowest took {load.slowest_s:.2f} s")
    return 1 if load.failed else 0


if __name__ == "__main__":
    sys.exit(main())
