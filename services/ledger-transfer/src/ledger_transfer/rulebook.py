"""What of the auto-replenish rules is folded into the ledger's state. Pure; stands below `state`.

The rules live in the customer's own `ledger-<user>` stream, so their state is a field of `LedgerState`
(`state.rules`): which rules there are, in which version, what each has fired and counted.
"""

import msgspec
from events.contracts.registry import Event


class RuleBook(msgspec.Struct, frozen=True, kw_only=True):
    """All rules of one customer. Empty for most, and then nothing is evaluated."""


EVENTS: frozenset[type[Event]] = frozenset()
"""The types of event that change the book. Others cost it nothing."""


def evolve(book: RuleBook, event: Event) -> RuleBook:
    """The book after one event of `EVENTS`."""
    return book
