"""The platforms and Sangam hold the same: two edits that disagree, and a transfer, end to end over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import pytest
from customers import Answer, call, make_customer, transfer

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

PLATFORMS = ("bfc", "vyomo")


async def until(ask: Callable[[], Awaitable[Any]], timeout_s: float = 20) -> Any:
    """Asks until the answer is something."""
    async with asyncio.timeout(timeout_s):
        while not (answer := await ask()):
            await asyncio.sleep(0.05)
    return answer


async def test_edits_that_disagree_are_resolved_and_both_platforms_hold_the_result(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http)
        ids = await platform_customers(sangam, http, customer.savings, customer.wallet, customer.headers)

        async def profiles() -> list[Any]:
            return [(await at(sangam, http, platform, f"/customers/{ids[platform]}/profile")) for platform in PLATFORMS]

        async def held(nominee: str) -> list[Any] | None:
            found = await profiles()
            same = all(profile["fields"].get("nominee") == nominee for profile in found)
            return found if same and len({profile["version"] for profile in found}) == 1 else None

        async def edit(platform: str, nominee: str) -> None:
            path = f"{sangam.url(f'simulator-{platform}')}/customers/{ids[platform]}/profile"
            answer = await call(http, "POST", path, json={"fields": {"nominee": nominee}})
            assert answer.status == 200, answer

        await edit("bfc", "Asha")
        (before, _) = await until(lambda: held("Asha"))
        # Neither has heard of the other's when its customer changes it again.
        for platform in PLATFORMS:
            await control(sangam, http, platform, "pause")
        await edit("bfc", "Bela")
        await edit("vyomo", "Veda")
        for platform in PLATFORMS:
            await control(sangam, http, platform, "resume")

        async def open_conflict() -> Any:
            url = f"{sangam.origin}/api/sync/conflicts?status=open"
            items = (await call(http, "GET", url, headers=customer.headers)).body["items"]
            return items[0] if items else None

        conflict = await until(open_conflict)
        assert [decision["field"] for decision in conflict["decisions"]] == ["nominee"]
        assert {conflict[platform]["fields"]["nominee"] for platform in PLATFORMS} == {"Bela", "Veda"}
        resolved = await call(
            http,
            "POST",
            f"{sangam.origin}/api/sync/conflicts/{conflict['id']}/resolve",
            json={"strategy": "manual", "fields": {"nominee": "Mira"}},
            headers=customer.headers,
        )
        assert (resolved.status, resolved.body["status"]) == (200, "resolved"), resolved
        (after, _) = await until(lambda: held("Mira"))
        assert after["version"] > before["version"]
        ours = await call(http, "GET", f"{sangam.origin}/api/sync/profile", headers=customer.headers)
        assert (ours.body["version"], ours.body["fields"]["nominee"]) == (after["version"], "Mira")


async def test_a_transfer_is_announced_signed_to_both_platforms(sangam: "Stack") -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(sangam, http, savings="1000.00")
        ids = await platform_customers(sangam, http, customer.savings, customer.wallet, customer.headers)
        moved = await transfer(sangam, http, customer, "250.00", uuid4().hex)
        assert moved.status == 201, moved
        for platform, direction, balance in (("bfc", "debit", "750.00"), ("vyomo", "credit", "250.00")):

            async def announced(platform: str = platform) -> list[Any]:
                received = (await at(sangam, http, platform, "/webhooks/received"))["items"]
                return [
                    item
                    for item in received
                    if item["body"]["type"] == "transfer.completed"
                    and item["body"]["data"]["transfer_id"] == moved.body["transfer_id"]
                ]

            (message,) = await until(announced)
            assert message["verified"] is True
            assert message["body"]["customer_id"] == ids[platform]
            (leg,) = message["body"]["data"]["legs"]
            assert (leg["direction"], leg["amount_minor"], leg["currency"]) == (direction, 250_00, "INR")
            (stated,) = (await at(sangam, http, platform, f"/balances?customer_id={ids[platform]}"))["items"]
            assert stated["data"]["balance"] == balance


async def at(stack: "Stack", http: aiohttp.ClientSession, platform: str, path: str) -> Any:
    answer: Answer = await call(http, "GET", stack.url(f"simulator-{platform}") + path)
    assert answer.status == 200, answer
    return answer.body


async def control(stack: "Stack", http: aiohttp.ClientSession, platform: str, what: str) -> None:
    async with http.post(f"{stack.url(f'simulator-{platform}')}/control/{what}") as response:
        assert response.status == 200


async def platform_customers(
    stack: "Stack", http: aiohttp.ClientSession, savings: str, wallet: str, headers: dict[str, str]
) -> dict[str, str]:
    """The customer's id at each platform: the one that their account there was opened with."""
    listed = await call(http, "GET", f"{stack.origin}/api/accounts", headers=headers)
    tags = {account["id"]: account["platform_account_id"].split("-", 1)[1] for account in listed.body["items"]}
    return {"bfc": f"BFC-{tags[savings]}", "vyomo": f"VY-{tags[wallet]}"}
