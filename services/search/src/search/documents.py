"""What can be found: how an event becomes documents, and what can be done with each. Pure.

Transactions are the ledger's, one document per leg on a customer's account, with the id that the combined
history gives it. A trade's cash leg is not one of them: the trade itself is found.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from chassis.money import format_amount, rupees
from events.contracts import ledger, trading
from events.contracts.registry import Event
from events.envelope import RecordedEvent, derived_id

from search.folding import canonical
from search.scoring import Field

DocumentType = Literal["transaction", "trade", "position", "notification"]
Platform = Literal["bfc", "vyomo"]

_PLATFORM_NAMES = {"bfc": "BFC", "vyomo": "Vyomo"}
_KIND_NAMES = {
    "savings": "savings account",
    "current": "current account",
    "fixed_deposit": "fixed deposit",
    "trading_wallet": "trading wallet",
}


class AccountName(NamedTuple):
    """What to call an account, and where it is held."""

    platform: Platform
    name: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be found, with everything that is shown of it."""

    type: DocumentType
    id: str
    platform: Platform
    title: str
    subtitle: str
    amount_minor: int
    """What moved, or what a position is worth at its mark; never negative."""
    currency: str
    category: str
    date: datetime
    target: str
    """What its actions are about: a path of the API for a transaction, a search for a trade or position."""
    fields: list[Field]
    """All text that is searched. Does not repeat the title, which is its first field."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    label: str
    method: Literal["GET"]
    href: str


def account_name(opened: ledger.AccountOpened) -> AccountName:
    """ "BFC savings account SB-1001"."""
    kind = _KIND_NAMES[opened.kind]
    return AccountName(opened.platform, f"{_PLATFORM_NAMES[opened.platform]} {kind} {opened.platform_account_id}")


def accounts_of(event: Event) -> tuple[UUID, ...]:
    """The accounts whose names the event's documents need."""
    if isinstance(event, ledger.TransferCompleted | ledger.AccountPosted):
        # A leg without a balance is on a clearing account, which no customer knows.
        return tuple(UUID(leg.account_id) for leg in event.legs if leg.balance_after_minor is not None)
    return ()


def documents_of(event: RecordedEvent, accounts: Mapping[UUID, AccountName]) -> list[Document]:
    """The documents that an event makes, or makes anew.

    Raises:
        KeyError: the ledger moved money on an account that was never opened.
    """
    match event.payload:
        case ledger.TransferCompleted() as transfer:
            return _transfer(event, transfer, accounts)
        case ledger.AccountPosted() as posting if posting.type != "trade":
            return _posting(event, posting, accounts)
        case trading.TradeExecuted() as trade:
            return [_trade(trade)]
        case trading.PositionChanged() as position:
            return [_position(position)]
        case _:
            return []


def actions_of(document_type: DocumentType, target: str) -> list[Action]:
    """What a client can do next with a document."""
    match document_type:
        case "transaction":
            label = "View transfer" if target.startswith("/api/transfers/") else "View account"
            return [Action(label=label, method="GET", href=target)]
        case "trade":
            return [_search("Show position", target, "position")]
        case "position":
            return [
                _search("Show trades", target, "trade"),
                Action(label="View net worth", method="GET", href="/api/wealth/net-worth"),
            ]
        case "notification":
            return []


def _transfer(
    event: RecordedEvent, transfer: ledger.TransferCompleted, accounts: Mapping[UUID, AccountName]
) -> list[Document]:
    source, target = accounts[transfer.from_account_id], accounts[transfer.to_account_id]
    documents = []
    for number, leg in enumerate(transfer.legs):
        own = accounts[UUID(leg.account_id)]
        title = f"Transfer from {source.name}" if leg.amount_minor > 0 else f"Transfer to {target.name}"
        documents.append(
            _document(
                type_="transaction",
                id_=str(derived_id(event.event_id, "leg", number)),
                platform=own.platform,
                title=title,
                subtitle=own.name,
                amount_minor=abs(leg.amount_minor),
                currency=leg.currency,
                category="transfer",
                date=transfer.completed_at,
                target=f"/api/transfers/{transfer.transfer_id}",
                names={"memo": transfer.memo, "reference": str(transfer.transfer_id)},
            )
        )
    return documents


def _posting(
    event: RecordedEvent, posting: ledger.AccountPosted, accounts: Mapping[UUID, AccountName]
) -> list[Document]:
    documents = []
    for number, leg in enumerate(posting.legs):
        if leg.balance_after_minor is None:
            continue
        own = accounts[UUID(leg.account_id)]
        documents.append(
            _document(
                type_="transaction",
                id_=str(derived_id(event.event_id, "leg", number)),
                platform=own.platform,
                title=posting.counterparty or posting.memo or posting.category.replace("_", " ").capitalize(),
                subtitle=f"{'To' if leg.amount_minor > 0 else 'From'} {own.name}",
                amount_minor=abs(leg.amount_minor),
                currency=leg.currency,
                category=posting.category,
                date=posting.occurred_at,
                target=f"/api/accounts/{leg.account_id}",
                names={"memo": posting.memo, "reference": posting.reference},
            )
        )
    return documents


def _trade(trade: trading.TradeExecuted) -> Document:
    verb = "Bought" if trade.side == "buy" else "Sold"
    price = _money(trade.price_minor, trade.currency)
    return _document(
        type_="trade",
        id_=trade.trade_id,
        platform="vyomo",
        title=trade.symbol,
        subtitle=f"{verb} {trade.quantity} at {price}, {trade.instrument}",
        amount_minor=trade.quantity * trade.price_minor,
        currency=trade.currency,
        category=trade.instrument,
        date=trade.occurred_at,
        target=trade.underlying,
        names={"reference": trade.trade_id},
        # Text and no name: "NIFTY" is what the position in NIFTY is called, not each trade of a NIFTY option.
        text={"underlying": trade.underlying},
    )


def _position(position: trading.PositionChanged) -> Document:
    if position.quantity == 0:
        subtitle = f"Closed {position.instrument}"
    else:
        mark = _money(position.mark_price_minor, position.currency)
        subtitle = f"{position.quantity} at {mark}, {position.instrument}"
    return _document(
        type_="position",
        id_=position.position_id,
        platform="vyomo",
        title=position.symbol,
        subtitle=subtitle,
        amount_minor=abs(position.quantity) * position.mark_price_minor,
        currency=position.currency,
        category=position.instrument,
        date=position.occurred_at,
        target=position.underlying,
        names={"underlying": position.underlying, "reference": position.position_id},
    )


def _document(
    *,
    type_: DocumentType,
    id_: str,
    platform: Platform,
    title: str,
    subtitle: str,
    amount_minor: int,
    currency: str,
    category: str,
    date: datetime,
    target: str,
    names: Mapping[str, str | None],
    text: Mapping[str, str] | None = None,
) -> Document:
    texts = {
        **(text or {}),
        "subtitle": subtitle,
        "category": category.replace("_", " "),
        "platform": _PLATFORM_NAMES[platform],
        "amount": f"{_money(amount_minor, currency)} {format_amount(amount_minor, currency)}",
    }
    fields = [Field("title", canonical(title), True)]
    fields += [Field(name, canonical(value), True) for name, value in names.items() if value and value != title]
    fields += [Field(name, canonical(value), False) for name, value in texts.items()]
    return Document(
        type=type_,
        id=id_,
        platform=platform,
        title=canonical(title),
        subtitle=canonical(subtitle),
        amount_minor=amount_minor,
        currency=currency,
        category=category,
        date=date,
        target=target,
        fields=fields,
    )


def _money(minor: int, currency: str) -> str:
    return rupees(minor) if currency == "INR" else f"{currency} {format_amount(minor, currency)}"


def _search(label: str, text: str, document_type: DocumentType) -> Action:
    query = urlencode({"q": text, "types": document_type})
    return Action(label=label, method="GET", href=f"/api/search?{query}")
