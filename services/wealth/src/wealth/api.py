"""`/api/wealth`: what the customer is worth."""

from datetime import datetime

import asyncpg
import msgspec
from chassis.consistency import CaughtUp
from chassis.money import format_amount
from chassis.problems import invalid_field
from chassis.request import AnyRequest
from chassis.tokens import Caller
from litestar import get
from litestar.handlers import HTTPRouteHandler

from wealth.networth import CURRENCY, NetWorth, net_worth
from wealth.projections.holdings import snapshot

NOTHING_LINKED = "no linked accounts"


class Banking(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    savings: str | None
    current: str | None
    fixed_deposits: str | None
    reason: str | None = None
    """Why a figure is null; absent where every figure is known."""


class Trading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    wallet: str | None
    open_positions: str | None
    realized_pnl: str | None
    """Shown, not added: it is in the wallet."""
    reason: str | None = None


class Investments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    fixed_deposits: str | None
    """The same deposits as under banking; `total` of the whole counts them once."""
    mutual_funds: str | None
    reason: str | None = None


class Liabilities(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    total: str | None
    loans: str | None
    reason: str | None = None


class Allocation(msgspec.Struct, frozen=True, kw_only=True, rename={"asset_class": "class"}):
    asset_class: str
    amount: str
    percent: str


class Unconverted(msgspec.Struct, frozen=True, kw_only=True, rename={"asset_class": "class"}):
    asset_class: str
    currency: str
    amount: str


class NetWorthAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Figures in `currency`; a figure that is not known is null, with a `reason` beside it."""

    as_of: datetime | None
    """When the last event in these figures was recorded; null before there was any."""
    position: int
    currency: str
    total: str | None
    banking: Banking
    trading: Trading
    investments: Investments
    liabilities: Liabilities
    allocation: list[Allocation]
    """The assets, with percents that sum to 100.00; what is owed is not subtracted here."""
    unconverted: list[Unconverted] = []
    """Holdings in other currencies. They are in no figure, because there is no rate to convert them at."""
    reason: str | None = None


def routes(database: asyncpg.Pool) -> list[HTTPRouteHandler]:
    """The routes of this service."""

    @get("/api/wealth/net-worth", summary="Net worth over both platforms")
    async def get_net_worth(request: AnyRequest, caller: Caller, caught_up: CaughtUp) -> NetWorthAnswer:
        for name in request.query_params:
            # Today's figures must not be mistaken for what an ignored parameter asked for, such as `as_of`.
            raise invalid_field(name, "is not a parameter of this route", "unknown_parameter")
        state = await snapshot(database, caller.user_id)
        return answer(state.as_of, state.position, state.holdings.linked, net_worth(state.holdings))

    return [get_net_worth]


def answer(as_of: datetime | None, position: int, linked: frozenset[str], figures: NetWorth) -> NetWorthAnswer:
    """The figures in the shape of the contract."""

    def reason(platform: str, *parts: int | None) -> str | None:
        if None not in parts:
            return None
        if not linked:
            return NOTHING_LINKED
        return f"{platform} not linked" if platform not in linked else "held in another currency"

    bank = (figures.savings, figures.current, figures.fixed_deposits)
    return NetWorthAnswer(
        as_of=as_of,
        position=position,
        currency=CURRENCY,
        total=_amount(figures.total),
        banking=Banking(
            total=_amount(figures.banking_total),
            savings=_amount(figures.savings),
            current=_amount(figures.current),
            fixed_deposits=_amount(figures.fixed_deposits),
            reason=reason("bfc", *bank),
        ),
        trading=Trading(
            total=_amount(figures.trading_total),
            wallet=_amount(figures.wallet),
            open_positions=_amount(figures.open_positions),
            realized_pnl=_amount(figures.realized_pnl),
            reason=reason("vyomo", figures.wallet, figures.open_positions, figures.realized_pnl),
        ),
        investments=Investments(
            total=_amount(figures.investments_total),
            fixed_deposits=_amount(figures.fixed_deposits),
            mutual_funds=_amount(figures.mutual_funds),
            reason=reason("bfc", figures.fixed_deposits, figures.mutual_funds),
        ),
        liabilities=Liabilities(
            total=_amount(figures.loans),
            loans=_amount(figures.loans),
            reason=reason("bfc", figures.loans),
        ),
        allocation=[
            Allocation(
                asset_class=share.asset_class,
                amount=format_amount(share.amount_minor, CURRENCY),
                percent=f"{share.percent_bp // 100}.{share.percent_bp % 100:02d}",
            )
            for share in figures.allocation
        ],
        unconverted=[
            Unconverted(
                asset_class=item.asset_class,
                currency=item.currency,
                amount=format_amount(item.amount_minor, item.currency),
            )
            for item in figures.unconverted
        ],
        reason=None if figures.total is not None else NOTHING_LINKED if not linked else "held in another currency",
    )


def _amount(minor: int | None) -> str | None:
    return None if minor is None else format_amount(minor, CURRENCY)
