"""The routes of `/api/transfers`."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from chassis.authentication import ops_may
from chassis.consistency import HEADER as CONSISTENCY_HEADER
from chassis.consistency import consistency_token
from chassis.money import format_amount, parse_amount
from chassis.problems import Problem, invalid_field
from chassis.request import AnyRequest
from chassis.revocations import MOVES_MONEY
from chassis.step_up import StepUp as StepUpClaims
from chassis.step_up import step_up_required
from chassis.tokens import Caller
from events.contracts.ledger import LimitsChanged, TransferCompleted, TransferHeld, TransferRefused, TransferVoided
from events.decisions import Refusal
from events.store import EventIdReused
from litestar import Response, get, post, put
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter

from ledger_transfer.allowances import CURRENCY, NewLimits
from ledger_transfer.api_accounts import account_not_found
from ledger_transfer.bulk import ITEMS_MAX, BulkMode, BulkRequest
from ledger_transfer.holds import CaptureTooLarge, HoldNotOpen
from ledger_transfer.idempotency import transfer_id_of
from ledger_transfer.ledger import Ledger, TransferNotFound
from ledger_transfer.limits import UNUSED, Usage, standings, windows_of
from ledger_transfer.outcomes import BulkOutcome, TransferOutcome
from ledger_transfer.queries import Key, key_of, plain_text, reject_unknown
from ledger_transfer.reversals import NotReversible
from ledger_transfer.state import MAX_AMOUNT_MINOR, LedgerState
from ledger_transfer.transfers import (
    REFUSAL_DETAILS,
    AccountNotFound,
    Clearance,
    StepUp,
    StepUpRequired,
    TransferRefusal,
    TransferRequest,
    decide,
    post_transfer,
)
from ledger_transfer.views import (
    BulkItemView,
    BulkView,
    CompletedView,
    HeldView,
    LimitsView,
    LimitView,
    PreviewView,
    RefusalView,
    RefusedView,
    StepUpView,
    completed_view,
    found_view,
    held_view,
    optional_amount,
)

REPLAYED_HEADER = "Idempotent-Replayed"
MEMO_LENGTH_MAX = 140
HOLD_S_DEFAULT = 3_600
HOLD_S_MAX = 30 * 86_400

Amount = Annotated[str, msgspec.Meta(max_length=32, description="Decimal string", examples=["50000.00"])]

_COMMAND_DETAILS = {
    **REFUSAL_DETAILS,
    HoldNotOpen.code: "The hold was captured, voided or has expired.",
    CaptureTooLarge.code: "No more can be captured than is held.",
    NotReversible.code: "It moved no money, or is itself a reversal.",
}


class TransferBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    from_account_id: UUID
    to_account_id: UUID
    amount: Amount
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3, examples=["INR"])]
    memo: Annotated[str, msgspec.Meta(max_length=MEMO_LENGTH_MAX)] | None = None
    hold: bool = False
    """Only set the money aside, to be captured or voided."""
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=HOLD_S_MAX)] | None = None
    """With `hold`: for how long, an hour by default."""


class BulkBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: BulkMode
    items: Annotated[list[TransferBody], msgspec.Meta(min_length=1, max_length=ITEMS_MAX)]


class CaptureBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    amount: Amount | None = None
    """None: all of it."""


class LimitsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left out stays as it is."""

    daily: Amount | None = None
    weekly: Amount | None = None
    monthly: Amount | None = None


def transfer_routes(ledger: Ledger, step_up_threshold_minor: int) -> list[HTTPRouteHandler]:
    """Transfers, holds, reversals and limits."""

    def clearance_of(step_up: StepUpClaims | None) -> Clearance:
        return Clearance(threshold_minor=step_up_threshold_minor, step_up=_proof(step_up))

    @post("/api/transfers", summary="Move money between the caller's own accounts, at once", opt=MOVES_MONEY)
    async def create_transfer(
        request: AnyRequest,
        data: JSONBody[TransferBody],
        caller: NamedDependency[Caller],
        step_up: NamedDependency[StepUpClaims | None],
        idempotency_key: Key = None,
    ) -> Response[CompletedView | HeldView]:
        reject_unknown(request)
        transfer_id = transfer_id_of(caller.user_id, key_of(idempotency_key))
        wanted = transfer_request(data, transfer_id)
        try:
            outcome = await ledger.transfer(
                caller.user_id, wanted, caller.metadata(), datetime.now(UTC), clearance_of(step_up)
            )
        except Refusal as refusal:
            raise _problem(refusal, wanted.currency, caller) from None
        except EventIdReused:
            raise _key_reused() from None
        headers = _headers(outcome.event.transfer_id, replayed=outcome.replayed)
        return Response(_outcome_view(outcome, headers), status_code=201, headers=headers)

    @post("/api/transfers/preview", status_code=200, summary="What a transfer would do now; nothing is written")
    async def preview_transfer(
        request: AnyRequest,
        data: JSONBody[TransferBody],
        caller: NamedDependency[Caller],
        step_up: NamedDependency[StepUpClaims | None],
    ) -> PreviewView:
        reject_unknown(request)
        # No key, no event: the id only has to be a well-formed one.
        wanted = transfer_request(data, transfer_id_of(caller.user_id, ""))
        now = datetime.now(UTC)
        state = await ledger.preview(caller.user_id, now)
        try:
            decide(state, wanted, now, clearance_of(step_up))
        except AccountNotFound:
            raise account_not_found() from None
        except (TransferRefusal, StepUpRequired) as refusal:
            return PreviewView(
                allowed=False,
                amount=format_amount(wanted.amount_minor, wanted.currency),
                currency=wanted.currency,
                from_balance=None,
                to_balance=None,
                refusal=_refusal_view(refusal, wanted.currency),
                limits=limits_view(state, now, wanted.currency),
            )
        debit, credit = post_transfer(state, wanted)
        moved = wanted.hold_s is None
        balances = [leg.balance_after_minor or 0 for leg in (debit, credit)]
        if not moved:
            balances = [balances[0] + wanted.amount_minor, balances[1] - wanted.amount_minor]
        return PreviewView(
            allowed=True,
            amount=format_amount(wanted.amount_minor, wanted.currency),
            currency=wanted.currency,
            from_balance=format_amount(balances[0], debit.currency),
            to_balance=format_amount(balances[1], credit.currency),
            refusal=None,
            limits=limits_view(state, now, wanted.currency, wanted.amount_minor),
        )

    @post("/api/transfers/bulk", summary="Up to 500 transfers, all or nothing or each for itself", opt=MOVES_MONEY)
    async def bulk_transfer(
        request: AnyRequest,
        data: JSONBody[BulkBody],
        caller: NamedDependency[Caller],
        step_up: NamedDependency[StepUpClaims | None],
        idempotency_key: Key = None,
    ) -> Response[BulkView]:
        reject_unknown(request)
        bulk_id = transfer_id_of(caller.user_id, key_of(idempotency_key))
        items = tuple(transfer_request(item, bulk_id) for item in data.items)
        bulk = BulkRequest(bulk_id=bulk_id, mode=data.mode, items=items)
        try:
            outcome = await ledger.bulk(
                caller.user_id, bulk, caller.metadata(), datetime.now(UTC), clearance_of(step_up)
            )
        except Refusal as refusal:
            raise _problem(refusal, items[0].currency, caller) from None
        except EventIdReused:
            raise _key_reused() from None
        headers = _headers(outcome.event_id, replayed=outcome.replayed) if outcome.events else {}
        view = _bulk_view(bulk, outcome)
        return Response(view, status_code=422 if view.status == "refused" else 201, headers=headers)

    @post(
        "/api/transfers/{transfer_id:uuid}/capture",
        status_code=200,
        summary="Transfer what is held, or a part of it; the rest is given back",
        opt=MOVES_MONEY,
    )
    async def capture_transfer(
        request: AnyRequest,
        transfer_id: FromPath[UUID],
        caller: NamedDependency[Caller],
        data: JSONBody[CaptureBody | None] = None,
    ) -> Response[CompletedView]:
        reject_unknown(request)
        amount = None
        if data is not None and data.amount is not None:
            found = await ledger.find_transfer(caller.user_id, transfer_id)
            if found is None:
                raise _transfer_not_found()
            amount = _amount("amount", data.amount, found.first.currency)
        try:
            outcome = await ledger.capture(caller.user_id, transfer_id, amount, caller.metadata(), datetime.now(UTC))
        except Refusal as refusal:
            raise _problem(refusal, CURRENCY, caller) from None
        completed = next(event for event in outcome.events if isinstance(event, TransferCompleted))
        headers = _headers(outcome.event_id, replayed=outcome.replayed)
        return Response(completed_view(completed), headers=headers)

    @post("/api/transfers/{transfer_id:uuid}/void", status_code=200, summary="Give back what is held")
    async def void_transfer(
        request: AnyRequest, transfer_id: FromPath[UUID], caller: NamedDependency[Caller]
    ) -> Response[HeldView]:
        reject_unknown(request)
        try:
            outcome = await ledger.void(caller.user_id, transfer_id, caller.metadata(), datetime.now(UTC))
        except Refusal as refusal:
            raise _problem(refusal, CURRENCY, caller) from None
        assert isinstance(outcome.events[0], TransferVoided)
        found = await ledger.find_transfer(caller.user_id, transfer_id)
        assert found is not None
        assert isinstance(found.first, TransferHeld)
        headers = _headers(outcome.event_id, replayed=outcome.replayed)
        return Response(held_view(found.first, "voided"), headers=headers)

    @post(
        "/api/transfers/{transfer_id:uuid}/reverse",
        summary="Take a completed transfer back, once, by a correcting one",
        opt={**MOVES_MONEY, **ops_may("transfers:reverse")},
    )
    async def reverse_transfer(
        request: AnyRequest, transfer_id: FromPath[UUID], caller: NamedDependency[Caller]
    ) -> Response[CompletedView]:
        reject_unknown(request, *(["user_id"] if caller.operator else []))
        if "transfers:reverse" not in caller.scopes:
            raise Problem(403, "insufficient_scope", "This needs a token with the scope transfers:reverse")
        try:
            outcome = await ledger.reverse(caller.user_id, transfer_id, caller.metadata(), datetime.now(UTC))
        except Refusal as refusal:
            raise _problem(refusal, CURRENCY, caller) from None
        event = outcome.events[0]
        assert isinstance(event, TransferCompleted)
        headers = _headers(outcome.event_id, replayed=outcome.replayed)
        return Response(completed_view(event), status_code=201, headers=headers)

    @get("/api/transfers/limits", summary="What may be moved per day, week and month in India")
    async def get_limits(request: AnyRequest, caller: NamedDependency[Caller]) -> LimitsView:
        reject_unknown(request)
        now = datetime.now(UTC)
        return limits_view(await ledger.preview(caller.user_id, now), now)

    @put("/api/transfers/limits", summary="Lower limits at once, raise them with step-up", opt=MOVES_MONEY)
    async def put_limits(
        request: AnyRequest,
        data: JSONBody[LimitsBody],
        caller: NamedDependency[Caller],
        step_up: NamedDependency[StepUpClaims | None],
    ) -> Response[LimitsView]:
        reject_unknown(request)
        wanted = NewLimits(
            daily_minor=_limit("daily", data.daily),
            weekly_minor=_limit("weekly", data.weekly),
            monthly_minor=_limit("monthly", data.monthly),
        )
        now = datetime.now(UTC)
        try:
            decided = await ledger.change_limits(caller.user_id, wanted, _proof(step_up), caller.metadata(), now)
        except Refusal as refusal:
            raise _problem(refusal, CURRENCY, caller) from None
        changed = any(isinstance(event, LimitsChanged) for event in decided.events)
        headers = _headers(decided.event_id) if changed else {}
        return Response(limits_view(await ledger.preview(caller.user_id, now), now), headers=headers)

    @get("/api/transfers/{transfer_id:uuid}", summary="One transfer, as it is now")
    async def get_transfer(
        request: AnyRequest, transfer_id: FromPath[UUID], caller: NamedDependency[Caller]
    ) -> CompletedView | HeldView | RefusedView:
        reject_unknown(request)
        return await _find(caller.user_id, transfer_id)

    @get("/api/transfers", summary="The outcome of a transfer request by its key, after a lost response")
    async def get_transfer_by_key(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        idempotency_key: Annotated[str, QueryParameter(name="idempotency_key")],
    ) -> CompletedView | HeldView | RefusedView:
        reject_unknown(request, "idempotency_key")
        return await _find(caller.user_id, transfer_id_of(caller.user_id, key_of(idempotency_key)))

    async def _find(user_id: UUID, transfer_id: UUID) -> CompletedView | HeldView | RefusedView:
        found = await ledger.find_transfer(user_id, transfer_id)
        if found is None:
            raise _transfer_not_found()
        return found_view(found)

    return [
        create_transfer,
        preview_transfer,
        bulk_transfer,
        capture_transfer,
        void_transfer,
        reverse_transfer,
        get_limits,
        put_limits,
        get_transfer,
        get_transfer_by_key,
    ]


def transfer_request(body: TransferBody, transfer_id: UUID) -> TransferRequest:
    """The request that a body makes.

    Raises:
        Problem: 400 naming what is wrong with it.
    """
    if body.expires_in_s is not None and not body.hold:
        raise invalid_field("expires_in_s", "is for holds only")
    return TransferRequest(
        transfer_id=transfer_id,
        from_account_id=body.from_account_id,
        to_account_id=body.to_account_id,
        amount_minor=_amount("amount", body.amount, body.currency),
        currency=body.currency,
        memo=plain_text("memo", body.memo),
        hold_s=(body.expires_in_s or HOLD_S_DEFAULT) if body.hold else None,
    )


def limits_view(state: LedgerState, now: datetime, currency: str = CURRENCY, amount_minor: int = 0) -> LimitsView:
    """The limits as they stand, after `amount_minor` more."""
    usage: Usage = state.usage.get(currency, UNUSED)
    if amount_minor:
        usage = usage.consumed(amount_minor, windows_of(now))
    views = {
        standing.window: LimitView(
            limit=format_amount(standing.limit_minor, currency),
            used=format_amount(standing.used_minor, currency),
            remaining=format_amount(standing.remaining_minor, currency),
            resets_at=standing.resets_at,
        )
        for standing in standings(state.limits, usage, now)
    }
    return LimitsView(currency=currency, daily=views["daily"], weekly=views["weekly"], monthly=views["monthly"])


def _amount(field: str, text: str, currency: str) -> int:
    amount_minor = parse_amount(text, currency, field=field)
    if amount_minor > MAX_AMOUNT_MINOR:
        raise invalid_field(field, "is too large", "invalid_amount")
    return amount_minor


def _limit(field: str, text: str | None) -> int | None:
    if text is None:
        return None
    limit_minor = parse_amount(text, CURRENCY, field=field, zero=True)
    if limit_minor > MAX_AMOUNT_MINOR:
        raise invalid_field(field, "is too large", "invalid_amount")
    return limit_minor


def _proof(claims: StepUpClaims | None) -> StepUp | None:
    if claims is None:
        return None
    return StepUp(
        jti=str(claims.jti),
        amount_minor=claims.amount_minor,
        currency=claims.currency,
        to_account_id=claims.to_account_id,
    )


def _headers(event_id: UUID, *, replayed: bool = False) -> dict[str, str]:
    headers = {CONSISTENCY_HEADER: consistency_token(event_id)}
    return headers | {REPLAYED_HEADER: "true"} if replayed else headers


def _outcome_view(outcome: TransferOutcome, headers: dict[str, str]) -> CompletedView | HeldView:
    event = outcome.event
    if isinstance(event, TransferCompleted):
        return completed_view(event)
    if isinstance(event, TransferHeld):
        return held_view(event)
    extensions: dict[str, Any] = {"transfer_id": event.transfer_id, "currency": event.currency}
    if event.available_minor is not None:
        extensions["available"] = format_amount(event.available_minor, event.currency)
    if event.window is not None:
        extensions["window"] = event.window
        extensions["remaining"] = optional_amount(event.remaining_minor, event.currency)
    raise Problem(422, event.code, REFUSAL_DETAILS[event.code], headers=headers, **extensions)


def _bulk_view(bulk: BulkRequest, outcome: BulkOutcome) -> BulkView:
    by_item = {event.bulk_item: event for event in outcome.events}
    items = [_bulk_item(bulk, number, by_item.get(number)) for number in range(len(bulk.items))]
    made = sum(item.status in ("completed", "held") for item in items)
    return BulkView(
        bulk_id=bulk.bulk_id,
        mode=bulk.mode,
        status="completed" if made == len(items) else "partial" if made else "refused",
        items=items,
    )


def _bulk_item(
    bulk: BulkRequest, number: int, event: TransferCompleted | TransferHeld | TransferRefused | None
) -> BulkItemView:
    match event:
        case TransferCompleted():
            view = completed_view(event)
            return BulkItemView(
                index=number,
                status="completed",
                transfer_id=event.transfer_id,
                from_balance=view.from_balance,
                to_balance=view.to_balance,
            )
        case TransferHeld():
            return BulkItemView(index=number, status="held", transfer_id=event.transfer_id)
        case TransferRefused():
            return BulkItemView(
                index=number,
                status="refused",
                transfer_id=event.transfer_id,
                code=event.code,
                detail=REFUSAL_DETAILS[event.code],
            )
    if bulk.mode == "all_or_nothing":
        return BulkItemView(index=number, status="not_made")
    detail = REFUSAL_DETAILS[AccountNotFound.code]
    return BulkItemView(index=number, status="refused", code=AccountNotFound.code, detail=detail)


def _refusal_view(refusal: TransferRefusal | StepUpRequired, currency: str) -> RefusalView:
    view = RefusalView(code=refusal.code, detail=REFUSAL_DETAILS[refusal.code])
    if isinstance(refusal, StepUpRequired):
        amount = format_amount(refusal.amount_minor, refusal.currency)
        wanted = StepUpView(amount=amount, currency=refusal.currency, to_account_id=refusal.to_account_id)
        return msgspec.structs.replace(view, step_up=wanted)
    return msgspec.structs.replace(
        view,
        available=optional_amount(refusal.available_minor, currency),
        window=refusal.window,
        remaining=optional_amount(refusal.remaining_minor, currency),
    )


def _problem(refusal: Refusal, currency: str, caller: Caller) -> Problem:
    """The answer to a refusal that nothing was recorded of."""
    if isinstance(refusal, AccountNotFound):
        return account_not_found()
    if isinstance(refusal, TransferNotFound):
        return _transfer_not_found()
    if isinstance(refusal, StepUpRequired):
        amount = format_amount(refusal.amount_minor, refusal.currency)
        return step_up_required(amount, refusal.currency, refusal.to_account_id, caller)
    extensions: dict[str, Any] = {}
    if isinstance(refusal, TransferRefusal) and refusal.available_minor is not None:
        extensions["available"] = format_amount(refusal.available_minor, currency)
    status = 409 if isinstance(refusal, HoldNotOpen) else 422
    return Problem(status, refusal.code, _COMMAND_DETAILS[refusal.code], **extensions)


def _key_reused() -> Problem:
    return Problem(422, "idempotency_key_reused", "This Idempotency-Key was used for another request")


def _transfer_not_found() -> Problem:
    return Problem(404, TransferNotFound.code, "There is no such transfer")
