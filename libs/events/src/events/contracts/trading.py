"""trading: what Vyomo told us of one client, in order, on `broker_client-<uuid5 of Vyomo id>`.

Published by sync-gateway, one event per feed item.
"""

from datetime import datetime
from typing import Any, Literal

from events.contracts.registry import Event, contract

Instrument = Literal["option", "future", "equity"]


class BrokerItem(Event, frozen=True, kw_only=True):
    """What every item of the broker's feed carries."""

    item_id: str
    customer_id: str
    occurred_at: datetime
    sequence: int | None = None


@contract("trading.wallet.opened", public=False)
class WalletOpened(BrokerItem, frozen=True, kw_only=True):
    wallet_id: str
    currency: str
    opening_balance_minor: int


@contract("trading.wallet.posted", public=False)
class WalletPosted(BrokerItem, frozen=True, kw_only=True):
    movement_id: str
    wallet_id: str
    direction: Literal["credit", "debit"]
    amount_minor: int
    currency: str
    reason: Literal["charges", "payin", "payout", "other"]
    reference: str | None = None
    sealed_texts: str | None = None
    """The reference, sealed for the stream's id (`events.texts`); then it is None itself."""


@contract("trading.trade.executed", public=False)
class TradeExecuted(BrokerItem, frozen=True, kw_only=True):
    trade_id: str
    wallet_id: str
    symbol: str
    underlying: str
    instrument: Instrument
    side: Literal["buy", "sell"]
    quantity: int
    price_minor: int
    charges_minor: int
    currency: str
    realized_pnl_minor: int | None = None


@contract("trading.position.changed", public=False)
class PositionChanged(BrokerItem, frozen=True, kw_only=True):
    position_id: str
    symbol: str
    underlying: str
    instrument: Instrument
    quantity: int
    """Signed: short positions are negative; 0 closes it."""
    average_price_minor: int
    mark_price_minor: int
    unrealized_pnl_minor: int
    currency: str


@contract("trading.risk.alerted", public=False)
class RiskAlerted(BrokerItem, frozen=True, kw_only=True):
    alert_id: str
    severity: Literal["critical", "warning", "info"]
    message: str


@contract("trading.balance.stated", public=False)
class BalanceStated(BrokerItem, frozen=True, kw_only=True):
    """What the broker says a wallet holds: stated to be compared with, it moves nothing."""

    wallet_id: str
    balance_minor: int
    currency: str
    as_of: datetime
    through_sequence: int | None = None
    """The last of the client's items that the balance contains."""


@contract("trading.profile.reported", public=False)
class ProfileReported(BrokerItem, frozen=True, kw_only=True):
    base_version: int
    """The version of the merged profile that the client saw at the broker when they changed it."""
    changed_at: datetime
    fields: dict[str, Any]
    """In the clear, as it was before fields were sealed; empty since."""
    sealed_fields: str | None = None
    """JSON object of the changed fields, sealed for the platform stream's id (place `profile.fields`)."""
    field_names: tuple[str, ...] = ()
    origin: str | None = None
    """`sangam` where the broker says that it reports back what we told it."""
