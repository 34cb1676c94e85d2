"""What proves ownership and what does not, against a platform's real key server. No PostgreSQL needed."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from identity import assertions
from identity.assertions import AssertionInvalid, AssertionVerifier, PlatformKeys, PlatformUnavailable

if TYPE_CHECKING:
    from identity_harness import Platform

CUSTOMER, NONCE = "BFC-1001", "the-nonce"
NOW = int(time.time())


class Bank:
    """The verifier as linking uses it, at a time that the test sets."""

    def __init__(self, platform: "Platform", http: aiohttp.ClientSession) -> None:
        self.platform = platform
        self.seconds = 0.0
        keys = PlatformKeys("bfc", platform.jwks_url, http, clock=lambda: self.seconds)
        self._verifier = AssertionVerifier({"bfc": keys})

    async def believes(self, assertion: str) -> bool:
        try:
            await self._verifier.verify(assertion, platform="bfc", customer_id=CUSTOMER, nonce=NONCE)
        except AssertionInvalid:
            return False
        return True

    def good(self) -> str:
        return self.platform.assertion(CUSTOMER, NONCE)

    def signed(self, **header: Any) -> str:
        claims = jwt.decode(self.good(), options={"verify_signature": False})
        return jwt.encode(claims, self.platform.key, algorithm="ES256", headers=header)


@pytest.fixture
async def bank(bfc: "Platform") -> AsyncIterator[Bank]:
    async with aiohttp.ClientSession() as http:
        yield Bank(bfc, http)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"nonce": "another"}, id="wrong nonce"),
        pytest.param({"nonce": None}, id="no nonce"),
        pytest.param({"nonce": 7}, id="a number as nonce"),
        pytest.param({"sub": "BFC-1002"}, id="another customer"),
        pytest.param({"sub": CUSTOMER.lower()}, id="another spelling"),
        pytest.param({"iss": "vyomo"}, id="wrong issuer"),
        pytest.param({"aud": "elsewhere"}, id="wrong audience"),
        pytest.param({"aud": ["sangam"]}, id="list of audiences"),
        pytest.param({"exp": None}, id="no expiry"),
        pytest.param({"iat": None}, id="no time of issue"),
        pytest.param({"exp": NOW - 1, "iat": NOW - 60}, id="expired"),
        pytest.param({"exp": NOW + 900, "iat": NOW}, id="lives too long"),
        # A day, for the test may run long after it was collected.
        pytest.param({"exp": NOW + 86_700, "iat": NOW + 86_400}, id="from the future"),
        pytest.param({"exp": NOW + 60, "iat": NOW + 60}, id="never valid"),
        pytest.param({"iat": 0.5}, id="fraction"),
        pytest.param({"exp": 10**30}, id="huge expiry"),
        pytest.param({"key": generate_private_key(SECP256R1())}, id="another key"),
    ],
)
async def test_refused_claims(bank: Bank, changes: dict[str, Any]) -> None:
    assert not await bank.believes(bank.platform.assertion(CUSTOMER, **({"nonce": NONCE} | changes)))
    assert await bank.believes(bank.good())


def with_header(assertion: str, **header: Any) -> str:
    """The assertion with another header; its signature no longer matters."""
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return ".".join([encoded, *assertion.split(".")[1:]])


async def test_refused_headers_and_forms(bank: Bank) -> None:
    good, kid = bank.good(), bank.platform.kid
    claims = jwt.decode(good, options={"verify_signature": False})
    refused = {
        "alg none": with_header(good, alg="none", kid=kid),
        "HS256": jwt.encode(claims, b"k" * 32, algorithm="HS256", headers={"kid": kid}),
        "no kid": bank.signed(),
        "unknown kid": bank.signed(kid="bfc-2"),
        "jku": bank.signed(kid=kid, jku="https://evil.test/jwks.json"),
        "jwk": bank.signed(kid=kid, jwk=bank.platform.jwks()["keys"][0]),
        "crit": with_header(good, alg="ES256", kid=kid, crit=["x"], x=1),
        "type of an access token": bank.signed(kid=kid, typ="at+jwt"),
        "no signature": good.rpartition(".")[0] + ".",
        "two parts": good.rpartition(".")[0],
        "four parts": good + ".x",
        "not a token": "x",
        "empty": "",
        "not ASCII": "é.é.é",
        "too long": good + "A" * assertions.ASSERTION_LENGTH_MAX,
        "nested header": base64.urlsafe_b64encode(b"[" * 2000).decode() + ".x.x",
    }
    for name, assertion in refused.items():
        assert not await bank.believes(assertion), name
    assert await bank.believes(bank.signed(kid=kid))


async def test_keys_are_fetched_once_and_again_when_old(bank: Bank) -> None:
    assert await asyncio.gather(*(bank.believes(bank.good()) for _ in range(10))) == [True] * 10
    bank.seconds = assertions.JWKS_AGE_S_MAX
    assert await bank.believes(bank.good())
    assert bank.platform.fetches == 1
    bank.seconds += 1
    assert await bank.believes(bank.good())
    assert bank.platform.fetches == 2


async def test_a_new_key_is_looked_for_and_a_withdrawn_one_forgotten(bank: Bank) -> None:
    assert await bank.believes(bank.good())
    old = bank.good()
    bank.platform.key, bank.platform.kid = generate_private_key(SECP256R1()), "bfc-2"
    assert not await bank.believes(bank.good()), "the platform was asked a moment ago"
    bank.seconds += assertions.REFETCH_GAP_S + 0.1
    assert await bank.believes(bank.good())
    assert not await bank.believes(old)


async def test_invented_key_ids_do_not_flood_the_platform(bank: Bank) -> None:
    invented = [bank.signed(kid=f"k{n}") for n in range(30)]
    assert await asyncio.gather(*map(bank.believes, invented)) == [False] * 30
    assert bank.platform.fetches == 1


def huge() -> web.StreamResponse:
    return web.Response(body=b'{"keys": [' + b" " * assertions.JWKS_BYTES_MAX + b"]}")


def elsewhere() -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/.well-known/jwks.json"})


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: web.Response(status=500), id="failing"),
        pytest.param(lambda: web.Response(text="<html>"), id="not JSON"),
        pytest.param(lambda: web.json_response({"keys": 7}), id="no key set"),
        pytest.param(huge, id="huge"),
        pytest.param(elsewhere, id="redirecting"),
    ],
)
async def test_a_platform_that_cannot_be_asked(bank: Bank, answer: Callable[[], web.StreamResponse]) -> None:
    answers_well, bank.platform.answer = bank.platform.answer, answer
    for _ in range(5):
        with pytest.raises(PlatformUnavailable):
            await bank.believes(bank.good())
    assert bank.platform.fetches == 1, "a platform in trouble is left alone for a while"
    bank.platform.answer = answers_well
    bank.seconds += assertions.REFETCH_GAP_S + 0.1
    assert await bank.believes(bank.good())


async def test_a_new_key_that_cannot_be_fetched_is_not_called_invalid(bank: Bank) -> None:
    assert await bank.believes(bank.good())
    answers_well, bank.platform.answer = bank.platform.answer, lambda: web.Response(status=500)
    bank.platform.key, bank.platform.kid = generate_private_key(SECP256R1()), "bfc-2"
    bank.seconds += assertions.REFETCH_GAP_S + 0.1
    for _ in range(3):
        with pytest.raises(PlatformUnavailable):
            await bank.believes(bank.good())
    assert bank.platform.fetches == 2
    bank.platform.answer = answers_well
    bank.seconds += assertions.REFETCH_GAP_S + 0.1
    assert await bank.believes(bank.good())


async def test_an_outage_does_not_hurt_while_the_keys_are_fresh(bank: Bank) -> None:
    assert await bank.believes(bank.good())
    bank.platform.answer = lambda: web.Response(status=500)
    bank.seconds = assertions.JWKS_AGE_S_MAX
    assert await bank.believes(bank.good())
    bank.seconds += 1
    with pytest.raises(PlatformUnavailable):
        await bank.believes(bank.good())


async def test_unusable_keys_beside_a_good_one(bank: Bank) -> None:
    good = bank.platform.jwks()["keys"][0]
    unusable = [
        {"kty": "RSA", "kid": "r", "n": "x", "e": "AQAB"},
        {**good, "kid": "off the curve", "x": "A" * 43},
        {**good, "kid": "not base64", "x": "!"},
        {**good, "kid": "encryption", "use": "enc"},
        {"kty": "EC", "crv": "P-256"},
    ]
    bank.platform.answer = lambda: web.json_response({"keys": [*unusable, good]})
    assert await bank.believes(bank.good())
    assert not await bank.believes(bank.signed(kid="encryption"))
