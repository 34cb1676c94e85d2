"""What Sangam tells the two platforms of their customers: a new version of the profile, and transfers made here.

Announcements are deliveries like those of webhooks, to an endpoint that the settings name. A profile's values are put
in when it is sent, as they are by then: nothing personal is kept here, and a late announcement is not an old one.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, customer, identity, ledger
from events.envelope import RecordedEvent, derived_id

from sync_gateway.delivery import NewDelivery

Platform = Literal["bfc", "vyomo"]

_ENDPOINTS = UUID("4a1a1bb1-0a1e-5c7d-8c1f-6c1c1d2b0a55")

PROFILE_CHANGED = contract_of(customer.ProfileChanged).type
LINK_CONFIRMED = contract_of(identity.LinkConfirmed).type
LINK_REMOVED = "identity.user.link_removed"
ACCOUNT_OPENED = contract_of(ledger.AccountOpened).type
TRANSFER_COMPLETED = contract_of(ledger.TransferCompleted).type
"""What moves money between the customer's accounts: a captured hold and a reversal append one each. The events
`transfer.captured` and `transfer.reversed` beside it move nothing, and are not announced."""

PROFILE_ANNOUNCED = "profile.changed"

_encoder = msgspec.json.Encoder()


class PlatformTarget(NamedTuple):
    """Where a platform takes announcements."""

    platform: Platform
    url: str
    sealed_secret: str


def endpoint_id(platform: str) -> UUID:
    """The id of the endpoint that stands for a platform."""
    return derived_id(_ENDPOINTS, platform)


class Announcements:
    """Which events are announced to whom; its tables belong to the delivery ledger's consumer."""

    ddl = """
        CREATE TABLE IF NOT EXISTS announce_link (
            platform text NOT NULL,
            customer_id text NOT NULL,
            user_id uuid NOT NULL,
            PRIMARY KEY (platform, customer_id)
        );
        CREATE INDEX IF NOT EXISTS announce_link_by_user ON announce_link (user_id);
        CREATE TABLE IF NOT EXISTS announce_account (
            account_id uuid PRIMARY KEY,
            user_id uuid,
            platform text NOT NULL,
            platform_account_id text NOT NULL
        );
    """
    types = frozenset({TRANSFER_COMPLETED, PROFILE_CHANGED, LINK_CONFIRMED, LINK_REMOVED, ACCOUNT_OPENED})

    def __init__(self, targets: Sequence[PlatformTarget]) -> None:
        self._targets = {target.platform: target for target in targets}

    async def install(self, db: "asyncpg.Pool[asyncpg.Record]") -> None:
        """Makes the platforms' endpoints what the settings say."""
        for target in self._targets.values():
            await db.execute(
                "INSERT INTO webhook_endpoint (webhook_id, platform, url, patterns, state, retry_delays_s,"
                " concurrency_max, rate_per_s, sealed_secret) VALUES ($1, $2, $3, '{}', 'active', $4, 16, 5000, $5)"
                " ON CONFLICT (webhook_id) DO UPDATE SET url = excluded.url, sealed_secret = excluded.sealed_secret,"
                "  state = 'active', revision = webhook_endpoint.revision + 1",
                endpoint_id(target.platform),
                target.platform,
                target.url,
                # A platform is told in the end, however long it is away: about five days.
                [1, 5, 30, 60, 300, 900, 3600, 7200, *([14400] * 28)],
                target.sealed_secret,
            )

    async def of(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> list[NewDelivery]:
        """The announcements of these events; also follows links and accounts."""
        due: list[NewDelivery] = []
        for event in events:
            if event.type == LINK_CONFIRMED and isinstance(event.payload, identity.LinkConfirmed):
                await db.execute(
                    "INSERT INTO announce_link (platform, customer_id, user_id) VALUES ($1, $2, $3)"
                    " ON CONFLICT (platform, customer_id) DO UPDATE SET user_id = excluded.user_id",
                    event.payload.platform,
                    event.payload.platform_customer_id,
                    event.subject,
                )
                due += await self._profile(db, event, only=event.payload.platform)
            elif event.type == LINK_REMOVED:
                gone: Any = event.payload
                await db.execute(
                    "DELETE FROM announce_link WHERE platform = $1 AND customer_id = $2",
                    gone.platform,
                    gone.platform_customer_id,
                )
            elif event.type == ACCOUNT_OPENED and isinstance(event.payload, ledger.AccountOpened):
                await db.execute(
                    "INSERT INTO announce_account VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                    event.payload.account_id,
                    event.subject,
                    event.payload.platform,
                    event.payload.platform_account_id,
                )
            elif event.type == PROFILE_CHANGED:
                due += await self._profile(db, event)
            elif event.type == TRANSFER_COMPLETED and isinstance(event.payload, ledger.TransferCompleted):
                due += await self._transfer(db, event, event.payload)
        return due

    async def erase(self, db: asyncpg.Connection, user_id: UUID | None) -> None:
        await db.execute("DELETE FROM announce_link WHERE user_id = $1", user_id)
        await db.execute("DELETE FROM announce_account WHERE user_id = $1", user_id)

    async def _profile(
        self, db: asyncpg.Connection, event: RecordedEvent, only: str | None = None
    ) -> list[NewDelivery]:
        return [
            self._delivery(
                event,
                platform,
                PROFILE_ANNOUNCED,
                {"customer_id": customer_id, "user_id": str(event.subject)},
            )
            for platform, customer_id in await self._linked(db, event.subject)
            if only in (None, platform)
        ]

    async def _transfer(
        self, db: asyncpg.Connection, event: RecordedEvent, payload: ledger.TransferCompleted
    ) -> list[NewDelivery]:
        legs = payload.legs
        rows = await db.fetch(
            "SELECT account_id, platform, platform_account_id FROM announce_account WHERE account_id::text = ANY ($1)",
            [str(leg.account_id) for leg in legs],
        )
        accounts = {str(row["account_id"]): (row["platform"], row["platform_account_id"]) for row in rows}
        due = []
        for platform, customer_id in await self._linked(db, event.subject):
            theirs = [
                {
                    "account_id": accounts[str(leg.account_id)][1],
                    "direction": "credit" if leg.amount_minor > 0 else "debit",
                    "amount_minor": abs(leg.amount_minor),
                    "currency": leg.currency,
                }
                for leg in legs
                if accounts.get(str(leg.account_id), ("", ""))[0] == platform
            ]
            if not theirs:
                continue
            due.append(
                self._delivery(
                    event,
                    platform,
                    event.type.removeprefix("ledger."),
                    {
                        "customer_id": customer_id,
                        "data": {"transfer_id": str(payload.transfer_id), "legs": theirs},
                        "occurred_at": event.recorded_at,
                    },
                )
            )
        return due

    def _delivery(
        self, event: RecordedEvent, platform: str, announced_type: str, members: dict[str, Any]
    ) -> NewDelivery:
        body = _encoder.encode({"type": announced_type, "timestamp": event.recorded_at, "origin": "sangam", **members})
        return NewDelivery(
            webhook_id=endpoint_id(platform),
            kind="event",
            # A user may have several customers at one platform.
            event_id=derived_id(event.event_id, members["customer_id"]),
            event_type=announced_type,
            user_id=event.subject,
            chain=event.stream,
            body=body[1:],
            recorded_at=event.recorded_at,
        )

    async def _linked(self, db: asyncpg.Connection, user_id: UUID | None) -> list[tuple[str, str]]:
        rows = await db.fetch("SELECT platform, customer_id FROM announce_link WHERE user_id = $1", user_id)
        return [(row["platform"], row["customer_id"]) for row in rows if row["platform"] in self._targets]
