"""What the platforms' items mean for the ledger: an account is there, or money has moved. Pure."""

from datetime import datetime

import msgspec
from events.contracts import banking, trading
from events.contracts.ledger import AccountKind, Direction, Movement, Platform
from events.contracts.registry import Event, contract_of


class AccountReport(msgspec.Struct, frozen=True, kw_only=True):
    """A platform says that an account exists."""

    platform: Platform
    platform_account_id: str
    kind: AccountKind
    currency: str
    opening_balance_minor: int
    name: str | None = None
    sealed_texts: str | None = None
    """The name, sealed (`events.texts`); then it is None itself."""
    funding: Movement | None = None
    """The movement that fills a fixed deposit when it is opened."""
    occurred_at: datetime


MONEY_ITEMS = frozenset(
    contract_of(struct).type
    for struct in (
        banking.AccountOpened,
        banking.TransactionPosted,
        banking.FixedDepositOpened,
        banking.FixedDepositMatured,
        trading.WalletOpened,
        trading.WalletPosted,
        trading.TradeExecuted,
    )
)
"""The types of item that open an account or move money."""


def fact_of(item: Event) -> AccountReport | Movement | None:
    """What an item of a platform's feed tells the ledger; None when it moves nothing."""
    match item:
        case banking.AccountOpened():
            return AccountReport(
                platform="bfc",
                platform_account_id=item.account_id,
                kind=item.kind,
                currency=item.currency,
                opening_balance_minor=item.opening_balance_minor,
                name=item.name,
                occurred_at=item.occurred_at,
            )
        case trading.WalletOpened():
            return AccountReport(
                platform="vyomo",
                platform_account_id=item.wallet_id,
                kind="trading_wallet",
                currency=item.currency,
                opening_balance_minor=item.opening_balance_minor,
                occurred_at=item.occurred_at,
            )
        case banking.FixedDepositOpened():
            return _deposit_opened(item)
        case banking.FixedDepositMatured():
            return Movement(
                platform="bfc",
                platform_account_id=item.account_id,
                direction="credit",
                amount_minor=item.payout_minor,
                currency=item.currency,
                deposit_id=item.deposit_id,
                type="fixed_deposit",
                category="investment",
                memo="Fixed deposit matured",
                reference=item.deposit_id,
                item_id=item.item_id,
                occurred_at=item.occurred_at,
            )
        case banking.TransactionPosted():
            return Movement(
                platform="bfc",
                platform_account_id=item.account_id,
                direction=item.direction,
                amount_minor=item.amount_minor,
                currency=item.currency,
                type="transaction",
                category=item.category,
                counterparty=item.counterparty,
                memo=item.memo,
                reference=item.reference,
                item_id=item.item_id,
                occurred_at=item.occurred_at,
            )
        case trading.WalletPosted():
            return Movement(
                platform="vyomo",
                platform_account_id=item.wallet_id,
                direction=item.direction,
                amount_minor=item.amount_minor,
                currency=item.currency,
                type="wallet_movement",
                category=item.reason,
                reference=item.reference,
                item_id=item.item_id,
                occurred_at=item.occurred_at,
            )
        case trading.TradeExecuted():
            return _trade_cash(item)
        case _:
            return None


def trade_cash_minor(trade: trading.TradeExecuted) -> int:
    """The signed effect of a trade on its wallet, in minor units.

    An option or share is paid for or paid out at once, charges on top; a future only settles the
    profit or loss it realised.
    """
    if trade.instrument == "future":
        return (trade.realized_pnl_minor or 0) - trade.charges_minor
    value = trade.quantity * trade.price_minor
    return (value if trade.side == "sell" else -value) - trade.charges_minor


def _trade_cash(trade: trading.TradeExecuted) -> Movement | None:
    cash = trade_cash_minor(trade)
    if cash == 0:
        return None
    direction: Direction = "credit" if cash > 0 else "debit"
    return Movement(
        platform="vyomo",
        platform_account_id=trade.wallet_id,
        direction=direction,
        amount_minor=abs(cash),
        currency=trade.currency,
        type="trade",
        category="trade",
        counterparty=trade.symbol,
        memo=f"{trade.side} {trade.quantity} {trade.symbol}",
        reference=trade.trade_id,
        item_id=trade.item_id,
        occurred_at=trade.occurred_at,
    )


def _deposit_opened(item: banking.FixedDepositOpened) -> AccountReport:
    return AccountReport(
        platform="bfc",
        platform_account_id=item.deposit_id,
        kind="fixed_deposit",
        currency=item.currency,
        opening_balance_minor=0,
        funding=Movement(
            platform="bfc",
            platform_account_id=item.account_id,
            direction="debit",
            amount_minor=item.principal_minor,
            currency=item.currency,
            deposit_id=item.deposit_id,
            type="fixed_deposit",
            category="investment",
            memo="Fixed deposit opened",
            reference=item.deposit_id,
            item_id=item.item_id,
            occurred_at=item.occurred_at,
        ),
        occurred_at=item.occurred_at,
    )
