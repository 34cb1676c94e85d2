"""What goes out in one write arrives as if it had been published message by message."""

import asyncio
from typing import TYPE_CHECKING

import aio_pika
import aiormq
import pytest
from aiormq import spec
from events.pipelining import Message, publish_all

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


def message(body: bytes, number: int) -> Message:
    return body, "", spec.Basic.Properties(delivery_mode=2, headers={"number": number})


async def test_all_arrive_whole_in_order_and_are_confirmed(cell: "Cell") -> None:
    bodies = [b"", b"x", b"a frame is smaller" * 60_000, *(f"{n}".encode() for n in range(1_000)), b"the last"]
    connection = await aio_pika.connect(cell.amqp_url())
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.declare_exchange("of-this-test", aio_pika.ExchangeType.FANOUT, auto_delete=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange)
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, aiormq.Channel)
        assert await publish_all(underlay, exchange.name, []) == []
        half = len(bodies) // 2
        messages = [message(body, number) for number, body in enumerate(bodies)]
        confirms = await publish_all(underlay, exchange.name, messages[:half])
        await exchange.publish(aio_pika.Message(b"one by itself"), "")
        confirms += await publish_all(underlay, exchange.name, messages[half:])
        assert all(isinstance(confirm, spec.Basic.Ack) for confirm in await asyncio.gather(*confirms))
        got = [await queue.get(no_ack=True) for _ in range(len(bodies) + 1)]
    assert got.pop(half).body == b"one by itself"
    assert [each.body for each in got] == bodies
    assert [each.headers["number"] for each in got] == list(range(len(bodies)))


async def test_what_cannot_be_encoded_sends_nothing_and_what_ends_confirms_nothing(cell: "Cell") -> None:
    connection = await aio_pika.connect(cell.amqp_url())
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        underlay = await channel.get_underlay_channel()
        assert isinstance(underlay, aiormq.Channel)
        with pytest.raises(TypeError, match="maximum length"):
            await publish_all(underlay, "", [message(b"1", 1), (b"2", "k" * 300, spec.Basic.Properties())])
        assert underlay.delivery_tag == 0
        [confirm] = await publish_all(underlay, "there is no such exchange", [message(b"1", 1)])
        with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity):
            await confirm
        with pytest.raises(aiormq.exceptions.ChannelInvalidStateError):
            await publish_all(underlay, "", [message(b"1", 1)])
