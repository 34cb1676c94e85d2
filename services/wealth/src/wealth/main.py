"""Wiring only."""

from chassis.app import create_app
from chassis.service import Runtime, run
from chassis.settings import ServiceSettings
from litestar import Litestar

from wealth.api import routes
from wealth.projections import PROJECTIONS


async def wire(runtime: Runtime[ServiceSettings]) -> Litestar:
    runtime.project(PROJECTIONS)
    return create_app(runtime, routes(runtime.database), title="Sangam wealth")


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("wealth", ServiceSettings, wire)
