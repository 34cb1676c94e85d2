"""Outages: what to do when the database or the broker is away. Wait, and lose nothing."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aio_pika
import aiormq
import structlog

from events import pg

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 5.0
_CLOSE_WITHIN_S = 5.0

T = TypeVar("T")

BROKER_ERRORS = (
    OSError,
    TimeoutError,
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,  # a RuntimeError, raised when the channel is closed under a call
)
"""What the broker's client raises when the broker or the connection to it is away."""


def is_outage(error: BaseException) -> bool:
    """Whether doing the same again later can succeed, because the fault is not in what was asked."""
    return pg.is_outage(error) or isinstance(error, BROKER_ERRORS)


async def close_broker(connection: aio_pika.abc.AbstractConnection) -> None:
    """Closes the connection, or leaves it where it cannot be closed in a few seconds.

    Its errors are held back: one of them would take the place of a cancellation, and whoever was to end would take it
    for an outage and go on.
    """
    with contextlib.suppress(*BROKER_ERRORS):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await connection.close()


async def until_it_works(who: str, action: Callable[[], Awaitable[T]]) -> T:
    """Does it again, with growing pauses and jitter, for as long as there is an outage.

    Raises:
        Exception: whatever is not an outage.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await action()
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("paused", who=who, pause_s=round(pause_s, 2), error=repr(error))
        await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
        pause_s = min(pause_s * 2, _MAX_PAUSE_S)
