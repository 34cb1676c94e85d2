"""All routes of the service."""

import asyncpg
from chassis.cursors import CursorCodec
from litestar.handlers import HTTPRouteHandler

from ledger_transfer.api_accounts import account_routes
from ledger_transfer.api_history import history_routes
from ledger_transfer.api_transfers import transfer_routes
from ledger_transfer.ledger import Ledger


def routes(
    ledger: Ledger, database: asyncpg.Pool, cursors: CursorCodec, step_up_threshold_minor: int
) -> list[HTTPRouteHandler]:
    """Accounts, transfers and history."""
    return [
        *account_routes(ledger, database, cursors),
        *transfer_routes(ledger, step_up_threshold_minor),
        *history_routes(ledger, database, cursors),
    ]
