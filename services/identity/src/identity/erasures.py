"""What an operator's `sangam shred` leaves to identity: to end the user as if they had asked for it themselves."""

from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import asyncpg
from events.contracts.operations import ActBegun
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent

from identity.accounts import Accounts

ACT = "shred"


class Erasures:
    """Reaction to the act in the log. Doing it again changes nothing."""

    ddl = "SELECT 1"  # no table of its own, and the driver takes no empty text
    types = frozenset({contract_of(ActBegun).type})

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if isinstance(event.payload, ActBegun) and event.payload.act == ACT:
                with suppress(ValueError):  # `--again` names nobody
                    await self._accounts.erase_user(UUID(event.payload.target), event.caused("service:identity"))
