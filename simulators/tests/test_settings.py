"""A platform refuses to start on missing or weak settings, and keeps its key."""

from datetime import UTC, datetime
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from simulators.assertions import AssertionSigner, KeyFileError
from simulators.settings import SettingsError

from simulators import settings

GOOD = {
    "PLATFORM_HTTP_PORT": "4111",
    "FEED_URL": "http://127.0.0.1:4103/api/sync/feeds/bfc",
    "FEED_SECRET": "whsec_" + "A" * 32,
    "PLATFORM_KEY_FILE": "/run/bfc.pem",
}


def test_good_settings() -> None:
    read = settings.load("bfc", GOOD)
    assert (read.platform, read.http_port, read.state_dir) == ("bfc", 4111, None)


def test_every_missing_setting_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        settings.load("bfc", {})
    assert all(name in str(refused.value) for name in GOOD)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PLATFORM_HTTP_PORT", "70000"),
        ("PLATFORM_HTTP_PORT", "four"),
        ("FEED_URL", "ftp://localhost/feed"),
        ("FEED_SECRET", "whsec_c2hvcnQ="),
        ("FEED_SECRET", "A" * 44),
        ("FEED_SECRET", "whsec_" + "!" * 40),
        ("PLATFORM_KEY_FILE", ""),
    ],
)
def test_unusable_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings.load("bfc", GOOD | {name: value})


def test_unknown_platform_is_refused() -> None:
    with pytest.raises(SettingsError, match="bfc, vyomo"):
        settings.load("acme", GOOD)


def test_key_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "bfc.pem"
    made = AssertionSigner.from_file("bfc", path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert AssertionSigner.from_file("bfc", path).kid == made.kid
    assert list(path.parent.iterdir()) == [path]


def test_assertion_carries_what_linking_needs(tmp_path: Path) -> None:
    signer = AssertionSigner.from_file("vyomo", tmp_path / "vyomo.pem")
    token = signer.assertion("VY-2001", "n-1", datetime.now(UTC))
    key = jwt.PyJWKSet.from_dict(signer.jwks)[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="sangam", issuer="vyomo")
    assert (claims["sub"], claims["nonce"], claims["exp"] - claims["iat"]) == ("VY-2001", "n-1", 300)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("content", [b"", b"not a key", _pem(ec.generate_private_key(ec.SECP384R1()))])
def test_a_wrong_key_file_is_refused_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bfc.pem"
    path.write_bytes(content)
    with pytest.raises(KeyFileError):
        AssertionSigner.from_file("bfc", path)
    assert path.read_bytes() == content
