"""When statistics are gathered while tables are filled, and that filling does not wait for them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from events.planner import FIRST_AT, Statistics


class Sessions:
    """Sessions whose statements wait until they may end."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.may_end = asyncio.Event()
        self.open = 0
        self.error: Exception | None = None

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    async def execute(self, statement: str) -> None:
        self.said.append(statement)
        await self.may_end.wait()
        if self.error is not None:
            raise self.error

    async def tables(self) -> list[str]:
        return ['"generation_1"."one"', '"generation_1"."two"']


def statistics_of(sessions: Sessions) -> Statistics:
    return Statistics(sessions.session, sessions.tables)


async def test_filling_goes_on_meanwhile() -> None:
    sessions = Sessions()
    statistics = statistics_of(sessions)
    async with statistics.beside():
        await statistics.reached(90_000, 100_000)
        await asyncio.sleep(0)
        assert sessions.said == ['ANALYZE "generation_1"."one"']
        await statistics.reached(95_000, 100_000)
        sessions.may_end.set()
    assert sessions.said == ['ANALYZE "generation_1"."one"', 'ANALYZE "generation_1"."two"'], "one at a time"
    assert sessions.open == 0
    await statistics.complete(100_000)
    assert len(sessions.said) == 2, "nine tenths are known"
    await statistics.complete(200_000)
    assert len(sessions.said) == 4


@pytest.mark.parametrize(
    ("position", "up_to", "begins"),
    [
        (FIRST_AT - 1, 10 * FIRST_AT, False),
        (FIRST_AT, 10 * FIRST_AT, True),
        (FIRST_AT, 3 * FIRST_AT, False),  # soon nearly all will be there
        (4_000, 4_500, True),
        (4_000, 8_000, False),
    ],
)
async def test_when_it_begins(position: int, up_to: int, begins: bool) -> None:
    sessions = Sessions()
    sessions.may_end.set()
    statistics = statistics_of(sessions)
    async with statistics.beside():
        await statistics.reached(position, up_to)
    assert bool(sessions.said) is begins


async def test_again_at_every_fourfold_size_and_at_the_end() -> None:
    sessions = Sessions()
    sessions.may_end.set()
    statistics = statistics_of(sessions)
    gathered = []
    async with statistics.beside():
        for position in range(4_000, 1_000_001, 4_000):
            before = len(sessions.said)
            await statistics.reached(position, 1_000_000)
            await asyncio.sleep(0.0)
            await asyncio.sleep(0.0)
            if len(sessions.said) > before:
                gathered.append(position)
    assert gathered == [20_000, 80_000, 836_000]


async def test_what_fails_stops_it() -> None:
    sessions = Sessions()
    statistics = statistics_of(sessions)

    async def filling_that_ends(error: Exception | None) -> None:
        async with statistics.beside():
            await statistics.reached(90_000, 100_000)
            await asyncio.sleep(0)
            if error is not None:
                raise error

    with pytest.raises(LookupError):
        await filling_that_ends(LookupError("an event cannot be applied"))
    assert sessions.open == 0, "or it would hold up whoever drops the tables"
    sessions.error = ConnectionError("gone")
    sessions.may_end.set()
    with pytest.raises(ConnectionError):
        await filling_that_ends(None)
