"""One customer of the scenario: a state in paise, and what happens to them in a month.

A month is planned first (what happens on which minute), then lived in order of time, so that money is
only spent while it is there. Amounts are integers of paise; the items carry decimal strings.
"""

import random
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from simulators.amounts import half_up, text, units_text
from simulators.market import EQUITIES, LOTS, SCHEMES, Contract, Market, Scheme, share
from simulators.scenario import Customer, Item
from simulators.settings import PlatformName

_IST = timedelta(hours=5, minutes=30)
_DAY = 1440
_KEEP = 5_000_00
"""A customer never spends a savings account below this."""
_EMPLOYERS = ("Acme Technologies Ltd", "Infosys Ltd", "Larsen & Toubro Ltd", "Apollo Hospitals", "Zoho Corporation")
_GROCERS = ("BigBasket", "Namma Kirana", "DMart", "Reliance Fresh", "Zepto")
_SHOPS = ("Amazon India", "Flipkart", "Myntra", "Croma", "Decathlon", "Nilgiris Store")
_UTILITIES = (("BESCOM", "electricity bill"), ("ACT Fibernet", "broadband"), ("Jio", "mobile recharge"))
_OTHERS = ("Third Wave Coffee", "Bengaluru Metro", "Uber India", "Swiggy", "BookMyShow", "Apollo Pharmacy")


class Label(NamedTuple):
    """Something the scenario did on purpose, to measure what finds it."""

    customer_id: str
    kind: str
    month: str
    """`YYYY-MM`, as the customer's calendar has it (IST)."""
    detail: str = ""


class Holding:
    """An open position."""

    __slots__ = ("average", "contract", "mark", "position_id", "quantity")

    def __init__(self, contract: Contract, position_id: str) -> None:
        self.contract = contract
        self.position_id = position_id
        self.quantity = 0
        self.average = 0
        self.mark = 0


class Person:
    """A customer's money and habits. `live_month` gives what both platforms report of a month."""

    def __init__(self, who: Customer, seed: int, market: Market) -> None:
        self.who = who
        self._market = market
        chance = self._chance = random.Random(f"{seed}:life:{who.number}")  # noqa: S311 — repeatable on purpose
        self._items: list[Item] = []
        self._last = {"bfc": 0, "vyomo": 0}
        self._now = datetime(market.start.year, market.start.month, 1, tzinfo=UTC)
        self._day = market.start
        self.labels: list[Label] = []

        self.salary = chance.randrange(38_000, 260_000, 500) * 100
        self._employer = chance.choice(_EMPLOYERS)
        self._rent = int(self.salary * chance.uniform(0.15, 0.28)) // 500_00 * 500_00
        self._daily_spend = self.salary * chance.uniform(0.22, 0.38) / 30
        self.savings = chance.randrange(40_000, 700_000, 1000) * 100
        self.current = chance.randrange(20_000, 200_000, 1000) * 100 if chance.random() < 0.2 else None
        self.wallet = chance.randrange(20_000, 400_000, 1000) * 100
        self.deposits: dict[str, tuple[int, int, date]] = {}
        """Principal, rate in hundredths of a percent, maturity."""
        self._deposits_opened = 0
        self._saves_in_deposits = chance.random() < 0.6
        self._sips: list[tuple[Scheme, int]] = []
        if chance.random() < 0.55:
            schemes = chance.sample(SCHEMES, chance.randint(1, 3))
            self._sips = [(scheme, chance.randrange(10, 60) * 100_00) for scheme in schemes]
        self.units: dict[str, int] = {}
        self._cost: dict[str, int] = {}
        self.loan = self._emi = 0
        self._principal = 0
        if chance.random() < 0.4:
            self._principal = self.loan = chance.randrange(3, 45) * 1_00_000_00
            self._emi = min(int(self.salary * chance.uniform(0.12, 0.3)), self.loan // 24) // 100 * 100
            self._emi = max(self._emi, int(self.loan * 0.0095) // 100 * 100)
        self._loan_kind = "home" if self.loan > 20_00_000_00 else chance.choice(("car", "personal", "education"))
        self._style = chance.choices(("none", "shares", "options", "futures"), (20, 45, 25, 10))[0]
        self.realized = 0
        self.holdings: dict[str, Holding] = {}
        self._profile_version = 0

    # ---- a month ----

    def live_month(self, first: date, days: int, number: int) -> list[Item]:
        """What happens in the month that begins on `first` and has `days` days; `number` counts from 0."""
        self._items = []
        start = datetime(first.year, first.month, first.day, tzinfo=UTC) - _IST
        last = -1
        for minute, action, argument in sorted(self._plan(first, days, number), key=lambda entry: entry[0]):
            last = max(minute, last + 1)
            self._now = start + timedelta(minutes=last)
            self._day = first + timedelta(days=last // _DAY)
            action(argument)
        return self._items

    def _plan(self, first: date, days: int, number: int) -> list[tuple[int, Any, Any]]:
        chance = self._chance
        month = f"{first:%Y-%m}"

        def at(day: int, hour: int) -> int:
            return (min(day, days) - 1) * _DAY + hour * 60 + int(chance.random() * 60)

        plan: list[tuple[int, Any, Any]] = []
        if number == 0:
            plan += [(0, self._open, None), (3, self._kyc, None)]
            if self.loan:
                plan.append((4, self._loan_opened, None))
        if number < 4 or chance.random() > 0.02:
            plan.append((at(1, 9), self._salary, None))
        else:
            self.labels.append(Label(self.who.bfc_customer_id, "salary_missed", month))
        plan.append((at(3, 10), self._spend, ("rent", "Lakshmi Residency", "Monthly rent", self._rent)))
        if self.loan:
            plan.append((at(5, 6), self._pay_emi, None))
        plan += [(at(7, 11), self._sip, sip) for sip in self._sips]
        for payee, memo in _UTILITIES:
            amount = int(self._daily_spend * chance.uniform(0.9, 1.4))
            plan.append((at(chance.randint(8, 16), 19), self._spend, ("utilities", payee, f"UPI {memo}", amount)))
        day = chance.randint(2, 5)
        while day <= days:
            amount = int(self._daily_spend * chance.uniform(1.4, 2.4))
            plan.append((at(day, 18), self._spend, ("groceries", chance.choice(_GROCERS), "UPI groceries", amount)))
            day += 7
        for _ in range(chance.randint(7, 12)):
            category, payee = ("shopping", chance.choice(_SHOPS))
            if chance.random() < 0.6:
                category, payee = ("other", chance.choice(_OTHERS))
            amount = int(self._daily_spend * chance.uniform(0.25, 1.3))
            plan.append((at(chance.randint(2, days), 13), self._spend, (category, payee, "UPI payment", amount)))
        if number >= 4 and chance.random() < 0.07:
            category = chance.choice(("shopping", "utilities", "groceries", "other"))
            amount = int(self._daily_spend * 30 * chance.uniform(0.35, 1.6))
            entry = (category, "Croma" if category == "shopping" else "One-off payment", "UPI one-off", amount)
            plan.append((at(chance.randint(10, days - 3), 16), self._one_off, (month, entry)))
        if first.month % 3 == 0:
            plan.append((at(days, 23), self._interest, None))
        if self._saves_in_deposits and number % 3 == 1:
            plan.append((at(chance.randint(20, 24), 12), self._open_deposit, None))
        plan += [
            ((matures - first).days * _DAY + 10 * 60, self._mature, deposit)
            for deposit, (_, _, matures) in self.deposits.items()
            if (matures - first).days < days
        ]
        if self._style != "none":
            plan += self._plan_trading(first, days, at)
        if chance.random() < 0.06:
            plan.append((at(chance.randint(5, 25), 15), self._profile_conflict, None))
        if chance.random() < 0.03:
            plan.append((at(14, 12), self._credit_approved, None))
        plan.append((at(days, 21), self._state_funds, None))
        return plan

    def _plan_trading(self, first: date, days: int, at: Any) -> list[tuple[int, Any, Any]]:
        chance = self._chance

        def session(day: int) -> int:
            weekday = (first + timedelta(days=min(day, days) - 1)).weekday()
            on: int = at(day - (weekday - 4 if weekday > 4 and day > 2 else 0), chance.randint(10, 14))
            return on

        plan: list[tuple[int, Any, Any]] = [(at(2, 9), self._fund_wallet, None)]
        plan += [(session(chance.randint(4, 26)), self._trade_share, None) for _ in range(chance.randint(0, 3))]
        underlying = chance.choice(tuple(LOTS))
        if self._style == "options" and chance.random() < 0.8:
            plan.append((session(chance.randint(3, 9)), self._buy_option, (underlying, chance.choice(("CE", "PE")))))
            plan.append((session(chance.randint(14, 24)), self._close_derivatives, None))
        if self._style == "futures" and chance.random() < 0.6:
            plan.append((session(chance.randint(3, 9)), self._buy_future, underlying))
            plan.append((session(chance.randint(14, 24)), self._close_derivatives, None))
        plan += [
            ((day - 1) * _DAY + 15 * 60 + 35, self._mark, None)
            for day in range(1, days + 1)
            if day == days or (first + timedelta(days=day - 1)).weekday() == 4
        ]
        plan.append((at(28, 17), self._charges, None))
        if chance.random() < 0.15:
            plan.append((at(27, 18), self._payout, None))
        return plan

    # ---- the bank ----

    def _tell(self, platform: PlatformName, type_: str, data: dict[str, Any], after_s: int = 0) -> None:
        who = self.who
        customer_id = who.bfc_customer_id if platform == "bfc" else who.vyomo_client_id
        sequence = self._last[platform] = self._last[platform] + 1
        moment = self._now + timedelta(seconds=after_s) if after_s else self._now
        self._items.append(Item(platform, f"life-{customer_id}-{sequence}", sequence, type_, moment, customer_id, data))

    def _post(
        self, direction: str, paise: int, category: str, payee: str, memo: str, reference: str | None = None
    ) -> None:
        self.savings += paise if direction == "credit" else -paise
        number = self._last["bfc"] + 1
        self._tell(
            "bfc",
            "transaction.posted",
            {
                "transaction_id": f"T{self.who.number}-{number}",
                "account_id": self.who.savings_account_id,
                "direction": direction,
                "amount": text(paise),
                "currency": "INR",
                "category": category,
                "counterparty": payee,
                "memo": memo,
                "reference": reference or f"UPI{self.who.number}{number:06d}",
            },
        )

    def _open(self, _: object) -> None:
        who = self.who
        account = {"currency": "INR", "kind": "savings", "name": "BFC Savings"}
        account |= {"account_id": who.savings_account_id, "opening_balance": text(self.savings)}
        self._tell("bfc", "account.opened", account)
        if self.current is not None:
            account = {"currency": "INR", "kind": "current", "name": "BFC Current"}
            account |= {"account_id": f"CA-{1000 + who.number}", "opening_balance": text(self.current)}
            self._tell("bfc", "account.opened", account, after_s=1)
        wallet = {"wallet_id": who.wallet_id, "currency": "INR", "opening_balance": text(self.wallet)}
        self._tell("vyomo", "wallet.opened", wallet, after_s=2)

    def _kyc(self, _: object) -> None:
        self._tell("bfc", "kyc.completed", {"level": "full"})

    def _credit_approved(self, _: object) -> None:
        limit = {"product": "credit card", "amount": text(self.salary * 2), "currency": "INR"}
        self._tell("bfc", "credit.approved", limit)

    def _salary(self, _: object) -> None:
        self._post("credit", self.salary, "salary", self._employer, f"Salary {self._day:%b %Y}")

    def _spend(self, what: tuple[str, str, str, int]) -> bool:
        category, payee, memo, paise = what
        if not 0 < paise <= self.savings - _KEEP:
            return False
        self._post("debit", paise, category, payee, memo)
        return True

    def _one_off(self, what: tuple[str, tuple[str, str, str, int]]) -> None:
        month, entry = what
        if self._spend(entry):
            self.labels.append(Label(self.who.bfc_customer_id, "spending_anomaly", month, entry[0]))

    def _interest(self, _: object) -> None:
        paise = self.savings * 3 // 400
        self._post("credit", paise, "interest", "BFC", "Savings interest at 3.00% a year")

    def _loan_data(self) -> dict[str, Any]:
        return {
            "loan_id": f"LN-{1000 + self.who.number}",
            "kind": self._loan_kind,
            "principal": text(self._principal),
            "outstanding": text(self.loan),
            "emi": text(self._emi),
            "currency": "INR",
            "rate_percent": "8.75",
        }

    def _loan_opened(self, _: object) -> None:
        self._tell("bfc", "loan.opened", self._loan_data())

    def _pay_emi(self, _: object) -> None:
        interest = self.loan * 875 // 120_000
        paise = min(self._emi, self.loan + interest)
        if not self._spend(("emi", "BFC Loans", f"EMI {self._day:%b %Y}", paise)):
            return
        self.loan += interest - paise
        self._tell("bfc", "loan.changed", self._loan_data(), after_s=1)

    def _sip(self, sip: tuple[Scheme, int]) -> None:
        scheme, paise = sip
        if not self._spend(("investment", scheme.name, "SIP", paise)):
            return
        nav = self._market.nav(scheme, self._day)
        # paise / 100 / (nav / 10⁴) units, kept in ten-thousandths, as registrars truncate them
        self.units[scheme.code] = self.units.get(scheme.code, 0) + paise * 1_000_000 // nav
        self._cost[scheme.code] = self._cost.get(scheme.code, 0) + paise
        self._state_fund(scheme, after_s=1)

    def _state_fund(self, scheme: Scheme, after_s: int) -> None:
        fund = {
            "scheme_code": scheme.code,
            "scheme_name": scheme.name,
            "units": units_text(self.units[scheme.code]),
            "nav": units_text(self._market.nav(scheme, self._day)),
            "cost": text(self._cost[scheme.code]),
            "currency": "INR",
            "as_of": self._day.isoformat(),
        }
        self._tell("bfc", "fund.changed", fund, after_s)

    def _state_funds(self, _: object) -> None:
        for number, (scheme, _sip) in enumerate(self._sips):
            if scheme.code in self.units:
                self._state_fund(scheme, number)

    def fund_value(self, day: date) -> int:
        """What the funds are worth in paise, each scheme rounded half up."""
        return sum(
            half_up(self.units[scheme.code] * self._market.nav(scheme, day), 1_000_000)
            for scheme, _ in self._sips
            if scheme.code in self.units
        )

    def _open_deposit(self, _: object) -> None:
        principal = min((self.savings - 2 * self.salary) // 3, 5_00_000_00) // 10_000_00 * 10_000_00
        if principal < 20_000_00:
            return
        self._deposits_opened += 1
        deposit_id = f"FD-{1000 + self.who.number}-{self._deposits_opened}"
        rate, months = self._chance.choice(((650, 3), (680, 6), (710, 12)))
        matures = self._day + timedelta(days=int(30.44 * months))
        self.savings -= principal
        self.deposits[deposit_id] = (principal, rate, matures)
        deposit = {
            "deposit_id": deposit_id,
            "account_id": self.who.savings_account_id,
            "principal": text(principal),
            "currency": "INR",
            "rate_percent": text(rate),
            "opened_on": self._day.isoformat(),
            "matures_on": matures.isoformat(),
        }
        self._tell("bfc", "fixed_deposit.opened", deposit)

    def _mature(self, deposit_id: str) -> None:
        principal, rate, _ = self.deposits.pop(deposit_id)
        days = {3: 91, 6: 182, 12: 365}[{650: 3, 680: 6, 710: 12}[rate]]
        payout = principal + half_up(principal * rate * days, 365 * 10_000)
        self.savings += payout
        matured = {"deposit_id": deposit_id, "account_id": self.who.savings_account_id}
        self._tell("bfc", "fixed_deposit.matured", matured | {"payout": text(payout), "currency": "INR"})

    def _profile_conflict(self, _: object) -> None:
        """Both platforms change the phone from the same version, and one of them more."""
        phones = [f"+9198{self._chance.randrange(10**8):08d}" for _ in range(2)]
        changed_at = self._now.isoformat().replace("+00:00", "Z")
        version = self._profile_version
        change = {"base_version": version, "changed_at": changed_at}
        self._tell("bfc", "profile.changed", change | {"fields": {"phone": phones[0]}})
        fields = {"phone": phones[1], "address": f"{self.who.number} MG Road, Bengaluru"}
        self._tell("vyomo", "profile.changed", change | {"fields": fields}, after_s=5)
        self._profile_version += 2

    # ---- the broker ----

    def _move_wallet(self, direction: str, paise: int, reason: str, reference: str, after_s: int = 0) -> None:
        self.wallet += paise if direction == "credit" else -paise
        movement = {
            "movement_id": f"W{self.who.number}-{self._last['vyomo'] + 1}",
            "wallet_id": self.who.wallet_id,
            "direction": direction,
            "amount": text(paise),
            "currency": "INR",
            "reason": reason,
            "reference": reference,
        }
        self._tell("vyomo", "wallet.posted", movement, after_s)

    def _fund_wallet(self, _: object) -> None:
        paise = min(self.salary // 4, (self.savings - 2 * self.salary) // 2) // 1_000_00 * 1_000_00
        if self.wallet > self.salary or paise <= 0:
            return
        reference = f"PAYIN{self.who.number}{self._last['vyomo'] + 1:06d}"
        self._post("debit", paise, "transfer", "Vyomo", "To trading wallet", reference)
        self._move_wallet("credit", paise, "payin", reference, after_s=20)

    def _payout(self, _: object) -> None:
        paise = self.wallet // 4 // 1_000_00 * 1_000_00
        if paise <= 0:
            return
        reference = f"PAYOUT{self.who.number}{self._last['vyomo'] + 1:06d}"
        self._move_wallet("debit", paise, "payout", reference)
        self._now += timedelta(seconds=20)
        self._post("credit", paise, "transfer", "Vyomo", "From trading wallet", reference)

    def _charges(self, _: object) -> None:
        paise = self._chance.randrange(11_00, 59_00)
        if self.wallet >= paise:
            self._move_wallet("debit", paise, "charges", "Account maintenance and GST")

    def _trade_share(self, _: object) -> None:
        held = [symbol for symbol, holding in self.holdings.items() if holding.contract.instrument == "equity"]
        if held and self._chance.random() < 0.3:
            symbol = self._chance.choice(held)
            holding = self.holdings[symbol]
            self._trade(holding.contract, -max(holding.quantity // 2, 1))
            return
        contract = share(self._chance.choice(tuple(EQUITIES)))
        budget = min(int(self.wallet * 0.3), 60_000_00)
        quantity = budget // self._market.price(contract, self._day)
        if quantity > 0:
            self._trade(contract, quantity)

    def _buy_option(self, what: tuple[str, str]) -> None:
        contract = self._market.call_or_put(what[0], self._day, what[1])
        lot = LOTS[what[0]]
        if contract.symbol not in self.holdings and self._market.price(contract, self._day) * lot < self.wallet // 2:
            self._trade(contract, lot)

    def _buy_future(self, underlying: str) -> None:
        contract = self._market.future(underlying, self._day)
        if contract.symbol not in self.holdings and self.wallet > 1_20_000_00:
            self._trade(contract, LOTS[underlying])

    def _close_derivatives(self, _: object) -> None:
        held = [holding for holding in self.holdings.values() if holding.contract.instrument != "equity"]
        for holding in held:
            self._trade(holding.contract, -holding.quantity)
            self._now += timedelta(seconds=2)

    def _trade(self, contract: Contract, quantity: int) -> None:
        """A buy (positive) or a sale of what is held, and the position after it."""
        price = self._market.price(contract, self._day)
        holding = self.holdings.get(contract.symbol)
        if holding is None:
            position_id = f"P{self.who.number}-{contract.symbol}"
            holding = self.holdings[contract.symbol] = Holding(contract, position_id)
        realized: int | None = None
        if quantity > 0:
            cost = holding.quantity * holding.average + quantity * price
            holding.average = half_up(cost, holding.quantity + quantity)
        else:
            realized = (price - holding.average) * -quantity
            self.realized += realized
        holding.quantity += quantity
        holding.mark = price
        charges = 20_00 + abs(quantity) * price // 4000 if contract.instrument != "future" else 64_00
        self.wallet -= charges
        self.wallet += (realized or 0) if contract.instrument == "future" else -quantity * price
        trade = {
            "trade_id": f"TR{self.who.number}-{self._last['vyomo'] + 1}",
            "wallet_id": self.who.wallet_id,
            "symbol": contract.symbol,
            "underlying": contract.underlying,
            "instrument": contract.instrument,
            "side": "buy" if quantity > 0 else "sell",
            "quantity": abs(quantity),
            "price": text(price),
            "charges": text(charges),
            "currency": "INR",
        }
        if realized is not None:
            trade["realized_pnl"] = text(realized)
        self._tell("vyomo", "trade.executed", trade)
        self._state_position(holding, after_s=1)
        if holding.quantity == 0:
            del self.holdings[contract.symbol]

    def _state_position(self, holding: Holding, after_s: int) -> None:
        contract = holding.contract
        position = {
            "position_id": holding.position_id,
            "symbol": contract.symbol,
            "underlying": contract.underlying,
            "instrument": contract.instrument,
            "quantity": holding.quantity,
            "average_price": text(holding.average),
            "mark_price": text(holding.mark),
            "unrealized_pnl": text((holding.mark - holding.average) * holding.quantity),
            "currency": "INR",
        }
        self._tell("vyomo", "position.changed", position, after_s)

    def _mark(self, _: object) -> None:
        """The closing prices of what is held; a warning where a derivative has lost a third."""
        for number, holding in enumerate(self.holdings.values()):
            holding.mark = self._market.price(holding.contract, self._day)
            self._state_position(holding, after_s=min(2 * number, 58))
            if holding.contract.instrument == "option" and holding.mark * 3 < holding.average * 2:
                alert = {
                    "alert_id": f"RA{self.who.number}-{self._last['vyomo'] + 1}",
                    "severity": "warning",
                    "message": f"{holding.contract.symbol} has lost a third of what was paid for it.",
                }
                self._tell("vyomo", "risk.alerted", alert, after_s=min(2 * number + 1, 59))
