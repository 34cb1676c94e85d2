"""Given these accounts, when a transfer is asked for, then it is completed or refused for this reason."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from events.contracts.ledger import TransferCompleted, TransferRefused
from events.decisions import Refusal
from ledger_transfer.idempotency import request_hash, transfer_id_of
from ledger_transfer.limits import Limits
from ledger_transfer.state import Account, LedgerState, evolve
from ledger_transfer.transfers import (
    REFUSAL_DETAILS,
    UNRESTRICTED,
    AccountNotFound,
    Clearance,
    InsufficientFunds,
    StepUp,
    StepUpRequired,
    TransferRequest,
    post_transfer,
    transfer,
)

NOW = datetime(2026, 2, 12, 9, tzinfo=UTC)
SAVINGS, WALLET, DOLLARS, CLOSED, CLOSED_DOLLARS, DEPOSIT, UNKNOWN, FROZEN, RICH = (UUID(int=n) for n in range(1, 10))


def account(account_id: UUID, **changes: Any) -> Account:
    fields: dict[str, Any] = {
        "platform": "bfc",
        "kind": "savings",
        "currency": "INR",
        "balance_minor": 100_00,
        "floor_minor": 0,
        "status": "active",
    }
    return Account(account_id=account_id, **(fields | changes))


STATE = LedgerState(
    accounts={
        row.account_id: row
        for row in (
            account(SAVINGS),
            account(WALLET, platform="vyomo", kind="trading_wallet"),
            account(DOLLARS, currency="USD"),
            account(CLOSED, status="closed"),
            account(CLOSED_DOLLARS, status="closed", currency="USD"),
            account(DEPOSIT, kind="fixed_deposit"),
            account(FROZEN, status="frozen", frozen_by="customer"),
            account(RICH, balance_minor=1_000_00),
        )
    }
)


def request(
    source: UUID = SAVINGS, target: UUID = WALLET, amount: int = 40_00, currency: str = "INR"
) -> TransferRequest:
    return TransferRequest(
        transfer_id=UUID(int=99),
        from_account_id=source,
        to_account_id=target,
        amount_minor=amount,
        currency=currency,
    )


def test_a_transfer_moves_the_money_and_states_the_balances() -> None:
    [event] = transfer(STATE, request(), NOW)
    assert isinstance(event, TransferCompleted)
    assert [(leg.account_id, leg.amount_minor, leg.balance_after_minor, leg.platform) for leg in event.legs] == [
        (str(SAVINGS), -40_00, 60_00, "bfc"),
        (str(WALLET), 40_00, 140_00, "vyomo"),
    ]
    assert (event.transfer_id, event.completed_at) == (UUID(int=99), NOW)


def test_the_whole_balance_may_go() -> None:
    [event] = transfer(STATE, request(amount=100_00), NOW)
    assert isinstance(event, TransferCompleted)
    assert evolve(STATE, event).accounts[SAVINGS].balance_minor == 0


# Each row breaks its own rule and every rule after it, so that the order of precedence is tested too.
@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (request(SAVINGS, SAVINGS, 500_00, "USD"), "same_account"),
        (request(CLOSED_DOLLARS, DEPOSIT, 500_00), "currency_mismatch"),
        (request(SAVINGS, WALLET, 500_00, "USD"), "currency_mismatch"),
        (request(DOLLARS, DOLLARS, 500_00), "same_account"),
        (request(CLOSED, DEPOSIT, 500_00), "account_closed"),
        (request(DEPOSIT, CLOSED, 500_00), "account_closed"),
        (request(CLOSED, FROZEN, 500_00), "account_closed"),
        (request(FROZEN, CLOSED, 500_00), "account_closed"),
        (request(FROZEN, DEPOSIT, 500_00), "account_frozen"),
        (request(DEPOSIT, FROZEN, 500_00), "account_frozen"),
        (request(SAVINGS, FROZEN, 500_00), "account_frozen"),
        (request(DEPOSIT, WALLET, 500_00), "account_not_transferable"),
        (request(SAVINGS, DEPOSIT, 500_00), "account_not_transferable"),
        (request(SAVINGS, WALLET, 100_01), "insufficient_funds"),
    ],
)
def test_refusals_are_recorded_in_order_of_precedence(wanted: TransferRequest, code: str) -> None:
    [event] = transfer(STATE, wanted, NOW)
    assert isinstance(event, TransferRefused)
    assert (event.code, event.refused_at, event.transfer_id) == (code, NOW, wanted.transfer_id)
    assert event.available_minor == (100_00 if code == "insufficient_funds" else None)
    assert evolve(STATE, event) == STATE
    assert code in REFUSAL_DETAILS


STRICT = msgspec.structs.replace(STATE, limits=Limits(daily_minor=150_00, weekly_minor=200_00, monthly_minor=300_00))
THRESHOLD = Clearance(threshold_minor=120_00)


def verdict(wanted: TransferRequest, state: LedgerState = STRICT, clearance: Clearance = THRESHOLD) -> str | None:
    """The code of the refusal, recorded or not."""
    try:
        [event] = transfer(state, wanted, NOW, clearance)
    except Refusal as refusal:
        return refusal.code
    return event.code if isinstance(event, TransferRefused) else None


@pytest.mark.parametrize(
    ("earlier", "both", "later", "mended"),
    [
        ("account_not_found", request(UNKNOWN, UNKNOWN), "same_account", request(SAVINGS, SAVINGS)),
        ("same_account", request(SAVINGS, SAVINGS, 1, "USD"), "currency_mismatch", request(SAVINGS, WALLET, 1, "USD")),
        ("currency_mismatch", request(CLOSED_DOLLARS), "account_closed", request(CLOSED)),
        ("account_closed", request(CLOSED, FROZEN), "account_frozen", request(SAVINGS, FROZEN)),
        ("account_frozen", request(FROZEN, DEPOSIT), "account_not_transferable", request(SAVINGS, DEPOSIT)),
        (
            "account_not_transferable",
            request(DEPOSIT, WALLET, 100_01),
            "insufficient_funds",
            request(SAVINGS, WALLET, 100_01),
        ),
        ("insufficient_funds", request(SAVINGS, WALLET, 150_01), "limit_exceeded", request(RICH, WALLET, 150_01)),
        ("limit_exceeded", request(RICH, WALLET, 150_01), "step_up_required", request(RICH, WALLET, 120_01)),
    ],
)
def test_of_two_reasons_the_earlier_is_told_and_once_mended_the_later(
    earlier: str, both: TransferRequest, later: str, mended: TransferRequest
) -> None:
    assert (verdict(both), verdict(mended)) == (earlier, later)
    assert {earlier, later} <= REFUSAL_DETAILS.keys()


def test_what_breaks_no_rule_is_completed() -> None:
    assert verdict(request(RICH, WALLET, 120_00)) is None


def test_a_limit_that_is_exceeded_is_recorded_with_its_window() -> None:
    [event] = transfer(STRICT, request(RICH, WALLET, 150_01), NOW)
    assert isinstance(event, TransferRefused)
    assert (event.code, event.window, event.remaining_minor) == ("limit_exceeded", "daily", 150_00)
    assert evolve(STRICT, event) == STRICT
    assert verdict(request(RICH, WALLET, 150_00), clearance=UNRESTRICTED) is None


def token(**changes: Any) -> Clearance:
    fields: dict[str, Any] = {"jti": "j", "amount_minor": 130_00, "currency": "INR", "to_account_id": WALLET}
    return Clearance(threshold_minor=120_00, step_up=StepUp(**(fields | changes)))


@pytest.mark.parametrize(
    ("clearance", "reason"),
    [
        (THRESHOLD, "missing"),
        (token(amount_minor=130_01), "mismatch"),
        (token(currency="USD"), "mismatch"),
        (token(to_account_id=None), "mismatch"),
        (token(jti="spent"), "used"),
    ],
)
def test_a_step_up_is_asked_for_and_never_recorded(clearance: Clearance, reason: str) -> None:
    state = msgspec.structs.replace(STRICT, step_ups={"spent": NOW})
    wanted = request(RICH, WALLET, 130_00)
    with pytest.raises(StepUpRequired) as refusal:
        transfer(state, wanted, NOW, clearance)
    told = refusal.value
    assert (told.code, told.reason) == ("step_up_required", reason)
    assert (told.amount_minor, told.currency, told.to_account_id) == (130_00, "INR", WALLET)
    assert verdict(wanted, state, token()) is None


@pytest.mark.parametrize(
    "wanted", [request(UNKNOWN, UNKNOWN, 500_00, "USD"), request(SAVINGS, UNKNOWN), request(UNKNOWN)]
)
def test_an_unknown_account_is_refused_first_and_never_recorded(wanted: TransferRequest) -> None:
    with pytest.raises(AccountNotFound) as refusal:
        transfer(STATE, wanted, NOW)
    assert refusal.value.code == "account_not_found"
    assert refusal.value.code in REFUSAL_DETAILS


@pytest.mark.parametrize(("balance", "floor", "amount", "allowed"), [(100, 20, 80, True), (100, 20, 81, False)])
def test_the_floor_is_kept_to_the_paisa(balance: int, floor: int, amount: int, allowed: bool) -> None:
    accounts = {**STATE.accounts, SAVINGS: account(SAVINGS, balance_minor=balance, floor_minor=floor)}
    [event] = transfer(LedgerState(accounts=accounts), request(amount=amount), NOW)
    assert isinstance(event, TransferCompleted) is allowed


def test_nothing_is_spendable_below_the_floor() -> None:
    accounts = {**STATE.accounts, SAVINGS: account(SAVINGS, balance_minor=-50_00)}
    with pytest.raises(InsufficientFunds) as refusal:
        post_transfer(LedgerState(accounts=accounts), request(amount=1))
    assert refusal.value.available_minor == 0


@pytest.mark.parametrize("amount", [0, -1, 10**15 + 1])
def test_an_amount_out_of_range_never_gets_this_far(amount: int) -> None:
    with pytest.raises(ValueError, match="no amount"):
        transfer(STATE, request(amount=amount), NOW)


def test_a_key_names_one_transfer_of_one_customer() -> None:
    first, second = uuid4(), uuid4()
    assert transfer_id_of(first, "k") == transfer_id_of(first, "k")
    assert len({transfer_id_of(first, "k"), transfer_id_of(first, "K"), transfer_id_of(second, "k")}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"from_account_id": DOLLARS},
        {"to_account_id": DOLLARS},
        {"amount_minor": 40_01},
        {"currency": "USD"},
        {"memo": "rent"},
    ],
)
def test_every_field_of_the_body_makes_another_request(change: dict[str, Any]) -> None:
    assert request_hash(request()) == request_hash(request())
    assert request_hash(msgspec.structs.replace(request(), **change)) != request_hash(request())
