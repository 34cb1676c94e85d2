"""`IDENTITY_KEY` is replaced while people work: nothing that was sealed or hashed under it is lost."""

import base64
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pyotp
import pytest
from events.contracts.identity import SigningKeyPublished
from events.envelope import new_id
from events.sealing import MasterKeyWrong
from events.store import EventStore, StreamAppend
from identity import keys
from identity.sealing import IdentityKey, SealBroken, keyed_uuid

if TYPE_CHECKING:
    from identity_harness import Client, Person

pytestmark = pytest.mark.integration

Start = Callable[[str], Awaitable["Client"]]
SignUp = Callable[["Client"], Awaitable["Person"]]
PASSWORD = "correct horse battery staple"


def fresh() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


async def everything_works(person: "Person", recovery_code: str, client: "Client") -> None:
    """What is found by keyed hashes, opens with the sealing key, or is signed with a key that it sealed."""
    credentials = {"email": person.email, "password": PASSWORD, "platform": "bfc", "otp": recovery_code}
    login = await client.post("/api/auth/login", json=credentials)
    assert login.status_code == 200, login.text
    bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
    assert (await client.get("/api/auth/status", headers=bearer)).status_code == 200
    rotated = await client.post("/api/auth/refresh", json={"refresh_token": person.login["refresh_token"]})
    assert rotated.status_code == 200, "a refresh token from before"
    person.login = rotated.json()
    again = {"email": person.email, "password": PASSWORD, "full_name": "Asha", "phone": "+919812345678"}
    assert (await client.post("/api/auth/register", json=again)).json()["code"] == "email_taken"


async def test_the_key_is_replaced_while_people_work(start_replica: Start, sign_up: SignUp, store: EventStore) -> None:
    former, new = fresh(), fresh()
    old = await start_replica(former)
    person = await sign_up(old)
    offer = (await person.post("/api/auth/mfa/totp", {})).json()
    enrolled = await person.post("/api/auth/mfa/totp/confirm", {"otp": pyotp.TOTP(offer["secret"]).now()})
    assert enrolled.status_code == 200, enrolled.text
    codes = iter(enrolled.json()["recovery_codes"])

    both = await start_replica(f"{former},{new}")
    await everything_works(person, next(codes), both)
    turned = await start_replica(f"{new},{former}")
    await everything_works(person, next(codes), turned)
    # Those that started before go on, and one that starts with the setting of the step before does, too.
    await everything_works(person, next(codes), old)
    await everything_works(person, next(codes), await start_replica(f"{former},{new}"))
    await everything_works(person, next(codes), await start_replica(f"{new},{former}"))

    done = await start_replica(new)
    await everything_works(person, next(codes), done)
    newcomer = await sign_up(done)
    assert (await old.get("/api/auth/status", headers=newcomer._headers())).status_code == 200
    for dropped in (former, fresh()):
        with pytest.raises(MasterKeyWrong):
            await start_replica(dropped)
    # Nor does the former key open what is in the log.
    published = await first_key(store)
    with pytest.raises(SealBroken):
        keys.opened(published, 1, IdentityKey(base64.b64decode(former)))


async def first_key(store: EventStore) -> SigningKeyPublished:
    (event, *_) = await store.read_stream(f"{keys.CATEGORY}-{keys.stream_id(1)}")
    assert isinstance(event.payload, SigningKeyPublished)
    return event.payload


async def test_a_store_from_before_there_were_own_keys(
    start_replica: Start, sign_up: SignUp, store: EventStore
) -> None:
    """There the setting itself was the key. It stays the key, and can be replaced like any other's wrapping."""
    setting, new = fresh(), fresh()
    former = IdentityKey(base64.b64decode(setting))
    published: Any = keys.generate(1, former)
    await store.append([StreamAppend(f"{keys.CATEGORY}-{keys.stream_id(1)}", (published,))], event_id=new_id())
    with pytest.raises(MasterKeyWrong):  # and nothing is left behind by it
        await start_replica(new)
    client = await start_replica(setting)
    person = await sign_up(client)
    assert await store.read_stream(f"email_claim-{keyed_uuid(former.mac_key('email'), person.email)}")
    await start_replica(f"{new},{setting}")
    again = await start_replica(new)
    credentials = {"email": person.email, "password": PASSWORD, "platform": "vyomo"}
    assert (await again.post("/api/auth/login", json=credentials)).status_code == 200
    assert msgspec.structs.asdict(await first_key(store)) == msgspec.structs.asdict(published)
