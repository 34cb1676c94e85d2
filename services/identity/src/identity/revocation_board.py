"""Who has applied a revocation: every verifier answers for itself, and a logout is answered with the list."""

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple
from uuid import UUID

from chassis.control import ALIVE_EVERY_S, ControlChannel, Receipt

GIVEN_UP_AFTER_S = 1.0
"""How long an answer waits for the slowest verifier."""

GONE_AFTER_S = 2.5 * ALIVE_EVERY_S
"""A verifier not heard for this long is down. It will start from a snapshot that has the revocation."""


_CONFIRMED_MAX = 10_000


class ReceiptLine(NamedTuple):
    """One verifier's answer. `applied_ms`: from the append's end until we had its word; None: no word in time."""

    verifier: str
    position: int
    applied_ms: float | None


class _Waiting:
    """A revocation that is being told."""

    def __init__(self, session_ids: list[UUID]) -> None:
        self.missing: dict[str, set[UUID]] = {}
        """By verifier, the sessions that it has not confirmed."""
        self.session_ids = session_ids
        self.lines: dict[str, ReceiptLine] = {}
        self.started_s = time.monotonic()
        self.complete = asyncio.Event()


class RevocationBoard:
    """Knows the living verifiers by what they say, and gathers their receipts."""

    def __init__(self, control: ControlChannel) -> None:
        self._control = control
        self._heard: dict[str, tuple[float, int]] = {}
        """By verifier: when it was last heard (monotonic), and the position it told."""
        self._waiting: set[_Waiting] = set()
        self._confirmed: OrderedDict[UUID, set[str]] = OrderedDict()
        """By session ended lately, who has confirmed it: the log may bring a revocation before it is announced."""
        control.collect(self.on_receipt)

    @property
    def verifiers(self) -> list[str]:
        """Those that are alive now, as far as known."""
        now = time.monotonic()
        return [verifier for verifier, (heard_s, _) in self._heard.items() if now - heard_s < GONE_AFTER_S]

    async def announce(self, session_ids: list[UUID]) -> list[ReceiptLine]:
        """Tells every process that the sessions have ended, and returns once all living ones have confirmed it, or
        after `GIVEN_UP_AFTER_S`. The revocation itself is in the log by then, and reaches who is missing from there.
        """
        waiting = _Waiting(session_ids)
        for verifier in self.verifiers:
            missing = {each for each in session_ids if verifier not in self._confirmed.get(each, ())}
            if missing:
                waiting.missing[verifier] = missing
            else:
                waiting.lines[verifier] = ReceiptLine(verifier, self._heard[verifier][1], 0.0)
        self._waiting.add(waiting)
        try:
            self._control.revoke(session_ids)
            if waiting.missing:
                async with asyncio.timeout(GIVEN_UP_AFTER_S):
                    await waiting.complete.wait()
        except TimeoutError:
            for verifier in waiting.missing:
                waiting.lines[verifier] = ReceiptLine(verifier, self._heard[verifier][1], None)
        finally:
            self._waiting.discard(waiting)
        return sorted(waiting.lines.values())

    def on_receipt(self, receipt: Receipt) -> None:
        """A verifier is alive, or has applied revocations."""
        now = time.monotonic()
        self._heard[receipt.verifier] = (now, receipt.position)
        for verifier in [name for name, (heard_s, _) in self._heard.items() if now - heard_s > 10 * GONE_AFTER_S]:
            del self._heard[verifier]
        for session_id in receipt.session_ids:
            self._confirmed.setdefault(session_id, set()).add(receipt.verifier)
        while len(self._confirmed) > _CONFIRMED_MAX:
            self._confirmed.popitem(last=False)
        for waiting in self._waiting:
            missing = waiting.missing.get(receipt.verifier)
            if missing is None:
                continue
            missing.difference_update(receipt.session_ids)
            if not missing:
                del waiting.missing[receipt.verifier]
                applied_ms = round((now - waiting.started_s) * 1000, 2)
                waiting.lines[receipt.verifier] = ReceiptLine(receipt.verifier, receipt.position, applied_ms)
                if not waiting.missing:
                    waiting.complete.set()
