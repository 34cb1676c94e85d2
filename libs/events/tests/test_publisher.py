"""What the relay does when the broker keeps a confirm back."""

import asyncio
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import pytest
from events import outage, publisher
from events.passwords import connect_broker
from events.publisher import LogPublisher, LogTail
from events.wire import LogSlice

if TYPE_CHECKING:
    import aiormq
    from events import pg


class Checkpoints:
    async def execute(self, *_: object) -> None:
        return None


class SilentChannel:
    """A channel of a healthy connection on which the first `confirmed` messages are confirmed, and no other."""

    number = 1
    max_content_size = 100_000
    delivery_tag = 0
    is_closed = False

    def __init__(self, confirmed: int) -> None:
        self.confirmed = confirmed
        self.lock = asyncio.Lock()
        self.write_queue: asyncio.Queue[object] = asyncio.Queue()
        self.confirmations: dict[int, asyncio.Future[object]] = {}

    def create_future(self) -> "asyncio.Future[object]":
        confirm: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if len(self.confirmations) < self.confirmed:
            confirm.set_result(None)
        return confirm


@pytest.fixture
async def log(monkeypatch: pytest.MonkeyPatch) -> LogPublisher:
    """A publisher whose tail has one event to publish."""
    monkeypatch.setattr(publisher, "_CONFIRM_WITHIN_S", 0.2)
    monkeypatch.setattr(publisher, "_HEARTBEAT_S", 0.05)
    nobody = cast("pg.Session", Checkpoints())
    made = LogPublisher(LogTail(nobody, 0), nobody, "amqp://", uuid4())
    made._tail.extend([LogSlice(1, 1, b"{}")])
    return made


@pytest.mark.parametrize(("confirmed", "position"), [(0, 0), (1, 1)], ids=["a batch", "a heartbeat"])
async def test_a_confirm_that_never_comes_ends_the_connection(log: LogPublisher, confirmed: int, position: int) -> None:
    channel = SilentChannel(confirmed)
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await log._publish(cast("aiormq.Channel", channel))
    assert log.position == position, "what is not confirmed is published again"
    assert channel.write_queue.qsize() == channel.delivery_tag == confirmed + 1


class Stuck:
    """A broker that answers nothing any more, and a connection to it that cannot be closed."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = asyncio.Event()

    async def channel(self, **_: object) -> None:
        self.asked.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        if self.error is None:
            await asyncio.Event().wait()
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(), None], ids=["an error", "silence"])
async def test_whoever_leads_no_more_ends_though_the_connection_cannot_be_closed(
    log: LogPublisher, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """Else the leader waits for its publishers for ever, keeps its lock, and sequences nothing: seen on a full disk."""
    stuck = Stuck(error)

    async def connect(*_: object) -> Stuck:
        return stuck

    monkeypatch.setattr(publisher, "connect_broker", connect)
    monkeypatch.setattr(outage, "_CLOSE_WITHIN_S", 0.1)
    publishing = asyncio.create_task(log._run_for_ever())
    await stuck.asked.wait()
    publishing.cancel()
    await asyncio.wait({publishing}, timeout=2)
    ended = publishing.cancelled()
    publishing.cancel()
    assert ended


async def test_a_cancellation_that_comes_with_the_connection_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who was to end goes on for ever: seen of a consumer whose log had been restored."""
    answered = asyncio.Event()

    class Made:
        async def ready(self) -> None:
            await asyncio.sleep(0.01)

    async def connect(*_: object, **__: object) -> Made:
        await answered.wait()
        return Made()

    monkeypatch.setattr("aio_pika.abc.aiormq.connect", connect)
    connecting = asyncio.create_task(connect_broker("amqp://user:password@host/vhost", "of this test"))
    await asyncio.sleep(0.01)
    answered.set()
    await asyncio.sleep(0)
    connecting.cancel()
    await asyncio.wait({connecting}, timeout=2)
    assert connecting.cancelled()
