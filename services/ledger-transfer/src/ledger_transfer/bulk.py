"""Many transfers in one request: one decision, one append. Pure decider.

`all_or_nothing`: each item is decided on the state that the ones before it leave; the first refusal refuses them all.
`independent`: each item is completed, held or refused for itself; what is refused leaves the state to the next.
An item of an unknown account writes nothing, as it does alone.
"""

from collections.abc import Sequence
from typing import Final, Literal
from uuid import UUID

import msgspec
from events.contracts.ledger import TransferCompleted, TransferHeld

from ledger_transfer.state import Decision
from ledger_transfer.transfers import (
    AccountNotFound,
    Clearance,
    TransferRefusal,
    TransferRequest,
    cleared,
    decide,
    refused,
    transfer,
)

BulkMode = Literal["all_or_nothing", "independent"]

ITEMS_MAX: Final = 500


class BulkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. The items' `transfer_id`, `bulk_id` and `bulk_item` are set when they are decided."""

    bulk_id: UUID
    mode: BulkMode
    items: tuple[TransferRequest, ...]


def transfer_all(decision: Decision, bulk: BulkRequest, clearance: Clearance) -> None:
    """Records what becomes of each item.

    The step-up token is asked for once, for the total: many small transfers are no way around it.

    Raises:
        AccountNotFound: all or nothing was asked for, and an account is unknown; nothing is recorded.
        StepUpRequired: nothing is recorded.
    """
    jti = _cleared(decision, bulk.items, clearance)
    if bulk.mode == "all_or_nothing":
        _all_or_nothing(decision, bulk, jti)
        return
    for number, item in enumerate(bulk.items):
        try:
            [event] = transfer(decision.state, _numbered(decision, bulk, number, item), decision.now)
        except AccountNotFound:
            continue
        if jti is not None and isinstance(event, TransferCompleted | TransferHeld):
            event, jti = msgspec.structs.replace(event, step_up_jti=jti), None
        decision.record(event)


def _all_or_nothing(decision: Decision, bulk: BulkRequest, jti: str | None) -> None:
    trial = decision.fork()
    for number, item in enumerate(bulk.items):
        request = _numbered(trial, bulk, number, item)
        try:
            event = decide(trial.state, request, trial.now)
        except TransferRefusal as refusal:
            request = msgspec.structs.replace(request, transfer_id=decision.next_id())
            decision.record(refused(request, refusal, decision.now))
            return
        if jti is not None and number == 0:
            event = msgspec.structs.replace(event, step_up_jti=jti)
        trial.record(event)
    decision.adopt(trial)


def _numbered(decision: Decision, bulk: BulkRequest, number: int, item: TransferRequest) -> TransferRequest:
    # A transfer's id is the id of the event that records it: it is found by it, wherever it stands in the append.
    return TransferRequest(
        transfer_id=decision.next_id(),
        from_account_id=item.from_account_id,
        to_account_id=item.to_account_id,
        amount_minor=item.amount_minor,
        currency=item.currency,
        memo=item.memo,
        sealed_texts=item.sealed_texts,
        hold_s=item.hold_s,
        bulk_id=bulk.bulk_id,
        bulk_item=number,
    )


def _cleared(decision: Decision, items: Sequence[TransferRequest], clearance: Clearance) -> str | None:
    totals: dict[str, int] = {}
    for item in items:
        totals[item.currency] = totals.get(item.currency, 0) + item.amount_minor
    payees = {item.to_account_id for item in items}
    payee = payees.pop() if len(payees) == 1 else None
    jti = None
    for currency, total in totals.items():
        jti = cleared(decision.state, total, currency, payee, clearance) or jti
    return jti
