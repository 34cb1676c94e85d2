"""What a customer sets: preferences, and where else to be told."""

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from chassis.consistency import HEADER
from events.envelope import new_id
from samples import BROWSER

if TYPE_CHECKING:
    from conftest import Desk

pytestmark = pytest.mark.integration


async def test_preferences(desk: "Desk", client: httpx.AsyncClient) -> None:
    bearer = desk.world.bearer(new_id())
    found = (await client.get("/api/notifications/preferences", headers=bearer)).json()
    assert found["timezone"] == "Asia/Kolkata"
    assert found["channels"] == {"in_app": True, "email": True, "web_push": True, "webhook": True}
    wanted = {
        "timezone": "Europe/London",
        "quiet_hours": [{"days": ["sat"], "start": "22:00", "end": "07:00"}],
        "channels": {"in_app": True, "email": False, "web_push": True, "webhook": False},
        "categories": {"trade": {"channels": ["in_app"], "min_priority": "high", "muted": False}},
        "language": "hi-IN",
    }
    token = (await client.put("/api/notifications/preferences", json=wanted, headers=bearer)).headers[HEADER]
    await desk.run()
    found = (await client.get("/api/notifications/preferences", headers=bearer | {HEADER: token})).json()
    assert found == wanted
    bad: dict[str, Any]
    for bad in (
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc/passwd"},
        {"quiet_hours": [{"days": ["mon"], "start": "24:00", "end": "07:00"}]},
        {"quiet_hours": [{"days": [], "start": "22:00", "end": "07:00"}]},
        {"categories": {"weather": {}}},
        {"language": "fr-FR"},
    ):
        response = await client.put("/api/notifications/preferences", json=bad, headers=bearer)
        assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json"), bad


async def test_targets(desk: "Desk", client: httpx.AsyncClient) -> None:
    bearer, other = desk.world.bearer(new_id()), desk.world.bearer(new_id())
    path = "/api/notifications/push-subscriptions"
    assert (await client.post(path, json=BROWSER, headers=bearer)).status_code == 201
    assert (await client.post(path, json=BROWSER, headers=bearer)).status_code == 201  # the same again
    found = (await client.get(path, headers=bearer)).json()
    assert [item["endpoint"] for item in found["items"]] == [BROWSER["endpoint"]]
    assert len(found["public_key"]) == 87  # an uncompressed point of P-256
    gone = {"endpoint": BROWSER["endpoint"]}
    assert (await client.request("DELETE", path, json=gone, headers=other)).status_code == 404
    assert (await client.request("DELETE", path, json=gone, headers=bearer)).status_code == 204
    for endpoint in (
        "http://push.example/1",
        "https://127.0.0.1/x",
        "https://localhost/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://169.254.169.254/latest",
        "https://user:secret@push.example/",
    ):
        response = await client.post(path, json=BROWSER | {"endpoint": endpoint}, headers=bearer)
        assert (response.status_code, response.json()["code"]) == (422, "url_not_allowed"), endpoint
    made = (
        await client.put("/api/notifications/webhook", json={"url": "https://hooks.example/"}, headers=bearer)
    ).json()
    assert made["secret"].startswith("whsec_")
    shown = (await client.get("/api/notifications/webhook", headers=bearer)).json()
    assert shown == {"id": made["id"], "url": made["url"]}
    assert (await client.get("/api/notifications/webhook", headers=other)).status_code == 404
