"""Freezing an account: commands stop, what the platform reports is still posted. Pure deciders."""

from datetime import datetime
from uuid import UUID

from events.contracts import ledger
from events.contracts.registry import Event
from events.decisions import Refusal

from ledger_transfer.state import Account, LedgerState
from ledger_transfer.transfers import AccountClosed, AccountNotFound


class FrozenByOps(Refusal):
    """Operations froze the account: the customer cannot unfreeze it."""

    code = "frozen_by_ops"


def freeze(state: LedgerState, account_id: UUID, by: ledger.FrozenBy, now: datetime) -> list[Event]:
    """Freezes the account; nothing where it is frozen already, by the same or by operations.

    Raises:
        AccountNotFound, AccountClosed
    """
    account = _open_account(state, account_id)
    if account.status == "frozen" and (account.frozen_by == by or by == "customer"):
        return []
    return [ledger.AccountFrozen(account_id=account_id, platform=account.platform, by=by, frozen_at=now)]


def unfreeze(state: LedgerState, account_id: UUID, by: ledger.FrozenBy, now: datetime) -> list[Event]:
    """Lets commands through again; nothing where it is not frozen.

    Raises:
        AccountNotFound, AccountClosed, FrozenByOps
    """
    account = _open_account(state, account_id)
    if account.status != "frozen":
        return []
    if account.frozen_by == "ops" and by != "ops":
        raise FrozenByOps()
    return [ledger.AccountUnfrozen(account_id=account_id, platform=account.platform, by=by, unfrozen_at=now)]


def _open_account(state: LedgerState, account_id: UUID) -> Account:
    account = state.accounts.get(account_id)
    if account is None:
        raise AccountNotFound()
    if account.status == "closed":
        raise AccountClosed()
    return account
