"""A customer's app over the ledger's routes, a real event store and a read model that the test moves on."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import jwt
import msgspec
from chassis.tokens import TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from events.contracts import banking, trading
from events.envelope import new_id
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore
from jwt.algorithms import ECAlgorithm
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.state import account_id_of
from recording import recorded

ISSUER = "https://sangam.test"
KEY = ec.generate_private_key(ec.SECP256R1())
AT = datetime(2026, 2, 12, 9, tzinfo=UTC)


async def public_keys() -> dict[str, dict[str, str]]:
    return {"k1": msgspec.json.decode(ECAlgorithm.to_jwk(KEY.public_key()))}


def token_of(user_id: UUID, session_id: UUID | None = None, **more: Any) -> str:
    """An access token."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": str(user_id),
        "aud": "bfc",
        "sid": str(session_id or new_id()),
        "acr": 1,
        "scope": "",
        "iat": now,
        "nbf": now,
        "exp": now + 600,
        "jti": str(new_id()),
        **more,
    }
    return jwt.encode(claims, KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k1"})


def step_up_token_of(
    user_id: UUID, session_id: UUID, amount_minor: int, to_account_id: UUID | None, currency: str = "INR"
) -> str:
    """What identity gives for a one-time code."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": "sangam",
        "sub": str(user_id),
        "sid": str(session_id),
        "jti": str(new_id()),
        "iat": now,
        "exp": now + 120,
        "amount_minor": amount_minor,
        "currency": currency,
        "to_account_id": to_account_id and str(to_account_id),
    }
    return jwt.encode(claims, KEY, algorithm="ES256", headers={"typ": "step-up+jwt", "kid": "k1"})


class ReadModel:
    """The projections' consumer, told by the test when to go on."""

    def __init__(
        self,
        store: EventStore,
        db: asyncpg.Pool,
        sequencer: Sequencer,
        identity: EventStore,
        gateway: EventStore,
    ) -> None:
        self.store = store
        self.identity = identity
        self.gateway = gateway
        self.database = db
        self._sequencer = sequencer
        self._position = 0

    async def catch_up(self) -> None:
        while await self._sequencer.sequence():
            pass
        events = await self.store.read_log(self._position, 100_000)
        if events:
            pooled: Any
            async with self.database.acquire() as pooled, pooled.transaction():
                await Projections(PROJECTIONS).apply(pooled, events)
            self._position = events[-1].position

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        return self._position >= position


class Host:
    def __init__(self, store: EventStore, read_model: ReadModel) -> None:
        self.verifier = TokenVerifier(ISSUER, VerificationKeyCache(public_keys))
        self.store = store
        self._read_model = read_model

    def consumer(self, name: str) -> ReadModel:
        assert name == "projections"
        return self._read_model

    async def unready(self) -> list[str]:
        return []


class Client:
    """A customer's app, with a savings account of ₹1,000 and an empty wallet."""

    def __init__(self, http: httpx.AsyncClient, ledger: Ledger, read_model: ReadModel) -> None:
        self._http = http
        self._ledger = ledger
        self.read_model = read_model
        self.user_id = new_id()
        self.savings = account_id_of(self.user_id, "bfc", "SB1")
        self.wallet = account_id_of(self.user_id, "vyomo", "W1")
        self.session_id = new_id()
        self._authorization = {"Authorization": f"Bearer {token_of(self.user_id, self.session_id)}"}

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def step_up(self, amount_minor: int, to_account_id: UUID | None) -> dict[str, str]:
        """The header with a fresh step-up token."""
        token = step_up_token_of(self.user_id, self.session_id, amount_minor, to_account_id)
        return {"X-Step-Up-Token": token}

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Any request, with its own headers beside the token."""
        fields = self._authorization | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._http.request(method, path, headers=fields, **({} if body is None else {"json": body}))

    async def open_accounts(self) -> None:
        bank = banking.AccountOpened(
            item_id="1",
            customer_id="B",
            occurred_at=AT,
            account_id="SB1",
            kind="savings",
            currency="INR",
            opening_balance_minor=1000_00,
        )
        wallet = trading.WalletOpened(
            item_id="2", customer_id="V", occurred_at=AT, wallet_id="W1", currency="INR", opening_balance_minor=0
        )
        for item in (bank, wallet):
            await self._ledger.record(self.user_id, recorded(item))
        await self.read_model.catch_up()

    async def bank_posts(self, signed_amount: int, reference: str | None = None) -> None:
        """The bank reports a movement, as many minutes after `AT` as it has paise."""
        item = banking.TransactionPosted(
            item_id="3",
            customer_id="B",
            occurred_at=AT + timedelta(minutes=min(abs(signed_amount), 100_000)),
            transaction_id="T",
            account_id="SB1",
            direction="credit" if signed_amount > 0 else "debit",
            amount_minor=abs(signed_amount),
            currency="INR",
            category="salary",
            reference=reference,
        )
        await self._ledger.record(self.user_id, recorded(item))
        await self.read_model.catch_up()

    async def history(self, query: str) -> list[str]:
        """Signed amounts."""
        items = (await self.get(f"/api/transactions?{query}")).json()["items"]
        return [("" if item["direction"] == "credit" else "-") + item["amount"] for item in items]

    def body(self, **changes: Any) -> dict[str, Any]:
        return {
            "from_account_id": str(self.savings),
            "to_account_id": str(self.wallet),
            "amount": "400.00",
            "currency": "INR",
        } | changes

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self._http.get(path, headers=self._authorization | headers)

    async def transfer(self, body: Any, key: str | None = "k", path: str = "/api/transfers") -> httpx.Response:
        headers = self._authorization | ({"Idempotency-Key": key} if key is not None else {})
        return await self._http.post(path, json=body, headers=headers)

    async def balances(self) -> list[str]:
        await self.read_model.catch_up()
        return [item["balance"] for item in (await self.get("/api/accounts")).json()["items"]]
