"""Wiring only."""

from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.service import Runtime, run
from events.texts import Texts
from litestar import Litestar

from ledger_transfer.api import routes
from ledger_transfer.api_rules import rule_routes
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.reactions import Reactions
from ledger_transfer.settings import LedgerSettings
from ledger_transfer.timer import Timer
from ledger_transfer.vigil import Vigil


async def wire(runtime: Runtime[LedgerSettings]) -> Litestar:
    ledger = Ledger(runtime.store, Texts(runtime.subject_keys))
    runtime.project(PROJECTIONS)
    runtime.consume("reactions", Reactions(ledger), pace_s=0.005)
    cursors = CursorCodec(runtime.settings.cursor_secret)
    vigil = Vigil(ledger, runtime.database)
    runtime.spawn(vigil.expire_for_ever(), "ledger.expiry")
    runtime.spawn(vigil.check_for_ever(), "ledger.check")
    runtime.spawn(Timer(ledger, runtime.database).run(), "rules.timer")
    threshold_minor = runtime.settings.step_up_threshold_minor
    all_routes = [
        *routes(ledger, runtime.database, cursors, threshold_minor),
        *rule_routes(ledger, runtime.database, cursors, step_up_threshold_minor=threshold_minor),
    ]
    return create_app(runtime, all_routes, title="Sangam ledger and transfers")


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("ledger_transfer", LedgerSettings, wire)
