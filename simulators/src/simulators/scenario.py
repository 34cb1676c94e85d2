"""The seeded story of a customer on both platforms, as the items their platforms report.

Pure: the same seed, customer number and day give the same items, to the byte. Used by the demo,
by tests and by load generators (one customer number per virtual customer).
"""

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from simulators.settings import PlatformName

HISTORY = timedelta(days=90)
"""How far before `as_of` the first account was opened."""
SALARY = Decimal("85000.00")
_NAMES = (
    "Asha Rao", "Vikram Iyer", "Meera Nair", "Arjun Desai", "Kavya Reddy", "Rohan Banerjee",
    "Ananya Gupta", "Imran Sheikh", "Divya Menon", "Harpreet Singh", "Nisha Patil", "Joseph Thomas",
)  # fmt: skip
_SHOPS = (
    ("groceries", "BigBasket", "UPI weekly groceries"),
    ("shopping", "Nilgiris Store", "UPI household"),
    ("utilities", "BESCOM", "UPI electricity bill"),
    ("groceries", "Namma Kirana", "UPI fruit and milk"),
    ("other", "Bengaluru Metro", "UPI metro card top-up"),
)  # fmt: skip
_NIFTY_LOT = 65
_BANKNIFTY_LOT = 30


class Customer(NamedTuple):
    """One person, under the names each platform knows them by."""

    number: int
    name: str
    bfc_customer_id: str
    vyomo_client_id: str
    savings_account_id: str
    wallet_id: str
    pin: str


class Item(NamedTuple):
    """One fact a platform reports. `sequence` is gap-free per platform customer, from 1."""

    platform: PlatformName
    id: str
    sequence: int
    type: str
    occurred_at: datetime
    customer_id: str
    data: Mapping[str, Any]

    def feed_json(self) -> dict[str, Any]:
        """The item as a feed batch carries it (`platforms.md`)."""
        return {
            "id": self.id,
            "sequence": self.sequence,
            "type": self.type,
            "occurred_at": _instant(self.occurred_at),
            "customer_id": self.customer_id,
            "data": dict(self.data),
        }


class Scenario(NamedTuple):
    """A customer's story: what happened before the platforms are linked, and what comes right after."""

    customer: Customer
    backlog: tuple[Item, ...]
    fresh: tuple[Item, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        return self.backlog + self.fresh


def customer(number: int) -> Customer:
    """The customer of that number, from 1: BFC-1001 and VY-2001 are Asha Rao."""
    if number < 1:
        raise ValueError("customers are numbered from 1")
    return Customer(
        number=number,
        name=_NAMES[(number - 1) % len(_NAMES)],
        bfc_customer_id=f"BFC-{1000 + number}",
        vyomo_client_id=f"VY-{2000 + number}",
        savings_account_id=f"SB-{1000 + number}",
        wallet_id=f"TW-{2000 + number}",
        pin=f"{(4320 + number) % 10_000:04d}",
    )


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _text(amount: Decimal) -> str:
    return f"{amount:.2f}"


def _monthly(underlying: str, day: datetime, strike: int, right: str) -> str:
    """NSE's trading symbol of next month's option, e.g. NIFTY26MAR24500CE."""
    expiry = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return f"{underlying}{expiry:%y%b}{strike}{right}".upper()


class _Story:
    """Collects items, numbering each platform's own."""

    def __init__(self, who: Customer, seed: int, as_of: datetime) -> None:
        self.who = who
        self.opened_at = as_of.astimezone(UTC).replace(microsecond=0) - HISTORY
        self.random = random.Random(f"{seed}:{who.number}")  # noqa: S311 — repeatable on purpose
        self.items: list[Item] = []
        self._last = {"bfc": 0, "vyomo": 0}

    def tell(self, platform: PlatformName, type_: str, day: float, **data: object) -> None:
        """A fact of `day` days after the first account was opened."""
        customer_id = self.who.bfc_customer_id if platform == "bfc" else self.who.vyomo_client_id
        self._last[platform] += 1
        sequence = self._last[platform]
        self.items.append(
            Item(
                platform=platform,
                id=f"{platform}-{customer_id}-{sequence:04d}",
                sequence=sequence,
                type=type_,
                occurred_at=self.opened_at + timedelta(days=day),
                customer_id=customer_id,
                data=data,
            )
        )

    def paise(self, rupees: int, spread: float) -> Decimal:
        """About `rupees`, give or take the share `spread`, to the paisa."""
        paise = rupees * 100
        return Decimal(self.random.randint(int(paise * (1 - spread)), int(paise * (1 + spread)))) / 100

    def transaction(
        self, day: float, direction: str, amount: Decimal, category: str, counterparty: str, memo: str
    ) -> None:
        number = self._last["bfc"] + 1
        self.tell(
            "bfc",
            "transaction.posted",
            day,
            transaction_id=f"T{self.who.number}-{number:04d}",
            account_id=self.who.savings_account_id,
            direction=direction,
            amount=_text(amount),
            currency="INR",
            category=category,
            counterparty=counterparty,
            memo=memo,
            reference=f"{'NEFT' if direction == 'credit' else 'UPI'}{self.random.randint(10**9, 10**10 - 1)}",
        )

    def trade(
        self,
        day: float,
        contract: tuple[str, str, str],
        side: str,
        quantity: int,
        price: Decimal,
        realized_pnl: Decimal | None = None,
    ) -> None:
        symbol, underlying, instrument = contract
        self.tell(
            "vyomo",
            "trade.executed",
            day,
            trade_id=f"TR{self.who.number}-{self._last['vyomo'] + 1:04d}",
            wallet_id=self.who.wallet_id,
            symbol=symbol,
            underlying=underlying,
            instrument=instrument,
            side=side,
            quantity=quantity,
            price=_text(price),
            charges=_text(self.paise(38, 0.2)),
            realized_pnl=None if realized_pnl is None else _text(realized_pnl),
            currency="INR",
        )

    def position(
        self, day: float, contract: tuple[str, str, str], quantity: int, average: Decimal, mark: Decimal
    ) -> None:
        symbol, underlying, instrument = contract
        self.tell(
            "vyomo",
            "position.changed",
            day,
            position_id=f"P{self.who.number}-{symbol}",
            symbol=symbol,
            underlying=underlying,
            instrument=instrument,
            quantity=quantity,
            average_price=_text(average),
            mark_price=_text(mark),
            unrealized_pnl=_text((mark - average) * quantity),
            currency="INR",
        )


def generate(seed: int, number: int, as_of: datetime) -> Scenario:
    """The story of customer `number` in the 90 days up to `as_of` (an aware time; seconds count)."""
    story = _Story(customer(number), seed, as_of)
    _bank_history(story)
    _broker_history(story)
    backlog = tuple(story.items)
    _fresh(story)
    return Scenario(story.who, backlog, tuple(story.items[len(backlog) :]))


def _bank_history(story: _Story) -> None:
    who, opened = story.who, story.opened_at
    story.tell(
        "bfc",
        "account.opened",
        0,
        account_id=who.savings_account_id,
        kind="savings",
        currency="INR",
        opening_balance=_text(Decimal(300_000)),
        name="BFC Savings",
    )
    story.tell("bfc", "kyc.completed", 0.1, level="full")
    for month in range(3):
        first = month * 30 + 1
        story.transaction(first, "credit", SALARY, "salary", "Acme Technologies Ltd", "Salary")
        story.transaction(first + 3, "debit", Decimal(28_000), "rent", "Lakshmi Residency", "Monthly rent")
        for week, (category, shop, memo) in enumerate(story.random.sample(_SHOPS, 3)):
            amount = story.paise(1_800, 0.6)
            story.transaction(first + 6 + week * 7, "debit", amount, category, shop, memo)
    story.tell(
        "bfc",
        "fixed_deposit.opened",
        70,
        deposit_id=f"FD-{1000 + who.number}",
        account_id=who.savings_account_id,
        principal="100000.00",
        currency="INR",
        rate_percent="7.10",
        opened_on=f"{opened + timedelta(days=70):%Y-%m-%d}",
        matures_on=f"{opened + timedelta(days=70 + 365):%Y-%m-%d}",
    )
    nav = story.paise(162, 0.03)
    story.tell(
        "bfc",
        "fund.changed",
        80,
        scheme_code="120716",
        scheme_name="UTI Nifty 50 Index Fund - Direct Plan - Growth",
        units="312.4410",
        nav=_text(nav),
        cost="47500.00",
        currency="INR",
        as_of=f"{opened + timedelta(days=80):%Y-%m-%d}",
    )


def _broker_history(story: _Story) -> None:
    who, as_of = story.who, story.opened_at + HISTORY
    nifty_call = (_monthly("NIFTY", as_of, 24_500, "CE"), "NIFTY", "option")
    banknifty_put = (_monthly("BANKNIFTY", as_of, 52_000, "PE"), "BANKNIFTY", "option")
    reliance = ("RELIANCE", "RELIANCE", "equity")
    story.tell(
        "vyomo",
        "wallet.opened",
        5,
        wallet_id=who.wallet_id,
        currency="INR",
        opening_balance=_text(Decimal(150_000)),
    )
    bought, sold = story.paise(182, 0.05), story.paise(231, 0.05)
    story.trade(75, nifty_call, "buy", 2 * _NIFTY_LOT, bought)
    story.position(75.1, nifty_call, 2 * _NIFTY_LOT, bought, bought)
    put_bought, put_sold = story.paise(310, 0.05), story.paise(268, 0.05)
    story.trade(78, banknifty_put, "buy", _BANKNIFTY_LOT, put_bought)
    story.trade(81, banknifty_put, "sell", _BANKNIFTY_LOT, put_sold, (put_sold - put_bought) * _BANKNIFTY_LOT)
    story.position(81.1, banknifty_put, 0, put_bought, put_sold)
    share = story.paise(1_412, 0.03)
    story.trade(83, reliance, "buy", 20, share)
    story.position(83.1, reliance, 20, share, story.paise(1_440, 0.02))
    story.trade(86, nifty_call, "sell", _NIFTY_LOT, sold, (sold - bought) * _NIFTY_LOT)
    story.position(86.1, nifty_call, _NIFTY_LOT, bought, sold)


def _fresh(story: _Story) -> None:
    """What happens on the day the customer links the platforms."""
    position = next(item for item in reversed(story.items) if item.type == "position.changed" and item.data["quantity"])
    contract = (position.data["symbol"], position.data["underlying"], position.data["instrument"])
    average = Decimal(position.data["average_price"])
    story.position(89.6, contract, position.data["quantity"], average, story.paise(244, 0.05))
    story.tell(
        "vyomo",
        "risk.alerted",
        89.7,
        alert_id=f"RA-{story.who.number}-1",
        severity="warning",
        message=f"{contract[0]} is 60% of your option exposure and expires next month.",
    )
    story.transaction(89.8, "debit", story.paise(240, 0.3), "other", "Third Wave Coffee", "UPI coffee")


def salary(who: Customer, run: str, now: datetime) -> dict[str, Any]:
    """This month's salary, named after the run that asks for it, as `POST /events` takes it."""
    return {
        "id": f"bfc-{who.bfc_customer_id}-salary-{run}",
        "customer_id": who.bfc_customer_id,
        "type": "transaction.posted",
        "occurred_at": _instant(now),
        "data": {
            "transaction_id": f"S{who.number}-{run}",
            "account_id": who.savings_account_id,
            "direction": "credit",
            "amount": _text(SALARY),
            "currency": "INR",
            "category": "salary",
            "counterparty": "Acme Technologies Ltd",
            "memo": f"Salary {now:%b %Y}",
            "reference": f"NEFT{run}",
        },
    }


def live_transaction(opened: Mapping[str, Any], chance: random.Random, number: int) -> dict[str, Any]:
    """Data of a small UPI payment on the account that `account.opened` announced.

    Even numbers pay a shop, odd ones are paid back by a friend: a feed that runs for days must not
    drain the account.
    """
    category, shop, memo = chance.choice(_SHOPS)
    spending = number % 2 == 0
    return {
        "transaction_id": f"L{number}-{chance.getrandbits(48):012x}",
        "account_id": opened["account_id"],
        "direction": "debit" if spending else "credit",
        "amount": _text(Decimal(chance.randint(2_000, 50_000)) / 100),
        "currency": opened["currency"],
        "category": category if spending else "transfer",
        "counterparty": shop if spending else "Priya Kumar",
        "memo": memo if spending else "UPI shared dinner",
        "reference": f"UPI{chance.randint(10**9, 10**10 - 1)}",
    }


def live_mark(position: Mapping[str, Any], chance: random.Random) -> dict[str, Any]:
    """Data of the same position, its price moved by up to 1.5 %."""
    move = Decimal(chance.randint(-150, 150)) / 10_000
    mark = max(Decimal("0.05"), (Decimal(position["mark_price"]) * (1 + move)).quantize(Decimal("0.05")))
    unrealized = (mark - Decimal(position["average_price"])) * position["quantity"]
    return {**position, "mark_price": _text(mark), "unrealized_pnl": _text(unrealized)}
