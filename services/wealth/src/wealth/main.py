"""Wiring only."""

from concurrent.futures import ThreadPoolExecutor

import aiohttp
from chassis.app import create_app
from chassis.service import Runtime, run
from events.decisions import Streams
from litestar import Litestar

from wealth.api import routes
from wealth.assessing import Assessor, Changes
from wealth.desk import Desk
from wealth.noticed import WealthState, evolve
from wealth.projections import PROJECTIONS
from wealth.prose import OpenAiProse
from wealth.settings import WealthSettings

COMPUTING_THREADS = 2


async def wire(runtime: Runtime[WealthSettings]) -> Litestar:
    settings = runtime.settings
    runtime.project(PROJECTIONS)
    executor = ThreadPoolExecutor(COMPUTING_THREADS, thread_name_prefix="figures")
    desk = Desk(runtime.database, settings.thresholds(), executor=executor)
    runtime.consume("assessments", Changes(desk, settings.assess_after_s))
    streams = Streams(runtime.store, "wealth", WealthState(), evolve)
    http, prose = None, None
    if settings.prose_url is not None and not runtime.operating:  # a worker words nothing, and nobody would close it
        http = aiohttp.ClientSession()
        prose = OpenAiProse(
            http, settings.prose_url, settings.prose_model, settings.prose_key, timeout_s=settings.prose_timeout_s
        )
    assessor = Assessor(runtime, desk, streams, prose)
    app = create_app(runtime, routes(runtime.database, desk, streams), title="Sangam wealth")

    async def begin() -> None:
        runtime.spawn(assessor.run(), "assessor")

    async def close() -> None:
        if http is not None:
            await http.close()
        executor.shutdown(wait=False)

    app.on_startup.append(begin)  # its tables are there by then
    app.on_shutdown.append(close)
    return app


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("wealth", WealthSettings, wire)
