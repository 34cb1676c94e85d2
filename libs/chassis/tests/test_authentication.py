"""WebSockets: the token comes in the subprotocol, from our own origin, and a refusal is a real HTTP answer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
import uvicorn
from chassis.app import create_app
from chassis.authentication import BEARER_SUBPROTOCOL
from chassis.problems import Problem
from chassis.tokens import Caller, TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from litestar import WebSocket, websocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = "http://localhost:4025"


@websocket("/ws/echo")
async def echo(socket: WebSocket[Any, Any, Any], caller: Caller) -> None:
    await socket.accept(subprotocols=BEARER_SUBPROTOCOL)
    await socket.send_text(str(caller.user_id))
    if await socket.receive_text() == "revoke":
        raise Problem(401, "session_revoked", "The session has ended")
    raise RuntimeError("secret-detail")


class Log:
    async def position_of(self, event_id: UUID) -> int | None:
        return None


class Host:
    store = Log()

    def __init__(self) -> None:
        async def keys() -> dict[str, dict[str, str]]:
            return {"k1": ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)}

        self.verifier = TokenVerifier(ISSUER, VerificationKeyCache(keys))

    def consumer(self, name: str) -> Any:
        raise KeyError(name)

    async def unready(self) -> list[str]:
        return []


def access_token(user: str, **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": user, "aud": "bfc", "sid": str(uuid4()), "acr": 1, "scope": ""}
    claims |= {"iat": now, "nbf": now, "exp": now + 600, "jti": str(uuid4())}
    return jwt.encode(claims | changes, KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k1"})


@pytest.fixture
async def address() -> AsyncIterator[str]:
    app = create_app(Host(), [echo], "Test", allowed_origins=["https://app.example"])
    config = uvicorn.Config(app, port=0, ws="websockets-sansio", log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    server.config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    serving = asyncio.create_task(server.main_loop())
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"ws://127.0.0.1:{port}/ws/echo"
    server.should_exit = True
    await serving
    await server.shutdown()


def bearer(user: str | None = None) -> list[Subprotocol]:
    """What a browser's `new WebSocket(address, ["bearer", token])` offers."""
    return [Subprotocol("bearer"), Subprotocol(access_token(user or str(uuid4())))]


async def refusal(address: str, **options: Any) -> tuple[int, str]:
    """Status and code of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, **options)
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    document = json.loads(response.body)
    assert document["request_id"] == response.headers["x-request-id"]
    return response.status_code, document["code"]


async def test_a_customer_gets_in(address: str) -> None:
    user = str(uuid4())
    async with connect(address, subprotocols=bearer(user)) as socket:
        assert socket.subprotocol == "bearer"
        assert await socket.recv() == user


async def test_no_token(address: str) -> None:
    assert await refusal(address) == (401, "unauthenticated")
    assert await refusal(address, subprotocols=["bearer"]) == (401, "unauthenticated")
    assert await refusal(address, subprotocols=[access_token(str(uuid4()))]) == (401, "unauthenticated")
    header = {"Authorization": f"Bearer {access_token(str(uuid4()))}"}
    assert await refusal(address, additional_headers=header) == (401, "unauthenticated")


async def test_token_in_the_query(address: str) -> None:
    token = access_token(str(uuid4()))
    for name in ("token", "access_token", "Authorization"):
        assert await refusal(f"{address}?{name}={token}") == (400, "token_in_query")


async def test_bad_token(address: str) -> None:
    user = str(uuid4())
    assert await refusal(address, subprotocols=["bearer", "nonsense"]) == (401, "invalid_token")
    wrong = access_token(user, aud="sangam")
    assert await refusal(address, subprotocols=["bearer", wrong]) == (401, "invalid_token")
    expired = access_token(user, iat=1, nbf=1, exp=3000)
    assert await refusal(address, subprotocols=["bearer", expired]) == (401, "token_expired")


@pytest.mark.parametrize(
    "origin",
    [
        "https://attacker.example",
        "null",
        "https://app.example.attacker.example",
        "file://",
        "http://127.0.0.1",
        "http://[",
    ],
)
async def test_foreign_origin(address: str, origin: str) -> None:
    protocols = bearer()
    assert await refusal(address, subprotocols=protocols, origin=origin) == (403, "origin_not_allowed")


async def test_own_and_allowed_origin(address: str) -> None:
    own = address.replace("ws://", "http://").removesuffix("/ws/echo")
    for origin in (own, "https://app.example"):
        async with connect(address, subprotocols=bearer(), origin=Origin(origin)) as socket:
            await socket.recv()


async def test_unknown_address(address: str) -> None:
    assert await refusal(address + "/nope") == (404, "not_found")
    assert await refusal(address + "?x=%00") == (400, "invalid_request")


async def test_a_problem_after_the_handshake_is_a_close_code(address: str) -> None:
    async with connect(address, subprotocols=bearer()) as socket:
        await socket.recv()
        await socket.send("revoke")
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4401, "session_revoked")


async def test_an_error_of_ours_tells_nothing(address: str) -> None:
    async with connect(address, subprotocols=bearer()) as socket:
        await socket.recv()
        await socket.send("boom")
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4500, "internal")
