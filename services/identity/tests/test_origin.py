"""Only our own proxy says where a client is."""

from types import SimpleNamespace
from typing import Any

import pytest
from identity.origin import device_of, networks
from litestar.datastructures import Headers


def connection(peer: str | None, *claims: str) -> Any:
    headers = Headers([(b"x-real-ip", claim.encode()) for claim in claims])
    return SimpleNamespace(client=SimpleNamespace(host=peer) if peer else None, headers=headers)


@pytest.mark.parametrize(
    ("peer", "claims", "address"),
    [
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::1", ["203.0.113.9"], "203.0.113.9"),
        ("10.244.3.7", ["203.0.113.9"], "203.0.113.9"),
        ("10.245.0.1", ["203.0.113.9"], "10.245.0.1"),
        ("203.0.113.5", ["203.0.113.9"], "203.0.113.5"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9", "203.0.113.8"], "127.0.0.1"),
        ("a socket", ["203.0.113.9"], "a socket"),
        (None, ["203.0.113.9"], None),
    ],
)
def test_only_trusted_networks_are_believed(peer: str | None, claims: list[str], address: str | None) -> None:
    assert device_of(connection(peer, *claims), networks("127.0.0.1, ::1,10.244.0.0/16")).address == address


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="proxy"):
        networks("proxy.internal")
