"""Freezing an account: commands stop, what the platform reports is still posted. Pure deciders."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from events.contracts import ledger
from events.contracts.registry import Event
from events.decisions import Refusal

from ledger_transfer.state import Account, Decision, LedgerState
from ledger_transfer.transfers import AccountClosed, AccountNotFound


class FrozenByOps(Refusal):
    """Operations froze the account: the customer cannot unfreeze it."""

    code = "frozen_by_ops"


class AccountUnlinked(Refusal):
    """The platform is not linked any more: what moves on the account is not this customer's to say."""

    code = "account_unlinked"


def freeze(state: LedgerState, account_id: UUID, by: ledger.FrozenBy, now: datetime) -> list[Event]:
    """Freezes the account; nothing where it is frozen already, by the same or by operations.

    Raises:
        AccountNotFound, AccountClosed
    """
    account = _open_account(state, account_id)
    if account.frozen_by == "link" or (account.status == "frozen" and (account.frozen_by == by or by == "customer")):
        return []
    return [ledger.AccountFrozen(account_id=account_id, platform=account.platform, by=by, frozen_at=now)]


def unfreeze(state: LedgerState, account_id: UUID, by: ledger.FrozenBy, now: datetime) -> list[Event]:
    """Lets commands through again; nothing where it is not frozen.

    Raises:
        AccountNotFound, AccountClosed, FrozenByOps, AccountUnlinked
    """
    account = _open_account(state, account_id)
    if account.status != "frozen":
        return []
    if account.frozen_by == "link" and by != "link":
        raise AccountUnlinked()
    if account.frozen_by == "ops" and by != "ops":
        raise FrozenByOps()
    return [ledger.AccountUnfrozen(account_id=account_id, platform=account.platform, by=by, unfrozen_at=now)]


def unlink(decision: Decision, platform: ledger.Platform) -> None:
    """Freezes the accounts of a platform that the customer has unlinked. What operations have frozen stays theirs."""
    for account in tuple(decision.state.accounts.values()):
        if account.platform == platform and account.status != "closed" and account.frozen_by in (None, "customer"):
            decision.record(
                ledger.AccountFrozen(
                    account_id=account.account_id, platform=platform, by="link", frozen_at=decision.now
                )
            )


def relink(decision: Decision, account_ids: Collection[UUID]) -> None:
    """Ends what `unlink` did to these accounts: the customer has linked their platform customer again."""
    for account_id in account_ids:
        account = decision.state.accounts.get(account_id)
        if account is not None and account.frozen_by == "link":
            decision.record(*unfreeze(decision.state, account_id, "link", decision.now))


def _open_account(state: LedgerState, account_id: UUID) -> Account:
    account = state.accounts.get(account_id)
    if account is None:
        raise AccountNotFound()
    if account.status == "closed":
        raise AccountClosed()
    return account
