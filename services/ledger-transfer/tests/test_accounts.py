"""Given these events, when a platform reports this, then these events."""

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from events.contracts import banking, trading
from events.contracts.ledger import (
    AccountClosed,
    AccountOpened,
    AccountPosted,
    AlertRaised,
    Leg,
    PostingDeferred,
    PostingRejected,
    TransferCompleted,
    TransferSettled,
)
from events.contracts.registry import Event
from ledger_transfer.accounts import record_fact
from ledger_transfer.facts import fact_of
from ledger_transfer.state import (
    Decision,
    LedgerState,
    UnbalancedLegsError,
    account_id_of,
    balanced,
    clearing,
    evolve,
    fold,
)
from ledger_transfer.transfers import TransferRequest, transfer

USER = uuid4()
AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
SAVINGS = account_id_of(USER, "bfc", "SB1")
WALLET = account_id_of(USER, "vyomo", "W1")
DEPOSIT = account_id_of(USER, "bfc", "FD1")
_numbers = iter(range(10**6))


def item_fields() -> dict[str, Any]:
    return {"item_id": f"i{next(_numbers)}", "customer_id": "C1", "occurred_at": AT}


def opened(balance: int = 0, currency: str = "INR") -> Event:
    return banking.AccountOpened(
        **item_fields(), account_id="SB1", kind="savings", currency=currency, opening_balance_minor=balance
    )


def wallet(balance: int = 0) -> Event:
    return trading.WalletOpened(**item_fields(), wallet_id="W1", currency="INR", opening_balance_minor=balance)


def posted(direction: Any, amount: int, currency: str = "INR", reference: str | None = None) -> Event:
    return banking.TransactionPosted(
        **item_fields(),
        transaction_id="T1",
        account_id="SB1",
        direction=direction,
        amount_minor=amount,
        currency=currency,
        category="salary",
        reference=reference,
    )


def deposit_opened(principal: int, currency: str = "INR", deposit_id: str = "FD1") -> Event:
    return banking.FixedDepositOpened(
        **item_fields(),
        deposit_id=deposit_id,
        account_id="SB1",
        principal_minor=principal,
        currency=currency,
        rate_percent="7.1",
        opened_on=date(2026, 2, 12),
        matures_on=date(2027, 2, 12),
    )


def deposit_matured(payout: int, deposit_id: str = "FD1") -> Event:
    return banking.FixedDepositMatured(**item_fields(), deposit_id=deposit_id, account_id="SB1", payout_minor=payout)


def report(state: LedgerState, *items: Event, own: TransferCompleted | None = None) -> tuple[LedgerState, list[Event]]:
    events: list[Event] = []
    for item in items:
        fact = fact_of(item)
        assert fact is not None
        decision = Decision(state, event_id=uuid4(), now=AT)
        record_fact(decision, USER, fact, own)
        events += decision.events
        state = decision.state
    return state, events


def balance(state: LedgerState, account_id: UUID) -> int:
    return state.accounts[account_id].balance_minor


def money_legs(events: list[Event]) -> list[Leg]:
    return [leg for event in events for leg in getattr(event, "legs", ())]


def test_an_account_opens_with_its_balance_against_the_opening_account() -> None:
    state, events = report(LedgerState(), opened(50_000_00))
    [event] = events
    assert isinstance(event, AccountOpened)
    assert [(leg.account_id, leg.amount_minor, leg.balance_after_minor) for leg in event.legs] == [
        (str(SAVINGS), 50_000_00, 50_000_00),
        ("opening:bfc", -50_000_00, None),
    ]
    assert balance(state, SAVINGS) == 50_000_00


def test_an_account_that_opens_empty_has_no_legs() -> None:
    _, [event] = report(LedgerState(), opened(0))
    assert isinstance(event, AccountOpened)
    assert event.legs == ()


def test_an_account_may_open_overdrawn() -> None:
    state, _ = report(LedgerState(), opened(-100_00))
    assert balance(state, SAVINGS) == -100_00


def test_an_account_reported_again_stays_as_it_is() -> None:
    state, _ = report(LedgerState(), opened(50_00), posted("credit", 10_00))
    after, events = report(state, opened(999_00))
    assert events == []
    assert after == state


@pytest.mark.parametrize(("direction", "expected"), [("credit", 70_00), ("debit", 30_00)])
def test_a_movement_is_posted_against_the_clearing_account(direction: str, expected: int) -> None:
    state, _ = report(LedgerState(), opened(50_00))
    after, [event] = report(state, posted(direction, 20_00))
    assert isinstance(event, AccountPosted)
    change = expected - 50_00
    assert [(leg.account_id, leg.amount_minor, leg.balance_after_minor) for leg in event.legs] == [
        (str(SAVINGS), change, expected),
        ("clearing:bfc", -change, None),
    ]
    assert not event.below_floor
    assert balance(after, SAVINGS) == expected


def test_a_fact_below_the_floor_is_posted_and_marked() -> None:
    state, _ = report(LedgerState(), opened(50_00))
    after, [event, alert] = report(state, posted("debit", 80_00))
    assert isinstance(event, AccountPosted)
    assert event.below_floor
    assert balance(after, SAVINGS) == -30_00
    assert isinstance(alert, AlertRaised)
    assert (alert.kind, alert.severity, alert.account_id) == ("floor_broken", "critical", SAVINGS)
    assert (alert.balance_minor, alert.floor_minor, alert.currency) == (-30_00, 0, "INR")
    # A credit that leaves it below is no news, and no alarm.
    _, events = report(after, posted("credit", 1_00))
    assert [type(event) for event in events] == [AccountPosted]


def test_a_movement_before_its_account_waits_and_is_posted_with_the_opening() -> None:
    first, second = posted("debit", 20_00), posted("credit", 5_00)
    state, waiting = report(LedgerState(), first, second)
    assert [type(event) for event in waiting] == [PostingDeferred, PostingDeferred]
    assert state.accounts == {}
    after, events = report(state, opened(50_00))
    assert [type(event) for event in events] == [AccountOpened, AccountPosted, AccountPosted]
    assert [getattr(event, "item_id", None) for event in events[1:]] == [first.item_id, second.item_id]  # type: ignore[attr-defined]
    assert balance(after, SAVINGS) == 35_00
    assert after.waiting == {}


def test_a_hundred_thousand_movements_may_wait() -> None:
    fact = fact_of(posted("credit", 1))
    assert fact is not None
    decision = Decision(LedgerState(), event_id=uuid4(), now=AT)
    for _ in range(100_000):
        record_fact(decision, USER, fact)
    state = decision.state
    after, events = report(state, opened(0))
    assert len(events) == 100_001
    assert balance(after, SAVINGS) == 100_000


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (posted("credit", 10_00, currency="USD"), "currency_mismatch"),
        (posted("credit", 0), "amount_out_of_range"),
        (posted("credit", -5), "amount_out_of_range"),
        (posted("credit", 10**15 + 1), "amount_out_of_range"),
    ],
)
def test_a_movement_that_no_posting_can_express_is_kept_aside(item: Event, reason: str) -> None:
    state, _ = report(LedgerState(), opened(50_00))
    after, [event] = report(state, item)
    assert isinstance(event, PostingRejected)
    assert event.reason == reason
    assert after == state


def test_a_deposit_takes_the_principal_and_gives_it_back_with_interest() -> None:
    state, events = report(LedgerState(), opened(100_00), deposit_opened(80_00))
    assert [type(event) for event in events] == [AccountOpened, AccountOpened, AccountPosted]
    assert (balance(state, SAVINGS), balance(state, DEPOSIT)) == (20_00, 80_00)
    after, events = report(state, deposit_matured(86_00))
    posting, closing = events
    assert isinstance(posting, AccountPosted)
    assert isinstance(closing, AccountClosed)
    assert [(leg.account_id, leg.amount_minor) for leg in posting.legs] == [
        (str(SAVINGS), 86_00),
        (str(DEPOSIT), -80_00),
        ("clearing:bfc", -6_00),
    ]
    assert (balance(after, SAVINGS), balance(after, DEPOSIT)) == (106_00, 0)
    assert after.accounts[DEPOSIT].status == "closed"


def test_a_payout_reported_twice_under_two_ids_is_two_facts() -> None:
    state, _ = report(LedgerState(), opened(100_00), deposit_opened(80_00), deposit_matured(86_00))
    after, events = report(state, deposit_matured(86_00))
    assert [type(event) for event in events] == [AccountPosted]
    assert balance(after, SAVINGS) == 192_00


def test_a_deposit_in_another_currency_than_its_account_stays_empty() -> None:
    state, events = report(LedgerState(), opened(100_00), deposit_opened(80_00, currency="USD"))
    assert [type(event) for event in events] == [AccountOpened, AccountOpened, PostingRejected]
    assert (balance(state, SAVINGS), balance(state, DEPOSIT)) == (100_00, 0)


def test_a_payout_without_a_currency_is_not_guessed_where_its_decimals_would_differ() -> None:
    """It was read as rupees and paise: as yen it would be a hundred times too much."""
    state, _ = report(LedgerState(), opened(1000, currency="JPY"), deposit_opened(800, currency="JPY"))
    after, [event] = report(state, deposit_matured(860_00))
    assert isinstance(event, PostingRejected)
    assert (balance(after, SAVINGS), balance(after, DEPOSIT)) == (200, 800)


def test_a_deposit_id_that_names_another_account_neither_empties_nor_closes_it() -> None:
    other = msgspec.structs.replace(opened(500_00), account_id="SB2")
    state, _ = report(LedgerState(), opened(100_00), other)
    for deposit_id in ("SB2", "SB1"):
        state, [event] = report(state, deposit_matured(86_00, deposit_id))
        assert isinstance(event, AccountPosted)
    assert (balance(state, SAVINGS), balance(state, account_id_of(USER, "bfc", "SB2"))) == (272_00, 500_00)
    assert {account.status for account in state.accounts.values()} == {"active"}


def test_a_deposit_that_names_itself_as_its_account_holds_up_nothing() -> None:
    state, events = report(LedgerState(), deposit_opened(80_00, deposit_id="SB1"), posted("credit", 90_00))
    assert [type(event) for event in events] == [AccountOpened, AccountPosted, AlertRaised, AccountPosted]
    assert balance(state, SAVINGS) == 10_00


@pytest.mark.parametrize(
    ("there", "deposit_after"),
    [
        ([msgspec.structs.replace(opened(500_00), account_id="FD1")], 500_00),
        ([msgspec.structs.replace(opened(500_00, currency="USD"), account_id="FD1")], 500_00),
        ([opened(100_00), deposit_opened(20_00)], 50_00),
    ],
    ids=["savings", "other_currency", "deposit"],
)
def test_a_deposit_whose_account_is_there_already_still_takes_the_principal(
    there: list[Event], deposit_after: int
) -> None:
    """Whatever has its id: the money has left the savings account, and comes out somewhere."""
    state, _ = report(LedgerState(), opened(100_00), *there)
    before = balance(state, SAVINGS)
    after, events = report(state, deposit_opened(30_00))
    [posting] = events
    assert isinstance(posting, AccountPosted)
    assert (balance(after, SAVINGS), balance(after, DEPOSIT)) == (before - 30_00, deposit_after)
    assert sum(leg.amount_minor for leg in money_legs(events)) == 0
    assert fold(events, state) == after


def test_a_deposit_that_is_there_before_its_savings_account_waits_for_the_money() -> None:
    state, _ = report(LedgerState(), deposit_opened(20_00), deposit_opened(30_00), opened(100_00))
    assert (balance(state, SAVINGS), balance(state, DEPOSIT)) == (50_00, 50_00)
    assert state.waiting == {}


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_a_deposit_ends_the_same_in_every_order_of_arrival(order: str) -> None:
    items = {"a": opened(100_00), "b": deposit_opened(80_00), "c": deposit_matured(86_00)}
    state, events = report(LedgerState(), *(items[letter] for letter in order))
    assert (balance(state, SAVINGS), balance(state, DEPOSIT)) == (106_00, 0)
    assert state.accounts[DEPOSIT].status == "closed"
    assert state.waiting == {}
    assert sum(leg.amount_minor for leg in money_legs(events)) == 0
    assert fold(events) == state


def completed_transfer() -> tuple[LedgerState, TransferCompleted]:
    state, _ = report(LedgerState(), opened(100_00), wallet(0))
    request = TransferRequest(
        transfer_id=uuid4(), from_account_id=SAVINGS, to_account_id=WALLET, amount_minor=40_00, currency="INR"
    )
    [event] = transfer(state, request, AT)
    assert isinstance(event, TransferCompleted)
    return evolve(state, event), event


def test_a_transfer_reported_back_settles_and_posts_nothing() -> None:
    state, own = completed_transfer()
    after, [event] = report(state, posted("debit", 40_00, reference=str(own.transfer_id)), own=own)
    assert isinstance(event, TransferSettled)
    assert (event.transfer_id, event.platform) == (own.transfer_id, "bfc")
    assert after == state
    payin = trading.WalletPosted(
        **item_fields(),
        movement_id="M1",
        wallet_id="W1",
        direction="credit",
        amount_minor=40_00,
        currency="INR",
        reason="payin",
        reference=str(own.transfer_id),
    )
    after, [event] = report(state, payin, own=own)
    assert isinstance(event, TransferSettled)
    assert event.platform == "vyomo"
    assert after == state


@pytest.mark.parametrize(("direction", "amount"), [("credit", 40_00), ("debit", 5_00)])
def test_other_money_with_our_reference_is_new_money(direction: str, amount: int) -> None:
    """A returned payment or a fee names the transfer too."""
    state, own = completed_transfer()
    after, [event] = report(state, posted(direction, amount, reference=str(own.transfer_id)), own=own)
    assert isinstance(event, AccountPosted)
    assert balance(after, SAVINGS) == 60_00 + (amount if direction == "credit" else -amount)


def test_legs_that_do_not_sum_to_zero_are_a_bug() -> None:
    with pytest.raises(UnbalancedLegsError):
        balanced(clearing("bfc", 100, "INR"), clearing("vyomo", -99, "INR"))
    with pytest.raises(UnbalancedLegsError):
        balanced(clearing("bfc", 100, "INR"), clearing("vyomo", -100, "USD"))


def test_a_stated_balance_that_does_not_follow_is_a_bug() -> None:
    state, _ = report(LedgerState(), opened(50_00))
    _, [event] = report(state, posted("credit", 20_00))
    assert isinstance(event, AccountPosted)
    wrong = msgspec.structs.replace(
        event, legs=(msgspec.structs.replace(event.legs[0], balance_after_minor=71_00), event.legs[1])
    )
    with pytest.raises(UnbalancedLegsError):
        evolve(state, wrong)
