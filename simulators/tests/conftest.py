"""A platform in a process of its own, pushing to a receiver in this one."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from simulators.harness import Platform, Receiver, free_port


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver(free_port())
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def platform(receiver: Receiver, tmp_path: Path) -> AsyncIterator[Platform]:
    async with aiohttp.ClientSession() as session:
        made = Platform(receiver.url, tmp_path, session)
        await made.start()
        yield made
        await made.stop(signal.SIGKILL)
