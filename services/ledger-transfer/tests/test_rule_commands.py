"""Given this customer, when a rule is made or changed, then it is recorded or refused for this reason."""

import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from events.contracts.ledger import AccountClosed
from events.contracts.ledger_rules import (
    BalanceBelow,
    FixedAmount,
    PercentOfTrigger,
    RuleChanged,
    RuleCreated,
    RulesEnded,
    RuleTerms,
    Scheduled,
    ToTarget,
)
from ledger_transfer import rule_commands, transfers
from ledger_transfer.rule_commands import RULES_MAX, RuleCycle
from ledger_transfer.rule_terms import Unusable, usable, worst_case
from ledger_transfer.transfers import REFUSAL_DETAILS, Clearance, StepUp, StepUpRequired

sys.path.insert(0, str(Path(__file__).parent))

from rule_stories import (
    CLOSED,
    CURRENT,
    DEPOSIT,
    DOLLARS,
    RULE,
    SAVINGS,
    SECOND,
    THIRD,
    THRESHOLD_MINOR,
    WALLET,
    Story,
    below,
    daily,
    fired,
    monthly,
    refolds,
    share,
    terms,
    the,
)

ASKED = Clearance(threshold_minor=THRESHOLD_MINOR)


def everything_wrong() -> Story:
    """A customer with accounts of every unusable kind, whose wallet feeds their savings."""
    story = Story()
    story.open(DOLLARS, 0, currency="USD")
    story.open(CLOSED, 0, currency="USD")
    story.decided(
        lambda decision: decision.record(AccountClosed(account_id=CLOSED, platform="bfc", occurred_at=story.now))
    )
    story.create(below(1_00, source=WALLET, target=SAVINGS), SECOND)
    return story


@pytest.mark.parametrize(
    ("source", "target", "refusal"),
    [
        (UUID(int=99), UUID(int=99), transfers.AccountNotFound),
        (CLOSED, CLOSED, transfers.SameAccount),
        (SAVINGS, CLOSED, transfers.CurrencyMismatch),
        (SAVINGS, DOLLARS, transfers.CurrencyMismatch),
        (DEPOSIT, WALLET, transfers.AccountNotTransferable),
        (SAVINGS, WALLET, RuleCycle),
    ],
)
def test_refusals_in_order_of_precedence(source: UUID, target: UUID, refusal: type[Exception]) -> None:
    """Each case breaks every later rule that it can, too: the worst case of all of them needs a step-up."""
    story = everything_wrong()
    before = story.state
    with pytest.raises(refusal):
        story.create(below(3_00_000_00, source=source, target=target), clearance=ASKED)
    assert story.state is before


def test_a_closed_account() -> None:
    story = Story()
    story.decided(
        lambda decision: decision.record(AccountClosed(account_id=DEPOSIT, platform="bfc", occurred_at=story.now))
    )
    with pytest.raises(transfers.AccountClosed):
        story.create(below(1_00, target=DEPOSIT))


def test_a_customer_has_so_many_rules() -> None:
    story = Story()
    for number in range(RULES_MAX):
        story.create(share(1), UUID(int=1000 + number))
    with pytest.raises(rule_commands.TooManyRules):
        story.create(share(1))
    story.delete(UUID(int=1000))
    story.create(share(1))


def test_every_refusal_is_told() -> None:
    codes = {refusal.code for refusal in (rule_commands.RuleNotFound, RuleCycle, rule_commands.TooManyRules)}
    assert codes == set(rule_commands.REFUSAL_DETAILS)
    assert not codes & set(REFUSAL_DETAILS)


# Cycles


def test_a_circle_of_three_is_found_and_named_in_the_order_the_money_takes() -> None:
    story = Story()
    story.create(share(10, source=SAVINGS, target=CURRENT), SECOND)
    story.create(daily(1_00, source=CURRENT, target=WALLET), THIRD)
    with pytest.raises(RuleCycle) as refused:
        story.create(below(1_00, source=WALLET, target=SAVINGS))
    assert refused.value.rule_ids == (SECOND, THIRD)


def test_a_paused_rule_is_a_part_of_a_circle_a_deleted_one_is_none() -> None:
    story = Story()
    story.create(share(10), SECOND)
    story.pause(SECOND)
    with pytest.raises(RuleCycle):
        story.create(below(1_00, source=WALLET, target=SAVINGS))
    story.delete(SECOND)
    story.create(below(1_00, source=WALLET, target=SAVINGS))


def test_parallel_rules_and_diamonds_are_no_circles() -> None:
    story = Story()
    story.create(share(10), SECOND)
    story.create(below(1_00))
    story.create(daily(1_00, source=SAVINGS, target=CURRENT), THIRD)
    story.create(daily(1_00, source=CURRENT, target=WALLET), UUID(int=104))


def test_turning_a_rule_round_is_no_circle_with_itself() -> None:
    story = Story()
    story.create(share(10))
    assert the(story.change(share(10, source=WALLET, target=SAVINGS)), RuleChanged).version == 2


# Versions


def test_the_same_terms_again_make_no_version() -> None:
    story = Story()
    story.create(share(10))
    assert story.change(share(10)) == []
    assert the(story.change(share(11)), RuleChanged).version == 2
    assert story.pause() != []
    assert story.pause() == []
    assert story.resume() != []
    assert story.resume() == []


@pytest.mark.parametrize("command", ["change", "pause", "resume", "delete"])
def test_a_deleted_rule_is_unknown(command: str) -> None:
    story = Story()
    story.create(share(10))
    story.delete()
    arguments: tuple[Any, ...] = (share(11),) if command == "change" else ()
    with pytest.raises(rule_commands.RuleNotFound):
        getattr(story, command)(*arguments)


# Step-up


def stepped_up(proven_minor: int, **changes: Any) -> Clearance:
    fields: dict[str, Any] = {"jti": "j1", "amount_minor": proven_minor, "currency": "INR", "to_account_id": WALLET}
    return Clearance(threshold_minor=THRESHOLD_MINOR, step_up=StepUp(**(fields | changes)))


def test_up_to_the_threshold_no_step_up_is_asked_for() -> None:
    story = Story()
    created = the(story.create(monthly(1, THRESHOLD_MINOR), clearance=ASKED), RuleCreated)
    assert created.step_up_jti is None
    story.create(share(50), SECOND, clearance=ASKED)  # its default cap is the threshold
    story.create(below(5_000_00), THIRD, clearance=ASKED)


def test_above_the_threshold_it_is_for_the_worst_case_of_a_day_and_the_target() -> None:
    story = Story()
    agreed = monthly(1, THRESHOLD_MINOR + 1)
    with pytest.raises(StepUpRequired) as refused:
        story.create(agreed, clearance=ASKED)
    asked = (refused.value.amount_minor, refused.value.currency, refused.value.to_account_id)
    assert asked == (THRESHOLD_MINOR + 1, "INR", WALLET)
    created = the(story.create(agreed, clearance=stepped_up(THRESHOLD_MINOR + 1)), RuleCreated)
    assert created.step_up_jti == "j1"


@pytest.mark.parametrize(
    "changes",
    [{"amount_minor": THRESHOLD_MINOR}, {"currency": "USD"}, {"to_account_id": SAVINGS}, {"to_account_id": None}],
)
def test_a_token_for_something_else_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(StepUpRequired, match="mismatch"):
        Story().create(monthly(1, THRESHOLD_MINOR + 1), clearance=stepped_up(THRESHOLD_MINOR + 1, **changes))


def test_a_token_is_good_for_one_rule() -> None:
    story = Story()
    clearance = stepped_up(THRESHOLD_MINOR + 1)
    story.create(monthly(1, THRESHOLD_MINOR + 1), clearance=clearance)
    with pytest.raises(StepUpRequired, match="used"):
        story.create(monthly(2, THRESHOLD_MINOR + 1), SECOND, clearance=clearance)


def test_a_change_asks_again_only_for_more_or_elsewhere() -> None:
    story = Story()
    story.create(monthly(1, THRESHOLD_MINOR + 2), clearance=stepped_up(THRESHOLD_MINOR + 2))
    story.change(monthly(2, THRESHOLD_MINOR + 1), clearance=ASKED)
    with pytest.raises(StepUpRequired):
        story.change(monthly(2, THRESHOLD_MINOR + 2), clearance=ASKED)
    with pytest.raises(StepUpRequired):
        story.change(monthly(2, THRESHOLD_MINOR + 1, target=CURRENT), clearance=ASKED)


# Terms


@pytest.mark.parametrize(
    ("agreed", "day", "week", "month"),
    [
        (monthly(31, 5_000_00), 5_000_00, 5_000_00, 5_000_00),
        (daily(100_00), 100_00, 700_00, 3_100_00),
        (terms(Scheduled(every="week", on=5, at="09:00"), FixedAmount(amount_minor=100_00)), 100_00, 100_00, 500_00),
        (terms(Scheduled(every="month", on=5, at="09:00"), ToTarget(target_minor=900_00)), 900_00, 900_00, 900_00),
        (daily(100_00, per_month_minor=1_000_00), 100_00, 700_00, 1_000_00),
        (daily(100_00, per_month_minor=200_00), 100_00, 400_00, 200_00),
        (below(500_00, executions_per_day=2), 1_000_00, 7_000_00, 31_000_00),
        (below(500_00, fixed=50_00, executions_per_day=3), 150_00, 1_050_00, 4_650_00),
        (below(500_00, per_day_minor=600_00, executions_per_day=2), 600_00, 4_200_00, 18_600_00),
        (below(500_00), THRESHOLD_MINOR, 7 * THRESHOLD_MINOR, 31 * THRESHOLD_MINOR),
        (below(THRESHOLD_MINOR + 5), THRESHOLD_MINOR + 5, 7 * (THRESHOLD_MINOR + 5), 31 * (THRESHOLD_MINOR + 5)),
        (share(20), THRESHOLD_MINOR, 7 * THRESHOLD_MINOR, 31 * THRESHOLD_MINOR),
        (share(20, per_day_minor=10_000_00, per_month_minor=15_000_00), 10_000_00, 30_000_00, 15_000_00),
        (share(20, executions_per_day=1), THRESHOLD_MINOR, 7 * THRESHOLD_MINOR, 31 * THRESHOLD_MINOR),
    ],
)
def test_worst_cases(agreed: RuleTerms, day: int, week: int, month: int) -> None:
    worst = worst_case(agreed)
    assert (worst.per_day_minor, worst.per_week_minor, worst.per_month_minor) == (day, week, month)


@pytest.mark.parametrize(
    ("agreed", "field"),
    [
        (terms(BalanceBelow(threshold_minor=500_00), PercentOfTrigger()), "amount.type"),
        (terms(Scheduled(every="day", at="09:00"), PercentOfTrigger()), "amount.type"),
        (terms(BalanceBelow(threshold_minor=500_00), ToTarget(target_minor=499_99)), "amount.target"),
        (below(500_00, fixed=100_01, per_day_minor=100_00), "caps.per_day"),
        (monthly(1, 100_01, per_month_minor=100_00), "caps.per_month"),
    ],
)
def test_terms_that_contradict_themselves(agreed: RuleTerms, field: str) -> None:
    with pytest.raises(Unusable) as refused:
        usable(agreed)
    assert refused.value.field == field


def test_terms_as_stored_are_read_back() -> None:
    for agreed in (below(500_00), share(20, category="salary"), monthly(31, 5_00)):
        created = RuleCreated(rule_id=uuid4(), terms=agreed, worst_case=worst_case(agreed), created_at=Story().now)
        assert msgspec.json.decode(msgspec.json.encode(created), type=RuleCreated) == created


def test_when_the_customer_is_erased_all_rules_end() -> None:
    story = Story(savings=10_000_00)
    assert not story.decided(rule_commands.end), "without a rule nothing is recorded"
    story.create(below(1_000_00), RULE)
    story.create(below(2_000_00), SECOND)
    [ended] = story.decided(rule_commands.end)
    assert isinstance(ended, RulesEnded)
    assert not story.state.rules.rules
    assert not fired(story.post(WALLET, -1_00))
    assert refolds(story)
