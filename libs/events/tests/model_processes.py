"""The processes of the backbone's model test: relays and replicas that die by SIGKILL at an armed step.

A step is armed by a file of its name; whoever next comes by takes the file and dies.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import asyncpg
import structlog
from backbone import Seen
from events.consumer import Consumer
from events.envelope import RecordedEvent
from events.feed import LogFeed
from events.projections import Projections
from events.publisher import LogTail, Publisher
from events.relay import Relay
from events.store import EventStore

SEQUENCED = "after sequencing, before publishing"
CONFIRMED = "after publishing, before the checkpoint"
APPLIED = "before the consumer's commit"
COMMITTED = "after the consumer's commit, before its ack"
STEPS = (SEQUENCED, CONFIRMED, APPLIED, COMMITTED)


def taken(armed: Path, step: str) -> bool:
    """Whether the step was armed; it no longer is."""
    try:
        (armed / step).unlink()
    except FileNotFoundError:
        return False
    return True


def _die_if(armed: Path, step: str) -> None:
    if taken(armed, step):
        os.kill(os.getpid(), signal.SIGKILL)


def _dies_before(
    owner: type, method: str, armed: Path, step: str, when: Callable[[Any], bool] = lambda _: True
) -> None:
    original = getattr(owner, method)

    @wraps(original)
    def dying(self: Any, *arguments: Any) -> Any:
        if when(self):
            _die_if(armed, step)
        return original(self, *arguments)

    setattr(owner, method, dying)


def _begin() -> None:
    """Logs nothing but errors, and ends with the test's process, whatever ends that."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def relay(armed: Path, store_url: str, amqp_url: str) -> None:
    _begin()
    _dies_before(LogTail, "extend", armed, SEQUENCED)
    _dies_before(Publisher, "_save_checkpoint", armed, CONFIRMED, lambda self: self.position != self._saved_position)
    asyncio.run(Relay(store_url, amqp_url).run())


def replica(armed: Path, queue: str, store_url: str, database_url: str, amqp_url: str) -> None:
    """One of the consumer's replicas. Its read model fails on anything applied twice or out of order."""
    _begin()
    _dies_before(LogFeed, "settle", armed, COMMITTED)

    class Dying(Seen):
        async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
            await super().apply(db, events)
            _die_if(armed, APPLIED)

    async def consume() -> None:
        database = await asyncpg.create_pool(
            database_url, min_size=1, max_size=3, server_settings={"application_name": "replica"}
        )
        consumer = Consumer(
            name=queue,
            handler=Projections([Dying()]),
            database=database,
            store=await EventStore.connect(store_url),
            amqp_url=amqp_url,
            attempts=1,
        )
        await consumer.run()

    asyncio.run(consume())
