"""One customer's ledger as a pure story: given these events, when this happens, then these events."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

from events.contracts.ledger import AccountOpened, AccountPosted, TransferHeld
from events.contracts.ledger_rules import (
    BalanceBelow,
    Caps,
    FixedAmount,
    Percentage,
    PercentOfTrigger,
    RuleAmount,
    RuleFired,
    RuleRefused,
    RuleSkipped,
    RuleTerms,
    Scheduled,
    ToTarget,
    Trigger,
)
from events.contracts.registry import Event
from ledger_transfer import replenish, rule_commands
from ledger_transfer.deciding import decide
from ledger_transfer.rule_terms import with_default_caps
from ledger_transfer.rulebook import Rule
from ledger_transfer.state import Account, Decision, LedgerState, balanced, clearing, evolve, fold, leg_on
from ledger_transfer.transfers import UNRESTRICTED, Clearance, TransferRequest, transfer

SAVINGS, WALLET, CURRENT, DEPOSIT, DOLLARS, CLOSED = (UUID(int=n) for n in range(1, 7))
RULE, SECOND, THIRD = (UUID(int=n) for n in range(101, 104))
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
THRESHOLD_MINOR = 2_00_000_00

E = TypeVar("E", bound=Event)


def india(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+05:30").astimezone(UTC)


def terms(
    trigger: Trigger, amount: RuleAmount, source: UUID = SAVINGS, target: UUID = WALLET, **caps: int | None
) -> RuleTerms:
    """With the default cap of a day, as the API gives it."""
    return with_default_caps(
        RuleTerms(
            name="rule",
            source_account_id=source,
            target_account_id=target,
            currency="INR",
            trigger=trigger,
            amount=amount,
            caps=Caps(**caps),
        ),
        THRESHOLD_MINOR,
    )


def below(threshold_minor: int, **more: Any) -> RuleTerms:
    """Fills the wallet to the threshold, or by `fixed`."""
    fixed = more.pop("fixed", None)
    amount: RuleAmount = FixedAmount(amount_minor=fixed) if fixed else ToTarget(target_minor=threshold_minor)
    return terms(BalanceBelow(threshold_minor=threshold_minor), amount, **more)


def share(percent: int, **more: Any) -> RuleTerms:
    """A percentage of each credit on the savings account."""
    trigger = {key: more.pop(key) for key in ("min_credit_minor", "category") if key in more}
    return terms(Percentage(percent_hundredths=percent * 100, **trigger), PercentOfTrigger(), **more)


def monthly(on: int, amount_minor: int, at: str = "09:00", **more: Any) -> RuleTerms:
    return terms(Scheduled(every="month", on=on, at=at), FixedAmount(amount_minor=amount_minor), **more)


def daily(amount_minor: int, at: str = "09:00", **more: Any) -> RuleTerms:
    return terms(Scheduled(every="day", at=at), FixedAmount(amount_minor=amount_minor), **more)


class Story:
    """A customer with a savings account, a current account and a wallet. `now` is moved by the test."""

    def __init__(self, savings: int = 0, wallet: int = 0, current: int = 0) -> None:
        self.now = START
        self.state = LedgerState()
        self.log: list[Event] = []
        self.ids: list[UUID] = []
        self._numbers = count(1)
        for account_id, balance, kind in (
            (SAVINGS, savings, "savings"),
            (WALLET, wallet, "trading_wallet"),
            (CURRENT, current, "current"),
            (DEPOSIT, 0, "fixed_deposit"),
        ):
            self.open(account_id, balance, kind)

    def open(self, account_id: UUID, balance: int, kind: Any = "savings", currency: str = "INR") -> None:
        account = Account(
            account_id=account_id,
            platform="bfc",
            kind=kind,
            currency=currency,
            balance_minor=0,
            floor_minor=0,
            status="active",
        )
        opened = AccountOpened(
            account_id=account_id,
            platform="bfc",
            platform_account_id=str(account_id),
            kind=kind,
            currency=currency,
            legs=balanced(leg_on(account, balance), clearing("bfc", -balance, currency)),
            occurred_at=self.now,
        )
        self._append([opened])

    def decided(self, step: Callable[[Decision], None]) -> list[Event]:
        """What one decision appends."""
        event_id = UUID(int=10**6 + next(self._numbers))
        foreseen = decide(self.state, event_id, self.now, step)
        self._append(foreseen.events)
        assert self.state == foreseen.state
        return list(foreseen.events)

    def _append(self, events: Sequence[Event]) -> None:
        self.state = fold(events, self.state)
        self.log += events

    # What happens

    def post(self, account_id: UUID, signed_minor: int, category: str = "salary", **fields: Any) -> list[Event]:
        """A platform's fact."""
        item_id = f"i{next(self._numbers)}"

        def step(decision: Decision) -> None:
            account = decision.state.accounts[account_id]
            decision.record(
                AccountPosted(
                    account_id=account_id,
                    platform="bfc",
                    legs=balanced(leg_on(account, signed_minor), clearing("bfc", -signed_minor, "INR")),
                    type=fields.get("type", "transaction"),
                    category=category,
                    item_id=fields.get("item_id", item_id),
                    occurred_at=self.now,
                )
            )

        return self.decided(step)

    def move(self, source: UUID, target: UUID, amount: int, expires_in: timedelta | None = None) -> list[Event]:
        """A transfer or a hold of the customer's."""
        request = TransferRequest(
            transfer_id=UUID(int=10**9 + next(self._numbers)),
            from_account_id=source,
            to_account_id=target,
            amount_minor=amount,
            currency="INR",
            hold_s=None if expires_in is None else int(expires_in.total_seconds()),
        )
        return self.decided(lambda decision: decision.record(*transfer(decision.state, request, decision.now)))

    def hold(self, source: UUID, target: UUID, amount: int) -> TransferHeld:
        return the(self.move(source, target, amount, timedelta(days=6)), TransferHeld)

    def create(self, agreed: RuleTerms, rule_id: UUID = RULE, clearance: Clearance = UNRESTRICTED) -> list[Event]:
        return self.decided(lambda decision: rule_commands.create(decision, rule_id, agreed, clearance))

    def change(self, agreed: RuleTerms, rule_id: UUID = RULE, clearance: Clearance = UNRESTRICTED) -> list[Event]:
        return self.decided(lambda decision: rule_commands.change(decision, rule_id, agreed, clearance))

    def pause(self, rule_id: UUID = RULE) -> list[Event]:
        return self.decided(lambda decision: rule_commands.pause(decision, rule_id))

    def resume(self, rule_id: UUID = RULE) -> list[Event]:
        return self.decided(lambda decision: rule_commands.resume(decision, rule_id))

    def delete(self, rule_id: UUID = RULE) -> list[Event]:
        return self.decided(lambda decision: rule_commands.delete(decision, rule_id))

    def check(self, *rule_ids: UUID) -> list[Event]:
        return self.decided(lambda decision: replenish.look(decision, rule_ids or (RULE,)))

    def tick(self, to: datetime | None = None) -> list[Event]:
        """The timer once, at `to`."""
        self.now = to or self.now
        events: list[Event] = []
        for rule in tuple(self.state.rules.rules.values()):
            wake = replenish.next_wake(rule)
            if wake is not None and wake <= self.now:
                events += self.decided(
                    lambda decision, rule=rule: replenish.come_due(decision, rule.rule_id, rule.version)  # type: ignore[misc]
                )
        return events

    def live(self, until: datetime) -> list[Event]:
        """The timer whenever something is due, until then."""
        events: list[Event] = []
        while True:
            wakes = [wake for rule in self.state.rules.rules.values() if (wake := replenish.next_wake(rule))]
            due = min((wake for wake in wakes if wake <= until), default=None)
            if due is None:
                self.now = until
                return events
            found = self.tick(max(due, self.now))
            assert found, "the timer would spin: due, and nothing is recorded"
            events += found

    # What is the case

    def balance(self, account_id: UUID) -> int:
        return self.state.accounts[account_id].balance_minor

    def rule(self, rule_id: UUID = RULE) -> Rule:
        return self.state.rules.rules[rule_id]

    def explain(self, rule_id: UUID = RULE) -> replenish.Verdict:
        return replenish.explain(self.state, self.rule(rule_id), self.now)


def the(events: Sequence[Event], struct: type[E]) -> E:
    """The one event of that kind."""
    found = [event for event in events if isinstance(event, struct)]
    assert len(found) == 1, f"{len(found)} {struct.__name__} in {[type(event).__name__ for event in events]}"
    return found[0]


def outcomes(events: Sequence[Event]) -> list[tuple[str, str, int]]:
    """`(outcome, reason, amount)` of every evaluation."""
    found: list[tuple[str, str, int]] = []
    for event in events:
        match event:
            case RuleFired():
                found.append(("fired", "", event.amount_minor))
            case RuleRefused():
                found.append(("refused", event.code, event.amount_minor))
            case RuleSkipped():
                found.append(("skipped", event.reason, 0))
    return found


def fired(events: Sequence[Event]) -> list[int]:
    return [event.amount_minor for event in events if isinstance(event, RuleFired)]


def refolds(story: Story) -> bool:
    """Whether the log alone gives the state."""
    state = LedgerState()
    for event in story.log:
        state = evolve(state, event)
    return state == story.state
