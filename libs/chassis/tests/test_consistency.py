"""Read your writes: the wait ends when the read model has the event, or honestly after two seconds."""

import asyncio
import time
from uuid import UUID, uuid4

import pytest
from chassis.consistency import consistency_token, event_of, wait_until_contained
from chassis.problems import Problem


class GrowingLog:
    """A log that sequences `event` after some looks, and a read model that gets there later."""

    def __init__(self, event: UUID, looks: int, lag_s: float) -> None:
        self.event, self.looks, self.lag_s = event, looks, lag_s

    async def position_of(self, event_id: UUID) -> int | None:
        self.looks -= 1
        return 42 if event_id == self.event and self.looks < 0 else None

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        assert position == 42
        await asyncio.sleep(min(self.lag_s, timeout_s))
        return self.lag_s <= timeout_s


def test_the_token_names_the_event() -> None:
    event = uuid4()
    assert event_of(consistency_token(event)) == event


@pytest.mark.parametrize(
    "token", ["", "x", "=", "A" * 27, "A" * 28, "ba56bfdd-83e9-45e3-b82a-5e6936692ef6", "é" * 27, "A" * 9000]
)
def test_a_token_that_is_not_ours(token: str) -> None:
    with pytest.raises(Problem) as caught:
        event_of(token)
    assert (caught.value.status, caught.value.code) == (400, "invalid_consistency_token")


async def test_waits_for_the_sequencer_and_the_read_model() -> None:
    event = uuid4()
    log = GrowingLog(event, looks=3, lag_s=0.02)
    assert (await wait_until_contained(consistency_token(event), log, log)).position == 42


@pytest.mark.parametrize(("looks", "lag_s"), [(10**9, 0.0), (0, 60.0)], ids=["never sequenced", "far behind"])
async def test_gives_up_in_time(looks: int, lag_s: float) -> None:
    event = uuid4()
    log = GrowingLog(event, looks, lag_s)
    started = time.monotonic()
    with pytest.raises(Problem) as caught:
        await wait_until_contained(consistency_token(event), log, log, timeout_s=0.1)
    assert (caught.value.status, caught.value.code) == (503, "not_caught_up")
    assert caught.value.headers["Retry-After"]
    assert time.monotonic() - started < 1


async def test_an_event_that_does_not_exist_is_not_waited_for_longer() -> None:
    log = GrowingLog(uuid4(), 0, 0)
    with pytest.raises(Problem, match="not_caught_up"):
        await wait_until_contained(consistency_token(uuid4()), log, log, timeout_s=0.05)
