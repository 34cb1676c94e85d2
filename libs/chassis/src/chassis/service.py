"""How a service runs: everything in one event loop, and a stop that finishes what was begun."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic
from uuid import UUID

import asyncpg
import structlog
import uvloop
from events import pg
from events.consumer import PACE_S, Consumer, Handler
from events.contracts import contract_of
from events.contracts.identity import SigningKeyRetired
from events.envelope import RecordedEvent
from events.follower import Follower
from events.outage import is_outage, until_it_works
from events.passwords import connect_postgres
from events.projections import Projection, Projections
from events.retention import apply_forever, days_of, rules_of
from events.sealing import SubjectKeys
from events.shapes import PUBLIC, schema_of
from events.store import EventStore
from events.texts import Texts
from events.tracing import configure_tracing
from events.worker import Operator
from litestar import Litestar
from typing_extensions import TypeVar

from chassis import operating, telemetry
from chassis.access import access_models, active_keys, take_snapshot
from chassis.control import ControlChannel
from chassis.revocations import Revocations
from chassis.server import DRAIN_S_MAX, Server
from chassis.settings import SealingSettings, ServiceSettings, SettingsError, load
from chassis.tokens import TokenVerifier, VerificationKeyCache

log = structlog.get_logger(__name__)

READY_LAG_MAX = 10_000
"""A read model further behind than this many positions is not fit to answer."""

_KEY_RETIRED = contract_of(SigningKeyRetired).type
_CHECK_TIMEOUT_S = 1.0
_HEARD_S_MAX = 3.0
_EXIT_SETTINGS = 78  # EX_CONFIG
_DATABASE_CONNECTIONS_MAX = 8
_OPEN_FILES = 65_536
S = TypeVar("S", bound=ServiceSettings, default=ServiceSettings)


class SearchPath:
    """Where the connections of a pool look for tables. Known once the service's read models are."""

    schemas = PUBLIC

    async def set(self, connection: asyncpg.Connection) -> None:
        """For each new connection of the pool."""
        await connection.execute(f"SET search_path = {self.schemas}")


class Runtime(Generic[S]):
    """What `wire` gets: the service's connections, and where it registers its consumers and tasks."""

    def __init__(
        self,
        service: str,
        settings: S,
        database: "asyncpg.Pool[asyncpg.Record]",
        store: EventStore,
        search_path: "SearchPath",
    ) -> None:
        self._search_path = search_path
        self.service = service
        """The name with underscores: database role, broker user, prefix of the queues."""
        self.settings = settings
        self.database = database
        self.store = store
        self.revocations = Revocations()
        """The sessions that have ended. `watch` it to close what they hold open."""
        self.control = ControlChannel(service, settings.amqp_url, self.revocations)
        self._keys = VerificationKeyCache(lambda: active_keys(database))
        self.verifier = TokenVerifier(settings.token_issuer, self._keys, revocations=self.revocations)
        self._subject_keys: SubjectKeys | None = None
        self._snapshot_taken = False
        self._handlers: list[Handler] = []
        self._consumers: dict[str, Consumer] = {}
        self._followers: list[Follower] = []
        self._stop_callbacks: list[Callable[[], Awaitable[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._failure: BaseException | None = None
        self.stopping = asyncio.Event()
        """Set when the service begins to stop."""
        self.operating = False
        """Whether this process is a worker for one operation (`chassis.operating`): it serves and consumes nothing."""
        self.tables_created = asyncio.Event()
        """Set once the tables of all consumers exist: what works on them beside the consumers waits for it."""
        self._access = self.follow(self._on_access_events)
        self.revocations.follow(self._access)

    @property
    def subject_keys(self) -> SubjectKeys:
        """Seals and opens personal data, in a service whose settings are `SealingSettings`."""
        assert self._subject_keys is not None, "the service's settings are no SealingSettings"
        return self._subject_keys

    async def connect_subject_keys(self) -> None:
        """Opens the key database, where the settings name one."""
        if isinstance(self.settings, SealingSettings):
            self._subject_keys = await SubjectKeys.connect(
                self.settings.subject_keys_url, self.settings.subject_master_key
            )
            self.store.opens_with(Texts(self._subject_keys).open_events)

    def project(self, projections: Sequence[Projection] = ()) -> Consumer:
        """The service's read models, and those of keys and sessions that all have, as its consumer "projections"."""
        return self.consume("projections", Projections([*access_models(), *projections]))

    def consume(self, name: str, handler: Handler, *, pace_s: float = PACE_S) -> Consumer:
        """A consumer of the whole log on the queue `<service>.<name>`: one transaction per batch.

        Its tables are created and it is started before the service is ready. `pace_s` is the least time between two
        of its transactions.
        """
        assert name not in self._consumers, f"two consumers named {name}"
        consumer = Consumer(
            name=f"{self.service}.{name}",
            handler=handler,
            database=self.database,
            store=self.store,
            amqp_url=self.settings.amqp_url,
            pace_s=pace_s,
        )
        self._consumers[name] = consumer
        self._handlers.append(handler)
        return consumer

    def consumer(self, name: str) -> Consumer:
        """The consumer registered as `name`.

        Raises:
            KeyError: there is none.
        """
        return self._consumers[name]

    def follow(self, on_events: Callable[[Sequence[RecordedEvent]], Awaitable[None]]) -> Follower:
        """Every event from now on, in order, in every replica of the service, beside any consumer."""
        follower = Follower(
            service=self.service, on_events=on_events, store=self.store, amqp_url=self.settings.amqp_url
        )
        self._followers.append(follower)
        return follower

    def on_stop(self, callback: Callable[[], Awaitable[None]]) -> None:
        """`callback` runs first at shutdown, while requests are still served: say goodbye, finish batches."""
        self._stop_callbacks.append(callback)

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Runs `coroutine` until the service stops. If it fails, the service ends with a non-zero exit."""
        if self.operating:
            coroutine.close()
            return
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    async def unready(self) -> list[str]:
        """Why the service cannot serve now; empty when it can."""
        if self._draining:
            return ["the service is stopping"]
        # Positions come from the database: on a replica that stands by, the consumer itself applies nothing.
        positions, head = await asyncio.gather(
            _checked("the database", self.database.fetch("SELECT consumer, position FROM consumed")),
            _checked("the event store", self.store.head()),
        )
        reasons = [check for check in (positions, head) if isinstance(check, str)]
        reasons += [
            f"{consumer.name} is not connected to the broker"
            for consumer in self._consumers.values()
            if not consumer.connected
        ]
        if any(not follower.started.is_set() for follower in self._followers):
            reasons.append("following the log has not begun")
        if not self._snapshot_taken:
            reasons.append("it is not known yet which sessions have ended")
        if not reasons:
            applied = {row["consumer"]: row["position"] for row in positions}
            for consumer in self._consumers.values():
                # Of a version that another one has succeeded, the database tells the other one's position.
                known = consumer.position if consumer.superseded else applied.get(consumer.name, 0)
                lag = head.position - known
                if lag > READY_LAG_MAX:
                    reasons.append(f"{consumer.name} is {lag} events behind")
        return reasons

    @property
    def handlers(self) -> dict[str, Handler]:
        """What consumers do with events, by the consumer's full name."""
        if "projections" not in self._consumers:
            self.project()
        consumers = self._consumers.values()
        return {consumer.name: handler for consumer, handler in zip(consumers, self._handlers, strict=True)}

    async def start_consumers(self) -> None:
        """Creates the tables of all handlers, so that no request meets a missing one, then starts consuming."""
        if "projections" not in self._consumers:
            self.project()
        # Before the first table: statements then find this version's read models wherever they are moved.
        schemas = [schema_of(handler.shape) for handler in self._handlers if isinstance(handler, Projections)]
        self._search_path.schemas = ", ".join(f'"{schema}"' for schema in [*schemas, PUBLIC])
        await self.database.expire_connections()
        for consumer in self._consumers.values():
            await until_it_works(f"tables of {consumer.name}", consumer.prepare)
        self.tables_created.set()
        for consumer in self._consumers.values():
            self.spawn(consumer.run(), consumer.name)
        for follower in self._followers:
            self.spawn(follower.run(), follower.name)
        self.spawn(operating.start_workers(self.service, self.database, self._is_live), "operations")
        self.spawn(self.control.run(), "control")
        rules = rules_of(self._handlers)
        self.spawn(apply_forever(self.database, rules, days_of(self.settings.retention_days)), "retention")
        # Before the service listens: it must not accept a token of a session that ended while it was away.
        await self._access.started.wait()
        await until_it_works("revocations", self._take_snapshot)
        await self._hear_the_relay()

    async def _hear_the_relay(self) -> None:
        """Waits until the relay has been heard, as it is every second: before, routes that move money refuse, and a
        process that refuses should not be asked. Without a relay, and on an empty log, there is nothing to wait for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEARD_S_MAX if self._access.position else 0):
                while not self.revocations.fresh():  # noqa: ASYNC110 - it goes by the clock, too
                    await asyncio.sleep(0.02)

    async def _take_snapshot(self) -> None:
        consumer = self._consumers["projections"].name
        # What comes after this position is given to `_on_access_events`.
        upto = self._access.position
        await take_snapshot(self.revocations, self.database, self.store, consumer=consumer, upto=upto)
        self._snapshot_taken = True

    async def _on_access_events(self, events: Sequence[RecordedEvent]) -> None:
        await self.revocations.apply(events)
        for event in events:
            if event.type == _KEY_RETIRED and isinstance(event.payload, SigningKeyRetired):
                self._keys.retire(event.payload.kid)

    async def until_available(self) -> None:
        """Waits until the database and the event store answer. They may still be starting."""
        await until_it_works("database", lambda: self.database.fetchval("SELECT 1"))
        await until_it_works("event store", self.store.head)
        await until_it_works("event store", self.store.open)

    async def stop_serving(self) -> None:
        """First half of the stop: not ready any more, callbacks run. Requests are still served."""
        self._draining = True
        for callback in self._stop_callbacks:
            try:
                async with asyncio.timeout(DRAIN_S_MAX):
                    await callback()
            except Exception:
                log.exception("stop_callback_failed")

    async def close(self) -> None:
        """Second half of the stop: consumers end after their transaction, then the connections close."""
        self._draining = True
        for consumer in self._consumers.values():
            consumer.stop()
        consuming = {task for task in self._tasks if task.get_name() in {c.name for c in self._consumers.values()}}
        for task in self._tasks - consuming:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=DRAIN_S_MAX)
            for task in late:  # rolls back: the position says so, and the events come again
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.store.close()
        if self._subject_keys is not None:
            await self._subject_keys.close()
        try:
            async with asyncio.timeout(DRAIN_S_MAX):
                await self.database.close()
        except TimeoutError:
            self.database.terminate()

    @property
    def failed(self) -> bool:
        """Whether a background task crashed: the reason to stop, already logged."""
        return self._failure is not None

    def _is_live(self) -> bool:
        """Whether no other version's read models are live: operations are for the version that is."""
        return not any(consumer.superseded for consumer in self._consumers.values())

    def _task_ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("background_task_failed", task=task.get_name(), exc_info=error)
        self._failure = self._failure or error
        self.stopping.set()


async def _checked(name: str, check: Awaitable[Any]) -> Any:
    """The value of `check`, or the reason (text) why it cannot be had."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check
    except Exception as error:
        if not is_outage(error):
            log.warning("readiness_check_failed", check=name, exc_info=error)
        return f"{name} does not answer"


def run(service: str, settings_type: type[S], wire: Callable[[Runtime[S]], Awaitable[Litestar]]) -> None:
    """The `main` of a service: returns after SIGTERM or SIGINT, once everything begun is finished.

    `service` is the name with underscores. `wire` registers consumers and tasks and returns the app.

    Raises:
        SystemExit: 78 when the settings are not usable, 1 when a part of the service crashed.
    """
    try:
        settings = load(settings_type)
    except SettingsError as error:
        sys.stderr.write(f"{service} {error}\n")
        raise SystemExit(_EXIT_SETTINGS) from None
    look_for_cycles_rarely()
    telemetry.configure_logging(service, settings.log_level)
    _allow_many_connections()
    end_tracing = configure_tracing(service, settings.otel_exporter_otlp_endpoint)
    try:
        if (operation_id := operating.wanted()) is not None:
            os.nice(operating.NICENESS)
            failed = uvloop.run(_operate(service, settings, wire, operation_id))
        else:
            failed = uvloop.run(_serve(service, settings, wire))
    except Exception:
        log.exception("service_failed")
        failed = True
    finally:
        end_tracing()
    if failed:
        raise SystemExit(1)


def look_for_cycles_rarely() -> None:
    """Makes Python look for cycles after 50,000 new containers instead of 700, and never among what is imported.

    A chunk of the log makes a hundred thousand containers that are in no cycle and die by themselves; looking through
    them again and again was half of what an event cost the notifier's grouping. Cycles are rare here, and small.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _allow_many_connections() -> None:
    """Most systems begin with 1,024 open files per process, which is fewer than one gateway has clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(service: str, settings: S, wire: Callable[[Runtime[S]], Awaitable[Litestar]]) -> bool:
    """Runs the service until it is told to stop. True when it stops because a part of it crashed."""
    search_path = SearchPath()
    database = asyncpg.create_pool(
        settings.database_url,
        connect=connect_postgres,
        min_size=0,  # connects when needed: the server need not be up yet
        max_size=_DATABASE_CONNECTIONS_MAX,
        timeout=5,
        command_timeout=60,
        server_settings={"application_name": service, "jit": "off"},
        reset=pg.keep_session,
        init=search_path.set,
    )
    await database
    store = await EventStore.connect(settings.event_store_url)
    runtime = Runtime(service, settings, database, store, search_path)
    await runtime.connect_subject_keys()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.stopping.set)
    stopping = asyncio.create_task(runtime.stopping.wait())
    try:
        starting = asyncio.create_task(_start(runtime, wire))
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return runtime.failed
        server = starting.result()
        serving = asyncio.create_task(server.serve())
        log.info("service_started", port=settings.http_port)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        log.info("service_stopping")
        await runtime.stop_serving()
        await server.drain()
        server.should_exit = True
        await serving
        return runtime.failed or not stopping.done()
    finally:
        stopping.cancel()
        await runtime.close()
        log.info("service_stopped")


async def _operate(
    service: str, settings: S, wire: Callable[[Runtime[S]], Awaitable[Litestar]], operation_id: UUID
) -> bool:
    """Does one operation with the service's own code and rights. True when it could not be done."""
    database = asyncpg.create_pool(
        settings.database_url, connect=connect_postgres, min_size=0, max_size=2, timeout=5, command_timeout=60
    )
    await database
    store = await operating.store_for(operation_id, database, settings.event_store_url)
    runtime = Runtime(service, settings, database, store, SearchPath())
    runtime.operating = True
    try:
        await runtime.connect_subject_keys()
        await wire(runtime)
        worker = Operator(
            database_url=settings.database_url,
            store=store,
            handlers=runtime.handlers,
            kept=days_of(settings.retention_days),
        )
        log.info("operation_started", operation=str(operation_id))
        await worker.run(operation_id)
        return False
    finally:
        await runtime.close()


async def _start(runtime: Runtime[S], wire: Callable[[Runtime[S]], Awaitable[Litestar]]) -> Server:
    await runtime.until_available()
    app = await wire(runtime)
    await runtime.start_consumers()
    return Server(app, host=runtime.settings.http_host, port=runtime.settings.http_port)
