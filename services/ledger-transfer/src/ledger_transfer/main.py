"""Wiring only."""

from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.service import Runtime, run
from chassis.settings import ServiceSettings
from litestar import Litestar

from ledger_transfer.api import routes
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.reactions import Reactions


async def wire(runtime: Runtime) -> Litestar:
    ledger = Ledger(runtime.store)
    runtime.project(PROJECTIONS)
    runtime.consume("reactions", Reactions(ledger))
    cursors = CursorCodec(runtime.settings.cursor_secret)
    return create_app(runtime, routes(ledger, runtime.database, cursors), title="Sangam ledger and transfers")


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("ledger_transfer", ServiceSettings, wire)
