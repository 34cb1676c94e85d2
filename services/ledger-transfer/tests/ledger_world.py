"""One cell's event store as three services see it, and a customer of both platforms."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from events.consumer import Handler
from events.contracts import banking, identity, trading
from events.contracts.registry import Event
from events.envelope import Metadata, RecordedEvent, new_id, platform_stream
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from keys_in_memory import texts
from ledger_transfer.idempotency import transfer_id_of
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.reactions import Reactions
from ledger_transfer.state import account_id_of
from ledger_transfer.transfers import TransferRequest
from recording import recorded

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
NOBODY = Metadata(actor="test")


class CrashError(Exception):
    """The process ends here."""


class World:
    """One cell's event store as three services see it, and the ledger's own database."""

    def __init__(self, store_url: str, stores: dict[str, EventStore], db: asyncpg.Pool, sequencer: Sequencer) -> None:
        self.store_url = store_url
        self.stores = stores
        self.store = stores["ledger_transfer"]
        self.db = db
        self.ledger = Ledger(self.store, texts())
        self._sequencer = sequencer
        self._positions: dict[str, int] = {}

    async def platform_says(self, *items: Event) -> None:
        """Appends items to their customers' streams, as sync-gateway does."""
        for item in items:
            assert isinstance(item, banking.BankItem | trading.BrokerItem)
            platform = "bfc" if isinstance(item, banking.BankItem) else "vyomo"
            stream = platform_stream(platform, item.customer_id)
            await self.stores["sync_gateway"].append([StreamAppend(stream, (item,))], event_id=new_id())

    async def link(self, user_id: UUID, platform: Any, customer_id: str) -> None:
        confirmed = identity.LinkConfirmed(
            link_id=new_id(),
            platform=platform,
            platform_customer_id=customer_id,
            platform_stream=platform_stream(platform, customer_id),
        )
        await self.stores["identity"].append(
            [StreamAppend(f"user-{user_id}", (confirmed,))], event_id=new_id(), subject=user_id
        )

    async def log(self) -> list[RecordedEvent]:
        """Everything, sequenced."""
        while await self._sequencer.sequence():
            pass
        return await self.store.read_log(0, 100_000)

    async def ledger_events(self, user_id: UUID) -> list[Event]:
        return [event.payload for event in await self.store.read_stream(f"ledger-{user_id}")]

    async def deliver(self, name: str, handler: Handler, batch: int, *, crash: bool = False) -> None:
        """What a consumer does: effects and position in one transaction, batch by batch.

        `crash`: the first batch fails after its effects and before its position.
        """
        due = (await self.log())[self._positions.get(name, 0) :]
        for first in range(0, len(due), batch):
            events = due[first : first + batch]
            pooled: Any
            async with self.db.acquire() as pooled, pooled.transaction():
                await handler.apply(pooled, events)
                if crash:
                    raise CrashError
            self._positions[name] = events[-1].position

    async def react(self, batch: int = 100, reactions: Reactions | None = None, *, crash: bool = False) -> None:
        await self.deliver("reactions", reactions or Reactions(self.ledger), batch, crash=crash)

    async def project(self, batch: int = 100) -> None:
        await self.deliver("projections", Projections(PROJECTIONS), batch)

    async def customer(self, savings: int, wallet: int = 0) -> "Customer":
        """A customer with a savings account and a wallet, opened by their platforms."""
        customer = Customer(new_id())
        for item in (customer.savings_opened(savings), customer.wallet_opened(wallet)):
            await self.ledger.record(customer.user_id, recorded(item))
        return customer


class Customer:
    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self.bank_id, self.broker_id = f"BFC-{user_id}", f"VY-{user_id}"
        self.savings = account_id_of(user_id, "bfc", "SB1")
        self.wallet = account_id_of(user_id, "vyomo", "W1")

    def savings_opened(self, balance: int) -> Event:
        return banking.AccountOpened(
            item_id=str(new_id()),
            customer_id=self.bank_id,
            occurred_at=AT,
            account_id="SB1",
            kind="savings",
            currency="INR",
            opening_balance_minor=balance,
        )

    def wallet_opened(self, balance: int) -> Event:
        return trading.WalletOpened(
            item_id=str(new_id()),
            customer_id=self.broker_id,
            occurred_at=AT,
            wallet_id="W1",
            currency="INR",
            opening_balance_minor=balance,
        )

    def posted(self, signed_amount: int, reference: str | None = None) -> Event:
        return banking.TransactionPosted(
            item_id=str(new_id()),
            customer_id=self.bank_id,
            occurred_at=AT,
            transaction_id=str(new_id()),
            account_id="SB1",
            direction="credit" if signed_amount > 0 else "debit",
            amount_minor=abs(signed_amount),
            currency="INR",
            category="salary",
            reference=reference,
        )

    def request(self, amount: int, key: str) -> TransferRequest:
        return TransferRequest(
            transfer_id=transfer_id_of(self.user_id, key),
            from_account_id=self.savings,
            to_account_id=self.wallet,
            amount_minor=amount,
            currency="INR",
        )
