"""Wiring only."""

from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.service import Runtime, run
from chassis.settings import ServiceSettings
from litestar import Litestar

from search.api import routes
from search.projections import PROJECTIONS


async def wire(runtime: Runtime[ServiceSettings]) -> Litestar:
    runtime.project(PROJECTIONS)
    cursors = CursorCodec(runtime.settings.cursor_secret)
    return create_app(runtime, routes(runtime.database, cursors), title="Sangam search")


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("search", ServiceSettings, wire)
