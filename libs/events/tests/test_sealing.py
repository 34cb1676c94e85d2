"""Sealing per data subject, over the real key database with the rights of real roles."""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
from command import sangam
from events.sealing import MasterKeyWrong, SealBroken, SubjectErased, SubjectKeys

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

MASTER = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
async def identity(cell: "Cell") -> AsyncIterator[SubjectKeys]:
    keys = await SubjectKeys.connect(cell.keys_url("identity"), MASTER)
    yield keys
    await keys.close()


@pytest.fixture
async def search(cell: "Cell") -> AsyncIterator[SubjectKeys]:
    keys = await SubjectKeys.connect(cell.keys_url("search"), MASTER)
    yield keys
    await keys.close()


@pytest.fixture
async def notifier(cell: "Cell") -> AsyncIterator[SubjectKeys]:
    keys = await SubjectKeys.connect(cell.keys_url("notifier"), MASTER)
    yield keys
    await keys.close()


async def test_what_one_service_seals_another_opens_in_that_place_only(
    identity: SubjectKeys, notifier: SubjectKeys
) -> None:
    asha, ravi = uuid4(), uuid4()
    sealed = await identity.seal(asha, "asha@example.in", "to")
    assert "asha" not in sealed
    assert sealed != await identity.seal(asha, "asha@example.in", "to")
    assert await notifier.open(asha, sealed, "to") == "asha@example.in"
    for subject, place, text in ((asha, "profile", sealed), (asha, "to", sealed[:-8] + "AAAAAAA=")):
        with pytest.raises(SealBroken):
            await notifier.open(subject, text, place)
    await identity.seal(ravi, "x", "to")
    assert await notifier.open(ravi, sealed, "to") is None
    with pytest.raises(SealBroken):
        await notifier.open(asha, "v1.plain", "to")


async def test_an_erased_subject_is_gone_for_good(identity: SubjectKeys, notifier: SubjectKeys) -> None:
    asha = uuid4()
    sealed = await identity.seal(asha, "asha@example.in", "to")
    assert await notifier.open(asha, sealed, "to") is not None
    assert await identity.erase(asha) is True
    assert await identity.open(asha, sealed, "to") is None
    notifier.forget(asha)  # what the event `identity.user.erased` makes it do
    assert await notifier.open(asha, sealed, "to") is None
    with pytest.raises(SubjectErased):
        await identity.seal(asha, "again", "to")
    assert await identity.erase(asha) is False
    assert await identity.open(uuid4(), sealed, "to") is None, "a subject that never had a key"


async def test_many_keys_are_looked_up_at_once(identity: SubjectKeys, search: SubjectKeys) -> None:
    people = [uuid4() for _ in range(4)]
    sealed = {person: await identity.seal(person, str(person), "to") for person in people[:3]}
    await identity.erase(people[0])
    await search.fetch(people)
    # The rest comes from memory: the key database may be away now.
    await search.close()
    for person in people[1:3]:
        assert await search.open(person, sealed[person], "to") == str(person)
    for person in (people[0], people[3]):
        with pytest.raises(asyncpg.InterfaceError):
            await search.open(person, sealed[people[1]], "to")


async def test_rights_and_the_master_key(
    cell: "Cell", identity: SubjectKeys, notifier: SubjectKeys, search: SubjectKeys
) -> None:
    asha = uuid4()
    sealed = await identity.seal(asha, "asha@example.in", "to")
    for attempt in (search.seal(uuid4(), "x", "to"), notifier.erase(asha)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await attempt
    other = await SubjectKeys.connect(cell.keys_url("identity"), base64.b64encode(bytes(32)).decode())
    with pytest.raises(MasterKeyWrong):
        await other.open(asha, sealed, "to")
    await other.close()
    connection = await asyncpg.connect(cell.keys_url("identity"))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch("SELECT * FROM vault.subject_key")
    await connection.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(cell.keys_url("wealth"))


async def test_the_master_key_is_replaced_while_services_run(cell: "Cell") -> None:
    former, new = MASTER, base64.b64encode(bytes(range(100, 132))).decode()

    async def keys(setting: str) -> SubjectKeys:
        return await SubjectKeys.connect(cell.keys_url("identity"), setting)

    before, first, second = await keys(former), await keys(f"{former},{new}"), await keys(f"{new},{former}")
    asha, ravi, gone = uuid4(), uuid4(), uuid4()
    sealed = await before.seal(asha, "asha", "to")
    await before.seal(gone, "gone", "to")
    await before.erase(gone)
    # Replicas that know both, whichever is first, read what the others seal.
    theirs = await second.seal(ravi, "ravi", "to")
    assert await first.open(ravi, theirs, "to") == "ravi"
    assert await second.open(asha, sealed, "to") == "asha"
    with pytest.raises(MasterKeyWrong):
        await before.open(ravi, theirs, "to")

    assert (await sangam(cell, "rewrap", SUBJECT_MASTER_KEY=new)).code == 2
    outcome = await sangam(cell, "rewrap", "--reason", "a test", SUBJECT_MASTER_KEY=f"{new},{former}")
    assert outcome.out.startswith("1 keys are wrapped"), outcome
    assert (await sangam(cell, "rewrap", SUBJECT_MASTER_KEY=f"{new},{former}")).out.startswith("0 keys")
    after, too_late = await keys(new), await keys(former)
    assert await after.open(asha, sealed, "to") == "asha"
    assert await after.open(ravi, theirs, "to") == "ravi"
    with pytest.raises(MasterKeyWrong):
        await too_late.open(asha, sealed, "to")
    with pytest.raises(SubjectErased):
        await after.seal(gone, "again", "to")
    for each in (before, first, second, after, too_late):
        await each.close()


async def test_a_services_own_key_outlives_what_wraps_it(cell: "Cell", identity: SubjectKeys) -> None:
    former, new, other = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3))
    with pytest.raises(MasterKeyWrong):
        await identity.own_key(former, None)
    replicas = [await SubjectKeys.connect(cell.keys_url("identity"), MASTER) for _ in range(4)]
    made = await asyncio.gather(*(each.own_key(former, os.urandom(32)) for each in replicas))
    assert len(set(made)) == 1, "replicas that start at once have one key"
    key = made[0]
    assert await identity.own_key(f"{former},{new}", os.urandom(32)) == key
    with pytest.raises(MasterKeyWrong):
        await identity.own_key(new, None)
    turned = await asyncio.gather(*(each.own_key(f"{new},{former}", None) for each in replicas))
    assert set(turned) == {key}
    assert await identity.own_key(new, None) == key
    for wrong in (former, other):
        with pytest.raises(MasterKeyWrong):
            await identity.own_key(wrong, os.urandom(32))
    for unusable in ("", "short", former + ",", f"{former};{new}"):
        with pytest.raises(ValueError, match="master key"):
            await identity.own_key(unusable, None)
    for each in replicas:
        await each.close()


async def test_a_services_own_key_is_its_own(cell: "Cell", identity: SubjectKeys, notifier: SubjectKeys) -> None:
    setting = base64.b64encode(bytes([1]) * 32).decode()
    gateway = await SubjectKeys.connect(cell.keys_url("sync_gateway"), MASTER)
    assert await identity.own_key(setting, os.urandom(32)) != await gateway.own_key(setting, os.urandom(32))
    await gateway.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await notifier.own_key(setting, os.urandom(32))
    connection = await asyncpg.connect(cell.keys_url("identity"))
    for statement in ("SELECT wrapped FROM vault.own_key", "UPDATE vault.own_key SET wrapped = ''"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()


@pytest.mark.parametrize("setting", ["", "short", MASTER + ",", base64.b64encode(b"x" * 31).decode()])
async def test_a_master_key_that_is_none_is_refused(cell: "Cell", setting: str) -> None:
    with pytest.raises(ValueError, match="master key"):
        await SubjectKeys.connect(cell.keys_url("identity"), setting)
