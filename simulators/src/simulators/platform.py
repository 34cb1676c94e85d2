"""Starts one platform: `python -m simulators.platform bfc|vyomo`, settings from the environment."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Generator

import aiohttp
import uvicorn
import uvloop
from litestar import Litestar

from simulators import settings as platform_settings
from simulators.app import create_app
from simulators.assertions import AssertionSigner, KeyFileError
from simulators.faults import Faults
from simulators.feed import Feed
from simulators.journal import Journal
from simulators.live import Live
from simulators.settings import PlatformSettings, SettingsError

log = logging.getLogger("simulators.platform")


class _Server(uvicorn.Server):
    """Exits 0 on SIGTERM: uvicorn would raise the signal again after its clean shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


async def serve(settings: PlatformSettings, signer: AssertionSigner) -> None:
    """Runs the platform until SIGTERM or SIGINT; ends loudly when its feed does."""
    state = settings.state_dir / f"{settings.platform}.sqlite3" if settings.state_dir else None
    journal = Journal(state)
    faults = Faults()
    async with aiohttp.ClientSession() as session:
        feed = Feed(settings.feed_url, settings.feed_secret, journal, faults, session)
        live = Live(settings.platform, journal, feed)
        background: list[asyncio.Task[None]] = []

        async def start(_: Litestar) -> None:
            for work, name in ((feed.run(), "feed"), (live.run(), "live")):
                task = asyncio.create_task(work, name=name)
                task.add_done_callback(ended)
                background.append(task)

        async def stop(_: Litestar) -> None:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                log.critical("%s ended", task.get_name(), exc_info=task.exception())
                server.should_exit = True

        app = create_app(
            platform=settings.platform,
            journal=journal,
            signer=signer,
            faults=faults,
            feed=feed,
            live=live,
            announce_secret=settings.announce_secret,
            on_startup=[start],
            on_shutdown=[stop],
        )
        server = _Server(
            uvicorn.Config(
                app,
                host=settings.http_host,
                port=settings.http_port,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=5,
            )
        )
        try:
            await server.serve()
        finally:
            journal.close()
        if any(not task.cancelled() and task.exception() for task in background if task.done()):
            raise SystemExit(1)


def main(arguments: list[str]) -> None:
    """The command line."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        if len(arguments) != 1:
            raise SettingsError("usage: python -m simulators.platform bfc|vyomo")
        settings = platform_settings.load(arguments[0], os.environ)
        if settings.state_dir is not None:
            settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        signer = AssertionSigner.from_file(settings.platform, settings.key_file)
    except (SettingsError, KeyFileError, OSError) as error:
        log.critical("not started: %s", error)
        raise SystemExit(2) from error
    uvloop.run(serve(settings, signer))


if __name__ == "__main__":
    main(sys.argv[1:])
