"""URLs that list passwords: which one is tried when, and that replacing one loses no append and stops no consumer."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import aiormq
import asyncpg
import pytest
from backbone import Seen, append_one, eventually, running_consumer
from events import passwords, pg
from events.cli.broker import Broker, BrokerRefused
from events.consumer import Consumer
from events.envelope import new_id
from events.projections import Projections
from events.relay import Relay
from events.store import EventStore
from replaced import FORMER, NEW, end_broker_connections, end_sessions, listing, own_password, replace

if TYPE_CHECKING:
    from provision import Cell

ROLES = ("ledger_transfer", "relay")


@pytest.mark.parametrize(
    ("url", "one_by_one"),
    [
        ("postgresql://u:a,b@h/d", ["postgresql://u:a@h/d", "postgresql://u:b@h/d"]),
        ("amqp://u:a, b ,c@h:5672/%2F", [f"amqp://u:{each}@h:5672/%2F" for each in "abc"]),
        ("postgresql://u:a%2Cb@h,i/d?x=y,z", ["postgresql://u:a%2Cb@h,i/d?x=y,z"]),
        ("postgresql://u:a,b@h:1,[::1]:2/d?x=y,z", [f"postgresql://u:{each}@h:1,[::1]:2/d?x=y,z" for each in "ab"]),
        ("postgresql:///d?host=/run", ["postgresql:///d?host=/run"]),
        ("postgresql://u:a@h/d?application_name=b@c", ["postgresql://u:a@h/d?application_name=b@c"]),
    ],
)
def test_a_url_once_for_each_password(url: str, one_by_one: list[str]) -> None:
    passwords.check(url, passwords.POSTGRES + passwords.BROKER)
    assert passwords.each(url) == one_by_one


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3c/ret@h/d",
        "postgresql://u:12/s3cret@h/d",
        "postgresql://u:12?s3cret@h/d",
        "postgresql://u:s3c@ret@h/d",
        "postgresql://u:s3c#ret@h/d",
        "postgresql://u:s3c[ret@h/d",
        "postgresql://u:s3cret@h:port/d",
        "postgresql://u:s3cret,@h/d",
        "postgresql://u:,s3cret@h/d",
        "postgresql://u:s3cret, ,s3cret@h/d",
        "amqp://u:s3cret@h/d",
        "u:s3cret@h/d",
        "s3cret",
    ],
)
def test_a_malformed_url_is_refused_and_not_told(url: str) -> None:
    with pytest.raises(ValueError, match=r"must look like postgresql://|empty password in its list") as caught:
        passwords.check(url, passwords.POSTGRES)
    assert "s3c" not in str(caught.value)
    assert "ret" not in str(caught.value)


class Door:
    """Takes one password, and keeps what it was tried with."""

    def __init__(self) -> None:
        self.url = f"postgresql://u:a,b,c@{new_id()}/d"
        self.takes = "a"
        self.tried = ""

    async def enter(self) -> str:
        async def attempt(url: str) -> str:
            password = url.removeprefix("postgresql://u:")[0]
            self.tried += password
            if password != self.takes:
                raise asyncpg.InvalidPasswordError(password)
            return password

        self.tried = ""
        return await passwords.with_password(self.url, attempt, refused=asyncpg.InvalidPasswordError)


async def test_what_was_taken_last_is_tried_first_and_then_the_others() -> None:
    door = Door()
    for takes, tried in (("a", "a"), ("b", "ab"), ("b", "b"), ("c", "bac"), ("c", "c"), ("a", "ca"), ("a", "a")):
        door.takes = takes
        assert await door.enter() == takes
        assert door.tried == tried
    door.takes = "d"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await door.enter()
    assert door.tried == "abc"


async def test_only_a_refusal_makes_it_try_the_next() -> None:
    tried = []

    async def attempt(url: str) -> None:
        tried.append(url)
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError):
        await passwords.with_password("postgresql://u:a,b@h/d", attempt, refused=asyncpg.InvalidPasswordError)
    assert tried == ["postgresql://u:a@h/d"]


def test_whatever_connects_does_so_here() -> None:
    root = Path(__file__).parents[3]
    for path in (*root.glob("libs/*/src/**/*.py"), *root.glob("services/*/src/**/*.py")):
        text = path.read_text()
        pools = re.findall(r"create_pool\((.*?)\n", re.sub(r"\(\s+", "(", re.sub(r",\s+", ", ", text)))
        assert all("connect=connect_postgres" in pool for pool in pools), path
        if path.name != "passwords.py":
            assert not re.search(r"(asyncpg|aio_pika)\.connect(_robust)?\(", text), path


# --- on real servers ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def replaceable(cell: "Cell") -> AsyncIterator[None]:
    """The two roles with the password FORMER; with their own again afterwards."""
    own = {role: own_password(cell.store_url(role)) for role in ROLES}
    cell.create_vhost()
    await replace(cell, ROLES, FORMER)
    try:
        yield
    finally:
        for role, password in own.items():
            await replace(cell, [role], password)


@pytest.mark.integration
async def test_what_the_servers_refuse(cell: "Cell") -> None:
    async with replaceable(cell):
        session = pg.Session(listing(cell.store_url("ledger_transfer"), NEW, NEW), application_name="test")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await session.open()
        with pytest.raises(aiormq.exceptions.ProbableAuthenticationError):
            await passwords.connect_broker(listing(cell.amqp_url("ledger_transfer"), NEW, NEW), "test")
        async with await passwords.connect_broker(listing(cell.amqp_url("ledger_transfer"), NEW, FORMER), "test"):
            pass
        # The management API is asked with the same URL.
        management, own = cell.management.url, own_password(cell.amqp_url())
        assert await Broker(listing(cell.amqp_url(), NEW, own), management).call("GET", "/whoami")
        with pytest.raises(BrokerRefused, match="401"):
            await Broker(listing(cell.amqp_url(), NEW, FORMER), management).call("GET", "/whoami")


@pytest.mark.integration
async def test_passwords_are_replaced_and_no_append_fails_and_no_consumer_stops(cell: "Cell") -> None:
    async with replaceable(cell):
        store = await EventStore.connect(listing(cell.store_url("ledger_transfer"), FORMER, NEW))
        database = await asyncpg.create_pool(
            listing(cell.database_url("ledger_transfer"), FORMER, NEW),
            connect=passwords.connect_postgres,
            min_size=0,
            max_size=4,
        )
        consumer = Consumer(
            name="ledger_transfer.projections",
            handler=Projections([Seen()]),
            database=database,
            store=store,
            amqp_url=listing(cell.amqp_url("ledger_transfer"), FORMER, NEW),
        )
        relay = Relay(listing(cell.store_url("relay"), FORMER, NEW), listing(cell.amqp_url("relay"), FORMER, NEW))
        relaying = asyncio.create_task(relay.run())
        stream, appended = f"ledger-{new_id()}", 0
        turn, stopping = asyncio.Lock(), asyncio.Event()

        async def append_on_and_on() -> None:
            nonlocal appended
            while not stopping.is_set():
                async with turn:  # what is under way when its session is ended may fail; that is another matter
                    await append_one(store, stream)
                    appended += 1
                    await store.read_stream(stream, 0)
                await asyncio.sleep(0.01)

        async def applied() -> bool:
            head = (await store.head()).position
            return appended > 0 and consumer.connected and await consumer.wait_for(head, 0.1)

        appending = asyncio.create_task(append_on_and_on())
        try:
            async with running_consumer(consumer):
                await eventually(applied)
                await replace(cell, ROLES, NEW)
                before = appended
                ended: set[str] = set()
                for _ in range(3):
                    await end_broker_connections(cell, ROLES, ended)
                    async with turn:
                        assert await end_sessions(cell, ROLES) >= 2
                        await asyncio.sleep(0.2)
                    await asyncio.sleep(0.5)
                    if appending.done():
                        break
                stopping.set()
                await appending
                assert appended > before
                await eventually(applied)
                assert await database.fetchval("SELECT count(*) FROM seen") == appended
                assert relay.leads
        finally:
            stopping.set()
            relaying.cancel()
            await asyncio.gather(appending, relaying, return_exceptions=True)
            await asyncio.gather(store.close(), database.close())
