"""What Sangam tells the two platforms of their customers: a new version of the profile, and transfers made here.

Announcements are deliveries like those of webhooks, to an endpoint that the settings name. A profile's values are put
in when it is sent, as they are by then: nothing personal is kept here, and a late announcement is not an old one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
        events = [event for event in events if event.type in self.types]
        if not events:
            return []
        await _keep_accounts(db, events)
        accounts = await _accounts_of(db, events)
        links = await _links_of(db, events)
        due: list[NewDelivery] = []
        for event in events:
            theirs = links[event.subject]
            match event.payload:
                case identity.LinkConfirmed(platform=platform, platform_customer_id=customer_id):
                    await db.execute(
                        "INSERT INTO announce_link (platform, customer_id, user_id) VALUES ($1, $2, $3)"
                        " ON CONFLICT (platform, customer_id) DO UPDATE SET user_id = excluded.user_id",
                        platform,
                        customer_id,
                        event.subject,
                    )
                    theirs[platform, customer_id] = None
                    due += self._profile(event, (each for each in theirs if each[0] == platform))
                case identity.LinkRemoved(platform=platform, platform_customer_id=customer_id):
                    await db.execute(
                        "DELETE FROM announce_link WHERE platform = $1 AND customer_id = $2", platform, customer_id
                    )
                    theirs.pop((platform, customer_id), None)
                case customer.ProfileChanged():
                    due += self._profile(event, theirs)
                case ledger.TransferCompleted() as transfer:
                    due += self._transfer(event, transfer, theirs, accounts)
        return due

    async def erase(self, db: asyncpg.Connection, user_id: UUID | None) -> None:
        await db.execute("DELETE FROM announce_link WHERE user_id = $1", user_id)
        await db.execute("DELETE FROM announce_account WHERE user_id = $1", user_id)

    def _profile(self, event: RecordedEvent, customers: Iterable[tuple[str, str]]) -> list[NewDelivery]:
        return [
            self._delivery(
                event, platform, PROFILE_ANNOUNCED, {"customer_id": customer_id, "user_id": str(event.subject)}
            )
            for platform, customer_id in customers
            if platform in self._targets
        ]

    def _transfer(
        self,
        event: RecordedEvent,
        transfer: ledger.TransferCompleted,
        customers: Iterable[tuple[str, str]],
        accounts: Mapping[str, tuple[str, str]],
    ) -> list[NewDelivery]:
        due = []
        for platform, customer_id in customers:
            theirs = [
                {
                    "account_id": accounts[leg.account_id][1],
                    "direction": "credit" if leg.amount_minor > 0 else "debit",
                    "amount_minor": abs(leg.amount_minor),
                    "currency": leg.currency,
                }
                for leg in transfer.legs
                if accounts.get(leg.account_id, ("", ""))[0] == platform
            ]
            if not theirs or platform not in self._targets:
                continue
            due.append(
                self._delivery(
                    event,
                    platform,
                    event.type.removeprefix("ledger."),
                    {
                        "customer_id": customer_id,
                        "data": {"transfer_id": str(transfer.transfer_id), "legs": theirs},
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


async def _keep_accounts(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
    opened = [
        (event.payload.account_id, event.subject, event.payload.platform, event.payload.platform_account_id)
        for event in events
        if isinstance(event.payload, ledger.AccountOpened)
    ]
    if opened:
        await db.execute(
            "INSERT INTO announce_account SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])"
            " ON CONFLICT DO NOTHING",
            *zip(*opened, strict=True),
        )


async def _accounts_of(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> dict[str, tuple[str, str]]:
    """The platform, and its name for the account, of every account these transfers touch; one query for all of them."""
    touched = {
        account_id
        for event in events
        if isinstance(event.payload, ledger.TransferCompleted)
        for account_id in (event.payload.from_account_id, event.payload.to_account_id)
    }
    if not touched:
        return {}
    rows = await db.fetch(
        "SELECT account_id, platform, platform_account_id FROM announce_account WHERE account_id = ANY ($1)",
        list(touched),
    )
    return {str(row["account_id"]): (row["platform"], row["platform_account_id"]) for row in rows}


async def _links_of(
    db: asyncpg.Connection, events: Sequence[RecordedEvent]
) -> defaultdict[UUID | None, dict[tuple[str, str], None]]:
    """By user, in a fixed order: the platform customers they are linked with before these events."""
    rows = await db.fetch(
        "SELECT user_id, platform, customer_id FROM announce_link WHERE user_id = ANY ($1)"
        " ORDER BY platform, customer_id",
        list({event.subject for event in events if event.subject is not None}),
    )
    links: defaultdict[UUID | None, dict[tuple[str, str], None]] = defaultdict(dict)
    for row in rows:
        links[UUID(int=row["user_id"].int)][row["platform"], row["customer_id"]] = None
    return links
