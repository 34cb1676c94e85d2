"""Read your writes: a command names the event it appended, a later read waits until its read model has it."""

import asyncio
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, NamedTuple, Protocol
from uuid import UUID
from zlib import crc32

from litestar.di import NamedDependency
from litestar.params import HeaderParameter

from chassis.problems import Problem, invalid_field
from chassis.tokens import Caller

HEADER: Final = "X-Consistency-Token"
WAIT_S_MAX = 2.0
_POLL_S_FIRST, _POLL_S_MAX = 0.002, 0.05
_CHECK_BYTES = 4


class CaughtUp(NamedTuple):
    """Read routes declare the parameter `caught_up: CaughtUp`; when the handler runs, the wait is over."""

    position: int | None
    """The position that the read model contains for sure, None when the request named none."""


class Log(Protocol):
    """Knows where an event is in the log (`EventStore`)."""

    async def position_of(self, event_id: UUID) -> int | None: ...


class ReadModel(Protocol):
    """Knows how far it is (`Consumer`)."""

    async def wait_for(self, position: int, timeout_s: float) -> bool: ...


def consistency_token(event_id: UUID) -> str:
    """The value of `X-Consistency-Token` for a response to the command that appended `event_id`."""
    check = crc32(event_id.bytes).to_bytes(_CHECK_BYTES, "big")
    return urlsafe_b64encode(event_id.bytes + check).rstrip(b"=").decode()


def event_of(token: str) -> UUID:
    """The event a token names. Check digits catch a damaged token; it grants nothing, so it is not signed.

    Raises:
        Problem: 400 `invalid_consistency_token`.
    """
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        event_id = UUID(bytes=raw[:-_CHECK_BYTES])
    except ValueError:
        raise _invalid() from None
    if consistency_token(event_id) != token:
        raise _invalid()
    return event_id


async def wait_until_contained(
    token: str, log: Log, read_model: ReadModel, *, timeout_s: float = WAIT_S_MAX
) -> CaughtUp:
    """Waits until `read_model` contains the event that `token` names, at most `timeout_s` in total.

    Raises:
        Problem: 400 `invalid_consistency_token`; 503 `not_caught_up` when the time is over.
    """
    event_id = event_of(token)
    deadline = time.monotonic() + timeout_s
    pause_s = _POLL_S_FIRST
    try:
        async with asyncio.timeout(timeout_s):
            while (position := await log.position_of(event_id)) is None:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _POLL_S_MAX)
            if await read_model.wait_for(position, max(0.0, deadline - time.monotonic())):
                return CaughtUp(position)
    except TimeoutError:
        pass
    raise Problem(503, "not_caught_up", "The read model does not contain that write yet", headers={"Retry-After": "1"})


def provider(log: Log, read_model: Callable[[], ReadModel]) -> Callable[..., Awaitable[CaughtUp]]:
    """The dependency `caught_up` of a service: `read_model` gives its consumer of projections."""

    # Asks for the caller so that who waits is known, and so that the two are not resolved side by side: Litestar
    # starts a group of tasks for that, which takes longer than both.
    async def provide_caught_up(
        caller: NamedDependency[Caller],
        consistency: Annotated[
            str | None,
            HeaderParameter(
                name=HEADER,
                description="A command's: waits up to 2 s for that write",
                max_length=64,
            ),
        ] = None,
    ) -> CaughtUp:
        if consistency is None:
            return CaughtUp(None)
        return await wait_until_contained(consistency, log, read_model())

    return provide_caught_up


def _invalid() -> Problem:
    return invalid_field(HEADER, "The consistency token is not one of ours", "invalid_consistency_token")
