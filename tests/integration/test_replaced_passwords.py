"""All passwords of services and relays are replaced under load, and no request fails: settings list both of them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from provision import Cell
from rabbitmq import ADMIN, RELAY, SERVICES
from replaced import NEW, end_broker_connections, end_sessions, listing, own_password, replace
from rolling import Load, Person, make_person
from stack import Stack

pytestmark = pytest.mark.integration

ROLES = (*SERVICES, RELAY)
_BURST = 40


@pytest.fixture
def replaceable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The product with two passwords in every URL of its settings, as after the first step of the runbook."""

    def both(url: str) -> str:
        return listing(url, own_password(url), NEW)

    as_role, amqp_url = Cell._as_role, Cell.amqp_url

    def amqp_url_of(cell: Cell, user: str = ADMIN) -> str:
        return amqp_url(cell) if user == ADMIN else both(amqp_url(cell, user))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cell, "_as_role", lambda cell, role, database: both(as_role(cell, role, database)))
        patch.setattr(Cell, "amqp_url", amqp_url_of)
        with Stack(
            tmp_path_factory.mktemp("replaceable"), disposable=True, durable=False, requests_per_s=20_000
        ) as stack:
            yield stack


async def test_replacing_all_passwords_fails_no_request(replaceable: Stack) -> None:
    cell, ended = replaceable.cell, set[str]()
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        people = [await make_person(replaceable, http, number) for number in range(2)]
        before = {person.wallet: await _balance(replaceable, http, person) for person in people}
        loads: list[Load] = []

        async def burst(load: Load) -> None:
            await asyncio.gather(*(load._read(people[n % 2]) for n in range(_BURST)))
            assert not load.failed, load.failed

        async def put_load(during: Callable[[], Awaitable[object]]) -> None:
            """Requests on and on, and more than are connected for at once, while something is done."""
            load = Load(http, replaceable.origin, people, rate=20, seed=len(loads))
            loads.append(load)
            running = asyncio.create_task(load.run())
            try:
                await burst(load)
                await during()
                await burst(load)
            finally:
                load.stop()
                await running
            assert not load.failed, load.failed

        await put_load(lambda: replace(cell, ROLES, NEW))
        for _ in range(2):
            # What is under way when its session is ended is answered 503 with any password. So nothing is.
            assert await end_sessions(cell, ROLES) >= len(ROLES)
            await asyncio.sleep(0.3)
            await put_load(lambda: end_broker_connections(cell, ROLES, ended))
        print(f"0 failed of {sum(load.sent for load in loads)} requests; {len(ended)} broker connections ended")
        print(f"the slowest took {max(load.slowest_s for load in loads):.2f} s")
        assert await _connected(cell) == set(ROLES)
        # Every consumer goes on: what was moved comes to the read models.
        for person in people:
            said, deadline_s = sum(load.moved[person.wallet] for load in loads), time.monotonic() + 20
            assert said > 0
            while (moved := await _balance(replaceable, http, person) - before[person.wallet]) != said:
                assert time.monotonic() < deadline_s, f"{said} rupees moved by the answers, {moved} by the balance"
                await asyncio.sleep(0.1)
        await end_broker_connections(cell, ROLES, ended)  # all are there again


async def _balance(stack: Stack, http: aiohttp.ClientSession, person: Person) -> Decimal:
    async with http.get(f"{stack.origin}/api/accounts/{person.wallet}/balance", headers=person.headers) as response:
        return Decimal((await response.json())["balance"])


async def _connected(cell: Cell) -> set[str]:
    """Roles that have a session in PostgreSQL."""
    admin = await asyncpg.connect(cell.admin_url())
    try:
        names = {row[0] for row in await admin.fetch("SELECT DISTINCT usename FROM pg_stat_activity")}
    finally:
        await admin.close()
    return {role for role in ROLES if urlsplit(cell.store_url(role)).username in names}
