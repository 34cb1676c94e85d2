"""Accounts: opened and moved by what the platforms report. Pure deciders.

A platform's fact is always posted, floors and closed accounts notwithstanding. It may come before the
account it is about: then it waits in the stream, and is posted in the same append as the opening.
"""

from typing import Final, Literal
from uuid import UUID

from chassis.money import DECIMALS
from events.contracts.ledger import (
    AccountClosed,
    AccountOpened,
    AccountPosted,
    AlertRaised,
    Leg,
    Movement,
    PostingDeferred,
    PostingRejected,
    TransferCompleted,
    TransferSettled,
)
from events.envelope import derived_id

from ledger_transfer.facts import AccountReport
from ledger_transfer.state import (
    MAX_AMOUNT_MINOR,
    Account,
    Decision,
    account_id_of,
    balanced,
    clearing,
    leg_on,
    opening,
)

_DECIMALS_UNSAID: Final = DECIMALS["INR"]
"""What an amount without a currency was read with: in yen it would be a hundred times too much."""


def record_fact(
    decision: Decision,
    user_id: UUID,
    fact: AccountReport | Movement,
    own_transfer: TransferCompleted | None = None,
) -> None:
    """Records what a platform's fact does to the customer's accounts.

    `own_transfer` is the customer's transfer that the fact's reference names, if it names one.
    """
    if isinstance(fact, AccountReport):
        _open(decision, user_id, fact)
    elif own_transfer is not None and echoes(own_transfer, user_id, fact):
        decision.record(
            TransferSettled(
                transfer_id=own_transfer.transfer_id,
                platform=fact.platform,
                item_id=fact.item_id,
                occurred_at=fact.occurred_at,
            )
        )
    else:
        _post(decision, user_id, fact)


def echoes(transfer: TransferCompleted, user_id: UUID, movement: Movement) -> bool:
    """Whether the movement is that transfer's own leg, reported back by the platform it is on.

    The reference alone is not enough: a bounced payment or a fee may carry it too, and is new money.
    """
    account_id = str(account_id_of(user_id, movement.platform, movement.platform_account_id))
    return any(
        leg.account_id == account_id
        and leg.amount_minor == _signed(movement)
        and movement.currency in (leg.currency, None)
        for leg in transfer.legs
    )


def _open(decision: Decision, user_id: UUID, report: AccountReport) -> None:
    account_id = account_id_of(user_id, report.platform, report.platform_account_id)
    if account_id in decision.state.accounts:
        # Reported again: its balance is known better here. But what it took from another account has left that one.
        if report.funding is not None:
            _post(decision, user_id, report.funding)
        return
    waiting = decision.state.waiting.get(account_id)
    opened = Account(
        account_id=account_id,
        platform=report.platform,
        kind=report.kind,
        currency=report.currency,
        balance_minor=0,
        floor_minor=0,
        status="active",
    )
    balance = report.opening_balance_minor
    decision.record(
        AccountOpened(
            account_id=account_id,
            platform=report.platform,
            platform_account_id=report.platform_account_id,
            kind=report.kind,
            currency=report.currency,
            name=report.name,
            sealed_texts=report.sealed_texts,
            floor_minor=opened.floor_minor,
            legs=balanced(leg_on(opened, balance), opening(report.platform, -balance, report.currency)),
            occurred_at=report.occurred_at,
        )
    )
    if report.funding is not None:
        _post(decision, user_id, report.funding)
    for movement in waiting.in_order() if waiting else ():
        _post(decision, user_id, movement)


def _post(decision: Decision, user_id: UUID, movement: Movement) -> None:
    """Posts the movement, or lets it wait for the account it lacks."""
    account_id = account_id_of(user_id, movement.platform, movement.platform_account_id)
    needed = [account_id]
    if movement.deposit_id is not None:
        # The deposit first: what fills it must be decided before what empties it.
        needed.insert(0, account_id_of(user_id, movement.platform, movement.deposit_id))
    accounts = decision.state.accounts
    for missing in needed:
        if missing not in accounts:
            decision.record(PostingDeferred(account_id=missing, movement=movement))
            return
    account = accounts[account_id]
    deposit = accounts[needed[0]] if movement.deposit_id is not None else None
    if deposit is account or (deposit is not None and deposit.kind != "fixed_deposit"):
        deposit = None  # The bank mixed its ids up: no other account is filled, emptied or closed by that.
    reason = _unpostable(account, deposit, movement)
    if reason is not None:
        decision.record(PostingRejected(account_id=account_id, movement=movement, reason=reason))
        return
    legs = _legs(account, deposit, movement)
    below_floor = account.available_minor + _signed(movement) < account.floor_minor
    alert_id = derived_id(decision.next_id(), "alert")
    decision.record(
        AccountPosted(
            account_id=account_id,
            platform=movement.platform,
            legs=legs,
            type=movement.type,
            category=movement.category,
            counterparty=movement.counterparty,
            memo=movement.memo,
            reference=movement.reference,
            sealed_texts=movement.sealed_texts,
            item_id=movement.item_id,
            below_floor=below_floor,
            occurred_at=movement.occurred_at,
        )
    )
    if below_floor and movement.direction == "debit":
        decision.record(
            AlertRaised(
                alert_id=alert_id,
                kind="floor_broken",
                severity="critical",
                account_id=account_id,
                platform=account.platform,
                currency=account.currency,
                balance_minor=account.available_minor + _signed(movement),
                floor_minor=account.floor_minor,
                detail="The platform reported a debit that took the account below its floor.",
                raised_at=decision.now,
            )
        )
    if deposit is not None and movement.direction == "credit" and deposit.status == "active":
        decision.record(
            AccountClosed(account_id=deposit.account_id, platform=deposit.platform, occurred_at=movement.occurred_at)
        )


def _legs(account: Account, deposit: Account | None, movement: Movement) -> tuple[Leg, ...]:
    amount = _signed(movement)
    if deposit is None:
        return balanced(leg_on(account, amount), clearing(movement.platform, -amount, account.currency))
    if movement.direction == "debit":
        return balanced(leg_on(account, amount), leg_on(deposit, -amount))
    # A matured deposit gives its whole balance; the interest comes from the bank.
    principal = deposit.balance_minor
    return balanced(
        leg_on(account, amount),
        leg_on(deposit, -principal),
        clearing(movement.platform, principal - amount, account.currency),
    )


def _unpostable(
    account: Account, deposit: Account | None, movement: Movement
) -> Literal["currency_mismatch", "amount_out_of_range"] | None:
    """Why no posting can express the movement, if so. One bad item must not hold up all later ones."""
    if not 0 < movement.amount_minor <= MAX_AMOUNT_MINOR:
        return "amount_out_of_range"
    if movement.currency is None and DECIMALS.get(account.currency) != _DECIMALS_UNSAID:
        return "currency_mismatch"
    currencies = {account.currency, movement.currency or account.currency}
    if deposit is not None:
        currencies.add(deposit.currency)
    return "currency_mismatch" if len(currencies) > 1 else None


def _signed(movement: Movement) -> int:
    return movement.amount_minor if movement.direction == "credit" else -movement.amount_minor
