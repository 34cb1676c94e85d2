"""What can be found: how an event makes documents, or changes what they are. Pure.

Transactions are the ledger's, one document per leg on a customer's account, with the id that the combined
history gives it. A trade's cash leg is not one of them: the trade itself is found. A mutual fund is a position held
at the bank.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec
from chassis.money import DECIMALS, rupees
from events.contracts import banking, ledger, ledger_rules, notification, trading, wealth
from events.contracts.registry import Event
from events.envelope import RecordedEvent, derived_id

from search.folding import canonical
from search.scoring import AMOUNT, Field

DocumentType = Literal["transaction", "trade", "position", "notification", "account", "rule", "insight"]
Platform = Literal["bfc", "vyomo"]
State = Literal["", "open", "closed", "active", "frozen", "blocked", "paused", "unread", "read", "snoozed"]
"""`frozen` by the customer, who can undo it; `blocked` by operations."""

AMOUNT_CURRENCY = "INR"
"""Amounts are searched and compared in rupees: a document in another currency is not found by an amount."""

_PLATFORM_NAMES = {"bfc": "BFC", "vyomo": "Vyomo"}
_KIND_NAMES = {
    "savings": "savings account",
    "current": "current account",
    "fixed_deposit": "fixed deposit",
    "trading_wallet": "trading wallet",
}
_DAYS = ("", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class AccountName(NamedTuple):
    """What to call an account, and where it is held."""

    platform: Platform
    name: str


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be found, with everything that is shown of it."""

    type: DocumentType
    id: str
    platform: Platform | None
    """None for what belongs to both: a notification, an insight."""
    title: str
    subtitle: str
    amount_minor: int | None
    """What moved, or what a position is worth at its mark; never negative."""
    currency: str
    category: str
    state: State
    date: datetime
    target: str
    """What its actions are about: a path of the API, or a text to search for."""
    version: int = 0
    """Of its stream, for a notification: reading all reads those up to a version."""
    fields: list[Field]
    """All text that is searched. The title is the first one."""

    @property
    def paise(self) -> int | None:
        """Its amount, where that is in rupees."""
        return self.amount_minor if self.currency == AMOUNT_CURRENCY else None


class Restated(NamedTuple):
    """A document of another state now; its text stays as it is."""

    type: DocumentType
    id: str
    state: State


class AllRead(NamedTuple):
    """Every notification up to that version of the inbox has been read."""

    version: int


class Removed(NamedTuple):
    """There is nothing to find any more."""

    type: DocumentType
    id: str


Change = Document | Restated | AllRead | Removed


def account_name(opened: ledger.AccountOpened) -> AccountName:
    """ "BFC savings account SB-1001"."""
    kind = _KIND_NAMES[opened.kind]
    return AccountName(opened.platform, f"{_PLATFORM_NAMES[opened.platform]} {kind} {opened.platform_account_id}")


def accounts_of(event: Event) -> tuple[UUID, ...]:
    """The accounts whose names the event's documents need."""
    match event:
        case ledger.TransferCompleted() | ledger.AccountPosted():
            # A leg without a balance is on a clearing account, which no customer knows.
            return tuple(UUID(leg.account_id) for leg in event.legs if leg.balance_after_minor is not None)
        case ledger_rules.RuleCreated() | ledger_rules.RuleChanged():
            return (event.terms.source_account_id, event.terms.target_account_id)
        case _:
            return ()


def changes_of(event: RecordedEvent, accounts: Mapping[UUID, AccountName]) -> list[Change]:
    """What an event does to its customer's documents.

    Raises:
        KeyError: the ledger moved money on an account that was never opened.
    """
    match event.payload:
        case ledger.TransferCompleted() as transfer:
            return _transfer(event, transfer, accounts)
        case ledger.AccountPosted() as posting if posting.type != "trade":
            return _posting(event, posting, accounts)
        case ledger.AccountOpened() as opened:
            return [_account(opened)]
        case ledger.AccountFrozen() as frozen:
            return [Restated("account", str(frozen.account_id), "frozen" if frozen.by == "customer" else "blocked")]
        case ledger.AccountUnfrozen() as unfrozen:
            return [Restated("account", str(unfrozen.account_id), "active")]
        case ledger.AccountClosed() as closed:
            return [Restated("account", str(closed.account_id), "closed")]
        case trading.TradeExecuted() as trade:
            return [_trade(trade)]
        case trading.PositionChanged() as position:
            return [_position(position)]
        case banking.FundChanged() as fund:
            return [_fund(fund)]
        case payload:
            return _of_rules(payload, accounts) or _of_messages(event, payload)


def _of_rules(event: Event, accounts: Mapping[UUID, AccountName]) -> list[Change]:
    match event:
        case ledger_rules.RuleCreated():
            return [_rule(event.rule_id, event.terms, event.created_at, accounts)]
        case ledger_rules.RuleChanged():
            return [_rule(event.rule_id, event.terms, event.changed_at, accounts)]
        case ledger_rules.RulePaused():
            return [Restated("rule", str(event.rule_id), "paused")]
        case ledger_rules.RuleResumed():
            return [Restated("rule", str(event.rule_id), "active")]
        case ledger_rules.RuleDeleted():
            return [Removed("rule", str(event.rule_id))]
        case _:
            return []


def _of_messages(event: RecordedEvent, payload: Event) -> list[Change]:
    match payload:
        case notification.NotificationRaised() | notification.NotificationRevised():
            return [_notification(event, payload)]
        case notification.NotificationRead(notification_id=None, through_version=int(version)):
            return [AllRead(version)]
        case notification.NotificationRead(notification_id=UUID() as read):
            return [Restated("notification", str(read), "read")]
        case notification.NotificationSnoozed():
            return [Restated("notification", str(payload.notification_id), "snoozed")]
        case wealth.InsightRaised():
            return [_insight(payload)]
        case wealth.InsightCleared() | wealth.InsightDismissed():
            return [Removed("insight", str(payload.insight_id))]
        case _:
            return []


def _transfer(
    event: RecordedEvent, transfer: ledger.TransferCompleted, accounts: Mapping[UUID, AccountName]
) -> list[Change]:
    source, target = accounts[transfer.from_account_id], accounts[transfer.to_account_id]
    documents: list[Change] = []
    for number, leg in enumerate(transfer.legs):
        if leg.balance_after_minor is None:
            continue
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


def _posting(event: RecordedEvent, posting: ledger.AccountPosted, accounts: Mapping[UUID, AccountName]) -> list[Change]:
    documents: list[Change] = []
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


def _account(opened: ledger.AccountOpened) -> Document:
    named = account_name(opened)
    return _document(
        type_="account",
        id_=str(opened.account_id),
        platform=opened.platform,
        title=opened.name or named.name,
        subtitle=named.name if opened.name else f"{opened.currency} {_KIND_NAMES[opened.kind]}",
        amount_minor=None,
        currency=opened.currency,
        category=opened.kind,
        state="active",
        date=opened.occurred_at,
        target=f"/api/accounts/{opened.account_id}",
        names={"number": opened.platform_account_id, "kind": _KIND_NAMES[opened.kind]},
    )


def _trade(trade: trading.TradeExecuted) -> Document:
    verb = "Bought" if trade.side == "buy" else "Sold"
    price = money(trade.price_minor, trade.currency)
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
        mark = money(position.mark_price_minor, position.currency)
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
        state="open" if position.quantity else "closed",
        date=position.occurred_at,
        target=position.underlying,
        names={"underlying": position.underlying, "reference": position.position_id},
    )


def _fund(fund: banking.FundChanged) -> Document:
    units, nav = _decimal(fund.units), _decimal(fund.nav)
    return _document(
        type_="position",
        id_=f"{fund.customer_id}:{fund.scheme_code}",
        platform="bfc",
        title=fund.scheme_name,
        subtitle=f"{fund.units} units at {fund.nav}, mutual fund" if units else "Redeemed mutual fund",
        amount_minor=int((units * nav * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP)),
        currency=fund.currency,
        category="mutual_fund",
        state="open" if units else "closed",
        date=fund.occurred_at,
        target=fund.scheme_name,
        names={"reference": fund.scheme_code},
    )


def _rule(rule_id: UUID, terms: ledger_rules.RuleTerms, at: datetime, accounts: Mapping[UUID, AccountName]) -> Document:
    source, target = accounts[terms.source_account_id], accounts[terms.target_account_id]
    amount = terms.amount
    minor = (
        amount.amount_minor
        if isinstance(amount, ledger_rules.FixedAmount)
        else amount.target_minor
        if isinstance(amount, ledger_rules.ToTarget)
        else None
    )
    return _document(
        type_="rule",
        id_=str(rule_id),
        platform=target.platform,
        title=terms.name,
        subtitle=f"{_trigger(terms)}: {source.name} to {target.name}",
        amount_minor=minor,
        currency=terms.currency,
        category="auto_replenish",
        state="active",
        date=at,
        target=f"/api/auto-replenish/{rule_id}",
        names={},
    )


def _trigger(terms: ledger_rules.RuleTerms) -> str:
    match terms.trigger:
        case ledger_rules.BalanceBelow() as below:
            return f"When below {money(below.threshold_minor, terms.currency)}"
        case ledger_rules.Scheduled() as scheduled:
            on = ""
            if scheduled.on is not None:
                on = f" on {_DAYS[scheduled.on]}" if scheduled.every == "week" else f" on day {scheduled.on}"
            return f"Every {scheduled.every}{on} at {scheduled.at}"
        case ledger_rules.Percentage() as percentage:
            return f"{Decimal(percentage.percent_hundredths).scaleb(-2).normalize():f} % of each credit"


def _notification(
    event: RecordedEvent, raised: notification.NotificationRaised | notification.NotificationRevised
) -> Document:
    return _document(
        type_="notification",
        id_=str(raised.notification_id),
        platform=None,
        title=raised.title,
        subtitle=raised.body,
        amount_minor=None if raised.total_minor is None else abs(raised.total_minor),
        currency=raised.currency or AMOUNT_CURRENCY,
        category=raised.category,
        state="unread",
        date=event.recorded_at,
        target=f"/api/notifications/smart/{raised.notification_id}",
        version=event.version,
        names={},
    )


def _insight(raised: wealth.InsightRaised) -> Document:
    return _document(
        type_="insight",
        id_=str(raised.insight_id),
        platform=None,
        title=raised.title,
        subtitle=raised.body,
        amount_minor=None if raised.effect_minor is None else abs(raised.effect_minor),
        currency=raised.currency,
        category=raised.kind,
        state="active",
        date=raised.raised_at,
        target=f"/api/wealth/insights/{raised.insight_id}",
        names={},
        text={"evidence": ", ".join(fact.fact for fact in raised.evidence)},
    )


def _document(
    *,
    type_: DocumentType,
    id_: str,
    platform: Platform | None,
    title: str,
    subtitle: str,
    amount_minor: int | None,
    currency: str,
    category: str,
    date: datetime,
    target: str,
    names: Mapping[str, str | None],
    text: Mapping[str, str] | None = None,
    state: State = "",
    version: int = 0,
) -> Document:
    texts = {
        **(text or {}),
        "subtitle": subtitle,
        "category": category.replace("_", " "),
        "platform": _PLATFORM_NAMES[platform] if platform else "",
        AMOUNT: money(amount_minor, currency) if amount_minor is not None else "",
    }
    fields = [Field("title", canonical(title), True)]
    fields += [Field(name, canonical(value), True) for name, value in names.items() if value and value != title]
    fields += [Field(name, canonical(value), False) for name, value in texts.items() if value]
    return Document(
        type=type_,
        id=id_,
        platform=platform,
        title=canonical(title),
        subtitle=canonical(subtitle),
        amount_minor=amount_minor,
        currency=currency,
        category=category,
        state=state,
        date=date,
        target=target,
        version=version,
        fields=fields,
    )


def money(minor: int, currency: str) -> str:
    """An amount as a person in India reads it."""
    if currency == "INR":
        return rupees(minor)
    decimals = DECIMALS.get(currency, 2)
    return f"{currency} {Decimal(minor).scaleb(-decimals):,.{decimals}f}"


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        return Decimal(0)
