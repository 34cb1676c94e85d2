"""What an event says about one item of a customer's wealth, and which day's row that changes. Pure.

An item is an account (its lines are changes of its balance) or something whose whole value is stated: a loan,
a fund, a position. Lines become rows of one day, in the customer's calendar (IST): the value at its end, and
what of its change came from outside of the item's category (`performance.py` says what that means).
"""

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
_TIME_OF: dict[type[Event], str | None] = {}
TRADED_CLASSES = frozenset({"option", "future", "equity"})
VALUE_MAX_MINOR = 10**15
"""More than ten trillion rupees is a mistake; sums of values stay within 64 bits."""


class Line(NamedTuple):
    """A change of an account's balance."""

    at: datetime
    position: int
    part: int
    event_id: UUID
    type: str
    nature: str
    amount_minor: int
    paid_out_minor: int = 0
    """Of a deposit that matured: what its owner's account received."""


class Statement(NamedTuple):
    """The whole value of a loan, fund or position, as its platform stated it."""

    at: datetime
    position: int
    event_id: UUID
    type: str
    value_minor: int
    quantity: str
    """Of a position or a fund (units), a decimal; 0 of a loan."""
    price: str
    """Mark price (paise), NAV (rupees), or a loan's EMI (paise); a decimal."""
    cost: int
    """Average price, a fund's cost, or a loan's principal; paise."""


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


def occurred_at(event: RecordedEvent, payload: Event) -> datetime:
    """When it happened, as far as the event says; else when it was recorded."""
    struct = type(payload)
    if struct not in _TIME_OF:
        _TIME_OF[struct] = next((name for name in _TIMES if name in struct.__struct_fields__), None)
    name = _TIME_OF[struct]
    moment: datetime | None = getattr(payload, name) if name is not None else None
    return moment or event.recorded_at


def opened_account(payload: ledger.AccountOpened) -> Item:
    return Item(account_item(payload.account_id), payload.kind, payload.currency, payload.platform_account_id, "")


def money_lines(event: RecordedEvent, payload: Any) -> list[tuple[str, Line]]:
    """The changes that a ledger event makes to the customer's own accounts, each with its item."""
    struct = type(payload)  # isinstance is slow for structs: their metaclass is an ABCMeta
    if struct is ledger.AccountPosted:
        nature = "fixed_deposit" if payload.type == "fixed_deposit" else payload.category
    else:
        nature = "opening" if struct is ledger.AccountOpened else "own_transfer"
    position, event_id, event_type = event.position, event.event_id, event.type
    at = occurred_at(event, payload)
    # A leg without a balance is on a clearing or opening account: not the customer's.
    own = [leg for leg in payload.legs if leg.balance_after_minor is not None]
    received = sum(leg.amount_minor for leg in own if leg.amount_minor > 0) if nature == "fixed_deposit" else 0
    lines = []
    for part, leg in enumerate(own):
        amount = leg.amount_minor
        paid_out = received if amount < 0 else 0
        lines.append(
            (f"account:{leg.account_id}", Line(at, position, part, event_id, event_type, nature, amount, paid_out))
        )
    return lines


STATEMENTS: frozenset[type[Event]] = frozenset(
    (banking.LoanOpened, banking.LoanChanged, banking.FundChanged, trading.PositionChanged)
)
"""What states the whole value of an item."""


def stated_item(payload: Any) -> str:
    """The item whose value one of `STATEMENTS` states."""
    struct = type(payload)
    if struct is trading.PositionChanged:
        return f"position:{payload.position_id}"
    if struct is banking.FundChanged:
        return f"fund:{payload.scheme_code}"
    return f"loan:{payload.loan_id}"


def described(item: str, payload: Any) -> Item:
    """What a statement says of `item` besides its value."""
    struct = type(payload)
    if struct is trading.PositionChanged:
        return Item(item, payload.instrument, payload.currency, payload.symbol, payload.underlying)
    if struct is banking.FundChanged:
        return Item(item, "fund", payload.currency, payload.scheme_name, payload.scheme_code)
    return Item(item, "loan", payload.currency, payload.loan_id, "")


def statement(event: RecordedEvent, payload: Any) -> Statement:
    """What the platform stated.

    Raises:
        ValueError: units or NAV are no finite number, or the value is beyond what any customer holds.
    """
    struct = type(payload)
    if struct is trading.PositionChanged:
        quantity, price, cost = str(payload.quantity), str(payload.mark_price_minor), payload.average_price_minor
        if not payload.quantity:
            value = 0  # closed: what it came to is in the wallet, whatever else is said of it
        elif payload.instrument == "future":
            # Never paid for: its notional value is not the customer's, only the profit or loss it would settle.
            value = payload.unrealized_pnl_minor
        else:
            value = payload.quantity * payload.mark_price_minor
    elif struct is banking.FundChanged:
        quantity, price, cost = payload.units, payload.nav, payload.cost_minor
        value = units_value_minor(_finite(quantity), _finite(price))
    else:
        quantity, price, cost = "0", str(payload.emi_minor), payload.principal_minor
        value = -payload.outstanding_minor
    if not -VALUE_MAX_MINOR <= value <= VALUE_MAX_MINOR:
        raise ValueError(f"{event.type} states a value beyond ±{VALUE_MAX_MINOR} paise")
    return Statement(payload.occurred_at, event.position, event.event_id, event.type, value, quantity, price, cost)


def units_value_minor(units: Decimal, nav: Decimal) -> int:
    """Units × NAV, rounded half up to the paisa per scheme, so that schemes sum to their class.

    Half up is how Indian fund houses state the value of a folio.

    Raises:
        ValueError: the value is beyond what any customer holds.
    """
    exact = units * nav * 100
    if abs(exact) > VALUE_MAX_MINOR:
        raise ValueError(f"units × NAV is beyond ±{VALUE_MAX_MINOR} paise")
    return int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))


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


def stated_flow(asset_class: str, before: Statement | None, now: Statement, traded: bool) -> int:
    """What of the change from one statement to the next came from outside of the item's category.

    `traded`: a trade of that symbol was reported before the first statement, so its wallet paid for it.
    """
    if before is None:
        # What comes to us with a value has earned nothing here yet.
        return 0 if asset_class in TRADED_CLASSES and traded else now.value_minor
    if asset_class == "fund":
        more = Decimal(now.quantity) - Decimal(before.quantity)
        paid = now.cost - before.cost
        if more > 0 and paid > 0:
            return paid
        return units_value_minor(more, Decimal(now.price)) if more else 0
    if asset_class == "loan":
        return -max(now.cost - before.cost, 0)
    return 0


def start_of_day(at: datetime) -> datetime:
    """Midnight (IST) of the day that `at` is in."""
    if at.year == 1:
        return at
    local = at + IST
    return at - timedelta(hours=local.hour, minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _finite(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"not a number of units or a NAV: {text!r}")
    return value
