"""Sealing per data subject, over the real key database with the rights of real roles."""

import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest
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


async def test_rights_and_the_master_key(cell: "Cell", identity: SubjectKeys, notifier: SubjectKeys) -> None:
    asha = uuid4()
    sealed = await identity.seal(asha, "asha@example.in", "to")
    for attempt in (notifier.seal(uuid4(), "x", "to"), notifier.erase(asha)):
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
