"""A backtest says what the rule did, where it was there; what it would have done, where it was not."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest
from events.contracts.ledger import TransferCompleted, TransferHeld
from events.contracts.ledger_rules import RuleFired, RuleRefused
from ledger_transfer import holds
from ledger_transfer.backtests import backtest
from ledger_transfer.reversals import reverse
from ledger_transfer.rulebook import Rule

sys.path.insert(0, str(Path(__file__).parent))

from rule_stories import SAVINGS, START, WALLET, Story, below, daily, fired, outcomes, share, the

LAKH = 1_00_000_00


def _advance(story: Story, hours: float = 1) -> None:
    story.live(story.now + timedelta(hours=hours))


def _capture(story: Story, held: TransferHeld, amount: int | None = None) -> None:
    story.decided(
        lambda decision: decision.record(*holds.capture(decision.state, held.transfer_id, amount, decision.now))
    )


def _void(story: Story, held: TransferHeld) -> None:
    story.decided(lambda decision: decision.record(*holds.void(decision.state, held.transfer_id, decision.now)))


def _reverse(story: Story, original: TransferCompleted) -> None:
    story.decided(
        lambda decision: decision.record(*reverse(decision.state, original, original.completed_at, decision.now))
    )


def _busy(story: Story) -> None:
    """Holds of every end beside postings, out of the wallet and into it."""
    _advance(story)
    story.post(SAVINGS, 50_000_00)
    _advance(story)
    captured, voided = story.hold(WALLET, SAVINGS, 9_000_00), story.hold(WALLET, SAVINGS, 500_00)
    _advance(story)
    story.post(WALLET, -1_00)
    _advance(story)
    _capture(story, captured, 8_000_00)
    _advance(story)
    _void(story, voided)
    story.move(WALLET, SAVINGS, 3_000_00, timedelta(hours=2))
    _advance(story)
    incoming = story.hold(SAVINGS, WALLET, 4_000_00)
    _advance(story, 5)
    story.post(WALLET, -2_500_00)
    _advance(story)
    _capture(story, incoming)
    _advance(story)
    story.move(SAVINGS, WALLET, 1_00, timedelta(hours=1))
    _advance(story, 30)


@pytest.mark.parametrize(
    "agreed",
    [
        below(10_000_00),
        below(10_000_00, fixed=700_00),
        share(20),
        daily(3_000_00),
        below(9_000_00, per_day_minor=60_00),
    ],
)
def test_it_tells_what_the_rule_did_when_it_was_there(agreed: object) -> None:
    story = Story(savings=LAKH, wallet=10_000_00)
    story.now += timedelta(hours=1)
    story.create(agreed)  # type: ignore[arg-type]
    rule = story.rule()
    _busy(story)
    did = outcomes(story.log)
    assert did, "the story is about something"
    told = backtest(story.log, rule, START + timedelta(hours=1), story.now)
    assert outcomes([each.event for each in told]) == did
    assert [each.at for each in told] == [
        at
        for event in story.log
        if hasattr(event, "occurrence")
        for at in (getattr(event, name, None) for name in ("fired_at", "refused_at", "skipped_at"))
        if at is not None
    ]


def _afterwards(story: Story) -> Rule:
    """The rule, made when all is over."""
    story.create(below(10_000_00))
    return story.rule()


def test_a_hold_counts_until_it_ends() -> None:
    story = Story(savings=LAKH, wallet=10_000_00)
    _advance(story)
    held = story.hold(WALLET, SAVINGS, 4_000_00)
    _advance(story)
    _void(story, held)
    _advance(story)
    rule = _afterwards(story)
    assert fired(each.event for each in backtest(story.log, rule, START, story.now)) == [4_000_00]  # type: ignore[arg-type]


def test_a_hold_that_nobody_has_ended_ends_when_it_expires() -> None:
    story = Story(savings=LAKH, wallet=14_000_00)
    story.move(WALLET, SAVINGS, 4_000_00, timedelta(hours=1))
    _advance(story, 3)
    story.post(WALLET, -1_000_00)
    log = [event for event in story.log if type(event).__name__ != "TransferVoided"]
    rule = _afterwards(story)
    assert not backtest(log, rule, START, story.now)


def test_what_it_moved_and_was_taken_back_is_neither_moved_nor_taken_back() -> None:
    story = Story(savings=LAKH, wallet=10_000_00)
    story.create(below(10_000_00, per_day_minor=5_000_00))
    rule = story.rule()
    _advance(story)
    original = the(story.post(WALLET, -5_000_00), TransferCompleted)
    _advance(story)
    _reverse(story, original)
    _advance(story)
    story.post(WALLET, -1_00)
    told = backtest(story.log, rule, START, story.now)
    assert [(type(each.event), each.target_balance_minor) for each in told] == [
        (RuleFired, 10_000_00),
        (RuleRefused, 9_999_00),
    ]


def test_a_customers_reversal_gives_back_to_the_limits() -> None:
    """Ten lakh a day: what was taken back is free for the rule."""
    story = Story(savings=30 * LAKH)
    original = the(story.move(SAVINGS, WALLET, 9 * LAKH), TransferCompleted)
    _advance(story)
    _reverse(story, original)
    _advance(story)
    story.create(below(6 * LAKH, per_day_minor=10 * LAKH))
    rule = story.rule()
    assert fired(each.event for each in backtest(story.log, rule, story.now, story.now)) == [6 * LAKH]  # type: ignore[arg-type]
