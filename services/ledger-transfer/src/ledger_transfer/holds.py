"""Holds: money set aside now, transferred, given back or expired later. Pure deciders.

A hold checks everything that a transfer does, and uses up the limits; capturing it can only fail because something
changed since then.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from events.contracts.ledger import TransferCaptured, TransferCompleted, TransferVoided
from events.contracts.registry import Event
from events.decisions import Refusal

from ledger_transfer.state import Hold, LedgerState, evolve
from ledger_transfer.transfers import TransferRequest, post_transfer


class HoldNotOpen(Refusal):
    """It was captured or voided, or has expired. Nothing is recorded."""

    code = "hold_not_open"


class CaptureTooLarge(Refusal):
    """More than was held. Nothing is recorded."""

    code = "capture_exceeds_hold"


def lapsed(state: LedgerState, now: datetime) -> list[Event]:
    """The voidings of the holds that have expired, in order of their expiry."""
    if not state.holds:
        return []
    due = sorted(
        (hold for hold in state.holds.values() if hold.expires_at <= now),
        key=lambda hold: (hold.expires_at, hold.transfer_id),
    )
    return [_voided(hold, "expired", now) for hold in due]


def capture(state: LedgerState, transfer_id: UUID, amount_minor: int | None, now: datetime) -> list[Event]:
    """Transfers the held amount or a part of it, and gives back the rest.

    Raises:
        HoldNotOpen, CaptureTooLarge: it cannot be captured.
        Refusal: as for a transfer: an account was closed or frozen, or a platform's fact took the money.
    """
    hold = _open_hold(state, transfer_id)
    amount = hold.amount_minor if amount_minor is None else amount_minor
    if amount > hold.amount_minor:
        raise CaptureTooLarge()
    captured = TransferCaptured(
        transfer_id=transfer_id,
        from_account_id=hold.from_account_id,
        to_account_id=hold.to_account_id,
        amount_minor=amount,
        released_minor=hold.amount_minor - amount,
        currency=hold.currency,
        held_at=hold.held_at,
        captured_at=now,
    )
    request = TransferRequest(
        transfer_id=transfer_id,
        from_account_id=hold.from_account_id,
        to_account_id=hold.to_account_id,
        amount_minor=amount,
        currency=hold.currency,
        memo=hold.memo,
        sealed_texts=hold.sealed_texts,
    )
    # The limits were used up by the hold.
    legs = post_transfer(evolve(state, captured), request)
    return [
        captured,
        TransferCompleted(
            transfer_id=transfer_id,
            from_account_id=hold.from_account_id,
            to_account_id=hold.to_account_id,
            amount_minor=amount,
            currency=hold.currency,
            memo=hold.memo,
            sealed_texts=hold.sealed_texts,
            legs=legs,
            completed_at=now,
            held=True,
        ),
    ]


def void(state: LedgerState, transfer_id: UUID, now: datetime) -> list[Event]:
    """Gives the held amount back. Allowed on frozen and closed accounts too.

    Raises:
        HoldNotOpen: there is nothing to give back.
    """
    return [_voided(_open_hold(state, transfer_id), "voided", now)]


def _open_hold(state: LedgerState, transfer_id: UUID) -> Hold:
    hold = state.holds.get(transfer_id)
    if hold is None:
        raise HoldNotOpen()
    return hold


def _voided(hold: Hold, reason: Literal["voided", "expired"], now: datetime) -> TransferVoided:
    return TransferVoided(
        transfer_id=hold.transfer_id,
        from_account_id=hold.from_account_id,
        to_account_id=hold.to_account_id,
        amount_minor=hold.amount_minor,
        currency=hold.currency,
        reason=reason,
        held_at=hold.held_at,
        voided_at=now,
    )
