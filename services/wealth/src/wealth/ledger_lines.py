"""What an event says about one item of a customer's wealth, and which day's row that changes. Pure.

An item is an account (its lines are changes of its balance) or something whose whole value is stated: a loan,
a fund, a position. Lines become rows of one day, in the customer's calendar (IST): the value at its end, and
what of its change came from outside of the item's category (`performance.py` says what that means).
"""

from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple
from uuid import UUID

from events.contracts import banking, ledger, trading
from events.contracts.registry import Event, registered
from events.envelope import RecordedEvent

IST = timedelta(hours=5, minutes=30)
EPOCH_DAY = date(1970, 1, 1)

MONEY_TYPES = frozenset(
    contract.type
    for contract in registered()
    if contract.type.startswith("ledger.") and "legs" in contract.struct.__struct_fields__
)
"""Every event of the ledger that moves money."""
_TIMES = ("occurred_at", "completed_at", "captured_at", "reversed_at")


class Line(NamedTuple):
    """A change of an account's balance, or (`stated`) the whole value of a loan, fund or position."""

    item: str
    at: datetime
    position: int
    part: int
    event_id: UUID
    type: str
    nature: str
    amount_minor: int
    stated: bool
    quantity: Decimal = Decimal(0)
    """Of a position or a fund (units)."""
    price: Decimal = Decimal(0)
    """Mark price (paise), NAV (rupees), or a loan's EMI (paise)."""
    cost: Decimal = Decimal(0)
    """Average price (paise), a fund's cost (paise), or a loan's principal (paise)."""
    paid_out_minor: int = 0
    """Of a deposit that matured: what its owner's account received."""

    @property
    def day(self) -> date:
        return local_day(self.at)


class Item(NamedTuple):
    """What is known of an item besides its lines."""

    item: str
    asset_class: str
    currency: str
    label: str
    """The platform's account id, loan id, scheme name or symbol."""
    underlying: str
    """What its price depends on: the underlying of a position, the scheme code of a fund; else empty."""


def local_day(at: datetime) -> date:
    """The day in the customer's calendar (IST)."""
    return (at + IST).date()


def account_item(account_id: object) -> str:
    return f"account:{account_id}"


def occurred_at(event: RecordedEvent) -> datetime:
    """When it happened, as far as the event says; else when it was recorded."""
    payload = event.payload
    for name in _TIMES:
        moment = getattr(payload, name, None)
        if moment is not None:
            assert isinstance(moment, datetime)
            return moment
    return event.recorded_at


def opened_account(payload: ledger.AccountOpened) -> Item:
    return Item(account_item(payload.account_id), payload.kind, payload.currency, payload.platform_account_id, "")


def money_lines(event: RecordedEvent) -> list[Line]:
    """The lines of a ledger event on the customer's own accounts."""
    payload: Any = event.payload
    match payload:
        case ledger.AccountOpened():
            nature = "opening"
        case ledger.AccountPosted():
            nature = "fixed_deposit" if payload.type == "fixed_deposit" else payload.category
        case _:
            nature = "own_transfer"
    at = occurred_at(event)
    # A leg without a balance is on a clearing or opening account: not the customer's.
    own = [leg for leg in payload.legs if leg.balance_after_minor is not None]
    received = sum(leg.amount_minor for leg in own if leg.amount_minor > 0)
    return [
        Line(
            account_item(leg.account_id),
            at,
            event.position,
            part,
            event.event_id,
            event.type,
            nature,
            leg.amount_minor,
            False,
            paid_out_minor=received if nature == "fixed_deposit" and leg.amount_minor < 0 else 0,
        )
        for part, leg in enumerate(own)
    ]


def stated_item(payload: Event) -> Item | None:
    """The item whose value a platform states; None for every other item of a feed."""
    match payload:
        case banking.LoanOpened() | banking.LoanChanged():
            return Item(f"loan:{payload.loan_id}", "loan", payload.currency, payload.loan_id, "")
        case banking.FundChanged():
            name = f"fund:{payload.scheme_code}"
            return Item(name, "fund", payload.currency, payload.scheme_name, payload.scheme_code)
        case trading.PositionChanged():
            name = f"position:{payload.position_id}"
            return Item(name, payload.instrument, payload.currency, payload.symbol, payload.underlying)
    return None


def statement(event: RecordedEvent, item: Item) -> Line:
    """The line of a statement about `item`.

    Raises:
        ValueError: units or NAV are no finite number.
    """
    payload = event.payload
    quantity = Decimal(0)
    match payload:
        case banking.LoanOpened() | banking.LoanChanged():
            value = -payload.outstanding_minor
            price, cost = Decimal(payload.emi_minor), Decimal(payload.principal_minor)
        case banking.FundChanged():
            quantity, price, cost = _finite(payload.units), _finite(payload.nav), Decimal(payload.cost_minor)
            value = units_value_minor(quantity, price)
        case trading.PositionChanged():
            quantity = Decimal(payload.quantity)
            price, cost = Decimal(payload.mark_price_minor), Decimal(payload.average_price_minor)
            # An option or share is worth quantity × mark. A future was never paid for: its notional value is
            # not the customer's, only the profit or loss it would settle.
            is_future = payload.instrument == "future"
            value = payload.unrealized_pnl_minor if is_future else payload.quantity * payload.mark_price_minor
        case _:
            raise TypeError(f"{event.type} states no value")
    return Line(
        item.item,
        occurred_at(event),
        event.position,
        0,
        event.event_id,
        event.type,
        "stated",
        value,
        True,
        quantity,
        price,
        cost,
    )


def units_value_minor(units: Decimal, nav: Decimal) -> int:
    """Units × NAV, rounded half up to the paisa per scheme, so that schemes sum to their class.

    Half up is how Indian fund houses state the value of a folio.
    """
    return int((units * nav * 100).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def account_flow(asset_class: str, line: Line) -> tuple[int, int]:
    """What of a change of an account's balance came from outside of its category, and what of that is an EMI."""
    amount = line.amount_minor
    if asset_class == "fixed_deposit":
        return (-line.paid_out_minor if line.paid_out_minor else amount), 0
    if asset_class == "trading_wallet":
        return (0 if line.nature in ("trade", "charges", "interest") else amount), 0
    if line.nature in ("interest", "charges"):
        return 0, 0
    return amount, amount if line.nature == "emi" and amount < 0 else 0


def stated_flow(asset_class: str, before: Line | None, now: Line, traded: bool) -> int:
    """What of the change from one statement to the next came from outside of the item's category.

    `traded`: a trade of that symbol was reported before the first statement, so its wallet paid for it.
    """
    if before is None:
        # What comes to us with a value has earned nothing here yet.
        return 0 if asset_class in ("option", "future", "equity") and traded else now.amount_minor
    if asset_class == "fund":
        more = now.quantity - before.quantity
        paid = int(now.cost - before.cost)
        if more > 0 and paid > 0:
            return paid
        return units_value_minor(more, now.price) if more else 0
    if asset_class == "loan":
        return -max(int(now.cost - before.cost), 0)
    return 0


class DayChange:
    """A day's row of an item while it is being computed."""

    __slots__ = ("emi_minor", "flow_minor", "value_minor")

    def __init__(self, value_minor: int) -> None:
        self.value_minor = value_minor
        self.flow_minor = 0
        self.emi_minor = 0


def fold_statements(
    asset_class: str, before: Line | None, lines: Iterable[Line], traded: bool
) -> dict[date, DayChange]:
    """The rows of the days on which an item was stated. `lines` in order of time follow `before`."""
    rows: dict[date, DayChange] = {}
    for line in lines:
        row = rows.get(line.day)
        if row is None:
            row = rows[line.day] = DayChange(0)
        row.value_minor = line.amount_minor
        row.flow_minor += stated_flow(asset_class, before, line, traded)
        before = line
    return rows


def in_order(lines: Sequence[Line]) -> list[Line]:
    """By time; of statements for one time, the one that came last counts."""
    return sorted(lines, key=lambda line: (line.at, line.position))


def _finite(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"not a number of units or a NAV: {text!r}")
    return value
