"""Rules: given this customer, when money moves or time passes, then these firings and refusals."""

import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from events.contracts.ledger import (
    AccountFrozen,
    AccountUnfrozen,
    LimitsChanged,
    TransferCompleted,
    TransferVoided,
)
from events.contracts.ledger_rules import RuleFired, RuleRefused, Scheduled, ToTarget
from events.envelope import derived_id
from ledger_transfer.holds import void
from ledger_transfer.replenish import BACK_OFF_FIRST, BACK_OFF_MAX, come_due
from ledger_transfer.state import Decision, balanced, leg_on

sys.path.insert(0, str(Path(__file__).parent))

from rule_stories import (
    CURRENT,
    RULE,
    SAVINGS,
    SECOND,
    THIRD,
    WALLET,
    Story,
    below,
    daily,
    fired,
    india,
    monthly,
    outcomes,
    refolds,
    share,
    terms,
    the,
)

# balance_below


def test_the_gap_is_closed_in_one_transfer_in_the_append_that_opened_it() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    assert outcomes(story.create(below(1_000_00))) == []
    events = story.post(WALLET, -300_00)
    assert [type(event).__name__ for event in events] == ["AccountPosted", "TransferCompleted", "RuleFired"]
    assert fired(events) == [300_00]
    assert (story.balance(SAVINGS), story.balance(WALLET)) == (9_700_00, 1_000_00)
    assert refolds(story)


def test_a_rule_is_evaluated_at_once_when_it_is_made() -> None:
    story = Story(savings=10_000_00)
    assert fired(story.create(below(1_000_00))) == [1_000_00]


def test_at_the_threshold_nothing_is_due() -> None:
    story = Story(savings=10_000_00, wallet=1_000_01)
    story.create(below(1_000_00))
    assert fired(story.post(WALLET, -1)) == []
    assert story.explain().reason == "above_threshold"
    assert fired(story.post(WALLET, -1)) == [1]


def test_a_fixed_amount_moves_once_per_event_however_large_the_gap() -> None:
    story = Story(savings=10_000_00)
    assert fired(story.create(below(1_000_00, fixed=100_00))) == [100_00]
    assert fired(story.post(WALLET, -1_00)) == [100_00]


def test_the_transfer_has_the_id_of_its_own_event_so_that_an_echo_settles_it() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    story.create(below(1_000_00))
    events = story.post(WALLET, -300_00)
    transfer, firing = the(events, TransferCompleted), the(events, RuleFired)
    assert transfer.transfer_id == firing.transfer_id
    append_id = UUID(firing.occurrence.removeprefix("below:"))
    assert transfer.transfer_id == derived_id(append_id, events.index(transfer))
    assert transfer.rule_id == RULE


def test_what_is_in_flight_counts() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    story.create(below(1_000_00))
    held = story.hold(SAVINGS, WALLET, 500_00)
    assert fired(story.post(WALLET, -300_00)) == []
    assert story.explain().reason == "in_flight"
    assert fired(story.post(WALLET, -300_00)) == [100_00]  # only what the hold will not bring
    events = story.decided(lambda decision: decision.record(*void(decision.state, held.transfer_id, decision.now)))
    assert the(events, TransferVoided)
    assert fired(events) == [500_00]  # it will not come: the gap is closed in the same append


def test_a_hold_that_has_expired_is_on_its_way_no_more() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    story.create(below(1_000_00))
    story.hold(SAVINGS, WALLET, 500_00)
    assert fired(story.post(WALLET, -300_00)) == []
    story.now += timedelta(days=7)
    assert fired(story.post(CURRENT, 1_00)) == [300_00]


def test_money_held_on_the_target_is_not_there() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    story.create(below(1_000_00))
    assert fired(story.move(WALLET, CURRENT, 400_00, timedelta(days=1))) == [400_00]


def test_a_gap_below_zero_is_filled_no_further_than_the_worst_case_that_was_agreed_to() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    agreed = below(1_000_00, executions_per_day=1)
    story.create(agreed)
    assert story.rule().worst_case.per_day_minor == 1_000_00
    assert fired(story.post(WALLET, -1_500_00)) == [1_000_00]  # a platform's fact is posted whatever the floor
    assert story.balance(WALLET) == 500_00


def test_a_chain_of_rules_is_one_append() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00, current=500_00)
    story.create(below(500_00, source=SAVINGS, target=CURRENT), SECOND)
    story.create(below(1_000_00, source=CURRENT, target=WALLET))
    events = story.post(WALLET, -200_00)
    assert [(event.rule_id, event.amount_minor) for event in events if isinstance(event, RuleFired)] == [
        (RULE, 200_00),
        (SECOND, 200_00),
    ]
    assert (story.balance(SAVINGS), story.balance(CURRENT), story.balance(WALLET)) == (9_800_00, 500_00, 1_000_00)


def test_a_reversal_is_not_undone_by_the_rule() -> None:
    story = Story(savings=10_000_00)
    firing = the(story.create(below(1_000_00)), RuleFired)

    def reverse(decision: Decision) -> None:
        accounts = decision.state.accounts
        decision.record(
            TransferCompleted(
                transfer_id=THIRD,
                from_account_id=WALLET,
                to_account_id=SAVINGS,
                amount_minor=1_000_00,
                currency="INR",
                legs=balanced(leg_on(accounts[WALLET], -1_000_00), leg_on(accounts[SAVINGS], 1_000_00)),
                completed_at=story.now,
                reverses=firing.transfer_id,
            )
        )

    assert fired(story.decided(reverse)) == []
    assert story.balance(WALLET) == 0


def test_a_fixed_amount_moves_whole_or_not_at_all() -> None:
    story = Story(savings=10_000_00)
    story.create(below(1_000_00, fixed=100_00, per_day_minor=150_00))
    assert outcomes(story.post(WALLET, -1_00)) == [("refused", "cap_reached", 100_00)]


def test_a_clock_that_goes_back_over_midnight_gives_no_cap_back() -> None:
    story = Story(savings=10_000_00)
    story.now = india("2026-03-01T00:01")
    story.create(below(1_000_00, fixed=100_00, per_day_minor=100_00, per_month_minor=100_00))
    story.now = india("2026-02-28T23:59")
    assert outcomes(story.post(WALLET, -1_00)) == [("refused", "cap_reached", 100_00)]


# percentage


def test_a_share_of_a_salary_goes_in_the_append_of_the_salary() -> None:
    story = Story()
    story.create(share(20, category="salary", min_credit_minor=10_000_00))
    events = story.post(SAVINGS, 85_000_00)
    assert [type(event).__name__ for event in events] == ["AccountPosted", "TransferCompleted", "RuleFired"]
    assert fired(events) == [17_000_00]
    assert the(events, RuleFired).occurrence.startswith("credit:bfc:i")


@pytest.mark.parametrize(
    ("signed", "category", "kind"),
    [
        (9_999_99, "salary", "transaction"),  # too small
        (50_000_00, "interest", "transaction"),  # another category
        (-50_000_00, "salary", "transaction"),  # a debit
        (50_000_00, "salary", "fixed_deposit"),  # own money coming back
    ],
)
def test_what_is_no_credit_for_the_rule(signed: int, category: str, kind: str) -> None:
    story = Story(savings=60_000_00)
    story.create(share(20, category="salary", min_credit_minor=10_000_00))
    assert outcomes(story.post(SAVINGS, signed, category, type=kind)) == []


def test_own_transfers_are_no_credits() -> None:
    story = Story(wallet=10_000_00)
    story.create(share(50))
    assert fired(story.move(WALLET, SAVINGS, 1_000_00)) == []


@pytest.mark.parametrize(("credit", "percent", "amount"), [(99, 10, 9), (1_01, 33, 33), (3, 50, 1)])
def test_a_share_is_rounded_down(credit: int, percent: int, amount: int) -> None:
    story = Story()
    story.create(share(percent))
    assert fired(story.post(SAVINGS, credit)) == [amount]


def test_a_share_of_nothing_worth_moving_is_nothing() -> None:
    story = Story()
    story.create(share(10))
    assert outcomes(story.post(SAVINGS, 9)) == []


def test_a_share_stops_at_the_caps() -> None:
    story = Story()
    story.create(share(20, per_day_minor=10_000_00, per_month_minor=15_000_00))
    assert fired(story.post(SAVINGS, 85_000_00)) == [10_000_00]
    assert outcomes(story.post(SAVINGS, 85_000_00)) == [("refused", "cap_reached", 17_000_00)]
    assert outcomes(story.post(SAVINGS, 85_000_00)) == []  # it backs off until the cap is renewed
    story.now = india("2026-01-02T00:00")
    assert fired(story.post(SAVINGS, 85_000_00)) == [5_000_00]
    refused = the(story.post(SAVINGS, 85_000_00), RuleRefused)
    assert refused.retry_at == india("2026-02-01T00:00")


# scheduled, with a clock of the test's own


def test_months_ends_and_a_leap_day_over_two_years() -> None:
    story = Story(savings=10**9)
    story.now = india("2027-01-01T00:00")
    story.create(monthly(31, 100_00))
    runs = [event.due_at for event in story.live(india("2028-12-31T23:59")) if isinstance(event, RuleFired)]
    lasts = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    assert runs == [india(f"{2027 + n // 12}-{n % 12 + 1:02}-{day:02}T09:00") for n, day in enumerate(lasts)]
    assert story.balance(WALLET) == 24 * 100_00


def test_a_run_at_midnight_in_india_counts_for_the_day_that_begins() -> None:
    """18:30 UTC is another day in India: the cap of the day is a new one."""
    story = Story(savings=10_000_00)
    story.now = india("2026-03-30T12:00")
    story.create(daily(100_00, at="00:00", executions_per_day=1, per_month_minor=200_00))
    story.live(india("2026-03-31T23:59:59"))
    assert story.balance(WALLET) == 100_00
    # One more in March, on the 31st at 00:00; the first of April begins a new month.
    assert outcomes(story.live(india("2026-04-01T00:00"))) == [("fired", "", 100_00)]
    assert story.rule().moved.month_minor == 100_00


def test_after_a_two_day_outage_the_missed_runs_are_made_up_for_once() -> None:
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    story.live(india("2026-01-10T12:00"))
    assert story.balance(WALLET) == 9 * 100_00
    back = story.tick(india("2026-01-12T21:00"))
    firing = the(back, RuleFired)
    assert (firing.due_at, firing.missed, firing.fired_at) == (india("2026-01-12T09:00"), 1, story.now)
    assert story.tick() == []
    assert story.balance(WALLET) == 10 * 100_00
    assert [event.due_at for event in story.live(india("2026-01-13T12:00")) if isinstance(event, RuleFired)] == [
        india("2026-01-13T09:00")
    ]


def test_an_occurrence_is_made_once_however_often_the_timer_looks() -> None:
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    assert fired(story.tick(india("2026-01-02T09:00"))) == [100_00]
    for seconds in range(5):
        story.now = india("2026-01-02T09:00") + timedelta(seconds=seconds)
        assert story.decided(_come_due) == []
        assert story.check() == []


def _come_due(decision: Decision) -> None:
    come_due(decision, RULE, 1)


def test_what_is_due_by_now_is_no_other_than_what_was_seen_to_be() -> None:
    """The append's key names the occurrence that the timer saw; on the stream another one may be due by then."""
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    story.now = india("2026-01-03T09:00")
    seen_earlier, seen_now = "2026-01-02T03:30:00Z", "2026-01-03T03:30:00Z"
    assert story.decided(lambda decision: come_due(decision, RULE, 1, seen_earlier)) == []
    assert fired(story.decided(lambda decision: come_due(decision, RULE, 1, seen_now))) == [100_00]


def test_a_clock_that_goes_back_makes_nothing_twice() -> None:
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    story.tick(india("2026-01-03T09:00"))
    story.now = india("2026-01-02T09:00")
    assert story.decided(_come_due) == []


def test_a_refused_run_is_over_and_the_next_one_is_made() -> None:
    story = Story(savings=50_00)
    story.create(daily(100_00))
    refused = the(story.tick(india("2026-01-02T09:00")), RuleRefused)
    assert (refused.code, refused.available_minor, refused.retry_at) == ("insufficient_funds", 50_00, None)
    assert story.tick(india("2026-01-02T10:00")) == []
    story.post(SAVINGS, 1_000_00)
    assert fired(story.tick(india("2026-01-03T09:00"))) == [100_00]


def test_a_run_with_nothing_to_move_is_skipped_for_a_reason() -> None:
    story = Story(savings=1_000_00, wallet=300_00)
    story.create(terms(Scheduled(every="week", on=1, at="09:00"), ToTarget(target_minor=200_00)))
    assert outcomes(story.tick(india("2026-01-05T09:00"))) == [("skipped", "target_reached", 0)]
    story.post(WALLET, -250_00)
    assert fired(story.tick(india("2026-01-12T09:00"))) == [150_00]


# Pausing, changing, deleting


def test_what_comes_due_during_a_pause_is_not_made_up_for() -> None:
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    story.pause()
    assert story.live(india("2026-01-05T12:00")) == []
    assert story.explain().reason == "paused"
    assert outcomes(story.resume()) == []
    assert [event.due_at for event in story.live(india("2026-01-06T12:00")) if isinstance(event, RuleFired)] == [
        india("2026-01-06T09:00")
    ]


def test_a_paused_rule_sees_no_money_and_catches_up_when_resumed() -> None:
    story = Story(savings=10_000_00, wallet=1_000_00)
    story.create(below(1_000_00))
    story.pause()
    assert outcomes(story.post(WALLET, -300_00)) == []
    assert fired(story.resume()) == [300_00]
    story.delete()
    assert outcomes(story.post(WALLET, -300_00)) == []


def test_a_change_makes_what_was_due_before_on_the_old_terms() -> None:
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    story.now = india("2026-01-02T09:30")  # nobody was there at nine
    events = story.change(daily(250_00))
    assert [(event.version, event.amount_minor) for event in events if isinstance(event, RuleFired)] == [(1, 100_00)]
    assert story.rule().version == 2
    assert story.tick() == []
    assert [
        (event.version, event.amount_minor)
        for event in story.live(india("2026-01-03T12:00"))
        if isinstance(event, RuleFired)
    ] == [(2, 250_00)]


def test_a_new_version_has_no_new_caps() -> None:
    story = Story(savings=100_000_00)
    story.create(below(1_000_00, per_day_minor=1_200_00))
    story.change(below(1_000_00, per_day_minor=1_300_00))
    assert fired(story.post(WALLET, -900_00)) == [300_00]


# Refusals


def test_a_decline_does_not_storm() -> None:
    story = Story(savings=100_00)
    first = the(story.create(below(1_000_00)), RuleRefused)
    assert (first.code, first.available_minor, first.retry_at) == (
        "insufficient_funds",
        100_00,
        story.now + BACK_OFF_FIRST,
    )
    recorded = []
    for _ in range(200):
        story.now += timedelta(seconds=4)
        recorded += outcomes(story.post(SAVINGS, 1))
    assert recorded == []
    refusals = [event for event in story.live(story.now + timedelta(days=7)) if isinstance(event, RuleRefused)]
    gaps = [later.refused_at - earlier.refused_at for earlier, later in pairwise(refusals)]
    assert gaps[0] == 2 * BACK_OFF_FIRST
    assert gaps[-1] == BACK_OFF_MAX
    assert len(refusals) <= 14


def test_money_ends_a_back_off_at_once() -> None:
    story = Story(savings=100_00)
    story.create(below(1_000_00))
    assert fired(story.post(SAVINGS, 5_000_00)) == [1_000_00]
    assert story.rule().retry_at is None


def test_a_second_look_that_finds_nothing_to_do_ends_the_back_off() -> None:
    story = Story(savings=100_00)
    story.create(below(1_000_00))
    story.post(WALLET, 1_000_00)
    assert outcomes(story.live(story.now + timedelta(days=1))) == [("skipped", "above_threshold", 0)]


@pytest.mark.parametrize("code", ["account_frozen", "limit_exceeded", "insufficient_funds", "cap_reached"])
def test_refusals_are_named_as_those_of_transfers(code: str) -> None:
    story = Story(savings=0 if code == "insufficient_funds" else 10_000_00, wallet=1_000_00)
    story.create(below(1_000_00, per_day_minor=1_000_00, executions_per_day=1))
    if code == "account_frozen":
        frozen = AccountFrozen(account_id=SAVINGS, platform="bfc", by="customer", frozen_at=story.now)
        story.decided(lambda decision: decision.record(frozen))
    if code == "limit_exceeded":
        limits = LimitsChanged(daily_minor=100_00, weekly_minor=100_00, monthly_minor=100_00, changed_at=story.now)
        story.decided(lambda decision: decision.record(limits))
    if code == "cap_reached":
        story.post(WALLET, -1_00)
    assert outcomes(story.post(WALLET, -300_00)) == [("refused", code, 300_00)]
    assert story.explain().code == code
    if code == "account_frozen":
        thawed = AccountUnfrozen(account_id=SAVINGS, platform="bfc", by="customer", unfrozen_at=story.now)
        assert fired(story.decided(lambda decision: decision.record(thawed))) == [300_00]


def test_firings_use_up_the_limits_that_transfers_do() -> None:
    story = Story(savings=50_00_000_00, wallet=0)
    story.create(below(1_000_00))
    assert story.state.usage["INR"].daily_minor == 1_000_00


def test_explaining_changes_nothing() -> None:
    story = Story(savings=10_000_00)
    story.create(daily(100_00))
    before = story.state
    assert story.explain().reason == "not_due"
    story.now = india("2026-01-02T09:00")
    verdict = story.explain()
    assert (verdict.reason, verdict.amount_minor) == ("due", 100_00)
    assert story.state is before
    assert fired(story.check()) == [100_00]
    assert story.check() == []
