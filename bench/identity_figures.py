"""identity: how fast a revocation reaches everybody, and logins, verifications and exchanges beside their raw cost."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import aiohttp
import jwt
from argon2 import PasswordHasher
from chassis.tokens import TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from held import held
from identity.passwords import Argon2id
from jwt.algorithms import ECAlgorithm
from report import Figure, Line, quantile, rate

if TYPE_CHECKING:
    from stack import Stack

PASSWORD = "correct horse battery staple"
REVOCATIONS = 200
LOGINS = 60
THREADS = 2
TOKENS = 2_000
EXCHANGES = 300
AT_ONCE = 8

ROUTES = (
    "/api/auth/status",
    "/api/accounts",
    "/api/sync/events",
    "/api/wealth/net-worth",
    "/api/notifications/smart",
    "/api/search?q=salary",
)
"""One of each service."""


async def measure(stack: "Stack") -> list[Line]:
    """All figures of identity over a running product."""
    async with aiohttp.ClientSession() as http:
        people = [_Person(stack.origin, http) for _ in range(LOGINS)]
        for each in people:
            await each.register()
        person = people[0]
        with held(stack, ("ledger_transfer", "sync_gateway", "wealth", "notifier", "search")):
            alone = await _login_line(people, "login over HTTP, other services held")
        return [
            await _hash_line(),
            alone,
            await _login_line(people, "login over HTTP, all six services applying it"),
            await _verify_line(),
            await _exchange_line(person),
            *await _revocation_lines(person),
        ]


class _Person:
    def __init__(self, origin: str, http: aiohttp.ClientSession) -> None:
        self.origin = origin
        self.http = http
        self._email = f"bench{uuid4().hex[:12]}@example.com"

    async def register(self) -> None:
        body = {"email": self._email, "password": PASSWORD, "full_name": "Bench", "phone": "+919800000000"}
        async with self.http.post(f"{self.origin}/api/auth/register", json=body) as answer:
            assert answer.status == 201, await answer.text()

    async def login(self) -> str:
        body = {"email": self._email, "password": PASSWORD, "platform": "bfc"}
        async with self.http.post(f"{self.origin}/api/auth/login", json=body) as answer:
            assert answer.status == 200, await answer.text()
            token: str = (await answer.json())["access_token"]
            return token

    async def exchange(self, token: str) -> str:
        body = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": token,
            "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "audience": "vyomo",
        }
        async with self.http.post(f"{self.origin}/api/auth/exchange-token", json=body, headers=bearer(token)) as answer:
            assert answer.status == 200, await answer.text()
            exchanged: str = (await answer.json())["access_token"]
            return exchanged


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _argon2() -> tuple[PasswordHasher, str]:
    """The ceiling of logins: the reference library with our parameters, and a hash of its own."""
    hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
    return hasher, hasher.hash(PASSWORD)


async def _hash_line() -> Line:
    """What the library that hashes here gains over the one that the ceiling is made of; no HTTP, no store."""
    ours_hasher, (hasher, stored) = Argon2id(), _argon2()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as threads:

        async def hashes(verify: Callable[[str, str], bool]) -> None:
            await asyncio.gather(*(loop.run_in_executor(threads, verify, stored, PASSWORD) for _ in range(LOGINS)))

        ours, raw = [], []
        for _ in range(3):
            raw += (await rate(LOGINS, lambda: hashes(hasher.verify), rounds=1)).rounds
            ours += (await rate(LOGINS, lambda: hashes(ours_hasher.verify), rounds=1)).rounds
    return Line("argon2id by libsodium, 2 threads", Figure(ours), "/s", "argon2-cffi, 2 threads", Figure(raw), "")


async def _login_line(people: Sequence[_Person], name: str) -> Line:
    """Logins over HTTP of different people, some at once, beside argon2id alone on as many threads as hash ours.

    Of one person they would wait for each other, and each would end the oldest session.
    """

    async def logins() -> None:
        async def some(mine: Sequence[_Person]) -> None:
            for each in mine:
                await each.login()

        await asyncio.gather(*(some(people[n::AT_ONCE]) for n in range(AT_ONCE)))

    hasher, stored = _argon2()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as threads:

        async def hashes() -> None:
            await asyncio.gather(
                *(loop.run_in_executor(threads, hasher.verify, stored, PASSWORD) for _ in range(LOGINS))
            )

        ours, raw = [], []
        for _ in range(3):  # in turn, so that a slow moment of the machine meets both
            raw += (await rate(LOGINS, hashes, rounds=1)).rounds
            ours += (await rate(LOGINS, logins, rounds=1)).rounds
    return Line(name, Figure(ours), "/s", "argon2-cffi, 2 threads", Figure(raw), "≥ 0.8×")


async def _verify_line() -> Line:
    """Tokens never seen before, one after the other, on one core."""
    key, issuer = ec.generate_private_key(ec.SECP256R1()), "http://localhost:4025"
    public = key.public_key()
    jwk: dict[str, str] = ECAlgorithm.to_jwk(public, as_dict=True)

    async def keys() -> dict[str, dict[str, str]]:
        return {"k1": jwk}

    now = int(datetime.now(UTC).timestamp())

    def token() -> str:
        claims: dict[str, Any] = {"iss": issuer, "sub": str(uuid4()), "aud": "bfc", "sid": str(uuid4()), "acr": 1}
        claims |= {"scope": "a b", "iat": now, "nbf": now, "exp": now + 300, "jti": str(uuid4())}
        return jwt.encode(claims, key, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k1"})

    tokens = [token() for _ in range(TOKENS)]

    async def ours() -> None:
        verifier = TokenVerifier(issuer, VerificationKeyCache(keys))
        for each in tokens:
            await verifier.verify(each)

    async def raw() -> None:
        for each in tokens:
            jwt.decode(each, public, algorithms=["ES256"], audience="bfc", issuer=issuer)

    mine, theirs = [], []
    for _ in range(3):
        theirs += (await rate(TOKENS, raw, rounds=1)).rounds
        mine += (await rate(TOKENS, ours, rounds=1)).rounds
    return Line("verify a token, cold", Figure(mine), "/s", "PyJWT decode", Figure(theirs), "≥ 0.9×")


async def _exchange_line(person: _Person) -> Line:
    tokens = [await person.login() for _ in range(AT_ONCE)]

    async def exchanges() -> None:
        async def some(token: str) -> None:
            for _ in range(EXCHANGES // AT_ONCE):
                await person.exchange(token)

        await asyncio.gather(*(some(token) for token in tokens))

    ours = await rate(EXCHANGES // AT_ONCE * AT_ONCE, exchanges)
    return Line("token exchange over HTTP", ours, "/s", "", None, "")


async def _revocation_lines(person: _Person) -> list[Line]:
    """From sending the logout until every service has refused both platforms' tokens: the slowest of the six."""
    until_refused, answered = [], []
    for _ in range(REVOCATIONS):
        bfc = await person.login()
        vyomo = await person.exchange(bfc)
        started_s = time.perf_counter()

        async def out(token: str = bfc, started_s: float = started_s) -> float:
            async with person.http.post(f"{person.origin}/api/auth/logout-all", headers=bearer(token)) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            return (time.perf_counter() - started_s) * 1000

        async def refused(path: str, token: str, started_s: float = started_s) -> float:
            while True:
                async with person.http.get(person.origin + path, headers=bearer(token)) as answer:
                    await answer.read()
                    if answer.status == 401:
                        return (time.perf_counter() - started_s) * 1000
                await asyncio.sleep(0.04)  # oftener, and twelve of these would be most of the machine's load

        times = await asyncio.gather(out(), *(refused(path, token) for path in ROUTES for token in (bfc, vyomo)))
        answered.append(times[0])
        until_refused.append(max(times[1:]))
    return [
        Line("logout → refused by all six, p50", Figure([quantile(until_refused, 0.5)]), "ms", "", None, ""),
        Line("logout → refused by all six, p99", Figure([quantile(until_refused, 0.99)]), "ms", "", None, "< 250"),
        Line("logout answered, with every receipt, p99", Figure([quantile(answered, 0.99)]), "ms", "", None, ""),
    ]
