"""What a platform holds beside its feed: the profile's copy, and balances from its events and from announcements."""

from typing import Any

import msgspec
import pytest
from simulators.books import Announced, Books, Profile
from simulators.harness import Platform, Receiver, eventually
from simulators.journal import Journal, UnknownCustomer

NOON = "2026-02-12T12:00:00Z"


class Bank:
    """A platform's journal and books, in memory."""

    def __init__(self, platform: str = "bfc") -> None:
        self.journal = Journal(None)
        self.journal.add_customer("C-1", "1")
        self.books = Books(self.journal, platform)
        self._holder = "account_id" if platform == "bfc" else "wallet_id"
        self._emitted = 0

    def happens(self, type_: str, **data: Any) -> None:
        self._emitted += 1
        self.journal.emit(
            event_id=f"e-{self._emitted}",
            customer_id="C-1",
            type_=type_,
            occurred_at=NOON,
            data=msgspec.json.encode(data),
        )

    def told(self, type_: str, data: dict[str, Any]) -> None:
        self.books.announced(Announced(type=type_, customer_id="C-1", data=data))

    def balances(self) -> dict[str, str]:
        """By account, or by wallet where the platform has those."""
        stated = [item["data"] for item in self.books.balances("C-1", NOON)]
        return {data[self._holder]: data["balance"] for data in stated}


def leg(account_id: str, direction: str, amount_minor: int) -> dict[str, Any]:
    return {"account_id": account_id, "direction": direction, "amount_minor": amount_minor, "currency": "INR"}


def test_an_edit_keeps_the_version_and_returns_what_was_seen() -> None:
    books = Bank().books
    assert books.profile("C-1").version == 0
    assert books.edit("C-1", {"nominee": "A", "phone": "+911"}).fields == {}
    seen = books.edit("C-1", {"nominee": "B"})
    assert (seen.version, seen.fields) == (0, {"nominee": "A", "phone": "+911"})
    held = books.profile("C-1")
    assert (held.version, held.fields) == (0, {"nominee": "B", "phone": "+911"})


def test_an_announced_profile_replaces_the_copy_and_an_older_one_does_not() -> None:
    bank = Bank()
    bank.books.edit("C-1", {"nominee": "mine", "phone": "+911"})
    bank.told("profile.changed", {"version": 3, "fields": {"nominee": "theirs"}})
    assert bank.books.profile("C-1") == Profile(version=3, fields={"nominee": "theirs"})
    for version in (2, 3):
        bank.told("profile.changed", {"version": version, "fields": {"nominee": "late"}})
    assert bank.books.profile("C-1").fields == {"nominee": "theirs"}
    # A change made here goes by what was announced last.
    assert bank.books.edit("C-1", {"nominee": "mine"}).version == 3


def test_an_announced_transfer_counts_once_and_its_report_not_again() -> None:
    bank = Bank()
    bank.happens("account.opened", account_id="SB", kind="savings", opening_balance="1000.00", currency="INR")
    bank.happens(
        "transaction.posted", transaction_id="T1", account_id="SB", direction="debit", amount="0.50", currency="INR"
    )
    assert bank.balances() == {"SB": "999.50"}
    for _ in range(2):
        bank.told("transfer.completed", {"transfer_id": "ours", "legs": [leg("SB", "debit", 100_00)]})
    assert bank.balances() == {"SB": "899.50"}
    for reference in ("ours", "theirs"):
        bank.happens(
            "transaction.posted", transaction_id=reference, account_id="SB", direction="debit", amount="100.00",
            currency="INR", reference=reference,
        )  # fmt: skip
    assert bank.balances() == {"SB": "799.50"}, "their own transfer counts, ours counted when it was announced"
    bank.told("transfer.completed", {"transfer_id": "back", "legs": [leg("SB", "credit", 100_00)]})
    assert bank.balances() == {"SB": "899.50"}
    (stated,) = bank.books.balances("C-1", NOON)
    assert stated["type"] == "balance.stated"
    assert stated["data"]["through_sequence"] == 4


def test_a_wallet_pays_for_what_it_trades() -> None:
    bank = Bank("vyomo")
    bank.happens("wallet.opened", wallet_id="TW", opening_balance="5000.00", currency="INR")
    share = {"wallet_id": "TW", "instrument": "equity", "charges": "1.25", "currency": "INR"}
    bank.happens("trade.executed", **share, side="buy", price="100.00", quantity=10)
    assert bank.balances() == {"TW": "3998.75"}
    bank.happens("trade.executed", **share, side="sell", price="110.10", quantity=10)
    assert bank.balances() == {"TW": "5098.50"}
    bank.happens("trade.executed", **{**share, "instrument": "future"}, side="sell", price="9", quantity=50)
    assert bank.balances() == {"TW": "5097.25"}, "a future costs its charges until it realises something"
    bank.happens("wallet.posted", wallet_id="TW", direction="debit", amount="6000.00", currency="INR")
    assert bank.balances() == {"TW": "-902.75"}


def test_a_deposit_takes_its_principal_and_gives_its_payout() -> None:
    bank = Bank()
    bank.happens("account.opened", account_id="SB", kind="savings", opening_balance="100.00", currency="INR")
    bank.happens("fixed_deposit.opened", account_id="SB", deposit_id="FD", principal="80.00")
    assert bank.balances() == {"SB": "20.00"}
    bank.happens("fixed_deposit.matured", account_id="SB", deposit_id="FD", payout="85.33")
    assert bank.balances() == {"SB": "105.33"}


def test_nobody_has_no_balances() -> None:
    with pytest.raises(UnknownCustomer):
        Bank().books.balances("C-9", NOON)


async def test_an_edit_is_reported_with_the_base_it_was_made_on(platform: Platform, receiver: Receiver) -> None:
    await platform.customer("BFC-1")
    status, profile = await platform.call("POST", "/customers/BFC-1/profile", {"fields": {"nominee": "A"}})
    assert (status, profile) == (200, {"version": 0, "fields": {"nominee": "A"}})
    await eventually(lambda: receiver.taken)
    (item,) = receiver.taken
    assert item["type"] == "profile.changed"
    assert (item["data"]["base_version"], item["data"]["fields"]) == (0, {"nominee": "A"})
    assert (await platform.call("GET", "/customers/BFC-1/profile"))[1]["fields"] == {"nominee": "A"}
    assert (await platform.call("GET", "/customers/BFC-9/profile"))[0] == 404
    # Unsigned, an announcement is listed and changes nothing.
    forged = {"type": "profile.changed", "customer_id": "BFC-1", "data": {"version": 9, "fields": {"nominee": "E"}}}
    await platform.call("POST", "/webhooks", forged)
    assert (await platform.call("GET", "/customers/BFC-1/profile"))[1]["fields"] == {"nominee": "A"}
    (listed,) = (await platform.call("GET", "/webhooks/received"))[1]["items"]
    assert listed["body"] == forged
    assert listed["verified"] is None
