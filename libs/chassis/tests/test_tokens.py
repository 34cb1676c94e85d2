"""The attacks on access tokens of quality.md, each against the one verifier."""

import asyncio
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import jwt
import pytest
from chassis.tokens import LIFETIME_S_MAX, TOKEN_BYTES_MAX, Caller, InvalidToken, TokenVerifier, VerificationKeyCache
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

ISSUER = "http://localhost:4025"
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
DROP: Any = object()


def jwk_of(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    jwk: dict[str, str] = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return jwk


class KeyTable:
    """Stands for the table `verification_key`; counts how often it is read."""

    def __init__(self) -> None:
        self.active = {"k1": jwk_of(KEY)}
        self.loads = 0
        self.down = False

    async def load(self) -> dict[str, dict[str, str]]:
        self.loads += 1
        if self.down:
            raise ConnectionRefusedError
        return dict(self.active)


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table() -> KeyTable:
    return KeyTable()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(table: KeyTable, clock: Clock) -> TokenVerifier:
    return TokenVerifier(ISSUER, VerificationKeyCache(table.load), clock=clock)


def claims_at(now: float, **changes: Any) -> dict[str, Any]:
    issued = int(now)
    claims = {
        "iss": ISSUER,
        "sub": str(uuid4()),
        "aud": "bfc",
        "sid": str(uuid4()),
        "acr": 1,
        "scope": "transfers accounts:read",
        "iat": issued,
        "nbf": issued,
        "exp": issued + 600,
        "jti": str(uuid4()),
    }
    return {name: value for name, value in (claims | changes).items() if value is not DROP}


def signed(claims: dict[str, Any], key: Any = KEY, **header: Any) -> str:
    fields = {"alg": "ES256", "typ": "at+jwt", "kid": "k1"} | header
    encoded = [b64(json.dumps({name: v for name, v in fields.items() if v is not DROP}).encode())]
    encoded.append(b64(json.dumps(claims).encode()))
    signing_input = ".".join(encoded)
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signing_input.encode(), key)
    return f"{signing_input}.{b64(signature)}"


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


async def refused(verifier: TokenVerifier, token: str) -> InvalidToken:
    with pytest.raises(InvalidToken) as caught:
        await verifier.verify(token)
    with pytest.raises(InvalidToken):  # a refusal never warms the cache
        await verifier.verify(token)
    return caught.value


async def test_a_good_token(verifier: TokenVerifier, clock: Clock) -> None:
    claims = claims_at(clock.now, aud="vyomo", acr=2, unknown_claim={"is": "ignored"})
    caller = Caller.of(await verifier.verify(signed(claims)))
    assert (str(caller.user_id), str(caller.session_id)) == (claims["sub"], claims["sid"])
    assert (caller.platform, caller.acr) == ("vyomo", 2)
    assert caller.scopes == {"transfers", "accounts:read"}
    assert caller.metadata().actor == f"user:{claims['sub']}"


async def test_a_token_made_by_pyjwt(verifier: TokenVerifier, clock: Clock) -> None:
    token = jwt.encode(claims_at(clock.now), KEY, algorithm="ES256", headers={"typ": "at+jwt", "kid": "k1"})
    assert (await verifier.verify(token)).iss == ISSUER


async def test_alg_none(verifier: TokenVerifier, clock: Clock) -> None:
    for alg in ("none", "None", "NONE", ""):
        unsigned = signed(claims_at(clock.now), alg=alg).rsplit(".", 1)[0]
        await refused(verifier, unsigned + ".")
        await refused(verifier, unsigned + ".AA")
        await refused(verifier, unsigned)


async def test_hs256_signed_with_the_public_key(verifier: TokenVerifier, clock: Clock) -> None:
    header = b64(json.dumps({"alg": "HS256", "typ": "at+jwt", "kid": "k1"}).encode())
    signing_input = f"{header}.{b64(json.dumps(claims_at(clock.now)).encode())}"
    for form in (PublicFormat.SubjectPublicKeyInfo,):
        for encoding in (Encoding.PEM, Encoding.DER):
            secret = KEY.public_key().public_bytes(encoding, form)
            mac = hmac.digest(secret, signing_input.encode(), "sha256")
            await refused(verifier, f"{signing_input}.{b64(mac)}")
    secret = json.dumps(jwk_of(KEY)).encode()
    await refused(verifier, f"{signing_input}.{b64(hmac.digest(secret, signing_input.encode(), 'sha256'))}")


@pytest.mark.parametrize("alg", ["ES384", "RS256", "PS256", "EdDSA", "es256", ["ES256"], None, DROP, 1])
async def test_other_algorithms(verifier: TokenVerifier, clock: Clock, alg: Any) -> None:
    await refused(verifier, signed(claims_at(clock.now), alg=alg))


@pytest.mark.parametrize(
    "kid", ["../../etc/passwd", "/dev/null", "k1' OR '1'='1", "k1\n", "", "k" * 129, "k\x00", "k2", 1, None, DROP]
)
async def test_kid_that_is_not_one_of_our_keys(verifier: TokenVerifier, clock: Clock, kid: Any) -> None:
    await refused(verifier, signed(claims_at(clock.now), kid=kid))


@pytest.mark.parametrize("parameter", ["jku", "x5u", "jwk", "x5c", "x5t", "crit", "b64", "cty", "zip", "anything"])
async def test_further_header_parameters(verifier: TokenVerifier, clock: Clock, parameter: str) -> None:
    values: dict[str, Any] = {"jwk": jwk_of(OTHER_KEY), "crit": ["exp"], "b64": False, "x5c": ["MIIB"]}
    value = values.get(parameter, "https://attacker.example/keys")
    await refused(verifier, signed(claims_at(clock.now), **{parameter: value}))
    await refused(verifier, signed(claims_at(clock.now), key=OTHER_KEY, **{parameter: value}))


@pytest.mark.parametrize("typ", ["JWT", "jwt", "AT+JWT", "application/at+jwt", "refresh+jwt", "", None, DROP])
async def test_wrong_typ(verifier: TokenVerifier, clock: Clock, typ: Any) -> None:
    await refused(verifier, signed(claims_at(clock.now), typ=typ))


@pytest.mark.parametrize(
    "aud",
    ["", "BFC", "bfc ", "sangam", "sangam-ops", ["bfc"], ["bfc", "vyomo"], {"bfc": 1}, None, DROP, True],
)
async def test_wrong_or_several_audiences(verifier: TokenVerifier, clock: Clock, aud: Any) -> None:
    await refused(verifier, signed(claims_at(clock.now, aud=aud)))


async def test_ops_tokens_only_where_asked_for(verifier: TokenVerifier, clock: Clock) -> None:
    token = signed(claims_at(clock.now, aud="sangam-ops"))
    assert (await verifier.verify(token, {"bfc", "sangam-ops"})).aud == "sangam-ops"
    with pytest.raises(InvalidToken):  # also once it is in the cache
        await verifier.verify(token)


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", [DROP, None, "2000000000", 2e9, 1.5, True, -1, 10**30, 2**63, [], {}])
async def test_times_that_are_not_plain_integers(verifier: TokenVerifier, clock: Clock, claim: str, value: Any) -> None:
    await refused(verifier, signed(claims_at(clock.now, **{claim: value})))


@pytest.mark.parametrize("literal", ["1e10", "NaN", "Infinity", "0x7fffffff", "1" * 5000, "2000000000.0"])
async def test_exp_written_strangely(verifier: TokenVerifier, clock: Clock, literal: str) -> None:
    header = b64(b'{"alg":"ES256","typ":"at+jwt","kid":"k1"}')
    payload = json.dumps(claims_at(clock.now, exp="EXP")).replace('"EXP"', literal)
    signing_input = f"{header}.{b64(payload.encode())}"
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signing_input.encode(), KEY)
    await refused(verifier, f"{signing_input}.{b64(signature)}")


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        *[(name, DROP) for name in ("iss", "sub", "sid", "acr", "jti")],
        ("iss", "http://localhost:4025/"),
        ("iss", "http://LOCALHOST:4025"),
        ("iss", [ISSUER]),
        ("sub", "alice"),
        ("sub", 1),
        ("sid", ""),
        ("acr", "2"),
        ("acr", True),
        ("acr", 2.0),
        ("acr", -1),
        ("jti", ""),
        ("jti", 1),
        ("scope", ["transfers:reverse"]),
        ("scope", None),
    ],
)
async def test_claims_missing_or_of_another_type(verifier: TokenVerifier, clock: Clock, claim: str, value: Any) -> None:
    await refused(verifier, signed(claims_at(clock.now, **{claim: value})))


async def test_expired_also_when_cached(verifier: TokenVerifier, clock: Clock) -> None:
    token = signed(claims_at(clock.now))
    await verifier.verify(token)
    clock.now += 601
    await verifier.verify(token)  # within the leeway for clocks that differ
    clock.now += 10
    assert (await refused(verifier, token)).expired


async def test_not_valid_yet(verifier: TokenVerifier, clock: Clock) -> None:
    await refused(verifier, signed(claims_at(clock.now, nbf=int(clock.now) + 60)))
    await refused(verifier, signed(claims_at(clock.now, iat=int(clock.now) + 60, exp=int(clock.now) + 120)))


async def test_life_longer_than_an_hour(verifier: TokenVerifier, clock: Clock) -> None:
    issued = int(clock.now)
    await verifier.verify(signed(claims_at(clock.now, exp=issued + LIFETIME_S_MAX)))
    await refused(verifier, signed(claims_at(clock.now, exp=issued + LIFETIME_S_MAX + 1)))
    await refused(verifier, signed(claims_at(clock.now, exp=issued)))


async def test_signature_of_another_key_or_over_another_payload(verifier: TokenVerifier, clock: Clock) -> None:
    good = signed(claims_at(clock.now))
    await refused(verifier, signed(claims_at(clock.now), key=OTHER_KEY))
    header, _, signature = good.split(".")
    await refused(verifier, f"{header}.{b64(json.dumps(claims_at(clock.now, acr=9)).encode())}.{signature}")
    await refused(verifier, f"{header}.{good.split('.')[1]}.{b64(bytes(64))}")
    await refused(verifier, f"{header}.{good.split('.')[1]}.{signature[:-4]}")


@pytest.mark.parametrize(
    "mangle",
    [
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.replace(".", ".."),
        lambda token: token + ".x",
        lambda token: "é" + token,
        lambda token: token.split(".")[0],
        lambda token: "",
        lambda token: "..",
        lambda token: "\ud800",
    ],
)
async def test_malformed(verifier: TokenVerifier, clock: Clock, mangle: Callable[[str], str]) -> None:
    await refused(verifier, mangle(signed(claims_at(clock.now))))


async def test_five_megabytes_are_refused_unread(verifier: TokenVerifier, clock: Clock, table: KeyTable) -> None:
    token = signed(claims_at(clock.now, padding="x" * 5_000_000))
    started = time.perf_counter()
    await refused(verifier, token)
    assert time.perf_counter() - started < 0.05
    assert table.loads == 0
    await refused(verifier, signed(claims_at(clock.now, padding="x" * TOKEN_BYTES_MAX)))


async def test_nested_header_and_payload(verifier: TokenVerifier, clock: Clock) -> None:
    deep = b64(b"[" * 3000)
    good = signed(claims_at(clock.now)).split(".")
    await refused(verifier, f"{deep}.{good[1]}.{good[2]}")
    signing_input = f"{good[0]}.{deep}"
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signing_input.encode(), KEY)
    await refused(verifier, f"{signing_input}.{b64(signature)}")


async def test_retired_key_ends_its_tokens_cached_or_not(
    table: KeyTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.tokens._KEYS_REFRESH_S", 0.0)
    monkeypatch.setattr("chassis.tokens._KEYS_RELOAD_GAP_S", 0.0)
    verifier = TokenVerifier(ISSUER, VerificationKeyCache(table.load), clock=clock)
    token, other = signed(claims_at(clock.now)), signed(claims_at(clock.now))
    await verifier.verify(token)
    del table.active["k1"]
    await asyncio.sleep(0.01)
    await verifier.verify(token)  # notices that its knowledge is old, reloads in the background
    await asyncio.sleep(0.01)
    await refused(verifier, token)
    await refused(verifier, other)


async def test_a_key_said_to_be_retired_is_gone_though_the_table_still_has_it(
    table: KeyTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.tokens._KEYS_RELOAD_GAP_S", 0.0)
    keys = VerificationKeyCache(table.load)
    verifier = TokenVerifier(ISSUER, keys, clock=clock)
    token = signed(claims_at(clock.now))
    await verifier.verify(token)
    keys.retire("k1")
    await refused(verifier, token)  # which reads the table again


async def test_new_key_is_found_at_once(verifier: TokenVerifier, clock: Clock, table: KeyTable) -> None:
    table.active["k2"] = jwk_of(OTHER_KEY)
    await verifier.verify(signed(claims_at(clock.now), key=OTHER_KEY, kid="k2"))


async def test_a_key_that_is_being_loaded_is_waited_for(clock: Clock) -> None:
    """Many clients connect at once to a service that has just started: the first load serves them all."""

    async def load() -> dict[str, dict[str, str]]:
        await asyncio.sleep(0.05)
        return {"k1": jwk_of(KEY)}

    verifier = TokenVerifier(ISSUER, VerificationKeyCache(load), clock=clock)
    tokens = [signed(claims_at(clock.now, jti=str(n))) for n in range(10)]
    assert len(await asyncio.gather(*map(verifier.verify, tokens))) == 10


async def test_a_table_that_cannot_be_read_makes_no_key_unknown(
    verifier: TokenVerifier, clock: Clock, table: KeyTable
) -> None:
    """A service that starts while its database is away: 503 for everyone, not 401 for all but the first."""
    table.down = True
    for _ in range(5):
        with pytest.raises(ConnectionRefusedError):
            await verifier.verify(signed(claims_at(clock.now)))
    assert table.loads == 1, "nor is the database asked more often"
    table.down = False
    await asyncio.sleep(0.3)
    await verifier.verify(signed(claims_at(clock.now)))


async def test_before_any_key_is_known_nothing_is_called_invalid(clock: Clock, table: KeyTable) -> None:
    """A service that is still reading the log answers 503, not 401: the client need not log in again."""
    table.active = {}
    verifier = TokenVerifier(ISSUER, VerificationKeyCache(table.load), clock=clock)
    with pytest.raises(ConnectionError):
        await verifier.verify(signed(claims_at(clock.now)))


async def test_flood_of_unknown_kids_does_not_reach_the_database(
    verifier: TokenVerifier, clock: Clock, table: KeyTable
) -> None:
    claims = claims_at(clock.now)
    tokens = [signed(claims, kid=f"invented-{n}") for n in range(300)]
    results = await asyncio.gather(*(verifier.verify(token) for token in tokens), return_exceptions=True)
    assert all(isinstance(result, InvalidToken) for result in results)
    assert table.loads <= 2


async def test_known_keys_outlive_the_database(
    verifier: TokenVerifier, clock: Clock, table: KeyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    await verifier.verify(signed(claims_at(clock.now)))
    table.down = True
    monkeypatch.setattr("chassis.tokens._KEYS_REFRESH_S", 0.0)
    monkeypatch.setattr("chassis.tokens._KEYS_RELOAD_GAP_S", 0.0)
    for _ in range(3):
        await verifier.verify(signed(claims_at(clock.now)))
        await asyncio.sleep(0.001)
    with pytest.raises(ConnectionRefusedError):  # becomes a 503, not a 401
        await verifier.verify(signed(claims_at(clock.now), kid="unknown"))


async def test_the_cache_is_bounded_and_spares_the_signature(
    verifier: TokenVerifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chassis.tokens._CACHED_TOKENS_MAX", 3)
    first = signed(claims_at(clock.now))
    for token in [first, *(signed(claims_at(clock.now)) for _ in range(5))]:
        await verifier.verify(token)
    assert len(verifier._verified) == 3
    recent = signed(claims_at(clock.now))
    claims = await verifier.verify(recent)
    assert await verifier.verify(recent) is claims


async def test_keys_that_are_no_public_p256_keys_are_not_loaded(clock: Clock) -> None:
    wrong = ec.generate_private_key(ec.SECP384R1())

    async def load() -> dict[str, dict[str, str]]:
        return {"k1": jwk_of(wrong)}

    with pytest.raises(ValueError, match="P-256"):
        await TokenVerifier(ISSUER, VerificationKeyCache(load), clock=clock).verify(signed(claims_at(clock.now)))
