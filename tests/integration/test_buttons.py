"""Every button under a notification is the call that it says: pressed as it is, with its method and its body."""

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest
from customers import call, make_customer, transfer

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

WANTED = {
    "GET /api/accounts",
    "GET /api/transfers/{}",
    "GET /api/auto-replenish/{}",
    "PATCH /api/auto-replenish/{}/status",
    "GET /api/transfers/limits",
    "GET /api/auth/sessions",
    "POST /api/auth/logout-all",
}
"""With `{}` for an id."""


async def test_every_button_does_what_it_says(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)
        api, headers = sangam.origin, customer.headers
        await transfer(sangam, http, customer, "100.00", uuid4().hex)
        # Each of these by itself, as they happen on different days: five seconds are a group.
        for method, path, body in (
            ("PUT", "/api/transfers/limits", {"daily": "50000.00"}),
            (
                "POST",
                "/api/auto-replenish",
                {
                    "name": "Keep the wallet full",
                    "source_account_id": customer.savings,
                    "target_account_id": customer.wallet,
                    "trigger": {"type": "balance_below", "threshold": "10.00"},
                    "amount": {"type": "fixed", "amount": "50.00"},
                },
            ),
        ):
            await asyncio.sleep(5.1)
            key = {"Idempotency-Key": uuid4().hex}
            answer = await call(http, method, api + path, json=body, headers=headers | key)
            assert answer.status in (200, 201), answer
        buttons: dict[str, dict[str, Any]] = {}
        async with asyncio.timeout(20):
            while not buttons.keys() >= WANTED:
                inbox = await call(http, "GET", f"{api}/api/notifications/smart?limit=200", headers=headers)
                for action in (action for item in inbox.body["items"] for action in item["actions"]):
                    words = [uuid_as_braces(word) for word in action["href"].split("/")]
                    buttons[f"{action['method']} {'/'.join(words)}"] = action
                await asyncio.sleep(0.2)
        # The one that ends the session comes last.
        for name in sorted(buttons, key=lambda name: name.endswith("logout-all")):
            action = buttons[name]
            request = {"json": action["body"]} if "body" in action else {}
            answer = await call(http, action["method"], api + action["href"], headers=headers, **request)
            assert answer.status < 300, (name, answer)
        async with http.get(f"{api}/api/accounts", headers=headers) as refused:
            assert refused.status == 401


def uuid_as_braces(word: str) -> str:
    return "{}" if len(word) == 36 and word.count("-") == 4 else word
