"""Which event becomes which notification: `RULES` is the whole of it, and pure.

Text is data: a template per rule, filled with the facts that the rule's function takes from the event.
Amounts and times are written as a person in India reads them (₹12,34,567.50; IST).
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Literal
from uuid import UUID

import msgspec
from chassis.money import format_amount, rupees
from events.contracts import contract_of, identity, ledger, trading
from events.contracts.registry import Event

Category = Literal[
    "transaction",
    "transfer",
    "trade",
    "position",
    "account",
    "security",
    "alert",
    "insight",
    "conflict",
    "system",
]
Priority = Literal["critical", "high", "medium", "low"]

IST = timezone(timedelta(hours=5, minutes=30), "IST")
"""India has one zone and no daylight saving time."""

PLATFORM_NAMES = {"bfc": "BFC", "vyomo": "Vyomo"}
KIND_NAMES = {
    "savings": "savings account",
    "current": "current account",
    "fixed_deposit": "fixed deposit",
    "trading_wallet": "trading wallet",
}

AccountNames = Mapping[UUID, str]
"""What to call each account that an event mentions."""


class Action(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A button: the API call behind it, ready to be made."""

    label: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    href: str
    body: dict[str, Any] | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What one event says, ready to be put into its rule's templates."""

    values: dict[str, str]
    priority: Priority | None = None
    """Overrides the rule's, where the event itself says how urgent it is."""
    emoji: str | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. `title`, `body` and the actions' `href` are templates over the facts."""

    on: type[Event]
    category: Category
    priority: Priority
    emoji: str
    title: str
    body: str
    actions: tuple[Action, ...] = ()
    facts: Callable[[Any, AccountNames], Facts | None]
    """Takes the facts from the event; None: this one is told by another event's notification."""


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A notification's content."""

    category: Category
    priority: Priority
    emoji: str
    title: str
    body: str
    actions: tuple[Action, ...]


def account_name(opened: ledger.AccountOpened) -> str:
    """What a customer calls an account: "BFC savings account SB-1001"."""
    return f"{PLATFORM_NAMES[opened.platform]} {KIND_NAMES[opened.kind]} {opened.platform_account_id}"


def money(minor: int, currency: str) -> str:
    """₹50,000 in rupees, "USD 50.00" in anything else."""
    return rupees(minor) if currency == "INR" else f"{currency} {format_amount(minor, currency)}"


def moment(at: datetime) -> str:
    """12 Feb 2026, 14:30 IST."""
    local = at.astimezone(IST)
    return f"{local.day} {local:%b %Y, %H:%M} IST"


def _transfer(event: ledger.TransferCompleted, names: AccountNames) -> Facts:
    return Facts(
        values={
            "amount": money(event.amount_minor, event.currency),
            "source": names[event.from_account_id],
            "target": names[event.to_account_id],
            "memo": f" ({event.memo})" if event.memo else "",
            "transfer_id": str(event.transfer_id),
        }
    )


def _posting(event: ledger.AccountPosted, names: AccountNames) -> Facts | None:
    if event.type == "trade":
        return None  # `trading.trade.executed` tells it, with the symbol and the price
    leg = next((leg for leg in event.legs if leg.account_id == str(event.account_id)), None)
    if leg is None:
        return None  # nothing moved on the account
    credit = leg.amount_minor > 0
    who = event.counterparty or event.memo or event.category.replace("_", " ")
    balance = leg.balance_after_minor
    return Facts(
        values={
            "amount": money(abs(leg.amount_minor), leg.currency),
            "verb": "received" if credit else "paid",
            "preposition": "into" if credit else "from",
            "account": names[event.account_id],
            "account_id": str(event.account_id),
            "who": f"{'From' if credit else 'To'} {who}" if event.counterparty else who[:1].upper() + who[1:],
            "balance": "" if balance is None else f" Balance: {money(balance, leg.currency)}.",
        },
        emoji="💰" if credit else "💳",
        priority="high" if event.below_floor else None,
    )


def _account(event: ledger.AccountOpened, names: AccountNames) -> Facts:
    balance = sum(leg.amount_minor for leg in event.legs if leg.account_id == str(event.account_id))
    return Facts(
        values={
            "account": names[event.account_id],
            "account_id": str(event.account_id),
            "balance": money(balance, event.currency),
        }
    )


def _link(event: identity.LinkConfirmed, _: AccountNames) -> Facts:
    return Facts(values={"platform": PLATFORM_NAMES[event.platform], "customer": event.platform_customer_id})


def _session(event: identity.SessionStarted, _: AccountNames) -> Facts:
    return Facts(values={"platform": PLATFORM_NAMES[event.platform]})


def _trade(event: trading.TradeExecuted, _: AccountNames) -> Facts:
    realized = event.realized_pnl_minor
    if realized is None:
        pnl = ""
    elif event.currency == "INR":
        pnl = f" P&L: {rupees(realized, plus=True)}."
    else:
        pnl = f" P&L: {money(realized, event.currency)}."
    return Facts(
        values={
            "verb": "Bought" if event.side == "buy" else "Sold",
            "quantity": str(event.quantity),
            "symbol": event.symbol,
            "price": money(event.price_minor, event.currency),
            "charges": money(event.charges_minor, event.currency),
            "pnl": pnl,
        },
        emoji="🟢" if event.side == "buy" else "🔴",
    )


def _risk(event: trading.RiskAlerted, _: AccountNames) -> Facts:
    priorities: dict[str, Priority] = {"critical": "critical", "warning": "high", "info": "medium"}
    return Facts(
        values={"severity": event.severity.capitalize(), "message": event.message},
        priority=priorities[event.severity],
        emoji="ℹ️" if event.severity == "info" else None,
    )


_ACCOUNTS = Action(label="View accounts", method="GET", href="/api/accounts")
_NET_WORTH = Action(label="View net worth", method="GET", href="/api/wealth/net-worth")
_ACCOUNT = Action(label="View account", method="GET", href="/api/accounts/{account_id}")

RULES: tuple[Rule, ...] = (
    Rule(
        on=ledger.TransferCompleted,
        category="transfer",
        priority="medium",
        emoji="💸",
        title="{amount} transferred",
        body="From {source} to {target}{memo}.",
        actions=(Action(label="View transfer", method="GET", href="/api/transfers/{transfer_id}"),),
        facts=_transfer,
    ),
    Rule(
        on=ledger.AccountPosted,
        category="transaction",
        priority="medium",
        emoji="💳",
        title="{amount} {verb}",
        body="{who}, {preposition} {account}.{balance}",
        actions=(_ACCOUNT,),
        facts=_posting,
    ),
    Rule(
        on=ledger.AccountOpened,
        category="account",
        priority="high",
        emoji="🏦",
        title="Account added",
        body="{account} is now in your view, with {balance}.",
        actions=(_ACCOUNT,),
        facts=_account,
    ),
    Rule(
        on=identity.LinkConfirmed,
        category="account",
        priority="high",
        emoji="🔗",
        title="{platform} linked",
        body="Your {platform} customer {customer} is linked. Its accounts join your view.",
        actions=(_ACCOUNTS,),
        facts=_link,
    ),
    Rule(
        on=identity.SessionStarted,
        category="security",
        priority="critical",
        emoji="🔐",
        title="New sign-in on {platform}",
        body="{at}. If this was not you, your password is known to somebody else.",
        actions=(Action(label="View session", method="GET", href="/api/auth/status"),),
        facts=_session,
    ),
    Rule(
        on=trading.TradeExecuted,
        category="trade",
        priority="medium",
        emoji="📈",
        title="{verb} {quantity} {symbol}",
        body="At {price} each, charges {charges}.{pnl}",
        actions=(_NET_WORTH,),
        facts=_trade,
    ),
    Rule(
        on=trading.RiskAlerted,
        category="alert",
        priority="critical",
        emoji="⚠️",
        title="Risk alert: {severity}",
        body="{message}",
        actions=(_NET_WORTH,),
        facts=_risk,
    ),
)

_BY_TYPE = {contract_of(rule.on).type: rule for rule in RULES}

TYPES = frozenset(_BY_TYPE)
"""The event types that become notifications."""


def text_of(event_type: str, event: Event, recorded_at: datetime, names: AccountNames) -> Text | None:
    """The notification that an event becomes; None when another event's notification tells it.

    Raises:
        KeyError: no rule for the type, or an account without a name: its opening was not applied.
    """
    rule = _BY_TYPE[event_type]
    facts = rule.facts(event, names)
    if facts is None:
        return None
    values = {"at": moment(recorded_at), **facts.values}
    return Text(
        category=rule.category,
        priority=facts.priority or rule.priority,
        emoji=facts.emoji or rule.emoji,
        # Values are put in as they are, never read as templates: a memo of "{x}" stays "{x}".
        title=rule.title.format_map(values),
        body=rule.body.format_map(values),
        actions=tuple(msgspec.structs.replace(action, href=action.href.format_map(values)) for action in rule.actions),
    )


def accounts_of(event: Event) -> tuple[UUID, ...]:
    """The accounts whose names the event's rule needs."""
    match event:
        case ledger.TransferCompleted():
            return (event.from_account_id, event.to_account_id)
        case ledger.AccountPosted():
            return (event.account_id,)
        case _:
            return ()
