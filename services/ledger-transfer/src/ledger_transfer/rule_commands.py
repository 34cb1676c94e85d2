"""What a customer may do to their rules. Pure deciders: each records its events on a decision, or raises.

Refusal
├── RuleNotFound               there is none, or it is another customer's
├── AccountNotFound            as for a transfer
├── SameAccount, CurrencyMismatch, AccountClosed, AccountNotTransferable
├── RuleCycle                  money could go round between the customer's rules
├── TooManyRules
└── StepUpRequired             the worst case per day is above the threshold: the same request again, with a token

in this order of precedence. Nothing is recorded for any of them. A frozen account is no reason: it thaws.
"""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from events.contracts.ledger_rules import (
    RuleChanged,
    RuleCreated,
    RuleDeleted,
    RulePaused,
    RuleResumed,
    RulesEnded,
    RuleTerms,
    WorstCase,
)
from events.decisions import Refusal

from ledger_transfer.replenish import come_due
from ledger_transfer.rule_terms import worst_case
from ledger_transfer.rulebook import Rule
from ledger_transfer.state import Decision, LedgerState
from ledger_transfer.transfers import (
    AccountClosed,
    AccountNotFound,
    AccountNotTransferable,
    Clearance,
    CurrencyMismatch,
    SameAccount,
    cleared,
)

RULES_MAX: Final = 100
"""Per customer: what is evaluated with their money stays small."""


class RuleNotFound(Refusal):
    """There is no such rule, or it was deleted."""

    code = "rule_not_found"


class RuleCycle(Refusal):
    """With the customer's other rules, paused ones included, the money could come back to where it started."""

    code = "rule_cycle"

    def __init__(self, rule_ids: tuple[UUID, ...]) -> None:
        super().__init__()
        self.rule_ids = rule_ids
        """The other rules on the way round."""


class TooManyRules(Refusal):
    code = "too_many_rules"


REFUSAL_DETAILS: dict[str, str] = {
    RuleNotFound.code: "There is no such rule.",
    RuleCycle.code: "Together with other rules of yours this one would move money in a circle.",
    TooManyRules.code: f"A customer can have at most {RULES_MAX} rules.",
}


def create(decision: Decision, rule_id: UUID, terms: RuleTerms, clearance: Clearance) -> None:
    """Makes the rule, active from now on.

    Raises:
        Refusal: the first one, in order of precedence, that forbids it.
    """
    state = decision.state
    _check(state, terms)
    if len(state.rules.rules) >= RULES_MAX:
        raise TooManyRules()
    worst = worst_case(terms)
    decision.record(
        RuleCreated(
            rule_id=rule_id,
            terms=terms,
            worst_case=worst,
            step_up_jti=_cleared(state, terms, worst, clearance),
            created_at=decision.now,
        )
    )


def change(decision: Decision, rule_id: UUID, terms: RuleTerms, clearance: Clearance) -> None:
    """Makes a new version of the rule. What was due before is done on the terms it was due on.

    The same terms again change nothing, so that a repeated request makes no second version.

    Raises:
        Refusal: the first one, in order of precedence, that forbids it.
    """
    rule = _rule(decision.state, rule_id)
    if terms == rule.terms:
        return
    _check(decision.state, terms, but=rule_id)
    worst = worst_case(terms)
    jti = None
    if not _covered(rule, terms, worst):
        jti = _cleared(decision.state, terms, worst, clearance)
    come_due(decision, rule_id, rule.version)
    decision.record(
        RuleChanged(
            rule_id=rule_id,
            version=rule.version + 1,
            terms=terms,
            worst_case=worst,
            step_up_jti=jti,
            changed_at=decision.now,
        )
    )


def pause(decision: Decision, rule_id: UUID) -> None:
    """Lets the rule rest; what comes due meanwhile is not made up for.

    Raises:
        RuleNotFound: there is none.
    """
    rule = _rule(decision.state, rule_id)
    if rule.status == "active":
        decision.record(RulePaused(rule_id=rule_id, version=rule.version, paused_at=decision.now))


def resume(decision: Decision, rule_id: UUID) -> None:
    """Ends the pause; the rule is evaluated at once.

    Raises:
        RuleNotFound: there is none.
    """
    rule = _rule(decision.state, rule_id)
    if rule.status == "paused":
        decision.record(RuleResumed(rule_id=rule_id, version=rule.version, resumed_at=decision.now))


def end(decision: Decision) -> None:
    """Ends all rules: the customer was erased. Nothing where there are none."""
    if decision.state.rules.rules:
        decision.record(RulesEnded(ended_at=decision.now))


def delete(decision: Decision, rule_id: UUID) -> None:
    """Ends the rule for ever. Its history stays.

    Raises:
        RuleNotFound: there is none.
    """
    rule = _rule(decision.state, rule_id)
    decision.record(RuleDeleted(rule_id=rule_id, version=rule.version, deleted_at=decision.now))


def way_round(rules: Mapping[UUID, Rule], source: UUID, target: UUID) -> tuple[UUID, ...] | None:
    """The rules along which money that reaches `target` gets back to `source`; None where there is no such way."""
    reached: dict[UUID, tuple[UUID, ...]] = {target: ()}
    todo = [target]
    while todo:
        account = todo.pop()
        for rule in rules.values():
            if rule.terms.source_account_id == account and rule.terms.target_account_id not in reached:
                reached[rule.terms.target_account_id] = (*reached[account], rule.rule_id)
                todo.append(rule.terms.target_account_id)
    return reached.get(source)


def _rule(state: LedgerState, rule_id: UUID) -> Rule:
    rule = state.rules.rules.get(rule_id)
    if rule is None:
        raise RuleNotFound()
    return rule


def _check(state: LedgerState, terms: RuleTerms, but: UUID | None = None) -> None:
    source = state.accounts.get(terms.source_account_id)
    target = state.accounts.get(terms.target_account_id)
    if source is None or target is None:
        raise AccountNotFound()
    if source.account_id == target.account_id:
        raise SameAccount()
    if not terms.currency == source.currency == target.currency:
        raise CurrencyMismatch()
    if "closed" in (source.status, target.status):
        raise AccountClosed()
    if "fixed_deposit" in (source.kind, target.kind):
        raise AccountNotTransferable()
    others = {key: rule for key, rule in state.rules.rules.items() if key != but}
    cycle = way_round(others, terms.source_account_id, terms.target_account_id)
    if cycle is not None:
        raise RuleCycle(cycle)


def _covered(rule: Rule, terms: RuleTerms, worst: WorstCase) -> bool:
    """Whether what was agreed to before already allows it: no more per day, between the same accounts."""
    return (
        worst.per_day_minor <= rule.worst_case.per_day_minor
        and terms.source_account_id == rule.terms.source_account_id
        and terms.target_account_id == rule.terms.target_account_id
    )


def _cleared(state: LedgerState, terms: RuleTerms, worst: WorstCase, clearance: Clearance) -> str | None:
    return cleared(state, worst.per_day_minor, terms.currency, terms.target_account_id, clearance)
