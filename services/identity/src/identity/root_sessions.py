"""Root sessions: opened together with the user's list of them, ended together, and announced to every verifier."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol
from uuid import UUID

import msgspec
from chassis.request import request_metadata
from events.contracts.identity import Platform, SessionRevoked
from events.contracts.registry import Event
from events.decisions import Decided, Streams
from events.envelope import Metadata, new_id
from events.sealing import SubjectKeys
from events.store import EventStore, StreamAppend, VersionConflict

from identity import sessions, sign_ins
from identity.revocation_board import ReceiptLine
from identity.sessions import Session, SessionEnded
from identity.sign_ins import SignIn, SignIns

LOGOUT, LOGOUT_ALL, ENDED_ELSEWHERE = "logout", "logout_all", "ended_elsewhere"
TOO_MANY = "too_many_sessions"


class Announcer(Protocol):
    """Tells every verifier that sessions have ended (`revocation_board.RevocationBoard`)."""

    async def announce(self, session_ids: list[UUID]) -> list[ReceiptLine]: ...


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Where a login came from. Stored sealed."""

    user_agent: str | None
    address: str | None


class Opened(NamedTuple):
    session_id: UUID
    session: Session
    now: datetime
    event_id: UUID


class Ended(NamedTuple):
    """`session_ids` are those that this call ended; those that had ended before are not among them."""

    session_ids: list[UUID]
    receipt: list[ReceiptLine]
    event_id: UUID | None


class Ending(NamedTuple):
    """Sessions that end together with something else, in one append."""

    session_ids: list[UUID]
    parts: list[StreamAppend]


class Listed(NamedTuple):
    session_id: UUID
    sign_in: SignIn
    session: Session
    device: Device | None


class RootSessions:
    """The streams `session-…` and `sign_in-…`."""

    def __init__(self, store: EventStore, keys: SubjectKeys, announcer: Announcer, device_key: bytes) -> None:
        self._sessions = Streams(store, "session", Session(), sessions.evolve)
        self._sign_ins = Streams(store, "sign_in", SignIns(), sign_ins.evolve)
        self._keys = keys
        self._announcer = announcer
        self._device_key = device_key

    async def open(
        self,
        user_id: UUID,
        platform: Platform,
        *,
        acr: int,
        mfa: bool,
        device: Device,
        also: Iterable[StreamAppend] = (),
    ) -> Opened:
        """A new root session. If the user has as many as one may have, the oldest ends.

        Raises:
            SubjectErased: the user is gone.
            VersionConflict: a part of `also` does not hold.
        """
        session_id, device_id = new_id(), self._device_id(user_id, device)
        sealed_device = await self._keys.seal(user_id, msgspec.json.encode(device).decode(), "device")
        metadata = request_metadata(f"user:{user_id}", platform)
        also = tuple(also)
        while True:
            now = datetime.now(UTC)
            known, _ = await self._sign_ins.load(user_id)
            surplus = sign_ins.surplus(known, now)
            ending = await self._ending(surplus, TOO_MANY, now)
            started = tuple(sessions.start(session_id, user_id, platform, acr=acr, mfa=mfa, now=now))
            parts = [*also, StreamAppend(f"session-{session_id}", started, 0), *ending]

            def decide(current: SignIns, now: datetime = now, surplus: list[UUID] = surplus) -> "tuple[Event, ...]":
                if sign_ins.surplus(current, now) != surplus:
                    raise _Moved
                return tuple(
                    sign_ins.open_sign_in(
                        current,
                        session_id,
                        platform,
                        device_id=device_id,
                        sealed_device=sealed_device,
                        expires_at=now + sessions.LIFETIME,
                        now=now,
                    )
                )

            try:
                decided = await self._sign_ins.execute(
                    user_id, decide, event_id=new_id(), subject=user_id, metadata=metadata, also=parts
                )
            except _Moved:
                continue
            except VersionConflict as conflict:
                if any(conflict.stream == part.stream for part in also):
                    raise
                continue
            break
        if surplus:
            await self._announcer.announce(surplus)
        session = sessions.evolve(Session(), started[0])
        return Opened(session_id, session, now, decided.event_id)

    async def end(
        self, user_id: UUID, which: Callable[[SignIns, datetime], Iterable[UUID]], reason: str, metadata: Metadata
    ) -> Ended:
        """Ends the sessions of the user that `which` picks, all in one append, and tells every verifier."""
        while True:
            now = datetime.now(UTC)
            known, _ = await self._sign_ins.load(user_id)
            picked = [session_id for session_id in which(known, now) if session_id in known.open]
            ending = await self._ending(picked, reason, now)
            if not ending:
                return Ended([], [], None)

            def decide(current: SignIns, picked: list[UUID] = picked, now: datetime = now) -> "tuple[Event, ...]":
                # A login meanwhile: it must be among those that "everywhere" ends.
                if [session_id for session_id in which(current, now) if session_id in current.open] != picked:
                    raise _Moved
                return tuple(sign_ins.close(current, picked))

            try:
                decided = await self._sign_ins.execute(
                    user_id, decide, event_id=new_id(), subject=user_id, metadata=metadata, also=ending
                )
            except (VersionConflict, _Moved):
                continue  # a session was refreshed or a login came in between: look again
            break
        ended = [_session_of(part) for part in ending]
        return Ended(ended, await self._announcer.announce(ended), decided.event_id)

    async def ending(self, user_id: UUID, which: Callable[[SignIns], Iterable[UUID]], reason: str) -> Ending:
        """What ends the sessions of the user that `which` picks, to be appended with the cause of it.

        It does not hold any more once a session has begun, or one of them was used: `VersionConflict`, and ask again.
        """
        known, version = await self._sign_ins.load(user_id)
        picked = [session_id for session_id in which(known) if session_id in known.open]
        sessions_ending = await self._ending(picked, reason, datetime.now(UTC))
        parts = [StreamAppend(f"sign_in-{user_id}", tuple(sign_ins.close(known, picked)), version)] if version else []
        return Ending([_session_of(part) for part in sessions_ending], [*parts, *sessions_ending])

    async def announce(self, session_ids: list[UUID]) -> list[ReceiptLine]:
        """Tells every verifier of sessions that a decision on their own stream has ended."""
        return await self._announcer.announce(session_ids)

    async def load(self, session_id: UUID) -> Session:
        """The session, fresh from its stream."""
        return (await self._sessions.load(session_id))[0]

    async def live(self, session_id: UUID, user_id: UUID) -> Session:
        """The user's live session, fresh from its stream.

        Raises:
            SessionEnded
        """
        session = await self.load(session_id)
        if sessions.owner(session, datetime.now(UTC)) != user_id:
            raise SessionEnded
        return session

    async def decide(
        self, session_id: UUID, decide: Callable[[Session], Iterable[Event]], *, user_id: UUID, metadata: Metadata
    ) -> Decided:
        """Decides on the session's own stream; a revocation among the events is announced.

        Raises:
            Refusal: as `decide` raised it.
        """
        # A fresh event id each time: one derived from a token would answer a stolen one, used again much
        # later, with the first use's outcome.
        decided = await self._sessions.execute(
            session_id, lambda session: tuple(decide(session)), event_id=new_id(), subject=user_id, metadata=metadata
        )
        if any(isinstance(event, SessionRevoked) for event in decided.events):
            await self._announcer.announce([session_id])
        return decided

    async def listed(self, user_id: UUID) -> list[Listed]:
        """The user's live sessions, the latest first."""
        now = datetime.now(UTC)
        known, _ = await self._sign_ins.load(user_id)
        found = []
        for session_id, sign_in in sign_ins.live(known, now).items():
            session = await self.load(session_id)
            if session.revoked:
                continue  # by reuse of a token, which is decided on the session alone
            text = await self._keys.open(user_id, sign_in.sealed_device, "device") if sign_in.sealed_device else None
            device = msgspec.json.decode(text, type=Device) if text is not None else None
            found.append(Listed(session_id, sign_in, session, device))
        return found[::-1]

    async def _ending(self, session_ids: Iterable[UUID], reason: str, now: datetime) -> list[StreamAppend]:
        parts = []
        for session_id in session_ids:
            session, version = await self._sessions.load(session_id)
            if events := tuple(sessions.revoke(session, session_id, reason, now)):
                parts.append(StreamAppend(f"session-{session_id}", events, version))
        return parts

    def _device_id(self, user_id: UUID, device: Device) -> str | None:
        if device.user_agent is None:
            return None
        text = user_id.bytes + device.user_agent.encode()
        return hmac.new(self._device_key, text, hashlib.sha256).hexdigest()[:16]


def _session_of(part: StreamAppend) -> UUID:
    return UUID(part.stream.split("-", 1)[1])


class _Moved(Exception):
    """What was decided on has changed: decide again."""
