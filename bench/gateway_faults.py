"""Success rate of synchronisation while everything around it fails: 100,000 items, followed to their customers.

`GATEWAY_FAULT_ITEMS` asks for fewer. The reference system states 99.78 %.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from report import Figure, Line

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "integration"))
from platform_faults import Run

if TYPE_CHECKING:
    from stack import Stack

ITEMS = 100_000
CUSTOMERS = 20
PER_ROUND = 20_000
"""Items per round of all faults."""


async def measure(stack: "Stack") -> list[Line]:
    """The line of the report; prints what it is made of."""
    items = int(os.environ.get("GATEWAY_FAULT_ITEMS", ITEMS))
    async with aiohttp.ClientSession() as http:
        outcome = await Run(stack, http, items=items, customers=CUSTOMERS, rounds=max(1, items // PER_ROUND))()
    print(json.dumps({**outcome._asdict(), "success_rate": outcome.success_rate}))
    what = f"{outcome.items:,} items through {outcome.faults.total()} faults: stored, posted, told once"
    return [Line(what, Figure([outcome.success_rate]), "%", "reference system", Figure([99.78]), "100.000 %")]
