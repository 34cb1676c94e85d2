"""`sangam shred`: makes a person unreadable, for good."""

import asyncio
import contextlib
import time
from typing import Annotated
from uuid import UUID

import typer

from events import pg
from events.cli import output
from events.cli.connection import EnvOption, OperatorOption, ReasonOption, StoreOption, acting, find_servers, run

_VAULT = "subject_keys"
_WAIT_S = 10.0
_ERASED = """
    SELECT subject FROM store.events WHERE type = 'identity.user.erased' AND subject IS NOT NULL
    UNION
    SELECT substr(stream, strpos(stream, '-') + 1)::uuid
    FROM store.events, jsonb_array_elements_text(convert_from(data, 'UTF8')::jsonb -> 'platform_streams') stream
    WHERE type = 'identity.user.erased'
"""
"""Whose keys the log says are destroyed: the users', and those of the platform customers that were theirs."""


def shred(
    user: Annotated[UUID | None, typer.Argument(metavar="USER", help="The user's id.", show_default=False)] = None,
    again: Annotated[
        bool, typer.Option("--again", help="After a restore of the key database: everybody the log calls erased.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    operator: OperatorOption = None,
    reason: ReasonOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
) -> None:
    """Erase a user: identity ends sessions, releases address and links, and their key is destroyed.

    The log and its chain stay as they are; what they say of the person cannot be read by anybody any more. There is no
    way back. If identity is away, the key is destroyed all the same, and identity does the rest when it comes back.

    Example: sangam shred 0199b2f0-… --reason "request of 12 February"
    """
    if (user is None) == (not again):
        raise typer.BadParameter("name one user, or give --again")
    servers = find_servers(store, env)
    whom = str(user) if user is not None else "everybody the log calls erased"
    if not yes and not typer.confirm(f"Destroy the key of {whom}? There is no way back."):
        raise typer.Exit(1)

    async def work() -> int:
        vault = servers.writable(_VAULT)
        log_session = servers.store
        try:
            async with acting(servers, "shred", str(user) if user else "again", operator=operator, reason=reason):
                if user is not None:
                    had_key = await _shredded_by_identity(vault, user) or await _destroy(vault, user)
                    output.stdout().print(
                        "the key is destroyed" if had_key else "there was no key; a new one is never made"
                    )
                    return 0
                erased = [row["subject"] for row in await log_session.fetch(_ERASED)]
                count = 0
                for subject in erased:
                    count += await _destroy(vault, subject)
                output.stdout().print(
                    f"{len(erased)} keys erased in the log; {count} of them were there again, now destroyed"
                )
                return 0
        finally:
            await vault.close()
            await log_session.close()

    run(servers, work)


async def _shredded_by_identity(vault: pg.Session, user: UUID) -> bool:
    """Whether identity has done it, having read of the act in the log. It also releases the address, which it can only
    while the key is there."""
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            if await vault.fetchval("SELECT wrapped IS NULL FROM vault.subject_key WHERE subject = $1", user):
                return True
        await asyncio.sleep(0.1)
    return False


async def _destroy(vault: pg.Session, user: UUID) -> bool:
    destroyed: bool = await vault.fetchval("SELECT vault.erase($1)", user)
    return destroyed
