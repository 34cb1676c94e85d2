"""Customers with rules over a real event store: the log, the reactions, the read models, the timer and the routes."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import httpx
import jwt
import msgspec
from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.tokens import TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from events.consumer import Handler
from events.contracts import banking, identity
from events.contracts.ledger import AccountKind, AccountOpened, Leg, Platform
from events.contracts.ledger_rules import RuleCreated, RuleFired, RuleTerms
from events.contracts.registry import Event
from events.envelope import Metadata, RecordedEvent, new_id, platform_stream
from events.projections import Projections
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from events.texts import Texts
from jwt.algorithms import ECAlgorithm
from keys_in_memory import texts
from ledger_transfer.api_rules import rule_routes
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.reactions import Reactions
from ledger_transfer.rule_terms import worst_case
from ledger_transfer.state import account_id_of, balanced, clearing
from ledger_transfer.timer import Timer

if TYPE_CHECKING:
    from provision import Cell

ISSUER = "https://sangam.test"
KEY = ec.generate_private_key(ec.SECP256R1())
AT = datetime(2026, 1, 31, 3, tzinfo=UTC)
THRESHOLD_MINOR = 2_00_000_00
NOBODY = Metadata(actor="test")


class CrashError(Exception):
    """The process ends here."""


class Customer:
    def __init__(self, user_id: UUID | None = None) -> None:
        self.user_id = user_id or new_id()
        self.bank_id = f"BFC-{self.user_id}"
        self.savings = account_id_of(self.user_id, "bfc", "SB1")
        self.wallet = account_id_of(self.user_id, "vyomo", "W1")
        self.rule_id = new_id()

    def opened(self, savings: int, wallet: int) -> list[Event]:
        """Both accounts, as the ledger itself records them."""
        accounts: list[tuple[UUID, Platform, str, AccountKind, int]] = [
            (self.savings, "bfc", "SB1", "savings", savings),
            (self.wallet, "vyomo", "W1", "trading_wallet", wallet),
        ]
        return [
            AccountOpened(
                account_id=account_id,
                platform=platform,
                platform_account_id=number,
                kind=kind,
                currency="INR",
                legs=balanced(_leg(account_id, balance), clearing(platform, -balance, "INR")),
                occurred_at=AT,
            )
            for account_id, platform, number, kind, balance in accounts
        ]

    def salary(self, amount_minor: int, item_id: str = "salary-1") -> Event:
        return banking.TransactionPosted(
            item_id=item_id,
            customer_id=self.bank_id,
            occurred_at=AT,
            transaction_id=item_id,
            account_id="SB1",
            direction="credit" if amount_minor > 0 else "debit",
            amount_minor=abs(amount_minor),
            currency="INR",
            category="salary",
        )

    def link(self) -> Event:
        return identity.LinkConfirmed(
            link_id=new_id(),
            platform="bfc",
            platform_customer_id=self.bank_id,
            platform_stream=platform_stream("bfc", self.bank_id),
        )


class RuleWorld:
    """One cell, with a clock of the test's own for the timer. `restart` is a new process: nothing is remembered."""

    def __init__(self, stores: dict[str, EventStore], db: asyncpg.Pool, sequencer: Sequencer, sealed: Texts) -> None:
        self.stores = stores
        self.sealed = sealed
        self.store = stores["ledger_transfer"]
        self.db = db
        self.now = AT
        self._sequencer = sequencer
        self._positions: dict[str, int] = {}
        self.restart()

    def restart(self) -> None:
        self.ledger = Ledger(self.store, self.sealed)
        self.reactions = Reactions(self.ledger)
        self.timer = self.another_timer(self.ledger)

    def another_timer(self, ledger: Ledger | None = None) -> Timer:
        return Timer(ledger or Ledger(self.store, self.sealed), self.db, clock=lambda: self.now)

    # What others do

    async def customer(
        self, terms: RuleTerms | None = None, *, savings: int = 0, wallet: int = 0, customer: Customer | None = None
    ) -> Customer:
        """A customer with two accounts and, if terms are given for them, a rule."""
        customer = customer or Customer()
        events = customer.opened(savings, wallet)
        if terms is not None:
            events.append(
                RuleCreated(rule_id=customer.rule_id, terms=terms, worst_case=worst_case(terms), created_at=self.now)
            )
        await self.store.append(
            [StreamAppend(f"ledger-{customer.user_id}", tuple(events))], event_id=new_id(), subject=customer.user_id
        )
        return customer

    async def linked(self, customer: Customer) -> None:
        await self.stores["identity"].append(
            [StreamAppend(f"user-{customer.user_id}", (customer.link(),))],
            event_id=new_id(),
            subject=customer.user_id,
        )

    async def bank_says(self, item: Event) -> None:
        assert isinstance(item, banking.BankItem)
        stream = platform_stream("bfc", item.customer_id)
        await self.stores["sync_gateway"].append([StreamAppend(stream, (item,))], event_id=new_id())

    # What the service does

    async def log(self, after: int = 0) -> list[RecordedEvent]:
        """Everything behind a position, sequenced."""
        while await self._sequencer.sequence():
            pass
        found: list[RecordedEvent] = []
        while page := await self.store.read_log(found[-1].position if found else after, 10_000):
            found += page
        return found

    async def deliver(self, name: str, handler: Handler, batch: int, crash: bool = False) -> None:
        """What a consumer does: effects and position in one transaction, batch by batch.

        `crash`: the process ends between the effects of the first batch and the position.
        """
        due = [event for event in await self.log(self._positions.get(name, 0)) if event.type in handler.types]
        for first in range(0, len(due), batch):
            events = due[first : first + batch]
            pooled: Any
            async with self.db.acquire() as pooled, pooled.transaction():
                await handler.apply(pooled, events)
                if crash:
                    raise CrashError
            self._positions[name] = events[-1].position

    async def react(self, batch: int = 256, *, crash: bool = False) -> None:
        await self.deliver("reactions", self.reactions, batch, crash)

    async def project(self, batch: int = 256, *, crash: bool = False) -> None:
        await self.deliver("projections", Projections(PROJECTIONS), batch, crash)

    async def wait_for(self, position: int, timeout_s: float) -> bool:
        """The read model of the routes is always as far as the log."""
        await self.project()
        return True

    # What is the case

    async def events(self, customer: Customer) -> list[Event]:
        return [event.payload for event in await self.store.read_stream(f"ledger-{customer.user_id}")]

    async def firings(self, customer: Customer) -> list[RuleFired]:
        return [event for event in await self.events(customer) if isinstance(event, RuleFired)]


class Host:
    """The service around the routes."""

    def __init__(self, world: RuleWorld) -> None:
        self.verifier = TokenVerifier(ISSUER, VerificationKeyCache(_public_keys))
        self.store = world.store
        self._world = world

    def consumer(self, name: str) -> RuleWorld:
        assert name == "projections"
        return self._world

    async def unready(self) -> list[str]:
        return []


class Client:
    """A customer's app. Reads see the caller's own writes."""

    def __init__(self, world: RuleWorld, http: httpx.AsyncClient, customer: Customer) -> None:
        self.world = world
        self.customer = customer
        self.session_id = new_id()
        self._http = http
        self._token = signed(
            "at+jwt", sub=str(customer.user_id), aud="bfc", sid=str(self.session_id), acr=1, scope="", lifetime_s=600
        )

    async def call(self, method: str, path: str = "", json: Any = None, **headers: str) -> httpx.Response:
        if method == "GET":
            await self.world.project()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._http.request(
            method,
            f"/api/auto-replenish{path}",
            json=json,
            headers={"Authorization": f"Bearer {self._token}"} | names,
        )

    def body(self, **changes: Any) -> dict[str, Any]:
        """Fills the wallet up to ₹1,000 from the savings account."""
        return {
            "name": "Keep the wallet filled",
            "source_account_id": str(self.customer.savings),
            "target_account_id": str(self.customer.wallet),
            "trigger": {"type": "balance_below", "threshold": "1000.00"},
            "amount": {"type": "to_target", "target": "1000.00"},
        } | changes

    def step_up(self, proven_minor: int, **changes: Any) -> str:
        fields: dict[str, Any] = {
            "sub": str(self.customer.user_id),
            "sid": str(self.session_id),
            "aud": "sangam",
            "amount_minor": proven_minor,
            "currency": "INR",
            "to_account_id": str(self.customer.wallet),
            "lifetime_s": 120,
        }
        return signed("step-up+jwt", **(fields | changes))


@asynccontextmanager
async def rule_world(cell: "Cell", sealed: Texts | None = None) -> AsyncIterator[RuleWorld]:
    """The world of a fresh cell."""
    sealed = sealed or texts()
    stores = {
        role: await EventStore.connect(cell.store_url(role)) for role in ("ledger_transfer", "sync_gateway", "identity")
    }
    db = await asyncpg.create_pool(cell.database_url("ledger_transfer"), min_size=1, max_size=4)
    relay = await asyncpg.connect(cell.store_url("relay"))
    sequencer = await Sequencer.take_over(relay)
    assert sequencer is not None
    stores["ledger_transfer"].opens_with(sealed.open_events)
    world = RuleWorld(stores, db, sequencer, sealed)
    await db.execute(world.reactions.ddl + Projections(PROJECTIONS).ddl)
    yield world
    for store in stores.values():
        await store.close()
    await db.close()
    await relay.close()


def client_app(world: RuleWorld) -> httpx.AsyncClient:
    """The routes of rules, served in process."""
    routes = rule_routes(
        world.ledger,
        world.db,
        CursorCodec("a secret of a test, long enough"),
        step_up_threshold_minor=THRESHOLD_MINOR,
    )
    app: Any = create_app(Host(world), routes, title="Test")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://ledger")


def signed(kind: str, *, lifetime_s: int, **claims: Any) -> str:
    now = int(time.time())
    common = {"iss": ISSUER, "iat": now, "exp": now + lifetime_s, "jti": str(new_id())}
    more = {"nbf": now} if kind == "at+jwt" else {}
    return jwt.encode(common | more | claims, KEY, algorithm="ES256", headers={"typ": kind, "kid": "k1"})


def once_each(firings: Sequence[RuleFired]) -> bool:
    keys = [(event.rule_id, event.version, event.occurrence) for event in firings]
    return len(keys) == len(set(keys))


async def _public_keys() -> dict[str, dict[str, str]]:
    return {"k1": msgspec.json.decode(ECAlgorithm.to_jwk(KEY.public_key()))}


def _leg(account_id: UUID, balance: int) -> Leg:
    return Leg(
        account_id=str(account_id), amount_minor=balance, currency="INR", balance_after_minor=balance, platform="bfc"
    )
