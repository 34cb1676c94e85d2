"""Load on a running stack: months of life of many customers, told by both platforms at a chosen rate.

    python -m simulators.load --customers 50 --months 3 --rate 200        (make load CUSTOMERS=50 RATE=200)

The scenario is `simulators.life`: the same seed gives the same items, and says what everybody must have in the end. The
first customers sign up and link both platforms; what is told of the others waits for them, as it would. A second run
tells what the platforms have not told yet: more with more months.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from simulators.demo import DEFAULT_ENV, read_env
from simulators.http_client import DemoFailed, JsonClient, NotNow, until
from simulators.life import Life
from simulators.person import Person
from simulators.scenario import Item

LINKED_MAX = 50
"""Identity lets one address sign in a hundred times in a quarter of an hour."""

_LANES = 8
_PASSWORD = "a load of customers, 4025"  # noqa: S105 - of customers that are made up


class Result(NamedTuple):
    """What the run did and found."""

    items: int
    new: int
    """Of these, what the platforms had not told before."""
    told_s: float
    """Until the platforms knew everything."""
    taken_s: float
    """Until Sangam had taken everything."""
    visible_s: float
    """Until every linked customer saw the right balances."""
    customers_right: int


class Load:
    """One run against one stack."""

    def __init__(self, settings: Mapping[str, str], session: aiohttp.ClientSession, progress: Progress) -> None:
        self._session = session
        self._origin = settings["ORIGIN_URL"]
        self._platforms = {
            "bfc": JsonClient(session, "BFC", settings["BFC_URL"]),
            "vyomo": JsonClient(session, "Vyomo", settings["VYOMO_URL"]),
        }
        self._progress = progress
        self._new = 0

    async def run(self, life: Life, *, rate: float, linked: int) -> Result:
        """Signs customers up, tells every item at `rate` a second, and waits until the balances are right.

        Raises:
            DemoFailed: with the reason, in words.
        """
        people = life.people
        task = self._progress.add_task("customers", total=len(people))
        clients = dict(zip(range(linked), await self._in_lanes(people, linked, task), strict=False))
        items = list(life.items())
        started_s = time.monotonic()
        task = self._progress.add_task(f"items, {rate:g} a second", total=len(items))
        await self._tell(items, rate, task)
        told_s = time.monotonic() - started_s
        for platform in self._platforms.values():
            await until(
                f"{platform.name}'s feed to be taken",
                lambda platform=platform: platform.call("GET", "/health/ready"),  # type: ignore[misc]
                lambda reply: reply.body["pending"] == 0,
                timeout_s=600,
            )
        taken_s = time.monotonic() - started_s
        task = self._progress.add_task("balances as the platforms have them", total=linked)
        right = 0
        for truth, client in zip(life.truth(), clients.values(), strict=False):
            expected = {account: Decimal(paise) / 100 for account, paise in truth.balances.items() if paise}
            right += await self._comes_true(client, expected)
            self._progress.advance(task)
        return Result(len(items), self._new, told_s, taken_s, time.monotonic() - started_s, right)

    async def _in_lanes(self, people: Sequence[Person], linked: int, task: TaskID) -> list[JsonClient]:
        """Everybody is known to both platforms; the first `linked` sign up. Gives these as signed-in clients."""
        lane = asyncio.Semaphore(_LANES)

        async def one(number: int, person: Person) -> JsonClient | None:
            async with lane:
                client = await self._join(person, signs_up=number < linked)
                self._progress.advance(task)
                return client

        joined = await asyncio.gather(*(one(number, person) for number, person in enumerate(people)))
        return [client for client in joined if client is not None]

    async def _join(self, person: Person, *, signs_up: bool) -> JsonClient | None:
        who = person.who
        ids = {"bfc": who.bfc_customer_id, "vyomo": who.vyomo_client_id}
        for platform, customer_id in ids.items():
            body = {"customer_id": customer_id, "pin": who.pin}
            await self._platforms[platform].call("POST", "/customers", body)
        if not signs_up:
            return None
        client = JsonClient(self._session, "Sangam", self._origin)
        email = f"load{who.number}@sangam.example"
        registration = {"email": email, "password": _PASSWORD, "full_name": who.name, "phone": "+919845012345"}
        await client.call("POST", "/api/auth/register", registration, expect=(201, 409))
        credentials = {"email": email, "password": _PASSWORD, "platform": "bfc"}
        client.bearer = (await client.call("POST", "/api/auth/login", credentials)).body["access_token"]
        for platform, customer_id in ids.items():
            field = "bfc_customer_id" if platform == "bfc" else "vyomo_client_id"
            route = f"/api/auth/link-{platform}"
            link = await client.call("POST", route, {field: customer_id}, expect=(200, 201, 409))
            if link.status == 409:
                continue  # of an earlier run
            asked = {"nonce": link.body["nonce"], "pin": who.pin}
            proof = await self._platforms[platform].call("POST", f"/customers/{customer_id}/link-assertion", asked)
            confirmation = {"link_id": link.body["link_id"], "assertion": proof.body["assertion"]}
            await client.call("POST", f"{route}/confirm", confirmation)
        return client

    async def _tell(self, items: Sequence[Item], rate: float, task: TaskID) -> None:
        """Each customer's items in order, all customers' together at the rate."""
        lanes: dict[int, list[tuple[int, Item]]] = defaultdict(list)
        for number, item in enumerate(items):
            lanes[hash(item.customer_id) % (4 * _LANES)].append((number, item))
        started_s = time.monotonic()

        async def lane(queue: list[tuple[int, Item]]) -> None:
            for number, item in queue:
                await asyncio.sleep(max(started_s + number / rate - time.monotonic(), 0))
                body = item.feed_json()
                del body["sequence"]
                platform = self._platforms[item.platform]
                reply = await platform.call("POST", "/events", body, expect=(200, 201))
                self._new += reply.status == 201
                self._progress.advance(task)

        await asyncio.gather(*(lane(queue) for queue in lanes.values()))

    async def _comes_true(self, client: JsonClient, expected: Mapping[str, Decimal]) -> bool:
        """Whether the customer sees what the platforms have, at last."""

        def as_expected(accounts: Sequence[Mapping[str, str]]) -> bool:
            seen = {each["platform_account_id"]: Decimal(each["balance"]) for each in accounts}
            return all(seen.get(account) == balance for account, balance in expected.items())

        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            try:
                if as_expected((await client.call("GET", "/api/accounts")).body["items"]):
                    return True
            except NotNow:
                pass
            await asyncio.sleep(0.2)
        return False


async def run(console: Console, env_file: Path, options: argparse.Namespace) -> Result:
    """Runs the load that the options describe.

    Raises:
        DemoFailed: with the reason, in words.
    """
    settings = read_env(env_file)
    life = Life(options.seed, options.customers, options.start, options.months)
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with aiohttp.ClientSession() as session:
        with Progress(*columns, console=console) as progress:
            load = Load(settings, session, progress)
            return await load.run(life, rate=options.rate, linked=min(options.customers, LINKED_MAX))


def main(arguments: Sequence[str]) -> int:
    """The command line; 0 when every linked customer has what the platforms say."""
    parser = argparse.ArgumentParser(prog="python -m simulators.load", description=__doc__)
    parser.add_argument("--customers", type=int, default=20)
    parser.add_argument("--rate", type=float, default=200.0, help="items a second")
    parser.add_argument("--months", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=date.fromisoformat, default=date(2026, 1, 1), help="YYYY-MM-DD")
    parser.add_argument("--env", type=Path, default=DEFAULT_ENV, help="the stack's local.env")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        result = asyncio.run(run(console, options.env, options))
    except DemoFailed as error:
        Console(stderr=True).print(f"[red]The load failed:[/] {error}")
        return 1
    linked = min(options.customers, LINKED_MAX)
    console.print(
        f"{result.items:,} items of {options.customers} customers, {result.new:,} of them new,"
        f" told at {result.items / max(result.told_s, 0.001):,.0f} a second\n"
        f"taken by Sangam after {result.taken_s:.1f} s, on everybody's screen after {result.visible_s:.1f} s;"
        f" balances right for [bold]{result.customers_right} of {linked}[/] linked customers",
        soft_wrap=True,
    )
    return 0 if result.customers_right == linked else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
