"""Many messages in one write, each with a publisher confirm of its own.

`aiormq.Channel.basic_publish` does the same for one message, in a task, under a timeout, and as a write of its own:
that costs more than the message does (docs/decisions/0111).
"""

import asyncio
from collections.abc import Sequence

import aiormq
from aiormq import spec
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.frame import marshal
from pamqp.header import ContentHeader

Message = tuple[bytes, str, spec.Basic.Properties]
"""Body, routing key, properties."""


async def publish_all(
    channel: aiormq.Channel, exchange: str, messages: Sequence[Message]
) -> "list[asyncio.Future[object]]":
    """Hands the messages to the connection, in order; gives their confirms, which fail if the channel ends before.

    Raises:
        TypeError, ValueError: a message cannot be encoded; none is sent.
        aiormq.exceptions.AMQPError: the channel is closed.
    """
    if not messages:
        return []
    frames = b"".join(
        [_encoded(channel, exchange, body, routing_key, properties) for body, routing_key, properties in messages]
    )
    async with channel.lock:
        if channel.is_closed:
            raise aiormq.exceptions.ChannelInvalidStateError("it is closed")
        await channel.write_queue.put(ChannelFrame(payload=frames, should_close=False))
        # Nothing waits from here on: a message is counted once it is sent, and before its confirm can come.
        confirms: list[asyncio.Future[object]] = [channel.create_future() for _ in messages]
        tags = range(channel.delivery_tag + 1, channel.delivery_tag + 1 + len(messages))
        channel.confirmations.update(zip(tags, confirms, strict=True))
        channel.delivery_tag += len(messages)
    return confirms


def _encoded(
    channel: aiormq.Channel, exchange: str, body: bytes, routing_key: str, properties: spec.Basic.Properties
) -> bytes:
    """The frames of one message: AMQP 0-9-1, 2.3.5.2."""
    most = channel.max_content_size
    return b"".join(
        (
            marshal(spec.Basic.Publish(exchange=exchange, routing_key=routing_key), channel.number),
            marshal(ContentHeader(properties=properties, body_size=len(body)), channel.number),
            *(marshal(ContentBody(body[at : at + most]), channel.number) for at in range(0, len(body), most)),
        )
    )
