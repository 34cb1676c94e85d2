"""The fast way for a revocation: `sangam.control` to every process at once, `sangam.receipts` back.

The log is the truth and brings every revocation too, behind whatever else is in it. This channel only saves the
wait, and lets identity tell who has applied it. Losing a message here costs milliseconds, not safety.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final
from uuid import UUID, uuid4

import aio_pika
import aiormq
import msgspec
import structlog
from events.outage import BROKER_ERRORS, close_broker
from events.passwords import connect_broker

from chassis.revocations import Revocations

log = structlog.get_logger(__name__)

CONTROL_EXCHANGE: Final = "sangam.control"
RECEIPTS_EXCHANGE: Final = "sangam.receipts"
ALIVE_EVERY_S: Final = 2.0

_OUTBOX_MAX = 1_000
_PREFETCH = 200


class Revoke(msgspec.Struct, frozen=True, tag="revoke"):
    """These sessions have ended: refuse their tokens."""

    session_ids: list[UUID]


class RollCall(msgspec.Struct, frozen=True, tag="roll_call"):
    """Every verifier says that it is there."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A verifier refuses these sessions from now on; without sessions: it is alive."""

    verifier: str
    position: int
    """The log position up to which it knows revocations."""
    session_ids: list[UUID] = []


_encoder = msgspec.json.Encoder()
_control_decoder = msgspec.json.Decoder(Revoke | RollCall)
_receipt_decoder = msgspec.json.Decoder(Receipt)


class ControlChannel:
    """This process's end of the two exchanges.

    Args:
        service: prefix of its queues; the broker lets a service have its own only.
    """

    def __init__(self, service: str, amqp_url: str, revocations: Revocations) -> None:
        self.verifier = f"{service}/{uuid4().hex[:8]}"
        self._service = service
        self._amqp_url = amqp_url
        self._revocations = revocations
        self._on_receipt: Callable[[Receipt], None] | None = None
        self._outbox: deque[tuple[str, bytes]] = deque(maxlen=_OUTBOX_MAX)
        self._something_to_send = asyncio.Event()
        revocations.watch(self._applied)

    def collect(self, on_receipt: Callable[[Receipt], None]) -> None:
        """`on_receipt` gets every verifier's receipts. Before `run`, in identity only: no other may read them."""
        self._on_receipt = on_receipt

    def revoke(self, session_ids: Iterable[UUID]) -> None:
        """Tells every process, soon and without waiting. This one refuses them as of now."""
        session_ids = list(session_ids)
        self._send(CONTROL_EXCHANGE, Revoke(session_ids))
        self._revocations.add(session_ids)

    async def run(self) -> None:
        """Keeps both directions open until cancelled."""
        backoff_s = 0.1
        while True:
            try:
                await self._on_one_connection()
            except BROKER_ERRORS as error:
                log.warning("control.broker_away", error=repr(error))
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, 2)

    async def _on_one_connection(self) -> None:
        name = f"{self._service}.control.{uuid4()}"
        connection = await connect_broker(self._amqp_url, name)
        try:
            channel = await connection.channel(publisher_confirms=False)
            await channel.set_qos(prefetch_count=_PREFETCH)
            underlay = await channel.get_underlay_channel()
            assert isinstance(underlay, aiormq.Channel)
            gone = asyncio.Event()
            channel.close_callbacks.add(lambda *_: gone.set())
            await self._consume(channel, underlay, name, CONTROL_EXCHANGE, self._on_control)
            if self._on_receipt is not None:
                receipts = f"{self._service}.receipts.{uuid4()}"
                await self._consume(channel, underlay, receipts, RECEIPTS_EXCHANGE, self._on_receipt_message)
                self._send(CONTROL_EXCHANGE, RollCall())
            self._say_alive()
            await self._publish_until(gone, underlay)
        finally:
            await close_broker(connection)

    async def _consume(
        self,
        channel: aio_pika.abc.AbstractChannel,
        underlay: aiormq.Channel,
        name: str,
        exchange: str,
        on_body: Callable[[bytes], None],
    ) -> None:
        queue = await channel.declare_queue(name, exclusive=True, auto_delete=True)
        await queue.bind(exchange)

        async def on_message(message: aiormq.abc.DeliveredMessage) -> None:
            try:
                on_body(message.body)
            except msgspec.DecodeError:
                log.warning("control.malformed_message", exchange=exchange)

        await underlay.basic_consume(name, on_message, no_ack=True)

    async def _publish_until(self, gone: asyncio.Event, underlay: aiormq.Channel) -> None:
        next_alive_s = time.monotonic() + ALIVE_EVERY_S
        while not gone.is_set():
            while self._outbox:
                exchange, body = self._outbox.popleft()
                await underlay.basic_publish(body, exchange=exchange, wait=False)
            self._something_to_send.clear()
            try:
                async with asyncio.timeout(max(0.0, next_alive_s - time.monotonic())):
                    await self._something_to_send.wait()
            except TimeoutError:
                next_alive_s = time.monotonic() + ALIVE_EVERY_S
                self._say_alive()
        raise ConnectionError("the control channel was closed")

    def _on_control(self, body: bytes) -> None:
        match _control_decoder.decode(body):
            case Revoke(session_ids):
                self._revocations.add(session_ids)
            case RollCall():
                self._say_alive()

    def _on_receipt_message(self, body: bytes) -> None:
        assert self._on_receipt is not None
        self._on_receipt(_receipt_decoder.decode(body))

    def _applied(self, session_ids: Collection[UUID]) -> None:
        """Whichever way a revocation came first: the broadcast, or the log."""
        receipt = Receipt(verifier=self.verifier, position=self._revocations.position, session_ids=list(session_ids))
        self._send(RECEIPTS_EXCHANGE, receipt)

    def _say_alive(self) -> None:
        self._send(RECEIPTS_EXCHANGE, Receipt(verifier=self.verifier, position=self._revocations.position))

    def _send(self, exchange: str, message: msgspec.Struct) -> None:
        self._outbox.append((exchange, _encoder.encode(message)))
        self._something_to_send.set()
