"""Wiring only."""

import asyncio

import aiohttp
from chassis.app import create_app
from chassis.service import Runtime, run
from chassis.settings import SealingSettings, Secret
from events.decisions import Streams
from litestar import Litestar

from identity import api, api_oauth, keys, users
from identity.assertions import AssertionVerifier, PlatformKeys
from identity.clients import OpsClient, OpsClients, hash_of
from identity.linking import Linking
from identity.passwords import PasswordHashing
from identity.sealing import IdentityKey
from identity.sign_in import SignIn
from identity.tokens import AccessTokens
from identity.users import User


class IdentitySettings(SealingSettings, frozen=True, kw_only=True):
    """What identity needs besides what every service needs."""

    identity_key: Secret
    """Base64 of 32 random bytes. It seals private fields; losing it loses every login."""
    bfc_jwks_url: str
    vyomo_jwks_url: str
    ops_client_id: str
    ops_client_secret: Secret


async def wire(runtime: Runtime[IdentitySettings]) -> Litestar:
    settings = runtime.settings
    identity_key = IdentityKey.from_setting(settings.identity_key)
    signing_key = await keys.load_or_create(runtime.store, identity_key)

    http = aiohttp.ClientSession()
    hashing = PasswordHashing()
    user_streams = Streams(runtime.store, "user", User(), users.evolve)
    access_tokens = AccessTokens(settings.token_issuer, signing_key)
    sign_in = SignIn(runtime.store, user_streams, identity_key, hashing, access_tokens)
    assertions = AssertionVerifier(
        {
            "bfc": PlatformKeys("bfc", settings.bfc_jwks_url, http),
            "vyomo": PlatformKeys("vyomo", settings.vyomo_jwks_url, http),
        }
    )
    linking = Linking(runtime.store, user_streams, assertions)
    ops_clients = OpsClients(
        [OpsClient(client_id=settings.ops_client_id, secret_hash=hash_of(settings.ops_client_secret))]
    )
    app = create_app(
        runtime,
        [*api.routes(sign_in, linking, signing_key), *api_oauth.routes(ops_clients, access_tokens)],
        title="Sangam identity",
    )

    async def close() -> None:
        await http.close()
        await asyncio.to_thread(hashing.close)

    # Not `runtime.on_stop`: that comes before the last request is answered, and logins need the threads.
    app.on_shutdown.append(close)
    return app


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("identity", IdentitySettings, wire)
