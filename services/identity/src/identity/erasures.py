"""Erasures that the log tells of: an operator's `sangam shred`, which leaves it to identity to end the user, and that
end itself: sessions and keys may have outlived the process that was about to end them, too.
"""

from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import asyncpg
from events.contracts.identity import UserErased
from events.contracts.operations import ActBegun
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

from identity.accounts import Accounts

ACT = "shred"


class Erasures:
    """Reaction to the log. Doing it again changes nothing."""

    ddl = "SELECT 1"  # no table of its own, and the driver takes no empty text
    types = frozenset({contract_of(ActBegun).type, contract_of(UserErased).type})

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if isinstance(event.payload, UserErased):
                await self._accounts.erase_user(event.payload.user_id, event.caused("service:identity"))
            elif isinstance(event.payload, ActBegun) and event.payload.act == ACT:
                with suppress(ValueError):  # `--again` names nobody
                    await self._accounts.erase_user(UUID(event.payload.target), event.caused("service:identity"))
