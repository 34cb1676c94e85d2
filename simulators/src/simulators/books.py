"""What a platform holds of its customers besides the feed: their profile, and what their accounts come to.

Balances are folded from the platform's own events and from the transfers that Sangam announced. The profile is the
platform's own copy: edited here it is reported by the feed, and what Sangam announces replaces it.
"""

import sqlite3
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from simulators.journal import FeedItem, Journal

_DDL = """
CREATE TABLE IF NOT EXISTS profile (
    customer_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    fields BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS announced_leg (
    transfer_id TEXT NOT NULL,
    n INTEGER NOT NULL,
    customer_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL,
    PRIMARY KEY (transfer_id, n)
) STRICT;
"""
_PAGE = 1000


class Leg(msgspec.Struct, frozen=True):
    account_id: str
    direction: str
    amount_minor: int
    currency: str


class Announced(msgspec.Struct, frozen=True):
    """What Sangam tells a platform."""

    type: str
    customer_id: str
    data: dict[str, Any]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A customer's profile as the platform holds it; version 0 before Sangam told one."""

    version: int
    fields: dict[str, Any]


class Books:
    """The tables beside the journal, in the same database."""

    def __init__(self, journal: Journal, platform: str) -> None:
        self._journal = journal
        self._platform = platform
        self._db: sqlite3.Connection = journal.database
        self._db.executescript(_DDL)

    def profile(self, customer_id: str) -> Profile:
        row = self._db.execute("SELECT version, fields FROM profile WHERE customer_id = ?", (customer_id,)).fetchone()
        if row is None:
            return Profile(version=0, fields={})
        return Profile(version=row[0], fields=msgspec.json.decode(row[1]))

    def edit(self, customer_id: str, fields: Mapping[str, Any]) -> Profile:
        """The customer changes something here. Returns the profile they saw: the base of the change."""
        seen = self.profile(customer_id)
        self._store(customer_id, seen.version, {**seen.fields, **fields})
        return seen

    def announced(self, message: Announced) -> None:
        """Takes over what Sangam tells. The same message again, or an older one, changes nothing."""
        if message.type == "profile.changed":
            version: int = message.data["version"]
            if version > self.profile(message.customer_id).version:
                self._store(message.customer_id, version, message.data["fields"])
        elif message.type.startswith("transfer."):
            legs = msgspec.convert(message.data["legs"], list[Leg])
            self._db.executemany(
                "INSERT OR IGNORE INTO announced_leg VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        f"{message.type}:{message.data['transfer_id']}",
                        n,
                        message.customer_id,
                        leg.account_id,
                        leg.amount_minor if leg.direction == "credit" else -leg.amount_minor,
                        leg.currency,
                    )
                    for n, leg in enumerate(legs)
                ],
            )

    def balances(self, customer_id: str, as_of: str) -> list[dict[str, Any]]:
        """A `balance.stated` item per account or wallet.

        Raises:
            UnknownCustomer: no such customer.
        """
        held: dict[str, tuple[int, str]] = {}
        last = 0
        while items := self._journal.events(customer_id, last, _PAGE):
            for item in items:
                self._fold(held, item)
            last = items[-1].sequence
        rows = self._db.execute(
            "SELECT account_id, amount_minor, currency, transfer_id FROM announced_leg WHERE customer_id = ?",
            (customer_id,),
        )
        for account_id, amount_minor, currency, _transfer_id in rows:
            held[account_id] = (held.get(account_id, (0, currency))[0] + amount_minor, currency)
        holder = "account_id" if self._platform == "bfc" else "wallet_id"
        return [
            {
                "id": f"{self._platform}-balance-{account_id}-{last}-{as_of}",
                "type": "balance.stated",
                "occurred_at": as_of,
                "customer_id": customer_id,
                "data": {
                    holder: account_id,
                    "balance": _decimal(minor),
                    "currency": currency,
                    "as_of": as_of,
                    "through_sequence": last,
                },
            }
            for account_id, (minor, currency) in sorted(held.items())
        ]

    def _store(self, customer_id: str, version: int, fields: Mapping[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO profile VALUES (?1, ?2, ?3) ON CONFLICT (customer_id) DO UPDATE SET version = ?2, fields = ?3",
            (customer_id, version, msgspec.json.encode(fields)),
        )

    def _fold(self, held: dict[str, tuple[int, str]], item: FeedItem) -> None:
        data = msgspec.json.decode(item.data)
        account_id, effect = _effect(item.type, data)
        if account_id is None or effect is None:
            return
        if self._is_ours(data):
            return  # reported back: the announcement counts
        minor, currency = held.get(account_id, (0, data.get("currency", "INR")))
        held[account_id] = (minor + effect, currency)

    def _is_ours(self, data: Mapping[str, Any]) -> bool:
        reference = data.get("reference")
        if not isinstance(reference, str):
            return False
        found = self._db.execute(
            "SELECT 1 FROM announced_leg WHERE transfer_id = ?", (f"transfer.completed:{reference}",)
        ).fetchone()
        return found is not None


def _effect(type_: str, data: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Which account an event moves, and by how much (minor units); Nones where it moves none."""
    match type_:
        case "account.opened":
            return data["account_id"], _minor(data["opening_balance"])
        case "wallet.opened":
            return data["wallet_id"], _minor(data["opening_balance"])
        case "transaction.posted" | "wallet.posted":
            account_id = data.get("account_id") or data["wallet_id"]
            amount = _minor(data["amount"])
            return account_id, amount if data["direction"] == "credit" else -amount
        case "fixed_deposit.opened":
            return data["account_id"], -_minor(data["principal"])
        case "fixed_deposit.matured":
            return data["account_id"], _minor(data["payout"])
        case "trade.executed":
            return data["wallet_id"], _trade_cash(data)
    return None, None


def _trade_cash(data: Mapping[str, Any]) -> int:
    """A trade's cash effect (platforms.md): options and shares are paid for, a future realises its P&L."""
    charges = _minor(data["charges"])
    if data["instrument"] == "future":
        return _minor(data.get("realized_pnl") or "0.00") - charges
    value = _minor(data["price"]) * int(data["quantity"])
    return (value if data["side"] == "sell" else -value) - charges


def _minor(text: str) -> int:
    return int(Decimal(text) * 100)


def _decimal(minor: int) -> str:
    sign = "-" if minor < 0 else ""
    return f"{sign}{abs(minor) // 100}.{abs(minor) % 100:02d}"
