"""Personal data in events: encrypted with a key per data subject, so that destroying the key erases the person.

The log is append-only and its chain of hashes must stay valid, so what it says of a person is stored sealed
(AES-256-GCM). The keys are in a database of their own, each wrapped by a master key from the settings: neither the
event store, nor that database, nor a backup of either says anything alone.

    sealed = await keys.seal(user_id, text, "profile")      # for an event's field
    text = await keys.open(user_id, sealed, "profile")      # None: the person has been erased

A service may keep a key of its own there, too (`own_key`), for what no other service may read. It is wrapped with a
master key that only this service has, and stays the same when that one is replaced.
"""

import base64
import binascii
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from typing import Literal, NamedTuple
from uuid import UUID

import asyncpg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from events import pg
from events.passwords import connect_postgres

KEY_BYTES = 32
_NONCE_BYTES = 12
_FINGERPRINT_BYTES = 6
_SCHEME = "s1"
_OWN = b"own key"

CACHE_S_MAX = 30.0
"""A key destroyed by another process may be used here this much longer, unless `forget` is called."""
_CACHED_MAX = 20_000

Right = Literal["find", "find_or_create", "erase", "own_key"]
_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "find": ("find", "find_many"),
    "own_key": ("find_or_create_own", "rewrap_own"),
}
"""The functions that a right stands for, where that is not the one of its name."""


class SubjectErased(Exception):
    """The person has been erased: nothing is sealed for them any more."""


class SealBroken(Exception):
    """The text was not sealed for this subject and place, or was changed since."""


class MasterKeyWrong(Exception):
    """A key does not open with this master key. Refusing is the point: nothing else would open either."""


class _Key(NamedTuple):
    """A subject's key, ready for use: many texts of one subject come in one page."""

    cipher: AESGCM
    fingerprint: str
    since_s: float


class SubjectKeys:
    """Seals and opens fields. Keys are cached for seconds, so that reading a page of history costs one look-up."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", masters: Sequence[AESGCM]) -> None:
        self._pool = pool
        self._masters = masters
        self._cache: OrderedDict[UUID, _Key] = OrderedDict()
        self._buried: set[UUID] = set()
        """Erased, as the log has told this process. They are few, and never come back."""

    @classmethod
    async def connect(cls, url: str, master_key: str, *, connections: int = 4) -> "SubjectKeys":
        """Opens the key database with a service's URL.

        Args:
            master_key: base64 of 32 bytes. While it is replaced, two with a comma between: keys are wrapped with the
                first and open with either (`rewrap`).

        Raises:
            ValueError: the master key is not that.
        """
        masters = _ciphers(raw_keys(master_key))
        pool = asyncpg.create_pool(
            url,
            connect=connect_postgres,
            min_size=0,
            max_size=connections,
            timeout=5,
            command_timeout=10,
            server_settings={"application_name": "subject keys"},
            reset=pg.keep_session,
        )
        keys = cls(pool, masters)
        await pool
        return keys

    async def close(self) -> None:
        await self._pool.close()

    async def seal(self, subject: UUID, text: str, place: str) -> str:
        """Encrypts `text` for a field. `place` names the field: what is sealed for one does not open in another.

        Raises:
            SubjectErased
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        key = None
        if subject not in self._buried:
            key = self._cached(subject) or await self._find_or_create(subject)
        if key is None:
            raise SubjectErased
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + key.cipher.encrypt(nonce, text.encode(), _context(subject, place))
        return f"{_SCHEME}.{key.fingerprint}.{base64.b64encode(sealed).decode()}"

    async def open(self, subject: UUID, sealed: str, place: str) -> str | None:
        """The text of a sealed field; None once its key has been destroyed.

        Raises:
            SealBroken
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        scheme, _, rest = sealed.partition(".")
        fingerprint, _, encoded = rest.partition(".")
        if scheme != _SCHEME or not encoded:
            raise SealBroken(f"no sealed text of this scheme: {place}")
        key = await self._find(subject)
        if key is None or key.fingerprint != fingerprint:
            # Destroyed. Another key: the database was restored to before the key was made, and made one anew.
            return None
        try:
            raw = binascii.a2b_base64(encoded, strict_mode=True)
            nonce, ciphertext = raw[:_NONCE_BYTES], raw[_NONCE_BYTES:]
            return key.cipher.decrypt(nonce, ciphertext, _context(subject, place)).decode()
        except (binascii.Error, ValueError, InvalidTag):
            raise SealBroken(f"{place} does not open") from None

    async def fetch(self, subjects: Collection[UUID]) -> None:
        """Looks up at once the keys that sealing and opening for many subjects is about to need.

        Raises:
            OSError, asyncpg.PostgresError: the key database cannot be asked.
        """
        unknown = [subject for subject in subjects if subject not in self._buried and self._cached(subject) is None]
        if unknown:
            for row in await self._pool.fetch("SELECT subject, wrapped FROM vault.find_many($1)", unknown):
                self._remember(UUID(int=row["subject"].int), row["wrapped"])

    async def erase(self, subject: UUID) -> bool:
        """Destroys the subject's key for good. Whether there was one.

        Raises:
            asyncpg.InsufficientPrivilegeError: this role may not.
        """
        self.forget(subject)
        had_key: bool = await self._pool.fetchval("SELECT vault.erase($1)", subject)
        self.forget(subject)
        return had_key

    async def own_key(self, setting: str, first: bytes | None) -> bytes:
        """The key of the service whose role this is, the same for all replicas and for good.

        Args:
            setting: what it is wrapped with: base64 of 32 bytes. While that is replaced, several with commas between:
                any of them opens, and what another one than the first has wrapped is wrapped anew with the first.
            first: what the key becomes where there is none yet; None: there must be one.

        Raises:
            ValueError: `setting` is not usable.
            MasterKeyWrong: the key opens with none of them, or must be there and is not.
            OSError, asyncpg.PostgresError: the key database cannot be asked, or this role may not.
        """
        masters = [AESGCM(_derived(raw)) for raw in raw_keys(setting)]
        candidate = None if first is None else _wrap(masters[0], _OWN, first)
        wrapped: bytes | None = await self._pool.fetchval("SELECT vault.find_or_create_own($1)", candidate)
        if wrapped is None:
            raise MasterKeyWrong("what is stored was sealed with a key that is not in the key database")
        key = _unwrap(masters, _OWN, wrapped)
        try:
            _unwrap(masters[:1], _OWN, wrapped)
        except MasterKeyWrong:
            await self._pool.execute("SELECT vault.rewrap_own($1, $2)", wrapped, _wrap(masters[0], _OWN, key))
        return key

    def forget(self, subject: UUID) -> None:
        """Drops the subject's key from memory: what every process does when `identity.user.erased` comes by."""
        self._cache.pop(subject, None)

    def bury(self, subject: UUID) -> None:
        """From here on the subject has no key in this process, whether or not it is destroyed in the database yet."""
        self.forget(subject)
        self._buried.add(subject)

    def _cached(self, subject: UUID) -> _Key | None:
        entry = self._cache.get(subject)
        return entry if entry is not None and time.monotonic() - entry.since_s < CACHE_S_MAX else None

    async def _find(self, subject: UUID) -> _Key | None:
        if subject in self._buried:
            return None
        if (key := self._cached(subject)) is not None:
            return key
        return self._remember(subject, await self._pool.fetchval("SELECT vault.find($1)", subject))

    async def _find_or_create(self, subject: UUID) -> _Key | None:
        candidate = _wrap(self._masters[0], subject.bytes, os.urandom(KEY_BYTES))
        return self._remember(
            subject, await self._pool.fetchval("SELECT vault.find_or_create($1, $2)", subject, candidate)
        )

    def _remember(self, subject: UUID, wrapped: bytes | None) -> _Key | None:
        if wrapped is None:
            self.forget(subject)
            return None
        raw = _unwrap(self._masters, subject.bytes, wrapped)
        key = self._cache[subject] = _Key(AESGCM(raw), _fingerprint(raw), time.monotonic())
        self._cache.move_to_end(subject)
        while len(self._cache) > _CACHED_MAX:
            self._cache.popitem(last=False)
        return key


async def rewrap(admin_url: str, master_key: str) -> int:
    """Wraps every subject's key with the first master key of two; how many were wrapped with the other one.

    Raises:
        ValueError: `master_key` is not usable.
        MasterKeyWrong: a key opens with neither. Those before it are wrapped anew; it can be run again.
    """
    masters = _ciphers(raw_keys(master_key))
    connection = await connect_postgres(admin_url)
    count, last = 0, UUID(int=0)
    try:
        while rows := await connection.fetch(
            "SELECT subject, wrapped FROM vault.subject_key WHERE subject > $1 AND wrapped IS NOT NULL"
            " ORDER BY subject LIMIT 1000",
            last,
        ):
            last = UUID(int=rows[-1]["subject"].int)
            anew = []
            for row in rows:
                subject = UUID(int=row["subject"].int)
                try:
                    _unwrap(masters[:1], subject.bytes, row["wrapped"])
                except MasterKeyWrong:
                    key = _unwrap(masters, subject.bytes, row["wrapped"])
                    anew.append((subject, row["wrapped"], _wrap(masters[0], subject.bytes, key)))
            # One that was erased meanwhile stays erased.
            await connection.executemany(
                "UPDATE vault.subject_key SET wrapped = $3 WHERE subject = $1 AND wrapped = $2", anew
            )
            count += len(anew)
    finally:
        await connection.close()
    return count


def raw_keys(setting: str) -> list[bytes]:
    """The master keys of a setting, the one to wrap with first.

    Raises:
        ValueError: it is not base64 of 32 bytes each, with commas between.
    """
    try:
        raw = [base64.b64decode(each.strip(), validate=True) for each in setting.split(",")]
    except binascii.Error:
        raise ValueError("the master key must be base64") from None
    if any(len(each) != KEY_BYTES for each in raw):
        raise ValueError(f"the master key must have {KEY_BYTES} bytes")
    return raw


def _ciphers(raw: Sequence[bytes]) -> list[AESGCM]:
    return [AESGCM(each) for each in raw]


def _derived(raw: bytes) -> bytes:
    """The wrapping key of a service's setting: that may have sealed something itself before there were own keys."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"sangam/own-key").derive(raw)


def _wrap(master: AESGCM, context: bytes, key: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + master.encrypt(nonce, key, context)


def _unwrap(masters: Sequence[AESGCM], context: bytes, wrapped: bytes) -> bytes:
    for master in masters:
        with contextlib.suppress(InvalidTag):
            return master.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
    raise MasterKeyWrong("a key does not open with this master key")


async def install(admin_url: str, *, rights: Mapping[str, Sequence[Right]]) -> None:
    """Creates or updates the schema `vault` in the key database. Safe to run again.

    Args:
        rights: what each login role may do. No role may touch the table.
    """
    connection = await connect_postgres(admin_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('vault.install'))")
            await connection.execute(resources.files("events").joinpath("sealing.sql").read_text())
            await connection.execute("REVOKE ALL ON ALL TABLES IN SCHEMA vault FROM PUBLIC")
            await connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vault FROM PUBLIC")
            for role, functions in rights.items():
                quoted = '"' + role.replace('"', '""') + '"'
                await connection.execute(f"GRANT USAGE ON SCHEMA vault TO {quoted}")
                for function in (name for right in functions for name in _FUNCTIONS.get(right, (right,))):
                    await connection.execute(f"GRANT EXECUTE ON FUNCTION vault.{function} TO {quoted}")
    finally:
        await connection.close()


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"sangam/subject-key" + key).hexdigest()[: 2 * _FINGERPRINT_BYTES]


def _context(subject: UUID, place: str) -> bytes:
    return subject.bytes + place.encode()
