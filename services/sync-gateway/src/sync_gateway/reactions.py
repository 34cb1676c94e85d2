"""What this service does because of others' events: it merges what the platforms report of profiles.

Its own consumer, apart from the read models: a rebuild never merges anything again.
"""

from collections.abc import Sequence
from datetime import timedelta

import asyncpg
import structlog
from events.contracts import banking, contract_of, identity, trading
from events.envelope import RecordedEvent, derived_id
from events.platform_items import LINK_CONFIRMED, PlatformItems
from events.retention import Retention
from events.sealing import SubjectErased

from sync_gateway.measures import MEASURES_DDL
from sync_gateway.profiles import Profiles
from sync_gateway.sync_runs import CLAIMS_DDL

log = structlog.get_logger(__name__)

_ACTOR = "service:sync-gateway"
_REPORTED = frozenset({contract_of(banking.ProfileReported).type, contract_of(trading.ProfileReported).type})
_LINK_REMOVED = contract_of(identity.LinkRemoved).type
_ERASED = contract_of(identity.UserErased).type


class ProfileReactions:
    """The consumer's handler. Items of customers who are not linked wait, and are merged when the link is confirmed."""

    types = _REPORTED | {LINK_CONFIRMED, _LINK_REMOVED, _ERASED}
    retention = (Retention("sync_run_claim", "claimed_until", timedelta(days=1)),)

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._items = PlatformItems("profile")
        self.ddl = self._items.ddl + MEASURES_DDL + CLAIMS_DDL

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        for event in events:
            if event.type == _ERASED and isinstance(event.payload, identity.UserErased):
                await db.execute("DELETE FROM profile_link WHERE user_id = $1", event.payload.user_id)
                await db.execute(
                    "DELETE FROM profile_item WHERE platform_stream = ANY ($1)", list(event.payload.platform_streams)
                )
                continue
            if event.type == _LINK_REMOVED and isinstance(event.payload, identity.LinkRemoved):
                await db.execute(
                    "DELETE FROM profile_link WHERE platform_stream = $1 AND user_id = $2",
                    event.payload.platform_stream,
                    event.subject,
                )
                continue
            for user_id, item in await self._items.resolve(db, [event]):
                edit = await self._profiles.edit_of(user_id, item)
                if edit is None:
                    continue
                try:
                    await self._profiles.merge(
                        edit, event_id=derived_id(item.event_id, "merge", user_id), metadata=item.caused(_ACTOR)
                    )
                except SubjectErased:
                    log.info("profile_item_of_erased", position=item.position)
