"""Customers of a running product, made as a client would: over HTTP, with links proven by the simulators."""

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import aiohttp

if TYPE_CHECKING:
    from stack import Stack

PASSWORD = "correct horse battery staple"
_DEFINITE = {200, 201, 400, 403, 404, 409, 422}


class Customer(NamedTuple):
    user_id: str
    email: str
    access_token: str
    savings: str
    """Account ids."""
    wallet: str
    refresh_token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access_token}"}


class Answer(NamedTuple):
    status: int
    body: Any
    headers: Any


async def call(http: aiohttp.ClientSession, method: str, url: str, timeout_s: float = 60, **request: Any) -> Answer:
    """Repeats a request until it gets a definite answer, as a good client does: outages are answered 502–504,
    429, or not at all."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            async with http.request(method, url, timeout=aiohttp.ClientTimeout(total=15), **request) as response:
                body = await response.json(content_type=None)
                if response.status in _DEFINITE:
                    return Answer(response.status, body, response.headers)
                problem = f"{response.status} {body}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            problem = repr(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{method} {url}: {problem}")
        await asyncio.sleep(0.1)


async def make_customer(
    stack: "Stack", http: aiohttp.ClientSession, *, savings: str = "1000000.00", wallet: str = "0.00"
) -> Customer:
    """A customer with a savings account at BFC and a trading wallet at Vyomo, both linked."""
    tag = uuid4().hex[:12]
    email = f"c{tag}@example.com"
    api = stack.origin
    person = {"email": email, "password": PASSWORD, "full_name": "Chitra Iyer", "phone": "+919800000000"}
    registered = await call(http, "POST", f"{api}/api/auth/register", json=person)
    assert registered.status == 201, registered
    credentials = {"email": email, "password": PASSWORD, "platform": "bfc"}
    login = await call(http, "POST", f"{api}/api/auth/login", json=credentials)
    headers = {"Authorization": f"Bearer {login.body['access_token']}"}
    openings: list[tuple[str, str, str, dict[str, Any]]] = [
        (
            "bfc",
            "bfc_customer_id",
            f"BFC-{tag}",
            {"account_id": f"SB-{tag}", "kind": "savings", "opening_balance": savings},
        ),
        ("vyomo", "vyomo_client_id", f"VY-{tag}", {"wallet_id": f"TW-{tag}", "opening_balance": wallet}),
    ]
    for platform, field, customer_id, data in openings:
        simulator = stack.url(f"simulator-{platform}")
        await call(http, "POST", f"{simulator}/customers", json={"customer_id": customer_id, "pin": "1234"})
        kind = "account.opened" if platform == "bfc" else "wallet.opened"
        item = {"customer_id": customer_id, "type": kind, "data": {**data, "currency": "INR"}}
        await call(http, "POST", f"{simulator}/events", json=item)
        link = await call(http, "POST", f"{api}/api/auth/link-{platform}", json={field: customer_id}, headers=headers)
        proof = await call(
            http,
            "POST",
            f"{simulator}/customers/{customer_id}/link-assertion",
            json={"nonce": link.body["nonce"], "pin": "1234"},
        )
        confirmed = await call(
            http,
            "POST",
            f"{api}/api/auth/link-{platform}/confirm",
            json={"link_id": link.body["link_id"], "assertion": proof.body["assertion"]},
            headers=headers,
        )
        assert confirmed.status == 200, confirmed
    accounts: dict[str, str] = {}
    async with asyncio.timeout(30):
        while len(accounts) < 2:
            listed = await call(http, "GET", f"{api}/api/accounts", headers=headers)
            accounts = {account["kind"]: account["id"] for account in listed.body["items"]}
            await asyncio.sleep(0.05)
    return Customer(
        registered.body["user_id"],
        email,
        login.body["access_token"],
        accounts["savings"],
        accounts["trading_wallet"],
        login.body["refresh_token"],
    )


async def log_in_again(stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> Customer:
    """A fresh access token for a long test."""
    credentials = {"email": customer.email, "password": PASSWORD, "platform": "bfc"}
    login = await call(http, "POST", f"{stack.origin}/api/auth/login", json=credentials)
    return customer._replace(access_token=login.body["access_token"])


async def refresh(stack: "Stack", http: aiohttp.ClientSession, customer: Customer) -> Customer:
    """The same session with the next tokens: a login of many customers would meet its limit."""
    body = {"refresh_token": customer.refresh_token}
    answer = await call(http, "POST", f"{stack.origin}/api/auth/refresh", json=body)
    return customer._replace(access_token=answer.body["access_token"], refresh_token=answer.body["refresh_token"])


async def transfer(
    stack: "Stack", http: aiohttp.ClientSession, customer: Customer, amount: str, key: str, *, back: bool = False
) -> Answer:
    """One transfer from savings to wallet (or back), retried with its key until the answer is definite."""
    source, target = (customer.wallet, customer.savings) if back else (customer.savings, customer.wallet)
    return await call(
        http,
        "POST",
        f"{stack.origin}/api/transfers",
        json={"from_account_id": source, "to_account_id": target, "amount": amount, "currency": "INR"},
        headers={**customer.headers, "Idempotency-Key": key},
        timeout_s=120,
    )
