"""The programs that are known by name: the operators' clients, and the platforms' own apps (OpenID Connect)."""

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated
from uuid import UUID

import msgspec
from events.contracts.identity import Platform
from events.envelope import derived_id

OPS_SCOPES = frozenset({"transfers:reverse", "notifications:write", "sync:admin"})
"""What operators' tokens may be good for."""

_OPS_CLIENTS = UUID("b8a0a1c4-7c0e-5a57-9f0e-6a3a0c2f4d11")


class InvalidClient(Exception):
    """No such client, or not its secret."""


class OpsClient(msgspec.Struct, frozen=True, kw_only=True):
    """A program of the operators. Its secret is not kept, only its hash."""

    client_id: str
    secret_hash: bytes
    scopes: frozenset[str] = OPS_SCOPES

    @property
    def subject(self) -> UUID:
        """What stands for the client where a user's id would stand."""
        return derived_id(_OPS_CLIENTS, self.client_id)


class App(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A platform's own app: a public OpenID client, which proves itself by PKCE and its registered addresses."""

    client_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")]
    name: str
    platform: Platform
    redirect_uris: tuple[str, ...]
    post_logout_redirect_uris: tuple[str, ...] = ()
    backchannel_logout_uri: str | None = None


class OpsClients:
    """Authenticates operators' programs by id and secret."""

    def __init__(self, clients: Iterable[OpsClient]) -> None:
        self._clients = {client.client_id: client for client in clients}

    def authenticated(self, client_id: str, secret: str) -> OpsClient:
        """The client.

        Raises:
            InvalidClient
        """
        client = self._clients.get(client_id)
        # An unknown id costs the same hash and comparison.
        expected = client.secret_hash if client is not None else bytes(32)
        matches = hmac.compare_digest(hash_of(secret), expected)
        if client is None or not matches:
            raise InvalidClient
        return client


def hash_of(secret: str) -> bytes:
    """Of a random secret: a fast hash is enough, there is nothing to guess."""
    return hashlib.sha256(b"sangam/client-secret" + secret.encode()).digest()


def apps_of(text: str) -> dict[str, App]:
    """The apps by id, from a setting: a JSON list.

    Raises:
        ValueError: not such a list, or an id twice.
    """
    apps = msgspec.json.decode(text, type=list[App])
    by_id = {app.client_id: app for app in apps}
    if len(by_id) < len(apps):
        raise ValueError("an app is named twice")
    return by_id
