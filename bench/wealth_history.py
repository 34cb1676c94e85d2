"""The customer that wealth is measured with: 12 years, 14,400 activities, 250 instruments."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid5

from events.contracts import banking, ledger, trading
from events.envelope import RecordedEvent, platform_stream
from life_log import Log, life_user, linked

YEARS, ACTIVITIES, SHARES, FUNDS = 12, 14_400, 220, 28  # with a savings account and a wallet: 250 instruments
NOW = datetime(2026, 10, 31, 12, tzinfo=UTC)
BFC, VYOMO = "BFC-OLD-1", "VY-OLD-1"
USER = life_user(BFC)
SAVINGS, WALLET = uuid5(USER, "savings"), uuid5(USER, "wallet")


class History:
    """The events of that customer, spread evenly over the years."""

    def __init__(self) -> None:
        self.log = Log()
        self.chance = random.Random(5)
        self.balances = {SAVINGS: 0, WALLET: 0}
        self.held = [0] * SHARES
        self.units = [0] * FUNDS
        self.number = 0

    def events(self) -> list[RecordedEvent]:
        found = [
            self.log.record(f"user-{USER}", linked(platform, customer), USER)
            for platform, customer in (("bfc", BFC), ("vyomo", VYOMO))
        ]
        start = NOW - timedelta(days=365 * YEARS)
        found += [self.open_account(SAVINGS, "savings", start), self.open_account(WALLET, "trading_wallet", start)]
        step = timedelta(days=365 * YEARS) / ACTIVITIES
        while len(found) < ACTIVITIES:
            found += self._activity(start + step * len(found))
        return found[:ACTIVITIES]

    def open_account(self, account_id: Any, kind: Any, at: datetime) -> RecordedEvent:
        platform: Any = "bfc" if kind == "savings" else "vyomo"
        self.balances[account_id] = 50_00_000_00
        legs = (ledger.Leg(account_id=str(account_id), amount_minor=50_00_000_00, currency="INR",
                           balance_after_minor=50_00_000_00),)  # fmt: skip
        opened = ledger.AccountOpened(account_id=account_id, platform=platform, platform_account_id=kind, kind=kind,
                                      currency="INR", legs=legs, occurred_at=at)  # fmt: skip
        return self.log.record(f"ledger-{USER}", opened, USER)

    def post(self, account_id: Any, amount: int, category: str, at: datetime) -> RecordedEvent:
        self.balances[account_id] += amount
        leg = ledger.Leg(account_id=str(account_id), amount_minor=amount, currency="INR",
                         balance_after_minor=self.balances[account_id])  # fmt: skip
        posted = ledger.AccountPosted(
            account_id=account_id, platform="bfc", legs=(leg,), type="transaction", category=category,
            item_id=str(self.log.position), occurred_at=at,
        )  # fmt: skip
        return self.log.record(f"ledger-{USER}", posted, USER)

    def _activity(self, at: datetime) -> list[RecordedEvent]:
        self.number += 1
        chance = self.chance
        if self.number % 10 < 4:
            if self.number % 40 == 1:
                return [self.post(SAVINGS, 2_00_000_00, "salary", at)]
            category = chance.choice(("groceries", "shopping", "utilities", "other", "rent"))
            return [self.post(SAVINGS, -chance.randrange(100_00, 9_000_00), category, at)]
        if self.number % 10 < 5:
            return self._trade(at)
        if self.number % 10 == 9:
            return [self._fund(self.number // 10 % FUNDS, at)]
        return [self.mark(self.number % SHARES, at)]

    def _trade(self, at: datetime) -> list[RecordedEvent]:
        which = self.number // 10 % SHARES
        price = 100_00 + which * 10_00 + self.chance.randrange(20_00)
        sells = self.held[which] > 20
        self.held[which] += -10 if sells else 10
        trade = trading.TradeExecuted(
            item_id=str(self.log.position), customer_id=VYOMO, occurred_at=at, trade_id=f"T{self.log.position}",
            wallet_id="W", symbol=f"S{which}", underlying=f"S{which}", instrument="equity",
            side="sell" if sells else "buy", quantity=10, price_minor=price, charges_minor=20_00, currency="INR",
            realized_pnl_minor=500_00 if sells else None,
        )  # fmt: skip
        cash = 10 * price * (1 if sells else -1) - 20_00
        return [
            self.log.record(platform_stream("vyomo", VYOMO), trade, None),
            self.post(WALLET, cash, "trade", at),
            self.mark(which, at + timedelta(seconds=1)),
        ]

    def mark(self, which: int, at: datetime) -> RecordedEvent:
        mark = 100_00 + which * 10_00 + self.chance.randrange(60_00)
        average = 105_00 + which * 10_00
        stated = trading.PositionChanged(
            item_id=str(self.log.position), customer_id=VYOMO, occurred_at=at, position_id=f"P{which}",
            symbol=f"S{which}", underlying=f"S{which}", instrument="equity", quantity=max(self.held[which], 1),
            average_price_minor=average, mark_price_minor=mark,
            unrealized_pnl_minor=max(self.held[which], 1) * (mark - average), currency="INR",
        )  # fmt: skip
        return self.log.record(platform_stream("vyomo", VYOMO), stated, None)

    def _fund(self, which: int, at: datetime) -> RecordedEvent:
        self.units[which] += 100
        stated = banking.FundChanged(
            item_id=str(self.log.position), customer_id=BFC, occurred_at=at, scheme_code=f"F{which}",
            scheme_name=f"Scheme {which}", units=str(self.units[which]), nav=f"{20 + self.chance.random() * 9:.4f}",
            cost_minor=self.units[which] * 22_00, currency="INR", as_of=at.date(),
        )  # fmt: skip
        return self.log.record(platform_stream("bfc", BFC), stated, None)
