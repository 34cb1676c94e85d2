from datetime import UTC, datetime
from uuid import UUID

import jwt
import pytest
from identity import keys
from identity.keys import KeyState, SigningKey
from identity.sealing import IdentityKey, SealBroken
from identity.tokens import AccessTokens, InvalidRefreshToken, RefreshTokens
from jwt.algorithms import ECAlgorithm

NOW = datetime(2026, 2, 12, 9, 0, 0, 999_999, tzinfo=UTC)
SESSION, USER = UUID(int=1), UUID(int=2)
IDENTITY_KEY = IdentityKey(bytes(range(32)))
TOKENS = RefreshTokens(IDENTITY_KEY)


def signing_key() -> SigningKey:
    return keys.opened(keys.generate(1, IDENTITY_KEY), 1, IDENTITY_KEY)


def test_access_token_says_what_verifiers_expect() -> None:
    key = signing_key()
    token = AccessTokens("https://sangam.test", lambda: key).issue(
        user_id=USER, session_id=SESSION, platform="vyomo", acr=1, now=NOW
    )
    assert jwt.get_unverified_header(token) == {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    claims = jwt.decode(
        token,
        ECAlgorithm.from_jwk(key.public_jwk),  # type: ignore[arg-type]
        algorithms=["ES256"],
        audience="vyomo",
        options={"verify_exp": False},
    )
    jti = claims.pop("jti")
    issued_at = int(NOW.timestamp())
    assert claims == {
        "iss": "https://sangam.test",
        "sub": str(USER),
        "aud": "vyomo",
        "sid": str(SESSION),
        "acr": 1,
        "mfa": False,
        "scope": claims["scope"],
        "iat": issued_at,
        "nbf": issued_at,
        "exp": issued_at + 300,
    }
    assert "transfers:write" in claims["scope"].split()
    assert "transfers:reverse" not in claims["scope"].split()
    again = AccessTokens("https://sangam.test", lambda: key).issue(
        user_id=USER, session_id=SESSION, platform="vyomo", acr=1, now=NOW
    )
    assert jwt.decode(again, options={"verify_signature": False})["jti"] != jti


def test_refresh_token_is_a_function_of_session_and_generation() -> None:
    token = TOKENS.issue(SESSION, 7)
    assert token == TOKENS.issue(SESSION, 7)
    assert TOKENS.read(token) == (SESSION, 7)
    others = {
        TOKENS.issue(SESSION, 8),
        TOKENS.issue(USER, 7),
        RefreshTokens(IdentityKey(bytes(32))).issue(SESSION, 7),
    }
    assert len(others | {token}) == 4


def test_every_changed_character_makes_a_refresh_token_invalid() -> None:
    token = TOKENS.issue(SESSION, 7)
    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        with pytest.raises(InvalidRefreshToken):
            TOKENS.read(changed)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "xx",
        "-" * 70,
        "é" * 70,
        "A" * 1024,
        TOKENS.issue(SESSION, 7) + "=",
        TOKENS.issue(SESSION, 7)[:-2],
    ],
)
def test_what_is_no_refresh_token(token: str) -> None:
    with pytest.raises(InvalidRefreshToken):
        TOKENS.read(token)


def test_a_published_key_opens_with_the_identity_key_only() -> None:
    published = keys.generate(1, IDENTITY_KEY)
    assert keys.opened(published, 1, IDENTITY_KEY).public_jwk == published.public_jwk
    with pytest.raises(SealBroken):
        keys.opened(published, 1, IdentityKey(bytes(32)))
    with pytest.raises(SealBroken):
        keys.opened(published, 2, IDENTITY_KEY)


def test_the_public_jwk_holds_nothing_private() -> None:
    published = keys.generate(1, IDENTITY_KEY)
    assert set(published.public_jwk) == {"kty", "crv", "x", "y", "use", "alg", "kid"}
    assert published.public_jwk["kid"] == published.kid


def test_a_stream_publishes_one_key() -> None:
    first, second = keys.generate(1, IDENTITY_KEY), keys.generate(1, IDENTITY_KEY)
    assert keys.publish(KeyState(), first) == [first]
    assert keys.publish(keys.evolve(KeyState(), first), second) == []
