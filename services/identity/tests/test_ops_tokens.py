"""Operators' tokens: client credentials over HTTP."""

import base64
from typing import TYPE_CHECKING

import jwt
import pytest

if TYPE_CHECKING:
    import httpx
    from identity_harness import Client

pytestmark = pytest.mark.integration

ID, SECRET = "ops-test", "a secret of the operators"


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


async def asked(client: "Client", headers: dict[str, str], **form: str) -> "httpx.Response":
    return await client.post("/oauth/token", data=form, headers=headers)


async def test_client_credentials(client: "Client") -> None:
    answer = await asked(client, basic(ID, SECRET), grant_type="client_credentials")
    assert answer.status_code == 200
    assert answer.json()["scope"] == "notifications:write sync:admin transfers:reverse"
    claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
    assert (claims["aud"], claims["client_id"], claims["exp"] - claims["iat"]) == ("sangam-ops", ID, 600)
    assert answer.headers["cache-control"] == "no-store"
    narrowed = await asked(client, basic(ID, SECRET), grant_type="client_credentials", scope="sync:admin")
    assert narrowed.json()["scope"] == "sync:admin"
    # It is nobody's session: no route of a customer takes it.
    status = await client.get("/api/auth/status", headers={"Authorization": f"Bearer {answer.json()['access_token']}"})
    assert status.status_code == 401


async def test_refusals(client: "Client") -> None:
    cases = [
        (basic(ID, "wrong"), {"grant_type": "client_credentials"}, 401, "invalid_client"),
        (basic("ops-other", SECRET), {"grant_type": "client_credentials"}, 401, "invalid_client"),
        ({}, {"grant_type": "client_credentials", "client_id": ID, "client_secret": SECRET}, 401, "invalid_client"),
        ({"Authorization": "Basic !"}, {"grant_type": "client_credentials"}, 401, "invalid_client"),
        (basic(ID, SECRET), {"grant_type": "client_credentials", "scope": "accounts:read"}, 400, "invalid_scope"),
        (basic(ID, SECRET), {"grant_type": "password"}, 400, "unsupported_grant_type"),
        (basic(ID, SECRET), {"scope": "sync:admin"}, 400, "invalid_request"),
    ]
    for headers, form, status, error in cases:
        answer = await asked(client, headers, **form)
        assert (answer.status_code, answer.json()["error"]) == (status, error), form
    twice = await client.post(
        "/oauth/token",
        content="grant_type=client_credentials&grant_type=password",
        headers={**basic(ID, SECRET), "Content-Type": "application/x-www-form-urlencoded"},
    )
    assert (twice.status_code, twice.json()["error"]) == (400, "invalid_request")
    json = await client.post("/oauth/token", json={"grant_type": "client_credentials"}, headers=basic(ID, SECRET))
    assert json.status_code == 415
