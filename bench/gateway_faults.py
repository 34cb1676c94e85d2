"""Success rate of synchronisation while everything around it fails: 100,000 items, followed to their customers.

A platform is down for ten minutes, which are not compressed; 1,000 sockets listen all the time. That takes about half
an hour, so it runs only when it is named. `GATEWAY_FAULT_ITEMS`, `GATEWAY_FAULT_SOCKETS` and `GATEWAY_FAULT_DOWN_S` ask
for less. The reference system states 99.78 %.
"""

import json
import os
from typing import TYPE_CHECKING

import aiohttp
from platform_faults import FAULTS, Run
from report import Figure, Line
from truth import nothing_parked

if TYPE_CHECKING:
    from stack import Stack

ITEMS = 100_000
SOCKETS = 1_000
DOWN_S = 600
CUSTOMERS = 50
PER_FAULT = 4_000
"""Items during each fault, of which all are repeated until there are no more items."""


def _asked(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


async def measure(stack: "Stack") -> list[Line]:
    """The line of the report; prints what it is made of."""
    items = _asked("GATEWAY_FAULT_ITEMS", ITEMS)
    down, *repeated = FAULTS
    rounds = max(1, round((items / PER_FAULT - 1) / len(repeated)))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        run = Run(
            stack,
            http,
            items=items,
            customers=CUSTOMERS,
            sockets=_asked("GATEWAY_FAULT_SOCKETS", SOCKETS),
            # First, so that the webhooks' long pauses after it pass while other things happen.
            faults=[down, *repeated * rounds],
            down_s=_asked("GATEWAY_FAULT_DOWN_S", DOWN_S),
            progress=lambda line: print(line, flush=True),
        )
        outcome = await run()
    await nothing_parked(stack.cell)
    print(json.dumps({**outcome._asdict(), "success_rate": outcome.success_rate}))
    assert outcome.refused == outcome.strange == 0
    what = f"{outcome.items:,} items, {outcome.sockets:,} sockets, {outcome.faults.total()} faults: all once"
    return [Line(what, Figure([outcome.success_rate]), "%", "reference system", Figure([99.78]), "100.000 %")]
