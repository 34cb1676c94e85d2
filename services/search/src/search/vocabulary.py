"""The words of the customers who ask, kept at hand until they change."""

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

import tantivy

from search.index_schema import own

CUSTOMERS_MAX = 512
"""Whose words are kept."""


class Vocabularies:
    """The words without digits of each customer's documents, as of the last commit."""

    def __init__(self) -> None:
        self._known: OrderedDict[UUID, list[str]] = OrderedDict()
        self._generation = 0

    def renew(self, changed: Iterable[UUID]) -> int:
        """There is a new commit, with other words of some customers; gives its number."""
        self._generation += 1  # before the words are dropped: nobody keeps what was read before this commit
        for user_id in changed:
            self._known.pop(user_id, None)
        return self._generation

    def of(self, user_id: UUID, searcher: tantivy.Searcher, generation: int) -> list[str]:
        """The customer's words; the searcher of that commit tells what is not known yet."""
        known = self._known.get(user_id)
        if known is not None:
            with suppress(KeyError):  # a commit has just dropped it
                self._known.move_to_end(user_id)
            return known
        start = own(user_id, "")
        known = [term[len(start) :] for term, _ in searcher.terms_with_prefix("letters", start)]
        self._known[user_id] = known
        if generation != self._generation:  # looked at after it is kept: a commit either drops it, or is seen here
            self._known.pop(user_id, None)
        while len(self._known) > CUSTOMERS_MAX:
            self._known.popitem(last=False)
        return known
