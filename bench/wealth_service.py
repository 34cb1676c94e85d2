"""The wealth service itself, over HTTP: `summary` at its times whatever the answers take, readiness in a rebuild."""

import asyncio
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import aiohttp
import asyncpg
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from events import operations
from events.contracts.identity import SigningKeyPublished
from events.envelope import new_id
from jwt.algorithms import ECAlgorithm
from report import Figure, Line, quantile

if TYPE_CHECKING:
    from provision import Cell

REQUESTS_PER_S = 200
SECONDS = 6
READY_PER_S = 50
_ISSUER = "https://sangam.test"
_START_S = 60


class Key:
    """Signs tokens as identity does."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        jwk = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self.published = SigningKeyPublished(kid="bench", public_jwk=jwk, sealed_private_key="none")

    def bearer(self, user_id: UUID) -> dict[str, str]:
        now = int(time.time())
        claims = {"iss": _ISSUER, "sub": str(user_id), "aud": "bfc", "sid": str(new_id()), "acr": 1,
                  "jti": str(new_id()), "iat": now, "nbf": now, "exp": now + 600}  # fmt: skip
        headers = {"typ": "at+jwt", "kid": "bench"}
        token = jwt.api_jws.encode(json.dumps(claims).encode(), self._key, algorithm="ES256", headers=headers)
        return {"Authorization": f"Bearer {token}"}


class _Service:
    """`python -m wealth` on a cell whose read models are filled."""

    def __init__(self, cell: "Cell") -> None:
        self._cell = cell
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "_Service":
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self._cell.database_url("wealth"),
            "EVENT_STORE_URL": self._cell.store_url("wealth"),
            "AMQP_URL": self._cell.amqp_url("wealth"),
            "HTTP_PORT": str(self._port),
            "TOKEN_ISSUER": _ISSUER,
            "CURSOR_SECRET": "a secret of the bench, no other's",
            "LOG_LEVEL": "warning",
        }
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-m", "wealth", env=environment)
        async with aiohttp.ClientSession() as http, asyncio.timeout(_START_S):
            while not await self._ready(http):
                assert self._process.returncode is None, "the service ended"
                await asyncio.sleep(0.1)
        return self

    async def _ready(self, http: aiohttp.ClientSession) -> bool:
        try:
            async with http.get(f"{self.url}/health/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def __aexit__(self, *_: object) -> None:
        self._process.terminate()
        await self._process.wait()


async def _get(http: aiohttp.ClientSession, url: str, headers: dict[str, str], at_s: float) -> float:
    """Milliseconds from `at_s`, when it was due, to the end of the answer."""
    async with http.get(url, headers=headers) as response:
        body = await response.read()
    assert response.status == 200, body
    return (time.perf_counter() - at_s) * 1000


async def _open_loop(
    http: aiohttp.ClientSession,
    per_s: int,
    until: Callable[[float], bool],
    choose: Callable[[], tuple[str, dict[str, str]]],
) -> list[float]:
    """Latencies of requests at their times, until told to stop."""
    start_s = time.perf_counter()
    asking: list[asyncio.Task[float]] = []
    while not until(time.perf_counter() - start_s):
        at_s = start_s + len(asking) / per_s
        await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
        asking.append(asyncio.create_task(_get(http, *choose(), at_s)))
    return await asyncio.gather(*asking)


async def _nothing_due(database: asyncpg.Pool) -> None:
    """Until insights have been looked for after the start: that happens once a day."""
    async with asyncio.timeout(_START_S):
        while await database.fetchval("SELECT count(*) FROM assessment_due"):
            await asyncio.sleep(0.2)


async def measure(cell: "Cell", key: Key, big: UUID, customers: Sequence[UUID]) -> list[Line]:
    """Lines of the report: warm, cold, and during a rebuild that a worker of the service does."""
    database = await asyncpg.create_pool(cell.database_url("wealth"), min_size=1, max_size=2)
    headers = {user: key.bearer(user) for user in (big, *customers)}
    chance = random.Random(2)
    async with _Service(cell) as service, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await _nothing_due(database)
        summary, ready = f"{service.url}/api/wealth/summary", f"{service.url}/health/ready"

        async def cold(user: UUID, count: int) -> list[float]:
            """As after an event of the customer: what is kept is not true any more."""
            times = []
            for _ in range(count):
                await database.execute("UPDATE changed SET position = position + 1 WHERE user_id = $1", user)
                times.append(await _get(http, summary, headers[user], time.perf_counter()))
            return times

        cold_others = [time_ms for user in customers for time_ms in await cold(user, 1)]
        cold_big = await cold(big, 20)
        warm = await _open_loop(
            http, REQUESTS_PER_S, lambda s: s >= SECONDS, lambda: (summary, headers[chance.choice([big, *customers])])
        )
        resting = await _open_loop(http, READY_PER_S, lambda s: s >= 2, lambda: (ready, {}))
        operation_id = await operations.ask(database, "wealth.projections", operations.RebuildRequest(), "bench")
        done = asyncio.create_task(_ended(database, operation_id))
        rebuilding, meanwhile = await asyncio.gather(
            _open_loop(http, READY_PER_S, lambda _: done.done(), lambda: (ready, {})),
            _open_loop(http, READY_PER_S, lambda _: done.done(), lambda: (summary, headers[chance.choice(customers)])),
        )
        taken_s = await done
    await database.close()

    def p99(what: str, times: list[float], bar: str) -> Line:
        return Line(f"wealth over HTTP: {what}", Figure([quantile(times, 0.99)]), "ms", "p50 of the same",
                    Figure([quantile(times, 0.5)]), bar)  # fmt: skip

    return [
        p99(f"summary warm p99 at {REQUESTS_PER_S}/s", warm, "≤ 25 ms"),
        p99("summary cold p99, ordinary customers", cold_others, ""),
        p99("summary cold p99, the customer of 12 years", cold_big, ""),
        p99("/health/ready p99 at rest", resting, ""),
        p99(f"/health/ready p99 during a rebuild of {taken_s:.1f} s", rebuilding, "≤ 20 ms"),
        p99(f"summary p99 at {READY_PER_S}/s during it", meanwhile, ""),
    ]


async def _ended(database: asyncpg.Pool, operation_id: UUID) -> float:
    """Waits for the operation; gives the seconds that its worker took."""
    async with asyncio.timeout(_START_S):
        while True:
            row = await database.fetchrow("SELECT * FROM operation WHERE id = $1", operation_id)
            assert row is not None
            if row["finished_at"] is not None:
                assert row["state"] == "done", row["error"]
                taken_s: float = (row["finished_at"] - row["started_at"]).total_seconds()
                return taken_s
            await asyncio.sleep(0.1)
