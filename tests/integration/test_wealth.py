"""Figures through the whole product: what a platform reports changes them, and what is noticed becomes an event."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from customers import make_customer

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration


async def test_what_is_noticed_becomes_an_event(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)

        async def get(path: str) -> Any:
            async with http.get(f"{sangam.origin}/api/wealth/{path}", headers=customer.headers) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        summary = await get("summary")
        assert summary["net_worth"]["total"] is not None
        assert {answer["period_days"] for answer in summary["performance"]} == {30, 90, 365}
        past = (datetime.now(UTC) - timedelta(days=4000)).isoformat().replace("+00:00", "Z")
        assert (await get(f"net-worth?as_of={past}"))["total"] in (None, "0.00")
        async with asyncio.timeout(30):
            while not (raised := [item for item in (await get("insights"))["items"] if item["raised_at"]]):
                await asyncio.sleep(0.5)  # it is looked for some seconds after the change
        async with http.post(
            f"{sangam.origin}/api/wealth/insights/{raised[0]['id']}/dismiss", headers=customer.headers
        ) as response:
            assert response.status == 200
            token = response.headers["X-Consistency-Token"]
        headers = customer.headers | {"X-Consistency-Token": token}
        async with http.get(f"{sangam.origin}/api/wealth/insights", headers=headers) as response:
            left = {item["id"] for item in (await response.json())["items"]}
        assert raised[0]["id"] not in left
