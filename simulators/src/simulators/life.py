"""Years of life of many customers on both platforms, as the items their platforms report.

    python -m simulators.life --customers 100 --months 12 --seed 7 --truth truth.json > items.jsonl

Pure: the same seed, number of customers, start and months give the same items, to the byte; a longer life
begins with the shorter one. Each line of the command's output is an item of the feed (`platforms.md`) with
the `platform` it comes from. `Life.truth` tells what must come of it: the balance of each account, to the paisa.
"""

import argparse
import sys
from calendar import monthrange
from collections.abc import Iterator
from datetime import date, timedelta
from operator import attrgetter

import msgspec

from simulators.market import Market
from simulators.person import Label, Person
from simulators.scenario import Item, customer

FIRST_CUSTOMER = 100_001
"""Customers of this scenario are numbered from here on: no other scenario uses their ids."""


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer has after the last item, in paise. What is not there is 0."""

    bfc_customer_id: str
    vyomo_client_id: str
    balances: dict[str, int]
    """By the platform's account id: savings, current, open fixed deposits (at their principal), wallet."""
    funds: int
    """Units × NAV of each scheme, rounded half up."""
    positions: int
    """Options and shares at quantity × mark, futures at their unrealised profit or loss."""
    loans: int
    realized_pnl: int
    net_worth: int


class Life:
    """A scenario that can be walked through once. Its months begin on the first of `start`'s month."""

    def __init__(self, seed: int, customers: int, start: date, months: int) -> None:
        if customers < 1 or months < 1:
            raise ValueError("a life has at least one customer and one month")
        self._start = start.replace(day=1)
        self._months = months
        self._market = Market(seed, self._start)
        self._day = self._start
        self.people = [Person(customer(FIRST_CUSTOMER + number), seed, self._market) for number in range(customers)]

    def items(self) -> Iterator[Item]:
        """Every item, in order of time."""
        first = self._start
        for number in range(self._months):
            days = monthrange(first.year, first.month)[1]
            month: list[Item] = []
            for person in self.people:
                month += person.live_month(first, days, number)
            # A stable sort: of one customer's items at one time, the sequence decides.
            month.sort(key=attrgetter("occurred_at"))
            self._day = first + timedelta(days=days - 1)
            yield from month
            first += timedelta(days=days)

    def truth(self) -> list[Truth]:
        """What everybody has after the items so far."""
        return [self._truth_of(person) for person in self.people]

    def labels(self) -> list[Label]:
        """What was done on purpose in the items so far."""
        return [label for person in self.people for label in person.labels]

    def _truth_of(self, person: Person) -> Truth:
        who = person.who
        balances = {who.savings_account_id: person.savings, who.wallet_id: person.wallet}
        if person.current is not None:
            balances[f"CA-{1000 + who.number}"] = person.current
        balances |= {deposit: principal for deposit, (principal, _, _) in person.deposits.items()}
        positions = sum(
            holding.quantity * (holding.mark - (holding.average if holding.contract.instrument == "future" else 0))
            for holding in person.holdings.values()
        )
        funds = person.fund_value(self._day)
        return Truth(
            bfc_customer_id=who.bfc_customer_id,
            vyomo_client_id=who.vyomo_client_id,
            balances=balances,
            funds=funds,
            positions=positions,
            loans=person.loan,
            realized_pnl=person.realized,
            net_worth=sum(balances.values()) + funds + positions - person.loan,
        )


def generate(seed: int, customers: int, start: date, months: int) -> Iterator[Item]:
    """The items of `Life` in order of time."""
    return Life(seed, customers, start, months).items()


def main() -> None:
    """Writes the items to standard output, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Years of life of many customers, as feed items.")
    parser.add_argument("--customers", type=int, default=10)
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=date.fromisoformat, default=date(2025, 11, 1), help="YYYY-MM-DD")
    parser.add_argument("--truth", metavar="PATH", help="write the closing balances there, as JSON")
    arguments = parser.parse_args()
    life = Life(arguments.seed, arguments.customers, arguments.start, arguments.months)
    encode = msgspec.json.Encoder().encode
    for item in life.items():
        sys.stdout.buffer.write(encode({"platform": item.platform, **item.feed_json()}) + b"\n")
    if arguments.truth:
        labels = [label._asdict() for label in life.labels()]
        with open(arguments.truth, "wb") as file:
            file.write(msgspec.json.encode({"customers": life.truth(), "labels": labels}))


if __name__ == "__main__":
    main()
