"""The signing keys over time: one signs, the next is made known before it does, the last is trusted until its tokens
are gone. Each key has a stream of its own (`keys.py`); replicas that rotate at once agree on one key.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import structlog
from events.contracts.identity import SigningKeyPublished, SigningKeyRetired
from events.contracts.registry import Event
from events.decisions import Streams
from events.envelope import Metadata, new_id
from events.outage import is_outage
from events.sealing import KEY_BYTES, SubjectKeys, raw_keys
from events.store import EventStore

from identity import keys
from identity.keys import KeyState, SigningKey
from identity.sealing import IdentityKey, SealBroken

log = structlog.get_logger(__name__)

ROTATE_AFTER = timedelta(days=30)
KNOWN_BEFORE_USE = timedelta(seconds=60)
"""How long every verifier has to learn a key before tokens are signed with it."""

TRUSTED_AFTER_USE = timedelta(minutes=30)
"""How long a key that signs no more is trusted: longer than any token lives."""

TEND_EVERY_S = 30.0
_BY_IDENTITY = Metadata(actor="service:identity")


async def identity_key(setting: str, store: EventStore, subject_keys: SubjectKeys) -> IdentityKey:
    """The key that everything of identity is sealed and hashed with; `setting` is what wraps it (docs/decisions/0096).

    Raises:
        ValueError: `setting` is not usable.
        MasterKeyWrong: `IDENTITY_KEY` is not the one that this store was filled with. Refusing to start is the point:
            with another key no e-mail address or password would be found again.
    """
    first: bytes | None = os.urandom(KEY_BYTES)
    for event in await store.read_stream(f"{keys.CATEGORY}-{keys.stream_id(1)}", limit=1):
        assert isinstance(event.payload, SigningKeyPublished)
        first = None  # it has been made, unless the store is of the time when the setting itself was the key
        for raw in raw_keys(setting):
            with contextlib.suppress(SealBroken):
                keys.opened(event.payload, 1, IdentityKey(raw))
                first = raw
    return IdentityKey(await subject_keys.own_key(setting, first))


class KeyRing:
    """All keys that are published and not retired."""

    def __init__(
        self, store: EventStore, identity_key: IdentityKey, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._streams = Streams(store, keys.CATEGORY, KeyState(), keys.evolve)
        self._identity_key = identity_key
        self._clock = clock
        self._keys: dict[int, SigningKey] = {}
        self._last_number = 0

    def current(self) -> SigningKey:
        """The key to sign with: the newest that every verifier has had the time to learn."""
        now = self._clock()
        usable = [number for number, key in self._keys.items() if key.signs_from is None or key.signs_from <= now]
        return self._keys[max(usable)]

    @property
    def public_jwks(self) -> list[dict[str, str]]:
        """The public keys that tokens may be signed with, now or soon, the oldest first."""
        return [key.public_jwk for _, key in sorted(self._keys.items())]

    async def load(self) -> None:
        """Learns of all keys; makes the first one.

        Raises:
            SealBroken: a key was sealed with another identity key.
        """
        found, number = {}, 1
        while (state := (await self._streams.load(keys.stream_id(number)))[0]).published is not None:
            if not state.retired:
                found[number] = self._keys.get(number) or keys.opened(state.published, number, self._identity_key)
            number += 1
        self._last_number = number - 1
        if not found:
            await self._publish(number, signs_from=None)
            await self.load()
            return
        self._keys = found

    async def rotate(self, *, known_before_use: timedelta = KNOWN_BEFORE_USE) -> None:
        """Publishes the next key; it signs once everybody has had the time to learn it."""
        await self._publish(self._last_number + 1, signs_from=self._clock() + known_before_use)
        await self.load()

    async def tend(self) -> None:
        """Rotates when it is time to, and retires keys whose tokens are gone."""
        await self.load()
        now = self._clock()
        newest = self._keys[max(self._keys)]
        if newest.published_at is None or now - newest.published_at > ROTATE_AFTER:
            await self.rotate()
        numbers = sorted(self._keys)
        for number, successor in pairwise(numbers):
            since = self._keys[successor].signs_from
            if since is not None and now - since > TRUSTED_AFTER_USE:
                await self._retire(number)
        await self.load()

    async def tend_forever(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            try:
                await self.tend()
            except Exception as error:
                if not is_outage(error):
                    raise
                log.warning("keys_not_tended", error=repr(error))

    async def _publish(self, number: int, *, signs_from: datetime | None) -> None:
        candidate = keys.generate(number, self._identity_key, published_at=self._clock(), signs_from=signs_from)
        await self._streams.execute(
            keys.stream_id(number),
            lambda state: keys.publish(state, candidate),
            event_id=new_id(),
            metadata=_BY_IDENTITY,
        )

    async def _retire(self, number: int) -> None:
        def decide(state: KeyState) -> list[Event]:
            if state.retired or state.published is None:
                return []
            return [SigningKeyRetired(kid=state.published.kid)]

        await self._streams.execute(keys.stream_id(number), decide, event_id=new_id(), metadata=_BY_IDENTITY)
