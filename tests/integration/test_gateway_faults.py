"""100 % of synchronisation through faults; the large run is `bench/gateway_faults.py`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
import pytest
from platform_faults import Run
from truth import nothing_parked

if TYPE_CHECKING:
    from stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

ITEMS = 1_200
SOCKETS = 40
FAULTS = ("platform down", "gateway killed", "platform paused", "gateway killed while RabbitMQ restarts")
PROBE_S = 0.5


async def test_every_item_is_stored_posted_and_told_exactly_once(make_stack: "Callable[..., Stack]") -> None:
    # Two gateways behind the origin: what one was about to do when it was killed, the other does.
    stack = make_stack(durable=False, replicas=2, environment={"sync_gateway": {"WEBHOOK_PROBE_S": str(PROBE_S)}})
    async with aiohttp.ClientSession() as http:
        run = Run(stack, http, items=ITEMS, customers=2, sockets=SOCKETS, faults=FAULTS, down_s=8)
        outcome = await run()
    assert (outcome.items, outcome.stored, outcome.posted, outcome.told) == (ITEMS,) * 4, outcome
    assert (outcome.refused, outcome.strange) == (0, 0), outcome
    assert outcome.agreeing == outcome.accounts == 4, outcome
    assert outcome.delivered == outcome.webhooks == ITEMS, outcome
    assert outcome.attempts > outcome.webhooks, "the webhooks saw no fault"
    assert outcome.success_rate == 100
    assert outcome.connections > SOCKETS, "the sockets saw no fault"
    await nothing_parked(stack.cell)
