"""Taking a completed transfer back, once, by a correcting one. Pure decider.

That it happens once is not decided here: the correcting transfer's id follows from the transfer's, and the store
appends an id once.
"""

from datetime import datetime
from uuid import UUID

from events.contracts.ledger import TransferCompleted, TransferReversed
from events.contracts.registry import Event
from events.decisions import Refusal
from events.envelope import derived_id

from ledger_transfer.state import LedgerState
from ledger_transfer.transfers import TransferRequest, post_transfer


class NotReversible(Refusal):
    """It moved no money, or it is itself the reversal of another. Nothing is recorded."""

    code = "transfer_not_reversible"


def reversal_id_of(transfer_id: UUID) -> UUID:
    """The id of the one transfer that can take this one back."""
    return derived_id(transfer_id, "reverse")


def reverse(state: LedgerState, transfer: TransferCompleted, consumed_at: datetime, now: datetime) -> list[Event]:
    """The correcting transfer, and what it gives back to the limits.

    Args:
        consumed_at: when the transfer used up the limits: when it was completed, or held.

    Raises:
        NotReversible: it is a reversal.
        Refusal: as for a transfer the other way round: an account is closed or frozen, or the money is gone.
    """
    if transfer.reverses is not None:
        raise NotReversible()
    reversal_id = reversal_id_of(transfer.transfer_id)
    legs = post_transfer(
        state,
        TransferRequest(
            transfer_id=reversal_id,
            from_account_id=transfer.to_account_id,
            to_account_id=transfer.from_account_id,
            amount_minor=transfer.amount_minor,
            currency=transfer.currency,
        ),
    )
    return [
        TransferCompleted(
            transfer_id=reversal_id,
            from_account_id=transfer.to_account_id,
            to_account_id=transfer.from_account_id,
            amount_minor=transfer.amount_minor,
            currency=transfer.currency,
            memo=transfer.memo,
            sealed_texts=transfer.sealed_texts,
            legs=legs,
            completed_at=now,
            reverses=transfer.transfer_id,
        ),
        TransferReversed(
            transfer_id=transfer.transfer_id,
            reversal_id=reversal_id,
            from_account_id=transfer.from_account_id,
            to_account_id=transfer.to_account_id,
            amount_minor=transfer.amount_minor,
            currency=transfer.currency,
            consumed_at=consumed_at,
            reversed_at=now,
        ),
    ]
