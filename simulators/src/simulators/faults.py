"""The faults a tester can inject into a platform, and how they act on it."""

import asyncio

import msgspec


class FaultState(msgspec.Struct, frozen=True, kw_only=True):
    """What `POST /control/…` answers: the faults in force."""

    paused: bool
    fail_status: int | None
    fail_times_left: int | None
    """None while failing means until resumed."""
    delay_s: float
    duplicate: bool
    shuffle: bool


class Faults:
    """Faults in force. They last until `resume`, and do not survive a restart.

    pause      the feed stops; events pile up in the platform.
    fail       what we ask of the platform (webhooks, pull, assertions, keys) is answered with an error.
    slow       each push and each answer takes that much longer.
    duplicate  each batch is sent again under its own id, and once more under another id.
    shuffle    the items of a batch are out of order.
    """

    def __init__(self) -> None:
        self._running = asyncio.Event()
        self.resume()

    def resume(self) -> None:
        """Back to health: every fault ends."""
        self.fail_status: int | None = None
        self.fail_times_left: int | None = None
        self.delay_s = 0.0
        self.duplicate = False
        self.shuffle = False
        self._running.set()

    def pause(self) -> None:
        self._running.clear()

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def fail(self, status: int, times: int | None) -> None:
        """Answer the next `times` requests (None: all) with `status`."""
        self.fail_status = status
        self.fail_times_left = times

    async def before_push(self) -> None:
        """Waits while paused, and for as long as slowness takes."""
        await self._running.wait()
        await asyncio.sleep(self.delay_s)

    async def before_answer(self) -> int | None:
        """Waits for as long as slowness takes; returns the error status to answer with, if any."""
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        status = self.fail_status
        if status is not None and self.fail_times_left is not None:
            self.fail_times_left -= 1
            if self.fail_times_left == 0:
                self.fail_status = self.fail_times_left = None
        return status

    @property
    def state(self) -> FaultState:
        return FaultState(
            paused=self.paused,
            fail_status=self.fail_status,
            fail_times_left=self.fail_times_left,
            delay_s=self.delay_s,
            duplicate=self.duplicate,
            shuffle=self.shuffle,
        )
