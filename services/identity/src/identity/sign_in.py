"""Registration, login, refresh, status: from the password and the tokens to the streams and back."""

from datetime import UTC, datetime
from functools import reduce
from typing import NamedTuple
from uuid import UUID

import msgspec
from chassis.request import request_metadata
from chassis.tokens import Caller
from events.contracts.identity import EmailClaimTaken, Platform, RefreshReuseDetected
from events.decisions import Streams
from events.envelope import new_id
from events.store import EventStore, StreamAppend, VersionConflict

from identity import sessions, users
from identity.contact import EmailAddress
from identity.passwords import PasswordHashing
from identity.sealing import IdentityKey, keyed_uuid
from identity.sessions import Session, SessionEnded
from identity.tokens import AccessTokens, InvalidRefreshToken, RefreshTokens
from identity.users import Claim, Link, User

ACR_PASSWORD = 1
"""Authentication context of a login by password alone."""


class EmailTaken(Exception):
    """Another user has this e-mail address."""


class InvalidCredentials(Exception):
    """No such user, or another password. Which of the two is nobody's business."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Who a user is. Stored sealed."""

    email: str
    full_name: str
    phone: str


class Registered(NamedTuple):
    user_id: UUID
    event_id: UUID


class Grant(NamedTuple):
    """What a login or a refresh gives."""

    access_token: str
    refresh_token: str
    session_id: UUID
    event_id: UUID | None
    """The event that it appended; None when a refresh was repeated within the grace."""


class Status(NamedTuple):
    """A live session and its user's links."""

    session: Session
    expires_at: datetime
    links: tuple[Link, ...]


class SignIn:
    """The commands and reads of users and their sessions. All state is in the streams."""

    def __init__(
        self,
        store: EventStore,
        user_streams: Streams[User],
        identity_key: IdentityKey,
        hashing: PasswordHashing,
        access_tokens: AccessTokens,
    ) -> None:
        self._users = user_streams
        self._sessions = Streams(store, "session", Session(), sessions.evolve)
        self._email_claims = Streams(store, "email_claim", Claim(), users.evolve_claim)
        self._identity_key = identity_key
        self._email_key = identity_key.mac_key("email")
        self._hashing = hashing
        self._access_tokens = access_tokens
        self._refresh_tokens = RefreshTokens(identity_key)

    async def register(self, email: EmailAddress, password: str, full_name: str, phone: str) -> Registered:
        """Makes a user.

        Raises:
            EmailTaken: also when a parallel registration was first.
            Overloaded
        """
        user_id = new_id()
        claim_id = self._claim_id(email)
        # Looked up before hashing: a taken address costs no 30 ms of a core.
        claim, version = await self._email_claims.load(claim_id)
        if claim.holder is not None:
            raise EmailTaken
        stream = f"user-{user_id}"
        profile = Profile(email=email.address, full_name=full_name, phone=phone)
        sealed_profile = self._identity_key.seal(msgspec.json.encode(profile), stream, "sealed_profile")
        password_hash = await self._hashing.hash(password)
        sealed_hash = self._identity_key.seal(password_hash.encode(), stream, "sealed_password_hash")
        try:
            decided = await self._users.execute(
                user_id,
                lambda _: users.register(user_id, sealed_profile, sealed_hash),
                event_id=new_id(),
                subject=user_id,
                metadata=request_metadata(f"user:{user_id}"),
                also=[StreamAppend(f"email_claim-{claim_id}", (EmailClaimTaken(user_id=user_id),), version)],
            )
        except VersionConflict:
            # The user's stream is new, so it is the claim that moved: somebody else was first.
            raise EmailTaken from None
        return Registered(user_id, decided.event_id)

    async def login(self, email: EmailAddress | None, password: str, platform: Platform) -> Grant:
        """Opens a session. `email` is None where the text was no address.

        An unknown address costs the same reads and the same hash as a wrong password.

        Raises:
            InvalidCredentials, Overloaded
        """
        user_id, stored = None, None
        if email is not None:
            claim_id = self._claim_id(email)
            user_id = (await self._email_claims.load(claim_id))[0].holder
            stored = await self._password_hash(user_id or claim_id)
        if not await self._hashing.verify(stored, password) or user_id is None:
            raise InvalidCredentials
        session_id = new_id()
        now = datetime.now(UTC)
        decided = await self._sessions.execute(
            session_id,
            lambda _: sessions.start(session_id, user_id, platform, acr=ACR_PASSWORD, now=now),
            event_id=new_id(),
            subject=user_id,
            metadata=request_metadata(f"user:{user_id}", platform),
        )
        session = reduce(sessions.evolve, decided.events, Session())
        return self._grant(session, session_id, user_id, 0, now, decided.event_id)

    async def refresh(self, refresh_token: str) -> Grant:
        """Rotates a refresh token.

        Raises:
            InvalidRefreshToken: also for a token used again, which ends its session.
        """
        token = self._refresh_tokens.read(refresh_token)
        now = datetime.now(UTC)
        # Read first for the envelope's subject; the decision below reads again as it needs.
        session, _ = await self._sessions.load(token.session_id)
        try:
            user_id = sessions.owner(session, now)
            # A fresh event id each time: one derived from the generation would answer a stolen token,
            # used again much later, with the first use's outcome.
            decided = await self._sessions.execute(
                token.session_id,
                lambda current: sessions.refresh(current, token.session_id, token.generation, now),
                event_id=new_id(),
                subject=user_id,
                metadata=request_metadata(f"user:{user_id}", session.platform),
            )
        except SessionEnded:
            raise InvalidRefreshToken from None
        if any(isinstance(event, RefreshReuseDetected) for event in decided.events):
            raise InvalidRefreshToken
        event_id = decided.event_id if decided.events else None
        return self._grant(session, token.session_id, user_id, token.generation + 1, now, event_id)

    async def status(self, caller: Caller) -> Status:
        """The caller's session, fresh from its stream.

        Raises:
            SessionEnded: the access token outlived its session.
        """
        session, _ = await self._sessions.load(caller.session_id)
        if sessions.owner(session, datetime.now(UTC)) != caller.user_id:
            raise SessionEnded
        user, _ = await self._users.load(caller.user_id)
        assert session.expires_at is not None
        return Status(session, session.expires_at, user.links)

    def _claim_id(self, email: EmailAddress) -> UUID:
        return keyed_uuid(self._email_key, email.unique)

    async def _password_hash(self, user_id: UUID) -> str | None:
        user, _ = await self._users.load(user_id)
        if user.sealed_password_hash is None:
            return None
        sealed = user.sealed_password_hash
        return self._identity_key.open(sealed, f"user-{user_id}", "sealed_password_hash").decode()

    def _grant(
        self,
        session: Session,
        session_id: UUID,
        user_id: UUID,
        generation: int,
        now: datetime,
        event_id: UUID | None,
    ) -> Grant:
        access_token = self._access_tokens.issue(
            user_id=user_id, session_id=session_id, platform=session.platform, acr=session.acr, now=now
        )
        return Grant(access_token, self._refresh_tokens.issue(session_id, generation), session_id, event_id)
