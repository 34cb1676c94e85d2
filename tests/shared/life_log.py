"""The scenario of `simulators.life` as a log: the platforms' events, and the ledger's as it posts them.

The ledger's postings are made here a second time, from the feed's words alone, so that the figures of wealth are
judged by something that shares no code with the services.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid5

from events.contracts import identity, ledger, registry
from events.envelope import Metadata, RecordedEvent, platform_stream
from simulators.life import Life
from simulators.scenario import Item
from sync_gateway.feeds import translate

_NAMESPACE = UUID("11111111-2222-5333-8444-555555555555")
_RECORDED = datetime(2026, 11, 1, tzinfo=UTC)


class Log:
    """Gives events their places in the log and in their streams."""

    def __init__(self) -> None:
        self.position = 0
        self._versions: dict[str, int] = {}
        self._number = 0

    def record(self, stream: str, payload: registry.Event, subject: UUID | None) -> RecordedEvent:
        self.position += 1
        version = self._versions[stream] = self._versions.get(stream, 0) + 1
        contract = registry.contract_of(payload)
        event = RecordedEvent(
            position=self.position,
            stream=stream,
            version=version,
            event_id=UUID(int=(self.position << 64) | 0x8000000000000001, version=4),
            type=contract.type,
            schema_version=contract.schema_version,
            subject=subject,
            data=registry.encode(payload),
            metadata=Metadata(),
            recorded_at=_RECORDED,
        )
        event.__dict__["payload"] = payload  # as after decoding, which other tests check
        return event


class _Books:
    """One customer's balances, as the ledger would keep them."""

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self.accounts: dict[str, tuple[UUID, str]] = {}
        self.balances: dict[str, int] = {}

    def _leg(self, account: str, amount: int) -> ledger.Leg:
        self.balances[account] += amount
        account_id, platform = self.accounts[account]
        return ledger.Leg(
            account_id=str(account_id),
            amount_minor=amount,
            currency="INR",
            balance_after_minor=self.balances[account],
            platform=platform,  # type: ignore[arg-type]
        )

    def _open(self, platform: Any, account: str, kind: Any, balance: int, at: datetime) -> ledger.AccountOpened:
        account_id = uuid5(self.user_id, account)
        self.accounts[account], self.balances[account] = (account_id, platform), 0
        legs: tuple[ledger.Leg, ...] = ()
        if balance:
            other = ledger.Leg(account_id=f"opening:{platform}", amount_minor=-balance, currency="INR")
            legs = (self._leg(account, balance), other)
        return ledger.AccountOpened(
            account_id=account_id,
            platform=platform,
            platform_account_id=account,
            kind=kind,
            currency="INR",
            legs=legs,
            occurred_at=at,
        )

    def _post(self, item: Any, kind: Any, account: str, category: str, *moves: tuple[str, int]) -> ledger.AccountPosted:
        platform: Any = self.accounts[account][1]
        rest = -sum(amount for _, amount in moves)
        legs = tuple(self._leg(name, amount) for name, amount in moves)
        if rest:
            legs += (ledger.Leg(account_id=f"clearing:{platform}", amount_minor=rest, currency="INR"),)
        return ledger.AccountPosted(
            account_id=self.accounts[account][0],
            platform=platform,
            legs=legs,
            type=kind,
            category=category,
            item_id=item.item_id,
            occurred_at=item.occurred_at,
        )

    def react(self, kind: str, item: Any) -> Iterator[registry.Event]:
        """What the ledger appends because of an item."""
        match kind:
            case "account.opened":
                yield self._open("bfc", item.account_id, item.kind, item.opening_balance_minor, item.occurred_at)
            case "wallet.opened":
                yield self._open(
                    "vyomo", item.wallet_id, "trading_wallet", item.opening_balance_minor, item.occurred_at
                )
            case "transaction.posted" | "wallet.posted":
                is_bank = kind == "transaction.posted"
                account = item.account_id if is_bank else item.wallet_id
                amount = item.amount_minor if item.direction == "credit" else -item.amount_minor
                category = item.category if is_bank else item.reason
                yield self._post(
                    item, "transaction" if is_bank else "wallet_movement", account, category, (account, amount)
                )
            case "fixed_deposit.opened":
                yield self._open("bfc", item.deposit_id, "fixed_deposit", 0, item.occurred_at)
                moves = ((item.account_id, -item.principal_minor), (item.deposit_id, item.principal_minor))
                yield self._post(item, "fixed_deposit", item.account_id, "investment", *moves)
            case "fixed_deposit.matured":
                principal = self.balances[item.deposit_id]
                moves = ((item.account_id, item.payout_minor), (item.deposit_id, -principal))
                yield self._post(item, "fixed_deposit", item.account_id, "investment", *moves)
            case "trade.executed":
                value = item.quantity * item.price_minor * (1 if item.side == "sell" else -1)
                cash = (item.realized_pnl_minor or 0) if item.instrument == "future" else value
                if cash - item.charges_minor:
                    yield self._post(
                        item, "trade", item.wallet_id, "trade", (item.wallet_id, cash - item.charges_minor)
                    )


def life_log(life: Life, log: Log | None = None) -> Iterator[RecordedEvent]:
    """The whole log of a life: everybody is linked from the start."""
    log = log or Log()
    users: dict[str, tuple[UUID, _Books]] = {}
    for person in life.people:
        who = person.who
        user_id = uuid5(_NAMESPACE, who.bfc_customer_id)
        books = _Books(user_id)
        for platform, customer_id in (("bfc", who.bfc_customer_id), ("vyomo", who.vyomo_client_id)):
            users[customer_id] = (user_id, books)
            yield log.record(f"user-{user_id}", linked(platform, customer_id), user_id)
    yield from recorded(life.items(), users, log)


def recorded(items: Iterable[Item], users: dict[str, tuple[UUID, _Books]], log: Log) -> Iterator[RecordedEvent]:
    for item in items:
        event = translate(item.platform, item.feed_json()).event
        user_id, books = users[item.customer_id]
        yield log.record(platform_stream(item.platform, item.customer_id), event, None)
        for reaction in books.react(item.type, event):
            yield log.record(f"ledger-{user_id}", reaction, user_id)


def linked(platform: Any, customer_id: str) -> identity.LinkConfirmed:
    return identity.LinkConfirmed(
        link_id=uuid5(_NAMESPACE, f"{platform}:{customer_id}"),
        platform=platform,
        platform_customer_id=customer_id,
        platform_stream=platform_stream(platform, customer_id),
    )


def life_user(bfc_customer_id: str) -> UUID:
    return uuid5(_NAMESPACE, bfc_customer_id)


def a_life(customers: int, months: int = 13, seed: int = 7) -> Life:
    """The scenario that ends with October 2026."""
    first_month = 2026 * 12 + 9 - (months - 1)
    return Life(seed, customers, date(first_month // 12, first_month % 12 + 1, 1), months)
