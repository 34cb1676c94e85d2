"""The read models, each whole in one file: its table, how events change it, its queries."""

from events.projections import Projection

from ledger_transfer.projections.accounts import Accounts
from ledger_transfer.projections.clearing import Clearing
from ledger_transfer.projections.holds import Holds
from ledger_transfer.projections.integrity import Integrity
from ledger_transfer.projections.rules import Rules
from ledger_transfer.projections.statements import Statements
from ledger_transfer.projections.transactions import Transactions

PROJECTIONS: tuple[Projection, ...] = (
    Accounts(),
    Transactions(),
    Clearing(),
    Holds(),
    Statements(),
    Integrity(),
    Rules(),
)
"""All of them: one consumer applies them in one transaction, so that they always agree."""
