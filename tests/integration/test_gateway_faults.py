"""100 % of synchronisation through faults; the large run is `bench/gateway_faults.py`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
import pytest
from platform_faults import Run
from truth import nothing_parked

if TYPE_CHECKING:
    from stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

ITEMS = 1_200
FAULTS = ("gateway killed", "platform paused", "gateway killed while RabbitMQ restarts")


async def test_every_item_is_stored_posted_and_told_exactly_once(make_stack: "Callable[..., Stack]") -> None:
    stack = make_stack(durable=False)
    async with aiohttp.ClientSession() as http:
        outcome = await Run(stack, http, items=ITEMS, customers=2, faults=FAULTS)()
    assert (outcome.items, outcome.stored, outcome.posted, outcome.told) == (ITEMS,) * 4, outcome
    assert outcome.refused == 0
    assert outcome.success_rate == 100
    assert outcome.connections > 2, "the sockets saw no fault"
    await nothing_parked(stack.cell)
