"""SIGKILL of every service in the middle of an erasure: afterwards nothing anywhere knows the person."""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest
from customers import PASSWORD, Customer, call, make_customer
from test_sign_out_everywhere import ROUTES
from truth import SERVICES, everything_applied, nothing_parked, read_models_equal_a_rebuild

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

OTHERS = ("ledger_transfer", "sync_gateway", "wealth", "notifier", "search")


class Traces:
    """Words that only this person has, in what the product is told of them."""

    def __init__(self, customer: Customer) -> None:
        tag = uuid4().hex[:10]
        self.customer = customer
        self.name, self.memo = f"Zebulon{tag}", f"Quixotic{tag}"
        self.words = (self.name, self.memo, customer.email)

    async def leave(self, stack: "Stack", http: aiohttp.ClientSession) -> None:
        """Has a name and a transaction with a text, told by the bank, and waits until they can be found."""
        api, headers = stack.origin, self.customer.headers
        renamed = {"password": PASSWORD, "full_name": self.name}
        assert (await call(http, "PUT", f"{api}/api/auth/contact", json=renamed, headers=headers)).status == 200
        account = await call(http, "GET", f"{api}/api/accounts/{self.customer.savings}", headers=headers)
        number = account.body["platform_account_id"]
        data = {
            "transaction_id": uuid4().hex,
            "account_id": number,
            "direction": "credit",
            "amount": "777.00",
            "currency": "INR",
            "category": "salary",
            "memo": self.memo,
        }
        item = {"customer_id": f"BFC-{number.removeprefix('SB-')}", "type": "transaction.posted", "data": data}
        await call(http, "POST", f"{stack.url('simulator-bfc')}/events", json=item)
        await self.until_found(stack, http)

    async def until_found(self, stack: "Stack", http: aiohttp.ClientSession) -> None:
        async with asyncio.timeout(30):
            while True:
                url = f"{stack.origin}/api/search?q={self.memo}"
                if (await call(http, "GET", url, headers=self.customer.headers)).body["items"]:
                    return
                await asyncio.sleep(0.1)

    async def left(self, stack: "Stack") -> dict[str, list[str]]:
        """In which tables of which databases one of the words stands, in whatever column."""
        found: dict[str, list[str]] = {}
        for database in (*SERVICES, "subject_keys", "event_store"):
            db = await asyncpg.connect(stack.cell.admin_url(database))
            tables = await db.fetch(
                "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
                " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            )
            for table in (row["name"] for row in tables):
                for word in self.words:
                    # Also inside bytes: events are JSON in a bytea.
                    if await db.fetchval(
                        f"SELECT EXISTS (SELECT FROM {table} t WHERE strpos(lower(t::text), lower($1)) > 0"
                        " OR strpos(t::text, encode(convert_to($1, 'UTF8'), 'hex')) > 0)",
                        word,
                    ):
                        found.setdefault(f"{database}.{table}", []).append(word)
            await db.close()
        return found


async def sangam(stack: "Stack", *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("sangam"),
        *arguments,
        env={**os.environ, "EVENT_STORE_URL": stack.cell.admin_url()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def ask_to_be_erased(stack: "Stack", http: aiohttp.ClientSession, person: Customer) -> tuple[int, str | None]:
    """Status and code of the answer."""
    url, body = f"{stack.origin}/api/auth/account", {"password": PASSWORD}
    async with http.delete(url, json=body, headers=person.headers) as answer:
        told = await answer.json(content_type=None) if answer.content_type.endswith("json") else {}
        return answer.status, told.get("code")


async def killed_while_erasing(
    stack: "Stack", http: aiohttp.ClientSession, person: Customer, database: str, lock: str
) -> None:
    """Asks for the erasure, and kills every service when it stands at the row that `lock` locks."""
    admin = await asyncpg.connect(stack.cell.admin_url(database))

    async def ask() -> None:
        with suppress(aiohttp.ClientError, TimeoutError):
            status, code = await ask_to_be_erased(stack, http, person)
            assert status >= 500, f"{status} {code} while a row of it is locked"

    transaction = admin.transaction()
    await transaction.start()
    try:
        assert await admin.fetchval(lock, UUID(person.user_id)), "there is something to stand at"
        asking = asyncio.create_task(ask())
        async with asyncio.timeout(30):
            # It stands there once its connection waits for the lock.
            while not await admin.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
            ):
                if asking.done():
                    await asking
                    pytest.fail("answered while a row of it was locked")
                await asyncio.sleep(0.002)
        for service in ("identity", *OTHERS):
            stack.kill(service)
    finally:
        await transaction.rollback()
        await admin.close()
    await asking
    await asyncio.to_thread(stack.wait_ready, None, 90)
    # A good client asks again. Where it was done already, the session has ended; else it is done now.
    answer = await ask_to_be_erased(stack, http, person)
    assert answer in ((200, None), (401, "session_ended")), answer


async def every_service_refuses(stack: "Stack", http: aiohttp.ClientSession, person: Customer) -> None:
    """The session has ended, as every service knows soon."""
    for path in ROUTES.values():
        async with asyncio.timeout(30):
            while True:
                async with http.get(stack.origin + path, headers=person.headers) as answer:
                    code = (await answer.json(content_type=None)).get("code")
                if code == "session_ended":
                    break
                await asyncio.sleep(0.1)


async def test_an_erasure_ends_whoever_is_killed_in_the_middle_of_it(make_stack: "Callable[..., Stack]") -> None:
    stack = await asyncio.to_thread(make_stack)
    # Where it is killed: before it is known whether anything was appended, and before any key is destroyed.
    places = {
        "event_store": "SELECT true FROM store.streams WHERE stream = 'sign_in-' || $1::uuid FOR UPDATE",
        "subject_keys": "SELECT true FROM vault.subject_key WHERE subject = $1 FOR UPDATE",
    }
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as http:
        stays = Traces(await make_customer(stack, http))
        await stays.leave(stack, http)
        goes = []
        for database, lock in places.items():
            traces = Traces(await make_customer(stack, http))
            await traces.leave(stack, http)
            await everything_applied(stack.cell, 90)
            assert {place.split(".")[0] for place in await traces.left(stack)} >= {"search"}, "there is what must go"
            await killed_while_erasing(stack, http, traces.customer, database, lock)
            await every_service_refuses(stack, http, traces.customer)
            goes.append(traces)
        head = await everything_applied(stack.cell, 120)
        await nothing_parked(stack.cell)
        vault = await asyncpg.connect(stack.cell.admin_url("subject_keys"))
        for traces in goes:
            person = traces.customer
            async with asyncio.timeout(30):
                while await vault.fetchval(
                    "SELECT wrapped IS NOT NULL FROM vault.subject_key WHERE subject = $1", UUID(person.user_id)
                ):
                    await asyncio.sleep(0.1)
            assert await traces.left(stack) == {}
            async with asyncio.timeout(30):  # an index of few documents is built anew at once
                while index_holds(stack, traces.memo):
                    await asyncio.sleep(0.5)
            credentials = {"email": person.email, "password": PASSWORD, "platform": "bfc"}
            async with http.post(f"{stack.origin}/api/auth/login", json=credentials) as refused:
                assert refused.status == 401
        await vault.close()
        # Who was not erased is all there.
        await stays.until_found(stack, http)
        await sangam(stack, "events", "verify")
        await read_models_equal_a_rebuild(stack, head)
        for traces in goes:
            assert await traces.left(stack) == {}, "a rebuild brings nothing back"
            again = {"email": traces.customer.email, "password": PASSWORD, "full_name": "New", "phone": "+919800000000"}
            assert (await call(http, "POST", f"{stack.origin}/api/auth/register", json=again)).status == 201


def index_holds(stack: "Stack", word: str) -> list[str]:
    """The files of search's index that hold the word as text."""
    folder, needle = stack.data / "search-index", word.lower().encode()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "there is an index"
    holding = []
    for path in files:
        with suppress(FileNotFoundError):  # an index takes the place of another one
            if needle in path.read_bytes().lower():
                holding.append(path.name)
    return holding
