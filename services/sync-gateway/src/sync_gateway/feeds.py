"""What a platform reports, translated: one raw feed item → one domain event, or the reason why not.

Pure: no clock, no I/O. `ITEM_TYPES` is the feed's vocabulary, in the words of the platforms; the contract
beside each type says what the same fact is called inside Sangam. Fields we do not know are ignored, so a
platform may add some before we use them; those we know are checked completely.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec
from chassis.money import parse_amount
from chassis.problems import Problem
from events.contracts import banking, trading
from events.contracts.registry import Event
from events.envelope import derived_id

Platform = Literal["bfc", "vyomo"]
PLATFORMS: Final[tuple[Platform, ...]] = ("bfc", "vyomo")

ITEM_BYTES_MAX = 16 * 1024
COUNT_MAX = 10**12
"""Bound of integers that are no money: quantities, versions, sequence numbers."""
PROFILE_FIELDS_MAX = 64
PROFILE_DEPTH_MAX = 4

_FEED_ITEMS: Final = UUID("8f1d7a52-5c33-5b0e-9a41-6f7e2f0c9d34")
"""Namespace of the ids of events that feed items become. Changing it would post every item again."""

_DEFAULT_CURRENCY = "INR"
_EARLIEST_YEAR, _LATEST_YEAR = 1970, 2100

_IDENTIFIER = re.compile(r"[^\x00-\x20\x7f](?:[^\x00-\x1f\x7f]{0,126}[^\x00-\x20\x7f])?")
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,6})?", re.ASCII)
_PROFILE_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


class Rejected(Exception):
    """The item will never be accepted as it is. `reason` is a stable code, a colon, and what is wrong."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.reason = str(self)


class Translated(NamedTuple):
    """An item that may be appended. The same item always gives the same event id and request hash."""

    item_id: str
    customer_id: str
    event: Event
    event_id: UUID
    request_hash: bytes

    @property
    def profile(self) -> bool:
        """Whether it reports a profile."""
        return isinstance(self.event, banking.ProfileReported | trading.ProfileReported)

    @property
    def personal(self) -> bool:
        """Whether it says something of a person that must be sealed."""
        return self.profile or hasattr(self.event, "sealed_texts")


Parser = Callable[[str, Any], Any]
"""Takes a field's name and JSON value; gives the contract's value or raises `Rejected`."""


class Amount(NamedTuple):
    """A money field: a decimal string in the item's `currency`; the contract calls it `<name>_minor`."""

    zero: bool = False
    signed: bool = False
    required: bool = True


class Optional(NamedTuple):
    """A field that may be absent or null."""

    parser: Parser


class ItemType(NamedTuple):
    """One row of the vocabulary: the contract to build, and its fields."""

    contract: Callable[..., Event]
    fields: Mapping[str, Parser | Amount | Optional]


def text(length_max: int) -> Parser:
    """Text a person wrote. NUL is the one character that cannot be stored."""

    def parse(name: str, value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= length_max or "\0" in value:
            raise Rejected("invalid_data", f"{name} must be text of 1 to {length_max} characters without NUL")
        return value

    return parse


def identifier(name: str, value: Any) -> str:
    """An id of the platform's: opaque, no control characters, no space at its ends."""
    if not isinstance(value, str) or _IDENTIFIER.fullmatch(value) is None:
        raise Rejected("invalid_data", f"{name} must be an id of 1 to 128 characters")
    return value


def one_of(*choices: str) -> Parser:
    """A word of a closed list."""

    def parse(name: str, value: Any) -> str:
        if value not in choices:
            raise Rejected("invalid_data", f"{name} must be one of {', '.join(choices)}")
        return str(value)

    return parse


def integer(least: int) -> Parser:
    """A whole number that is no money. JSON's `true` is not 1."""

    def parse(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= COUNT_MAX:
            raise Rejected("invalid_data", f"{name} must be an integer of at least {least}")
        return value

    return parse


def decimal(name: str, value: Any) -> str:
    """A rate, a number of units or a price per unit: kept as written, a JSON number as its decimal digits."""
    written = str(value) if type(value) in (int, float) else value
    if not isinstance(written, str) or _DECIMAL.fullmatch(written) is None:
        raise Rejected("invalid_data", f"{name} must be a plain decimal number, not negative, of at most 6 decimals")
    return written


def calendar_day(name: str, value: Any) -> date:
    """A date such as 2026-02-12."""
    try:
        return msgspec.convert(value, date)
    except msgspec.ValidationError:
        raise Rejected("invalid_data", f"{name} must be a date such as 2026-02-12") from None


def instant(name: str, value: Any) -> datetime:
    """An RFC 3339 time with its offset, as UTC. Years that can only be a mistake are refused."""
    try:
        moment: datetime = msgspec.convert(value, Annotated[datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        raise Rejected("invalid_data", f"{name} must be a time such as 2026-02-12T09:00:00Z") from None
    if not _EARLIEST_YEAR <= moment.year < _LATEST_YEAR:
        raise Rejected("invalid_data", f"{name} is not a plausible time")
    return moment.astimezone(UTC)


def profile_fields(name: str, value: Any) -> dict[str, Any]:
    """What changed in a profile: any JSON, bounded in width and depth, storable. null clears a field."""
    if not isinstance(value, dict) or not 0 < len(value) <= PROFILE_FIELDS_MAX:
        raise Rejected("invalid_data", f"{name} must be an object of 1 to {PROFILE_FIELDS_MAX} fields")
    for field, content in value.items():
        if _PROFILE_FIELD.fullmatch(field) is None:
            raise Rejected("invalid_data", f"{name} has a field whose name is not a plain word")
        if not _storable(content, PROFILE_DEPTH_MAX):
            raise Rejected("invalid_data", f"{name}.{field} holds a NUL, is nested too deeply or is out of range")
    return value


def _storable(value: Any, depth: int) -> bool:
    match value:
        case str():
            return "\0" not in value
        case bool() | None | float():
            return True
        case int():
            return abs(value) < 2**53
        case list():
            return depth > 0 and all(_storable(member, depth - 1) for member in value)
        case dict():
            return depth > 0 and all("\0" not in k and _storable(v, depth - 1) for k, v in value.items())
    return False


NAME = text(200)
MEMO = text(1000)
CATEGORY = one_of(
    "salary",
    "interest",
    "rent",
    "utilities",
    "groceries",
    "shopping",
    "transfer",
    "emi",
    "tax",
    "investment",
    "other",
)
CURRENCY = text(3)
DIRECTION = one_of("credit", "debit")
INSTRUMENT = one_of("option", "future", "equity")
_LOAN: Final[Mapping[str, Parser | Amount | Optional]] = {
    "loan_id": identifier,
    "kind": NAME,
    "principal": Amount(),
    "outstanding": Amount(zero=True),
    "emi": Amount(zero=True),
    "currency": CURRENCY,
    "rate_percent": decimal,
}
_PROFILE: Final[Mapping[str, Parser | Amount | Optional]] = {
    "base_version": integer(0),
    "changed_at": instant,
    "fields": profile_fields,
    "origin": Optional(NAME),
}

ITEM_TYPES: Final[Mapping[Platform, Mapping[str, ItemType]]] = {
    "bfc": {
        "account.opened": ItemType(
            banking.AccountOpened,
            {
                "account_id": identifier,
                "kind": one_of("savings", "current"),
                "currency": CURRENCY,
                # A current account may come to us overdrawn.
                "opening_balance": Amount(signed=True),
                "name": Optional(NAME),
            },
        ),
        "transaction.posted": ItemType(
            banking.TransactionPosted,
            {
                "transaction_id": identifier,
                "account_id": identifier,
                "direction": DIRECTION,
                "amount": Amount(),
                "currency": CURRENCY,
                "category": CATEGORY,
                "counterparty": Optional(NAME),
                "memo": Optional(MEMO),
                "reference": Optional(NAME),
            },
        ),
        "fixed_deposit.opened": ItemType(
            banking.FixedDepositOpened,
            {
                "deposit_id": identifier,
                "account_id": identifier,
                "principal": Amount(),
                "currency": CURRENCY,
                "rate_percent": decimal,
                "opened_on": calendar_day,
                "matures_on": calendar_day,
            },
        ),
        "fixed_deposit.matured": ItemType(
            banking.FixedDepositMatured,
            {
                "deposit_id": identifier,
                "account_id": identifier,
                "payout": Amount(),
                "currency": Optional(CURRENCY),
            },
        ),
        "loan.opened": ItemType(banking.LoanOpened, _LOAN),
        "loan.changed": ItemType(banking.LoanChanged, _LOAN),
        "fund.changed": ItemType(
            banking.FundChanged,
            {
                "scheme_code": identifier,
                "scheme_name": NAME,
                "units": decimal,
                "nav": decimal,
                "cost": Amount(zero=True),
                "currency": CURRENCY,
                "as_of": calendar_day,
            },
        ),
        "kyc.completed": ItemType(banking.KycCompleted, {"level": NAME}),
        "credit.approved": ItemType(
            banking.CreditApproved, {"product": NAME, "amount": Amount(), "currency": CURRENCY}
        ),
        "balance.stated": ItemType(
            banking.BalanceStated,
            {
                "account_id": identifier,
                "balance": Amount(zero=True, signed=True),
                "currency": CURRENCY,
                "as_of": instant,
                "through_sequence": Optional(integer(0)),
            },
        ),
        "profile.changed": ItemType(banking.ProfileReported, _PROFILE),
    },
    "vyomo": {
        "wallet.opened": ItemType(
            trading.WalletOpened,
            {"wallet_id": identifier, "currency": CURRENCY, "opening_balance": Amount(signed=True)},
        ),
        "wallet.posted": ItemType(
            trading.WalletPosted,
            {
                "movement_id": identifier,
                "wallet_id": identifier,
                "direction": DIRECTION,
                "amount": Amount(),
                "currency": CURRENCY,
                "reason": one_of("charges", "payin", "payout", "other"),
                "reference": Optional(NAME),
            },
        ),
        "trade.executed": ItemType(
            trading.TradeExecuted,
            {
                "trade_id": identifier,
                "wallet_id": identifier,
                "symbol": identifier,
                "underlying": identifier,
                "instrument": INSTRUMENT,
                "side": one_of("buy", "sell"),
                "quantity": integer(1),
                # An option that expires worthless is closed at 0.
                "price": Amount(zero=True),
                "charges": Amount(zero=True),
                "realized_pnl": Amount(signed=True, required=False),
                "currency": CURRENCY,
            },
        ),
        "position.changed": ItemType(
            trading.PositionChanged,
            {
                "position_id": identifier,
                "symbol": identifier,
                "underlying": identifier,
                "instrument": INSTRUMENT,
                "quantity": integer(-COUNT_MAX),
                "average_price": Amount(zero=True),
                "mark_price": Amount(zero=True),
                "unrealized_pnl": Amount(signed=True),
                "currency": CURRENCY,
            },
        ),
        "risk.alerted": ItemType(
            trading.RiskAlerted,
            {
                "alert_id": identifier,
                "severity": one_of("critical", "warning", "info"),
                "message": MEMO,
            },
        ),
        "balance.stated": ItemType(
            trading.BalanceStated,
            {
                "wallet_id": identifier,
                "balance": Amount(zero=True, signed=True),
                "currency": CURRENCY,
                "as_of": instant,
                "through_sequence": Optional(integer(0)),
            },
        ),
        "profile.changed": ItemType(trading.ProfileReported, _PROFILE),
    },
}


def event_id_of(platform: Platform, item_id: str) -> UUID:
    """The id of the event that a platform's item becomes: an item's id is unique per platform, for ever."""
    return derived_id(_FEED_ITEMS, platform, item_id)


def translate(platform: Platform, item: Any) -> Translated:
    """The event that `item` (decoded JSON) reports.

    Raises:
        Rejected: `malformed_item`, `too_large`, `unknown_type`, `invalid_amount`, `invalid_currency` or
            `invalid_data`.
    """
    if not isinstance(item, dict):
        raise Rejected("malformed_item", "an item must be an object")
    canonical = _canonical(item)
    item_type = ITEM_TYPES[platform].get(item["type"]) if isinstance(item.get("type"), str) else None
    item_id = identifier("id", item.get("id"))
    if item_type is None:
        raise Rejected("unknown_type", f"{platform} items have no such type")
    customer_id = identifier("customer_id", item.get("customer_id"))
    data = item.get("data")
    if not isinstance(data, dict):
        raise Rejected("malformed_item", "data must be an object")
    sequence = item.get("sequence")
    event = item_type.contract(
        item_id=item_id,
        customer_id=customer_id,
        occurred_at=instant("occurred_at", item.get("occurred_at")),
        sequence=None if sequence is None else integer(0)("sequence", sequence),
        **_values(item_type, data),
    )
    return Translated(item_id, customer_id, event, event_id_of(platform, item_id), sha256(canonical).digest())


def reported_id(item: Any) -> str | None:
    """The id to answer a rejected item with; None where it carries none worth repeating."""
    reported = item.get("id") if isinstance(item, dict) else None
    return reported[:128] if isinstance(reported, str) else None


def _canonical(item: dict[str, Any]) -> bytes:
    """The item's content as bytes that do not depend on the order of its keys or on white space."""
    try:
        canonical = msgspec.json.encode(item, order="deterministic")
    except (RecursionError, OverflowError):
        raise Rejected("malformed_item", "an item must not be nested this deeply") from None
    if len(canonical) > ITEM_BYTES_MAX:
        raise Rejected("too_large", f"an item must not be larger than {ITEM_BYTES_MAX} bytes")
    return canonical


def _values(item_type: ItemType, data: dict[str, Any]) -> dict[str, Any]:
    """The contract's own fields from an item's `data`."""
    values: dict[str, Any] = {}
    for name, field in item_type.fields.items():
        value = data.get(name)
        match field:
            case Amount():
                values[f"{name}_minor"] = _minor(name, value, field, data.get("currency"))
            case Optional(parser):
                values[name] = None if value is None else parser(name, value)
            case _:
                if value is None:
                    raise Rejected("invalid_data", f"{name} is missing")
                values[name] = field(name, value)
    return values


def _minor(name: str, value: Any, amount: Amount, currency: Any) -> int | None:
    if value is None and not amount.required:
        return None
    if not isinstance(value, str):
        raise Rejected("invalid_amount", f"{name} must be a decimal string")
    if currency is None:
        # Only a deposit's payout may come without: it is paid in the currency of its deposit.
        currency = _DEFAULT_CURRENCY
    elif not isinstance(currency, str):
        raise Rejected("invalid_currency", "currency must be text")
    try:
        return parse_amount(value, currency, field=name, zero=amount.zero, signed=amount.signed)
    except Problem as problem:
        raise Rejected(problem.code, problem.detail) from None
