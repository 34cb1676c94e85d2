"""A batch of events as rows of the read model, given the items as the database has them. Pure.

The events of a batch are taken apart by customer and item first; then each item is folded in one go. What a batch
changes of days that were over before is not folded here, only named: those rows are in the database.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from events.contracts import banking, ledger, trading
from events.envelope import RecordedEvent

from wealth.ledger_lines import (
    MONEY_TYPES,
    STATEMENTS,
    TRADED_CLASSES,
    Item,
    Line,
    Statement,
    account_flow,
    described,
    local_day,
    money_lines,
    opened_account,
    stated_flow,
    stated_item,
    statement,
)
from wealth.networth import CURRENCY

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""Since when an item is stated again that a trade before its first statement concerns."""
_SPENDING_CLASSES = frozenset({"savings", "current"})
_NOT_SPENDING = frozenset({"opening", "own_transfer", "fixed_deposit"})


class Touched:
    """An item that a batch touches: as the database has it, until it is folded."""

    __slots__ = (
        "item", "last_day", "late_since", "latest", "lines", "name", "statements", "stored", "traded", "value_minor",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.item: Item | None = None
        """What the batch says of it, replaced by what the database knows."""
        self.stored = False
        self.value_minor = 0
        self.last_day: date | None = None
        self.latest: Statement | None = None
        """The newest statement."""
        self.traded = False
        """A trade bought it, before it was stated first."""
        self.lines: list[Line] = []
        self.statements: list[Statement] = []
        self.late_since: datetime | None = None
        """From when on its days must be computed again from the facts."""

    def stated_in(self, currency: str) -> None:
        """Raises:
        ValueError: it was stated in another one too; amounts of both are no sum.
        """
        if self.item is not None and self.item.currency != currency:
            raise ValueError(f"a {self.name.split(':')[0]} is stated in {currency} and in {self.item.currency}")


class Customer:
    """What a batch says of one customer."""

    __slots__ = ("cashflow", "deposits", "items", "position", "trades", "user_id")

    def __init__(self, user_id: UUID) -> None:
        self.user_id = user_id
        self.position = 0
        """Of the last event that concerns them."""
        self.items: dict[str, Touched] = {}
        self.trades: list[tuple[RecordedEvent, trading.TradeExecuted]] = []
        self.deposits: list[banking.FixedDepositOpened] = []
        self.cashflow: dict[tuple[date, str], list[int]] = {}

    def touch(self, name: str) -> Touched:
        touched = self.items.get(name)
        if touched is None:
            touched = self.items[name] = Touched(name)
        return touched

    def first_trades(self) -> dict[str, datetime]:
        """When each symbol was traded first, of what the batch says."""
        first: dict[str, datetime] = {}
        for _, trade in self.trades:
            at = first.get(trade.symbol)
            if at is None or trade.occurred_at < at:
                first[trade.symbol] = trade.occurred_at
        return first


class DayRow(NamedTuple):
    user_id: UUID
    item: str
    day: date
    value_minor: int
    flow_minor: int
    emi_minor: int


class Rows:
    """The rows that a batch adds or changes, in the order of their tables' columns."""

    __slots__ = ("facts", "last_days", "late", "new_days")

    def __init__(self) -> None:
        self.facts: list[tuple[object, ...]] = []
        self.new_days: list[DayRow] = []
        """After every day that the item has."""
        self.last_days: list[DayRow] = []
        """Of the item's last day: a new value, and what is added to its flows."""
        self.late: list[DayRow] = []
        """Postings of days that were over: a change of the value of that day and of the later ones."""


def read(
    events: Sequence[RecordedEvent],
    owners: Mapping[str, UUID],
    items: Iterable[tuple[UUID, RecordedEvent]],
    gone: Collection[UUID],
) -> list[Customer]:
    """What the events say, by customer and item.

    Args:
        owners: by the ledger's streams among the events.
        items: of the platforms, with whom they belong to.
        gone: who was erased; nothing is kept of them.

    Raises:
        ValueError: a value that is no customer's.
    """
    customers = {user_id: Customer(user_id) for user_id in owners.values()}
    by_stream = {stream: customers[user_id] for stream, user_id in owners.items() if user_id not in gone}
    for event in events:
        customer = by_stream.get(event.stream)
        if customer is None or event.type not in MONEY_TYPES:
            continue
        payload: Any = event.payload
        if type(payload) is ledger.AccountOpened:
            opened = opened_account(payload)
            touched = customer.touch(opened.item)
            touched.item = opened
            if not payload.legs:  # with nothing in it, but there
                touched.lines.append(
                    Line(payload.occurred_at, event.position, 0, event.event_id, event.type, "opening", 0)
                )
        for name, line in money_lines(event, payload):
            customer.touch(name).lines.append(line)
        customer.position = event.position
    for user_id, event in items:
        if user_id in gone:
            continue
        customer = customers.get(user_id)
        if customer is None:
            customer = customers[user_id] = Customer(user_id)
        payload = event.payload
        struct = type(payload)
        if struct in STATEMENTS:
            touched = customer.touch(stated := stated_item(payload))
            if touched.item is None:
                touched.item = described(stated, payload)
            else:
                touched.stated_in(payload.currency)
            touched.statements.append(statement(event, payload))
        elif struct is trading.TradeExecuted:
            customer.trades.append((event, payload))
        elif struct is banking.FixedDepositOpened:
            customer.deposits.append(payload)
        else:
            continue
        customer.position = max(customer.position, event.position)
    return [customer for customer in customers.values() if customer.position]


def fold(customers: Iterable[Customer]) -> Rows:
    """The rows that the batch gives; moves the touched items on to what they are after it."""
    rows = Rows()
    for customer in customers:
        for touched in customer.items.values():
            if touched.lines:
                _fold_lines(customer, touched, rows)
            if touched.statements:
                _fold_statements(customer.user_id, touched, rows)
    return rows


def _fold_lines(customer: Customer, touched: Touched, rows: Rows) -> None:
    assert touched.item is not None
    user_id, name, asset_class = customer.user_id, touched.name, touched.item.asset_class
    is_spending = asset_class in _SPENDING_CLASSES and touched.item.currency == CURRENCY
    stored_day = last_day = touched.last_day
    value, late = touched.value_minor, 0
    day_flow = day_emi = 0
    begun = False

    def close() -> None:
        assert last_day is not None
        target = rows.last_days if last_day == stored_day else rows.new_days
        target.append(DayRow(user_id, name, last_day, value, day_flow, day_emi))

    for line in touched.lines:
        at, position, part, event_id, event_type, nature, amount, _ = line
        flow, emi = account_flow(asset_class, line)
        rows.facts.append(
            (user_id, name, at, position, part, event_id, event_type, nature, amount, flow, None, None, None)
        )
        day = local_day(at)
        if last_day is not None and day < last_day:
            rows.late.append(DayRow(user_id, name, day, amount, flow, emi))
            late += amount
        else:
            if begun and day != last_day:
                close()
                day_flow = day_emi = 0
            last_day, begun = day, True
            value += amount
            day_flow += flow
            day_emi += emi
        if is_spending and nature not in _NOT_SPENDING:
            month = day.replace(day=1)
            sums = customer.cashflow.get((month, nature))
            if sums is None:
                sums = customer.cashflow[month, nature] = [0, 0]
            sums[0 if amount > 0 else 1] += abs(amount)
    if begun:
        close()
    touched.value_minor, touched.last_day = value + late, last_day


def _fold_statements(user_id: UUID, touched: Touched, rows: Rows) -> None:
    assert touched.item is not None
    ordered = in_order(touched.statements)
    rows.facts += [
        (user_id, touched.name, at, position, 0, event_id, event_type, "stated", value, 0, quantity, price, cost)
        for at, position, event_id, event_type, value, quantity, price, cost in ordered
    ]
    latest, first, last = touched.latest, ordered[0], ordered[-1]
    if latest is not None and (first.at, first.position) < (latest.at, latest.position):
        touched.late_since = first.at if touched.late_since is None else min(first.at, touched.late_since)
    else:
        for day, value, flow in statement_days(touched.item.asset_class, latest, ordered, touched.traded):
            target = rows.last_days if day == touched.last_day else rows.new_days
            target.append(DayRow(user_id, touched.name, day, value, flow, 0))
    if latest is None or (last.at, last.position) >= (latest.at, latest.position):
        touched.latest, touched.value_minor, touched.last_day = last, last.value_minor, local_day(last.at)


def statement_days(
    asset_class: str, before: Statement | None, ordered: Sequence[Statement], traded: bool
) -> Iterator[tuple[date, int, int]]:
    """Day, value and flow of the days on which an item was stated. `ordered` by time follow `before`."""
    day, flow = None, 0
    for now in ordered:
        its_day = local_day(now.at)
        if day is not None and its_day != day:
            assert before is not None
            yield day, before.value_minor, flow
            flow = 0
        day = its_day
        flow += stated_flow(asset_class, before, now, traded)
        before = now
    if day is not None:
        assert before is not None
        yield day, before.value_minor, flow


def in_order(statements: Sequence[Statement]) -> list[Statement]:
    """By time; of statements for one time, the one that came last counts."""
    return sorted(statements, key=lambda one: (one.at, one.position)) if len(statements) > 1 else list(statements)


def traded_before(customer: Customer) -> list[Touched]:
    """The customer's new positions: marks those that a trade of the batch bought, and gives the others."""
    left = []
    first: dict[str, datetime] | None = None
    for touched in customer.items.values():
        if touched.stored or touched.item is None or touched.item.asset_class not in TRADED_CLASSES:
            continue
        if first is None:
            first = customer.first_trades()
        traded_at = first.get(touched.item.label)
        if traded_at is not None and traded_at <= min(one.at for one in touched.statements):
            touched.traded = True
        else:
            left.append(touched)
    return left
