"""Which requests are the same: the ids that they stand for, and the hashes that tell their bodies apart. Pure."""

from hashlib import sha256
from uuid import UUID

import msgspec
from events.envelope import derived_id

from ledger_transfer.bulk import BulkRequest
from ledger_transfer.transfers import TransferRequest

_encode = msgspec.json.Encoder().encode


def transfer_id_of(user_id: UUID, idempotency_key: str) -> UUID:
    """The id of the transfer, or of the bulk of them, that a customer's key stands for."""
    return derived_id(user_id, "transfer", idempotency_key)


def capture_id_of(transfer_id: UUID) -> UUID:
    """The id of the one capture that a hold can have."""
    return derived_id(transfer_id, "capture")


def void_id_of(transfer_id: UUID) -> UUID:
    """The id of the one voiding that a hold can have on request."""
    return derived_id(transfer_id, "void")


def request_hash(request: TransferRequest) -> bytes:
    """What makes two requests the same: the route and every field of the body, in one canonical form."""
    return sha256(_encode(["POST /api/transfers", *_body(request)])).digest()


def bulk_hash(bulk: BulkRequest) -> bytes:
    """As `request_hash`, for all items at once."""
    items = [_body(item) for item in bulk.items]
    return sha256(_encode(["POST /api/transfers/bulk", bulk.mode, items])).digest()


def _body(request: TransferRequest) -> list[object]:
    body: list[object] = [
        request.from_account_id,
        request.to_account_id,
        request.amount_minor,
        request.currency,
        request.memo,
    ]
    return body if request.hold_s is None else [*body, request.hold_s]
