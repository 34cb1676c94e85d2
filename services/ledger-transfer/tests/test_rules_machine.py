"""Whatever a customer, their platforms and the clock do: rules keep their promises after every step."""

import sys
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
from events.contracts.ledger_rules import (
    BalanceBelow,
    FixedAmount,
    Percentage,
    PercentOfTrigger,
    RuleAmount,
    RuleChanged,
    RuleCreated,
    RuleFired,
    RuleRefused,
    RuleTerms,
    Scheduled,
    ToTarget,
    Trigger,
)
from events.decisions import Refusal
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_transfer.holds import void
from ledger_transfer.limits import windows_of
from ledger_transfer.rule_terms import Unusable, usable

sys.path.insert(0, str(Path(__file__).parent))

from rule_stories import CURRENT, SAVINGS, WALLET, Story, refolds, terms

ACCOUNTS = (SAVINGS, CURRENT, WALLET)
AMOUNTS = st.integers(1, 100_000)
ENDS = st.tuples(st.sampled_from(ACCOUNTS), st.sampled_from(ACCOUNTS))


@st.composite
def agreements(draw: Any) -> RuleTerms:
    trigger: Trigger = draw(
        st.one_of(
            st.builds(BalanceBelow, threshold_minor=AMOUNTS),
            st.builds(Percentage, percent_hundredths=st.integers(1, 100_00), min_credit_minor=st.integers(0, 10_000)),
            st.builds(Scheduled, every=st.just("day"), at=st.sampled_from(["00:00", "09:00", "23:59"])),
            st.builds(Scheduled, every=st.just("week"), on=st.integers(1, 7), at=st.just("05:29")),
            st.builds(Scheduled, every=st.just("month"), on=st.integers(28, 31), at=st.just("00:00")),
        )
    )
    amount: RuleAmount = draw(
        st.one_of(
            st.builds(FixedAmount, amount_minor=AMOUNTS),
            st.builds(ToTarget, target_minor=AMOUNTS),
            st.just(PercentOfTrigger()),
        )
    )
    some = st.one_of(st.none(), st.integers(1, 200_000))
    return terms(
        trigger,
        amount,
        source=draw(st.sampled_from(ACCOUNTS)),
        target=draw(st.sampled_from(ACCOUNTS)),
        per_day_minor=draw(some),
        per_month_minor=draw(some),
        executions_per_day=draw(st.one_of(st.none(), st.integers(1, 3))),
    )


class Rules(RuleBasedStateMachine):
    @initialize(savings=st.integers(0, 10**6), wallet=st.integers(0, 10**5))
    def customer(self, savings: int, wallet: int) -> None:
        self.story = Story(savings=savings, wallet=wallet)
        self.story.now = datetime(2028, 2, 26, 12, tzinfo=UTC)  # a leap day is near
        self.outside = savings + wallet
        self.ids = iter(UUID(int=1000 + number) for number in range(10**6))
        self.seen = 0
        self.occurrences: set[tuple[UUID, int, str]] = set()
        self.versions: dict[tuple[UUID, int], RuleCreated | RuleChanged] = {}
        self.moved: dict[tuple[UUID, str, int], int] = defaultdict(int)

    @rule(agreed=agreements())
    def create(self, agreed: RuleTerms) -> None:
        try:
            usable(agreed)
            self.story.create(agreed, next(self.ids))
        except (Refusal, Unusable):
            pass

    @precondition(lambda self: self.story.state.rules.rules)
    @rule(data=st.data(), what=st.sampled_from(["change", "pause", "resume", "delete", "check"]))
    def command(self, data: st.DataObject, what: str) -> None:
        rule_id = data.draw(st.sampled_from(sorted(self.story.state.rules.rules)))
        if what == "change":
            agreed = data.draw(agreements())
            try:
                usable(agreed)
                self.story.change(agreed, rule_id)
            except (Refusal, Unusable):
                pass
        else:
            getattr(self.story, what)(rule_id)

    @rule(account=st.sampled_from(ACCOUNTS), signed=st.integers(-50_000, 200_000).filter(bool))
    def post(self, account: UUID, signed: int) -> None:
        self.outside += signed
        self.story.post(account, signed)

    @rule(ends=ENDS, amount=AMOUNTS)
    def move(self, ends: tuple[UUID, UUID], amount: int) -> None:
        self.story.move(*ends, amount)

    @rule(ends=ENDS, amount=AMOUNTS, hours=st.integers(1, 100))
    def hold(self, ends: tuple[UUID, UUID], amount: int, hours: int) -> None:
        self.story.move(*ends, amount, timedelta(hours=hours))

    @precondition(lambda self: self.story.state.holds)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(sorted(self.story.state.holds)))
        if self.story.state.holds[hold].expires_at > self.story.now:
            self.story.decided(lambda decision: decision.record(*void(decision.state, hold, decision.now)))

    @rule(minutes=st.integers(1, 3_000))
    def time_passes(self, minutes: int) -> None:
        self.story.live(self.story.now + timedelta(minutes=minutes))

    @rule(days=st.integers(1, 40))
    def outage(self, days: int) -> None:
        """Nobody looks; then the timer is back."""
        self.story.tick(self.story.now + timedelta(days=days))
        assert self.story.tick() == [], "a second look finds more"

    @invariant()
    def promises_are_kept(self) -> None:
        balances = [self.story.balance(account) for account in ACCOUNTS]
        assert sum(balances) == self.outside, "rules make no money"
        assert refolds(self.story)
        for event in self.story.log[self.seen :]:
            if isinstance(event, RuleCreated):
                self.versions[event.rule_id, 1] = event
            elif isinstance(event, RuleChanged):
                self.versions[event.rule_id, event.version] = event
            elif isinstance(event, RuleFired | RuleRefused):
                self.record(event)
        self.seen = len(self.story.log)

    def record(self, event: RuleFired | RuleRefused) -> None:
        key = (event.rule_id, event.version, event.occurrence)
        assert key not in self.occurrences, "an occurrence is over once"
        self.occurrences.add(key)
        if isinstance(event, RuleRefused):
            return
        agreed = self.versions[event.rule_id, event.version]
        worst = agreed.worst_case
        # A run of the calendar counts for the day it was due; one made late may meet the next.
        windows = windows_of(event.due_at or event.fired_at)
        version = agreed.version if isinstance(agreed, RuleChanged) else 1
        for window, number, most in (
            ("day", windows.day, worst.per_day_minor),
            ("week", windows.week, worst.per_week_minor),
            ("month", windows.month, worst.per_month_minor),
        ):
            self.moved[event.rule_id, f"{window} {version}", number] += event.amount_minor
            assert self.moved[event.rule_id, f"{window} {version}", number] <= most, f"the worst case of a {window}"


Rules.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRules = Rules.TestCase
