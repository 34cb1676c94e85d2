"""Passwords of roles and broker users, replaced on running servers as an operator does, and connections ended."""

import asyncio
import contextlib
import time
import urllib.error
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

import asyncpg

if TYPE_CHECKING:
    from provision import Cell

FORMER, NEW = "former-of-them,with-a-comma", "new/of@them:and?more"
"""Passwords that are nothing without their percent signs."""


def listing(url: str, *passwords: str) -> str:
    """The URL with these passwords instead of its own."""
    parts = urlsplit(url)
    listed = ",".join(quote(password, safe="") for password in passwords)
    return parts._replace(netloc=f"{parts.username}:{listed}@{parts.netloc.rpartition('@')[2]}").geturl()


def own_password(url: str) -> str:
    return unquote(urlsplit(url).password or "")


async def replace(cell: "Cell", roles: Sequence[str], password: str) -> None:
    """Gives roles of the cell and the broker's users of their names this password. They are the servers', not the
    cell's: give them their own back."""
    admin = await asyncpg.connect(cell.admin_url())
    try:
        for role in roles:
            name = _names(cell, [role])[0]
            statement = "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)"
            await admin.execute(await admin.fetchval(statement, name, password))
            cell.management.call("PUT", f"/users/{quote(name, safe='')}", {"password": password, "tags": ""})
    finally:
        await admin.close()


async def end_sessions(cell: "Cell", roles: Sequence[str]) -> int:
    """Ends what the roles have open in PostgreSQL, on all databases, and waits until it has ended; how many sessions
    it was."""
    admin = await asyncpg.connect(cell.admin_url())
    try:
        sessions = await admin.fetch(
            "SELECT pid FROM pg_stat_activity WHERE usename = ANY ($1::name[])", _names(cell, roles)
        )
        pids = [row["pid"] for row in sessions]
        await admin.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)
        async with asyncio.timeout(10):
            while await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1::int[])", pids):
                await asyncio.sleep(0.02)
        return len(pids)
    finally:
        await admin.close()


async def end_broker_connections(cell: "Cell", roles: Sequence[str], ended: set[str]) -> None:
    """Closes what the roles' users have open in RabbitMQ, on all vhosts, once each has something open beside what
    `ended` names, and names it there. The management API tells of a connection's begin and end seconds later."""
    names = set(_names(cell, roles))
    found: dict[str, str] = {}
    deadline_s = time.monotonic() + 40
    while missing := names - set(found.values()):
        assert time.monotonic() < deadline_s, f"{missing} have no connection, {found} are"
        with contextlib.suppress(OSError):  # it may hang while it counts connections that are ending
            listed = await asyncio.to_thread(cell.management.call, "GET", "/connections", timeout_s=5)
            found = {each["name"]: each["user"] for each in listed if each.get("user") in names}
            found = {name: user for name, user in found.items() if name not in ended}
        await asyncio.sleep(0.2)
    for name in found:
        with contextlib.suppress(urllib.error.HTTPError):  # it has ended by itself
            await asyncio.to_thread(cell.management.call, "DELETE", f"/connections/{quote(name, safe='')}")
    ended |= set(found)


def _names(cell: "Cell", roles: Sequence[str]) -> list[str]:
    """Of roles on servers that keep their products apart by a prefix."""
    return [unquote(urlsplit(cell.store_url(role)).username or "") for role in roles]
