"""Pictures of customers, made by hand."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from wealth.computing import Computed, compute
from wealth.insights import Insight, Thresholds
from wealth.picture import ItemNow, MonthFlow, Picture, Trade

NOW = datetime(2026, 10, 20, 6, 30, tzinfo=UTC)
USER = UUID("00000000-0000-4000-8000-000000000001")


def item(asset_class: str, value: int, label: str = "X", **more: Any) -> ItemNow:
    prefix = {"loan": "loan", "fund": "fund"}.get(asset_class, "account")
    if asset_class in ("equity", "option", "future"):
        prefix = "position"
    fields: dict[str, Any] = {
        "underlying": "",
        "quantity": Decimal(0),
        "price": Decimal(0),
        "cost": Decimal(0),
        "currency": "INR",
    }
    return ItemNow(
        item=f"{prefix}:{label}",
        asset_class=asset_class,
        label=label,
        value_minor=value,
        event_id=UUID(int=7),
        **(fields | more),
    )


def share(symbol: str, quantity: int, average: int, mark: int) -> ItemNow:
    return item(
        "equity", quantity * mark, symbol, underlying=symbol, quantity=Decimal(quantity), price=Decimal(mark),
        cost=Decimal(average),
    )  # fmt: skip


def months(
    category: str, amounts: list[int], last: date = date(2026, 10, 1), *, credit: bool = False
) -> list[MonthFlow]:
    """One amount a month up to `last`."""
    found, month = [], last
    for amount in reversed(amounts):
        found.append(MonthFlow(month, category, amount if credit else 0, 0 if credit else amount))
        month = (month - timedelta(days=1)).replace(day=1)
    return found[::-1]


def buy(
    symbol: str, at: datetime, quantity: int, price: int, realized: int | None = None, kind: str = "equity"
) -> Trade:
    return Trade(at, UUID(int=9), symbol, kind, quantity, price, 0, realized)


def picture(**fields: Any) -> Picture:
    now = fields.pop("now", NOW)
    empty: dict[str, Any] = {
        "user_id": USER, "now": now, "today": (now + timedelta(hours=5.5)).date(), "position": 1, "as_of": now,
        "linked": frozenset({"bfc", "vyomo"}), "items": (), "realized": {}, "days": (), "months": (), "trades": (),
        "fund_purchases": (), "deposits": (), "postings": (), "noticed": (),
    }  # fmt: skip
    return Picture(**(empty | {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}))


def computed(rules: Thresholds | None = None, **fields: Any) -> Computed:
    return compute(picture(**fields), rules or Thresholds())


def found(rule: str, rules: Thresholds | None = None, **fields: Any) -> list[Insight]:
    return [insight for insight in computed(rules, **fields).found if insight.rule == rule]
