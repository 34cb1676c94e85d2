"""Auto-replenish: what rules do about money that moves. Pure.

The seam. Every command and every platform fact is decided in `deciding.decide`, which ends in `consequences` whenever
anything was decided. What is recorded there is appended with it, or not at all. There is nothing else to call:

    decision.state       the state after everything decided so far (`LedgerState`; `.rules` is the `rulebook.RuleBook`)
    decision.events      what was decided so far, in order: AccountOpened, AccountPosted, TransferCompleted, your own …
    decision.now         the time of the decision (UTC)
    decision.record(e)   adds an event and folds it, so that the next rule sees what this one did
    decision.next_id()   the id that the next recorded event will have in the store

    transfers.decide(decision.state, TransferRequest(transfer_id=decision.next_id(), …, rule_id=…), decision.now)
                         → the TransferCompleted to record; raises `TransferRefusal` or `AccountNotFound`.
                         Currency, closed, frozen, floor, holds and limits all apply; step-up does not (it was asked
                         for when the rule was made). `transfer_id` must be `next_id()` at the moment of recording, so
                         that the transfer is found by its id and an echo of it settles.

A scheduled firing and the rules' own commands come in through `Ledger.execute(user_id, step, event_id=…, …)`, whose
`step(decision)` records events; `consequences` runs after it there too. For a timer's firing derive `event_id` from
(rule, version, occurrence). A `Refusal` raised in `step` appends nothing.

`available_minor` of an account already counts holds; a hold that has expired by `decision.now` is voided in
`decision.state` before anything is decided.
"""

from ledger_transfer.state import Decision


def consequences(decision: Decision) -> None:
    """Records what the customer's rules make of what was decided."""
