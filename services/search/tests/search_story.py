"""Customers of the tests: the events that make their documents, and a search as a client does it."""

from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode
from uuid import UUID

import httpx
from events.contracts import identity, ledger, trading
from events.envelope import new_id, platform_stream

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
BROKER = platform_stream("vyomo", "VY-1")


def leg(account: object, amount: int, balance: int | None = None) -> ledger.Leg:
    return ledger.Leg(account_id=str(account), amount_minor=amount, currency="INR", balance_after_minor=balance)


def opened(account_id: UUID, kind: Literal["savings", "trading_wallet"]) -> ledger.AccountOpened:
    return ledger.AccountOpened(
        account_id=account_id,
        platform="bfc" if kind == "savings" else "vyomo",
        platform_account_id="A-1",
        kind=kind,
        currency="INR",
        occurred_at=AT,
    )


def posted(
    account_id: UUID,
    amount: int,
    counterparty: str | None = "Acme Ltd",
    memo: str | None = None,
    category: str = "salary",
    at: datetime = AT,
    type_: Literal["transaction", "trade"] = "transaction",
) -> ledger.AccountPosted:
    return ledger.AccountPosted(
        account_id=account_id,
        platform="bfc",
        legs=(leg(account_id, amount, 0), leg("clearing:bfc", -amount)),
        type=type_,
        category=category,
        counterparty=counterparty,
        memo=memo,
        item_id=str(new_id()),
        occurred_at=at,
    )


def transfer(source: UUID, target: UUID, memo: str | None = None) -> ledger.TransferCompleted:
    return ledger.TransferCompleted(
        transfer_id=new_id(),
        from_account_id=source,
        to_account_id=target,
        amount_minor=50_000_00,
        currency="INR",
        memo=memo,
        legs=(leg(source, -50_000_00, 35_000_00), leg(target, 50_000_00, 50_000_00)),
        completed_at=AT,
    )


def trade(symbol: str = "NIFTY CALL", at: datetime = AT) -> trading.TradeExecuted:
    return trading.TradeExecuted(
        item_id=str(new_id()),
        customer_id="VY-1",
        occurred_at=at,
        trade_id=str(new_id()),
        wallet_id="W1",
        symbol=symbol,
        underlying="NIFTY",
        instrument="option",
        side="buy",
        quantity=50,
        price_minor=120_50,
        charges_minor=0,
        currency="INR",
    )


def position(quantity: int = 50, at: datetime = AT) -> trading.PositionChanged:
    return trading.PositionChanged(
        item_id=str(new_id()),
        customer_id="VY-1",
        occurred_at=at,
        position_id="P1",
        symbol="NIFTY",
        underlying="NIFTY",
        instrument="future",
        quantity=quantity,
        average_price_minor=100,
        mark_price_minor=22_000_00,
        unrealized_pnl_minor=0,
        currency="INR",
    )


def linked() -> identity.LinkConfirmed:
    return identity.LinkConfirmed(
        link_id=new_id(), platform="vyomo", platform_customer_id="VY-1", platform_stream=BROKER
    )


async def search(client: httpx.AsyncClient, world: Any, user_id: UUID, **query: Any) -> dict[str, Any]:
    response = await client.get(f"/api/search?{urlencode(query)}", headers=world.bearer(user_id))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def customer(world: Any, *events: Any) -> tuple[UUID, UUID, UUID]:
    """A customer with two accounts and, on the first, what the events say."""
    user, savings, wallet = new_id(), new_id(), new_id()
    await world.append(f"ledger-{user}", opened(savings, "savings"), opened(wallet, "trading_wallet"))
    if events:
        await world.append(f"ledger-{user}", *(event(savings) for event in events))
    await world.deliver()
    return user, savings, wallet
