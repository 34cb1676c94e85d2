"""The relay: sequences committed events and publishes the log to RabbitMQ. Run as `python -m events.relay`.

Two run side by side; the one that holds the sequencer's lock leads, the other waits for it. The leader publishes
every event twice, each from its own checkpoint: in batches to `sangam.log` for our own services, and one message
per public event to `sangam.events` for outside subscribers. A crash between confirm and checkpoint publishes
again; consumers skip by position.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import structlog
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from events import metrics, passwords, pg
from events.anchors import anchor_forever
from events.publisher import EventsPublisher, LogPublisher, LogTail
from events.sequencer import LostLeadership, Sequencer
from events.tracing import configure_tracing

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_STANDBY_POLL_S = 0.5

# A dead leader's session must not keep the lock: the kernel notices a vanished peer in about 6 s.
_LEADER_SETTINGS = {"tcp_keepalives_idle": "3", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3"}


class Relay:
    """Leads when it can, stands by when it cannot, for ever.

    Args:
        anchors: the file that chain heads are written to while leading (events.anchors); None: nowhere.
    """

    def __init__(self, store_url: str, amqp_url: str, anchors: Path | None = None) -> None:
        self._store_url = store_url
        self._amqp_url = amqp_url
        self._anchors = anchors
        self.leads = False
        self.reachable = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            session = pg.Session(self._store_url, application_name="sequencer", settings=_LEADER_SETTINGS)
            try:
                connection = await session.connection()
                self.reachable = True
                sequencer = await Sequencer.take_over(connection)
                if sequencer is not None:
                    await self._lead(connection, sequencer)
            except Exception as error:
                faults = list(_leaves(error))
                if not all(isinstance(fault, LostLeadership) or pg.is_outage(fault) for fault in faults):
                    raise
                self.reachable = False
                log.warning("relay.store_away", error=repr(faults[0]))
            finally:
                self.leads = False
                metrics.is_leader.set(0)
                await session.close()
            await asyncio.sleep(_STANDBY_POLL_S)

    async def _lead(self, connection: asyncpg.Connection, sequencer: Sequencer) -> None:
        head = await connection.fetchrow("SELECT epoch, position FROM store.head()")
        assert head is not None
        epoch = UUID(int=head["epoch"].int)
        wake = asyncio.Event()
        await connection.add_listener(pg.WAKE_CHANNEL, lambda *_: wake.set())
        reader = pg.Session(self._store_url, application_name="relay-reader")
        checkpoints = pg.Session(
            self._store_url, application_name="relay-checkpoints", settings={"synchronous_commit": "off"}
        )
        tail = LogTail(reader, head["position"])
        self.leads = True
        metrics.is_leader.set(1)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sequence(sequencer, tail, wake), name="sequencer")
                if self._anchors is not None:
                    tasks.create_task(anchor_forever(reader, self._anchors), name="anchors")
                for publisher in (LogPublisher, EventsPublisher):
                    tasks.create_task(publisher(tail, checkpoints, self._amqp_url, epoch).run(), name=publisher.name)
        finally:
            await reader.close()
            await checkpoints.close()

    @staticmethod
    async def _sequence(sequencer: Sequencer, tail: LogTail, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            if slices := await sequencer.sequence():
                tail.extend(slices)
                metrics.log_head.set(tail.head)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await wake.wait()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested exception groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _serve_health(relay: Relay, host: str, port: int) -> web.AppRunner:
    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(_: web.Request) -> web.Response:
        status = "leader" if relay.leads else "standby"
        return web.json_response({"status": status}, status=200 if relay.reachable else 503)

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/health/live", live), web.get("/health/ready", ready), web.get("/metrics", metrics_page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


async def _main() -> None:
    try:
        store_url, amqp_url = os.environ["EVENT_STORE_URL"], os.environ["AMQP_URL"]
    except KeyError as missing:
        raise SystemExit(f"relay: {missing.args[0]} is not set") from None
    for variable, url, schemes in (
        ("EVENT_STORE_URL", store_url, passwords.POSTGRES),
        ("AMQP_URL", amqp_url, passwords.BROKER),
    ):
        try:
            passwords.check(url, schemes)
        except ValueError as error:
            raise SystemExit(f"relay: {variable} {error}") from None
    end_tracing = configure_tracing("relay", os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    anchors = os.environ.get("ANCHOR_FILE")
    relay = Relay(store_url, amqp_url, Path(anchors) if anchors else None)
    runner = await _serve_health(relay, os.environ.get("HTTP_HOST", "127.0.0.1"), int(os.environ.get("HTTP_PORT", "0")))
    running = asyncio.create_task(relay.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await runner.cleanup()
    end_tracing()


if __name__ == "__main__":
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.contextvars.bind_contextvars(service="relay")
    uvloop.run(_main())
