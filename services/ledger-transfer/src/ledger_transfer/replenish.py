"""Auto-replenish: what rules do about money that moves. Pure.

Every command and every platform fact is decided in `deciding.decide`, which ends in `consequences` whenever anything
was decided: what the rules record there is appended with it, or not at all. The timer and `check` come in by
`come_due` and `look`, as steps of a decision of their own.

One verdict for all: `judge` says what a rule would do and why. Acting on it records

    transfer.completed + rule.fired    the money moves, under every rule of a transfer but step-up, which was asked for
                                       when the rule was made
    rule.refused                       it was due and could not; recorded once per back-off, so that no decline storms
    rule.skipped                       a run of the calendar, or a second look after a refusal, found nothing to move

A rule fires at most once per (rule, version, occurrence), and a `balance_below` one at most once per decision. Rules
form no cycle (`rule_commands`), and own transfers are no credits that a percentage is taken of: so rules end.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Final, Literal, NamedTuple
from uuid import UUID

from events.contracts.ledger import (
    AccountOpened,
    AccountPosted,
    AccountUnfrozen,
    TransferCompleted,
    TransferHeld,
    TransferVoided,
)
from events.contracts.ledger_rules import (
    BalanceBelow,
    FixedAmount,
    Percentage,
    PercentOfTrigger,
    RuleChanged,
    RuleCreated,
    RuleFired,
    RuleRefused,
    RuleResumed,
    RuleSkipped,
    Scheduled,
    ToTarget,
)
from events.contracts.registry import Event

from ledger_transfer import schedules
from ledger_transfer.limits import IST
from ledger_transfer.rulebook import Rule
from ledger_transfer.schedules import Due
from ledger_transfer.state import Decision, LedgerState, customer_account
from ledger_transfer.transfers import AccountNotFound, TransferRefusal, TransferRequest, decide

BACK_OFF_FIRST: Final = timedelta(minutes=15)
BACK_OFF_MAX: Final = timedelta(hours=24)

CAP_REACHED: Final = "cap_reached"
"""The one reason of a refusal that is not a transfer's."""

Reason = Literal[
    "below_threshold",
    "due",
    "credited",
    "paused",
    "above_threshold",
    "in_flight",
    "not_due",
    "no_credit",
    "credit_too_small",
    "target_reached",
    "refused",
]

REASONS: Final[dict[str, str]] = {
    "below_threshold": "The target is below the threshold.",
    "due": "The schedule says now.",
    "credited": "A credit came in.",
    "paused": "The rule is paused.",
    "above_threshold": "The target is not below the threshold.",
    "in_flight": "What is on its way to the target lifts it above the threshold.",
    "not_due": "The next run of the schedule is yet to come.",
    "no_credit": "The rule waits for a credit on its source.",
    "credit_too_small": "The credit is too small.",
    "target_reached": "The target has what it should have.",
    CAP_REACHED: "The rule has moved what its caps allow.",
}
"""What each reason tells the customer; refusals of transfers have theirs in `transfers.REFUSAL_DETAILS`."""


class Occasion(NamedTuple):
    """Why a rule is looked at. The occurrence names it, once and for ever."""

    occurrence: str
    due: Due | None = None
    """The run of the calendar."""
    credit_minor: int | None = None
    """The credit that a percentage is taken of."""
    again: bool = False
    """A second look after a refusal."""


class Verdict(NamedTuple):
    """What a rule does on an occasion. Exactly one of: `transfer` is set; `code` is set; neither, nothing is to do."""

    reason: Reason
    amount_minor: int | None = None
    """What moves, or would have."""
    transfer: TransferCompleted | None = None
    code: str | None = None
    """Of the refusal."""
    available_minor: int | None = None
    retry_at: datetime | None = None
    """When a refusal may be over."""


def consequences(decision: Decision) -> None:
    """Records what the customer's rules make of what was decided."""
    if not decision.state.rules.rules:
        return
    decided = tuple(decision.events)
    _take_percentages(decision, decided)
    _fill_up(decision, decided)


def come_due(decision: Decision, rule_id: UUID, version: int, occurrence: str | None = None) -> None:
    """The timer's step: makes the run that is due, or looks again after a refusal.

    Nothing, where neither is true by now, or what is due is another occurrence than the one that was seen to be.
    """
    rule = decision.state.rules.rules.get(rule_id)
    if rule is None or rule.version != version or rule.status == "paused":
        return
    occasion = due_occasion(rule, decision.now)
    if occasion is not None and occurrence in (None, occasion.occurrence):
        _act(decision, rule, occasion)


def look(decision: Decision, rule_ids: Collection[UUID]) -> None:
    """The customer's step: evaluates those rules now."""
    for rule_id in rule_ids:
        rule = decision.state.rules.rules[rule_id]
        if rule.status == "paused" or rule_id in _done(decision.events):
            continue
        occasion = due_occasion(rule, decision.now)
        if occasion is not None or isinstance(rule.terms.trigger, BalanceBelow):
            _act(decision, rule, occasion or Occasion(f"check:{decision.event_id}"))


def explain(state: LedgerState, rule: Rule, now: datetime) -> Verdict:
    """What the rule would do now, and why."""
    return judge(state, rule, due_occasion(rule, now) or Occasion(""), now, rule.rule_id)


def due_occasion(rule: Rule, now: datetime) -> Occasion | None:
    """What has come for the rule by the clock alone."""
    if isinstance(rule.terms.trigger, Scheduled):
        due = schedules.due(rule.terms.trigger, rule.counted_until, now)
        return None if due is None else Occasion(_timestamp(due.at), due=due)
    if isinstance(rule.terms.trigger, BalanceBelow) and rule.retry_at is not None and rule.retry_at <= now:
        return Occasion(f"retry:{_timestamp(rule.retry_at)}", again=True)
    return None


def next_wake(rule: Rule) -> datetime | None:
    """When the timer has to look at the rule next; None: only money wakes it."""
    if rule.status == "paused":
        return None
    if isinstance(rule.terms.trigger, Scheduled):
        return schedules.next_after(rule.terms.trigger, rule.counted_until)
    return rule.retry_at if isinstance(rule.terms.trigger, BalanceBelow) else None


def judge(state: LedgerState, rule: Rule, occasion: Occasion, now: datetime, transfer_id: UUID) -> Verdict:
    """What the rule does on the occasion, and why."""
    reason = _triggered(state, rule, occasion)
    if reason not in ("below_threshold", "due", "credited"):
        return Verdict(reason)
    wanted_minor = _wanted_minor(state, rule, occasion)
    if wanted_minor <= 0:
        return Verdict("credit_too_small" if reason == "credited" and occasion.credit_minor else "target_reached")
    amount_minor, renewed_at = _within_caps(rule, wanted_minor, now)
    if amount_minor is None:
        return Verdict("refused", wanted_minor, code=CAP_REACHED, retry_at=renewed_at)
    terms = rule.terms
    request = TransferRequest(
        transfer_id=transfer_id,
        from_account_id=terms.source_account_id,
        to_account_id=terms.target_account_id,
        amount_minor=amount_minor,
        currency=terms.currency,
        memo=terms.name or None,
        sealed_texts=terms.sealed_texts,
        rule_id=rule.rule_id,
    )
    try:
        completed = decide(state, request, now)
    except (TransferRefusal, AccountNotFound) as refusal:
        return Verdict(
            "refused",
            amount_minor,
            code=refusal.code,
            available_minor=getattr(refusal, "available_minor", None),
            retry_at=now + min(BACK_OFF_FIRST * 2 ** min(rule.refusals, 16), BACK_OFF_MAX),
        )
    assert isinstance(completed, TransferCompleted)
    return Verdict(reason, amount_minor, completed)


def _triggered(state: LedgerState, rule: Rule, occasion: Occasion) -> Reason:
    if rule.status == "paused":
        return "paused"
    match rule.terms.trigger:
        case BalanceBelow(threshold_minor=threshold):
            target = state.accounts.get(rule.terms.target_account_id)
            if target is None or target.available_minor >= threshold:
                return "above_threshold"
            in_flight = _in_flight_minor(state, rule.terms.target_account_id)
            return "below_threshold" if target.available_minor + in_flight < threshold else "in_flight"
        case Scheduled():
            return "not_due" if occasion.due is None else "due"
        case Percentage(min_credit_minor=least):
            if occasion.credit_minor is None:
                return "no_credit"
            return "credited" if occasion.credit_minor >= least else "credit_too_small"


def _wanted_minor(state: LedgerState, rule: Rule, occasion: Occasion) -> int:
    match rule.terms.amount:
        case FixedAmount(amount_minor=amount):
            return amount
        case ToTarget(target_minor=target_minor):
            target = state.accounts.get(rule.terms.target_account_id)
            has_minor = target.available_minor if target is not None else 0
            gap = target_minor - has_minor - _in_flight_minor(state, rule.terms.target_account_id)
            # A fact may have pushed the account below zero: the worst case that was agreed to holds even then.
            return min(gap, target_minor)
        case PercentOfTrigger():
            assert isinstance(rule.terms.trigger, Percentage), "checked when the rule was made"
            return (occasion.credit_minor or 0) * rule.terms.trigger.percent_hundredths // 100_00


def _within_caps(rule: Rule, wanted_minor: int, now: datetime) -> tuple[int | None, datetime | None]:
    """How much of it the caps allow; None, and when they are renewed, if they allow none.

    A fixed amount moves whole or not at all.
    """
    caps, moved = rule.terms.caps, rule.moved.at(now)
    least_minor = wanted_minor if isinstance(rule.terms.amount, FixedAmount) else 1
    if caps.per_month_minor is not None and caps.per_month_minor - moved.month_minor < least_minor:
        return None, _next_month(now)
    if caps.executions_per_day is not None and moved.executions >= caps.executions_per_day:
        return None, _tomorrow(now)
    if caps.per_day_minor is not None and caps.per_day_minor - moved.day_minor < least_minor:
        return None, _tomorrow(now)
    amount = wanted_minor
    if caps.per_day_minor is not None:
        amount = min(amount, caps.per_day_minor - moved.day_minor)
    if caps.per_month_minor is not None:
        amount = min(amount, caps.per_month_minor - moved.month_minor)
    return amount, None


def _in_flight_minor(state: LedgerState, account_id: UUID) -> int:
    """What is held for the account and not yet transferred to it."""
    return sum(hold.amount_minor for hold in state.holds.values() if hold.to_account_id == account_id)


def _take_percentages(decision: Decision, decided: Sequence[Event]) -> None:
    for event in decided:
        if not isinstance(event, AccountPosted) or event.type == "fixed_deposit":
            continue  # A matured deposit is the customer's own money coming back.
        credit_minor = sum(leg.amount_minor for leg in event.legs if customer_account(leg) == event.account_id)
        if credit_minor <= 0:
            continue
        occasion = Occasion(f"credit:{event.platform}:{event.item_id}", credit_minor=credit_minor)
        for rule in tuple(decision.state.rules.rules.values()):
            trigger = rule.terms.trigger
            if (
                isinstance(trigger, Percentage)
                and rule.terms.source_account_id == event.account_id
                and trigger.category in (None, event.category)
            ):
                _act(decision, rule, occasion)


def _fill_up(decision: Decision, decided: Sequence[Event]) -> None:
    """Looks at each `balance_below` rule that the money touched, once; what one moves may touch the next."""
    touched, rules = _touched((*decision.beforehand, *decided))
    if not touched and not rules:
        return
    seen = len(decided)
    waiting = [
        rule.rule_id for rule in decision.state.rules.rules.values() if isinstance(rule.terms.trigger, BalanceBelow)
    ]
    done = _done(decided)
    while True:
        more, _ = _touched(decision.events[seen:])
        touched |= more
        seen = len(decision.events)
        for rule_id in waiting:
            rule = decision.state.rules.rules[rule_id]
            accounts = {rule.terms.source_account_id, rule.terms.target_account_id}
            if rule_id in done or not (rule_id in rules or accounts & touched):
                continue
            occasion = due_occasion(rule, decision.now) or Occasion(f"below:{decision.event_id}")
            _act(decision, rule, occasion)
            if len(decision.events) > seen:
                done.add(rule_id)
                break
        else:
            return


def _act(decision: Decision, rule: Rule, occasion: Occasion) -> None:
    """Records what the rule does on the occasion."""
    verdict = judge(decision.state, rule, occasion, decision.now, decision.next_id())
    terms, due = rule.terms, occasion.due
    due_at, missed = (due.at, due.missed) if due is not None else (None, 0)
    if verdict.transfer is not None:
        decision.record(
            verdict.transfer,
            RuleFired(
                rule_id=rule.rule_id,
                version=rule.version,
                name=terms.name,
                sealed_texts=terms.sealed_texts,
                occurrence=occasion.occurrence,
                transfer_id=verdict.transfer.transfer_id,
                from_account_id=terms.source_account_id,
                to_account_id=terms.target_account_id,
                amount_minor=verdict.transfer.amount_minor,
                currency=terms.currency,
                due_at=due_at,
                missed=missed,
                fired_at=decision.now,
            ),
        )
    elif verdict.code is not None:
        if due is None and rule.retry_at is not None and decision.now < rule.retry_at:
            return  # It backs off: looked at for nothing, and nobody is told again.
        assert verdict.amount_minor is not None
        decision.record(
            RuleRefused(
                rule_id=rule.rule_id,
                version=rule.version,
                name=terms.name,
                sealed_texts=terms.sealed_texts,
                occurrence=occasion.occurrence,
                from_account_id=terms.source_account_id,
                to_account_id=terms.target_account_id,
                amount_minor=verdict.amount_minor,
                currency=terms.currency,
                code=verdict.code,
                available_minor=verdict.available_minor,
                retry_at=None if due is not None else verdict.retry_at,
                due_at=due_at,
                missed=missed,
                refused_at=decision.now,
            )
        )
    elif due is not None or occasion.again:
        decision.record(
            RuleSkipped(
                rule_id=rule.rule_id,
                version=rule.version,
                name=terms.name,
                sealed_texts=terms.sealed_texts,
                occurrence=occasion.occurrence,
                reason="target_reached" if verdict.reason == "target_reached" else "above_threshold",
                due_at=due_at,
                missed=missed,
                skipped_at=decision.now,
            )
        )


def _touched(events: Sequence[Event]) -> tuple[set[UUID], set[UUID]]:
    """The accounts whose available money may be another now, and the rules to look at in any case."""
    accounts: set[UUID] = set()
    rules: set[UUID] = set()
    for event in events:
        match event:
            case TransferCompleted(reverses=UUID()):
                pass  # Operations have just taken it back: moving it again at once would undo that.
            case AccountOpened() | AccountPosted() | TransferCompleted():
                accounts.update(found for leg in event.legs if (found := customer_account(leg)) is not None)
            case TransferHeld() | TransferVoided():
                accounts.update((event.from_account_id, event.to_account_id))
            case AccountUnfrozen():
                accounts.add(event.account_id)
            case RuleCreated() | RuleChanged() | RuleResumed():
                rules.add(event.rule_id)
    return accounts, rules


def _done(events: Sequence[Event]) -> set[UUID]:
    """The rules that have come to an end in this decision."""
    return {event.rule_id for event in events if isinstance(event, RuleFired | RuleRefused | RuleSkipped)}


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _tomorrow(now: datetime) -> datetime:
    return datetime.combine(now.astimezone(IST).date() + timedelta(days=1), time(), IST).astimezone(UTC)


def _next_month(now: datetime) -> datetime:
    first = now.astimezone(IST).date().replace(day=1)
    return datetime.combine((first + timedelta(days=31)).replace(day=1), time(), IST).astimezone(UTC)
