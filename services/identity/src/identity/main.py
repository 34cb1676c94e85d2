"""Wiring only."""

import asyncio

import aiohttp
from chassis.app import create_app
from chassis.service import Runtime, run
from chassis.settings import SealingSettings, Secret, check_keys
from events.decisions import Streams
from events.outage import until_it_works
from litestar import Litestar

from identity import api, api_account, api_oauth, api_openid, api_sessions, users
from identity.accounts import Accounts
from identity.assertions import AssertionVerifier, PlatformKeys
from identity.backchannel import LogoutNotes, LogoutSender
from identity.clients import OpsClient, OpsClients, apps_of, hash_of
from identity.erasures import Erasures
from identity.keyring import KeyRing, identity_key
from identity.linking import Linking
from identity.openid import OpenId
from identity.origin import networks
from identity.passwords import PasswordHashing
from identity.people import People
from identity.revocation_board import RevocationBoard
from identity.root_sessions import RootSessions
from identity.second_factor import SecondFactor
from identity.sign_in import SignIn
from identity.throttle import Throttle
from identity.tokens import AccessTokens
from identity.users import User


class IdentitySettings(SealingSettings, frozen=True, kw_only=True):
    """What identity needs besides what every service needs."""

    identity_key: Secret
    """Base64 of 32 random bytes: wraps the key of private fields; losing it loses every login. While it is replaced,
    the new and the former one with a comma between."""
    bfc_jwks_url: str
    vyomo_jwks_url: str
    ops_client_id: str
    ops_client_secret: Secret
    apps: str = "[]"
    """The platforms' own apps, as a JSON list of `identity.clients.App`."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses and networks that our own proxy connects from: only it may say, in `X-Real-IP`, where a client is."""

    def __post_init__(self) -> None:
        """Raises:
        ValueError: a setting is not usable.
        """
        super().__post_init__()
        check_keys("IDENTITY_KEY", self.identity_key)


async def wire(runtime: Runtime[IdentitySettings]) -> Litestar:
    settings = runtime.settings
    keys = runtime.subject_keys
    own_key = await until_it_works("identity's key", lambda: identity_key(settings.identity_key, runtime.store, keys))
    ring = KeyRing(runtime.store, own_key)
    await ring.load()
    throttle = Throttle(runtime.database, own_key.mac_key("throttle"))
    await throttle.prepare()

    http = aiohttp.ClientSession()
    hashing = PasswordHashing()
    trusted = networks(settings.trusted_proxies)
    user_streams = Streams(runtime.store, "user", User(), users.evolve)
    people = People(keys, own_key)
    access_tokens = AccessTokens(settings.token_issuer, ring.current)
    roots = RootSessions(runtime.store, keys, RevocationBoard(runtime.control), own_key.mac_key("device"))
    second_factor = SecondFactor(user_streams, own_key, throttle)
    sign_in = SignIn(
        runtime.store, user_streams, roots, people, own_key, hashing, access_tokens, second_factor, throttle
    )
    accounts = Accounts(runtime.store, user_streams, roots, people, sign_in, second_factor, keys, own_key, throttle)
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
    apps = apps_of(settings.apps)
    openid = OpenId(apps, roots, user_streams, people, access_tokens, ring, own_key)
    notes = LogoutNotes()
    runtime.consume("backchannel", notes)
    runtime.consume("erasures", Erasures(accounts))
    sender = LogoutSender(runtime.database, http, apps, access_tokens, notes.noted)
    runtime.spawn(sender.run(), "back-channel logout")
    runtime.spawn(ring.tend_forever(), "tend signing keys")
    app = create_app(
        runtime,
        [
            *api.routes(sign_in, linking, accounts, runtime.verifier, trusted),
            *api_sessions.routes(roots),
            *api_account.routes(accounts, sign_in, second_factor),
            *api_oauth.routes(ops_clients, access_tokens, ring, openid),
            *api_openid.routes(openid, sign_in, own_key, trusted),
        ],
        title="Sangam identity",
    )

    async def close() -> None:
        await sign_in.drain()
        await accounts.close()
        await http.close()
        await asyncio.to_thread(hashing.close)

    # Not `runtime.on_stop`: that comes before the last request is answered, and logins need the threads.
    app.on_shutdown.append(close)
    return app


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("identity", IdentitySettings, wire)
