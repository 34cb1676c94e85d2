"""Registration, login, refresh, exchange, step-up, status: from passwords and tokens to the streams and back."""

import asyncio
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from chassis.request import request_metadata
from chassis.tokens import PLATFORM_AUDIENCES, Caller, InvalidToken, TokenVerifier
from events.contracts.identity import EmailClaimTaken, Platform, RefreshReuseDetected, UserLocked
from events.decisions import Streams
from events.envelope import new_id
from events.store import EventStore, StreamAppend, VersionConflict

from identity import sessions, users
from identity.contact import EmailAddress
from identity.passwords import PasswordHashing
from identity.people import People, Profile
from identity.root_sessions import Device, Opened, RootSessions
from identity.sealing import IdentityKey, keyed_uuid
from identity.second_factor import SecondFactor
from identity.sessions import Session, SessionEnded
from identity.throttle import LIMITS, Throttle, TooManyAttempts
from identity.tokens import AccessTokens, InvalidRefreshToken, RefreshTokens
from identity.users import Claim, Link, User

log = structlog.get_logger(__name__)

ACR_PASSWORD = 1
"""Authentication context of a login by password alone."""

ACR_SECOND_FACTOR = 2
"""Password and a code."""


class EmailTaken(Exception):
    """Another user has this e-mail address."""


class InvalidCredentials(Exception):
    """No such user, or another password. Which of the two is nobody's business."""


class OtpRequired(Exception):
    """The password is right, and a second factor is enrolled."""


class ExchangeRefused(Exception):
    """RFC 8693, 2.2.2: `error` is one of OAuth's codes."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error = error
        self.description = description


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


class Exchanged(NamedTuple):
    access_token: str
    expires_in_s: int
    scope: str
    event_id: UUID


class SteppedUp(NamedTuple):
    step_up_token: str
    expires_in_s: int
    event_id: UUID


class Status(NamedTuple):
    """A live session and its user."""

    session: Session
    expires_at: datetime
    user: User
    links: tuple[Link, ...]


class SignIn:
    """The commands and reads of users and their sessions. All state is in the streams."""

    def __init__(
        self,
        store: EventStore,
        user_streams: Streams[User],
        roots: RootSessions,
        people: People,
        identity_key: IdentityKey,
        hashing: PasswordHashing,
        access_tokens: AccessTokens,
        second_factor: SecondFactor,
        throttle: Throttle,
    ) -> None:
        self._users = user_streams
        self._roots = roots
        self._people = people
        self._email_claims = Streams(store, "email_claim", Claim(), users.evolve_claim)
        self._identity_key = identity_key
        self._email_key = identity_key.mac_key("email")
        self._hashing = hashing
        self._access_tokens = access_tokens
        self._refresh_tokens = RefreshTokens(identity_key)
        self._second_factor = second_factor
        self._throttle = throttle
        self._background: set[asyncio.Task[None]] = set()

    async def register(
        self, email: EmailAddress, password: str, full_name: str, phone: str, device: Device
    ) -> Registered:
        """Makes a user.

        Raises:
            EmailTaken: also when a parallel registration was first.
            Overloaded, TooManyAttempts
        """
        await self._throttle.take("register_address", device.address or "")
        user_id = new_id()
        claim_id = self.claim_id(email)
        # Looked up before hashing: a taken address costs no 30 ms of a core.
        claim, version = await self._email_claims.load(claim_id)
        if claim.holder is not None:
            raise EmailTaken
        profile = Profile(email=email.address, full_name=full_name, phone=phone)
        sealed_hash = await self.sealed_hash(user_id, password)
        sealed_profile = await self._people.seal(user_id, profile)
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

    async def login(
        self, email: EmailAddress | None, password: str, platform: Platform, otp: str | None, device: Device
    ) -> Grant:
        """Opens a session. `email` is None where the text was no address.

        Raises:
            InvalidCredentials, OtpRequired, InvalidOtp, TooManyAttempts, Overloaded
        """
        opened, user_id = await self.authenticate(email, password, platform, otp, device)
        return self._grant(opened.session, opened.session_id, user_id, 0, opened.now, opened.event_id)

    async def authenticate(
        self, email: EmailAddress | None, password: str, platform: Platform, otp: str | None, device: Device
    ) -> tuple[Opened, UUID]:
        """A new root session for whoever has the password and, if enrolled, the second factor.

        An unknown address costs the same reads, the same counting and the same hash as a wrong password.

        Raises:
            InvalidCredentials, OtpRequired, InvalidOtp, TooManyAttempts, Overloaded
        """
        claim_id = self.claim_id(email) if email is not None else new_id()
        address = device.address or ""
        holder = (await self._email_claims.load(claim_id))[0].holder
        await self._count_login(str(claim_id), address, holder)
        user, version = await self._users.load(holder or claim_id)
        stored = self._opened_hash(holder, user) if holder is not None else None
        if not await self._hashing.verify(stored, password) or holder is None:
            raise InvalidCredentials
        await self._throttle.forgive_login(str(claim_id), address)
        acr, current = ACR_PASSWORD, user
        if user.mfa is not None:
            if otp is None:
                raise OtpRequired
            await self._second_factor.prove(holder, otp)
            acr = ACR_SECOND_FACTOR
            current, version = await self._users.load(holder)  # the code that was taken is in there
        while True:
            # The session begins only if the password that was shown is still the one: a change or an erasure
            # meanwhile has ended all sessions, and this one would outlive it.
            if current.erased or current.sealed_password_hash != user.sealed_password_hash:
                raise InvalidCredentials
            unchanged = StreamAppend(f"user-{holder}", (), version)
            try:
                opened = await self._roots.open(
                    holder, platform, acr=acr, mfa=current.mfa is not None, device=device, also=[unchanged]
                )
            except VersionConflict:
                current, version = await self._users.load(holder)
                continue
            return opened, holder

    async def refresh(self, refresh_token: str) -> Grant:
        """Rotates a refresh token.

        Raises:
            InvalidRefreshToken: also for a token used again, which ends its session.
        """
        token = self._refresh_tokens.read(refresh_token)
        now = datetime.now(UTC)
        # Read first for the envelope's subject; the decision below reads again as it needs.
        session = await self._roots.load(token.session_id)
        try:
            user_id = sessions.owner(session, now)
            decided = await self._roots.decide(
                token.session_id,
                lambda current: sessions.refresh(current, token.session_id, token.generation, now),
                user_id=user_id,
                metadata=request_metadata(f"user:{user_id}", session.platform),
            )
        except SessionEnded:
            raise InvalidRefreshToken from None
        if any(isinstance(event, RefreshReuseDetected) for event in decided.events):
            raise InvalidRefreshToken
        user, _ = await self._users.load(user_id)
        event_id = decided.event_id if decided.events else None
        return self._grant(
            session, token.session_id, user_id, token.generation + 1, now, event_id, mfa=user.mfa is not None
        )

    async def exchange(
        self, caller: Caller, verifier: TokenVerifier, subject_token: str, audience: str, scope: str | None
    ) -> Exchanged:
        """RFC 8693: a token for the other platform under the same root session, never more than the one given.

        Raises:
            ExchangeRefused, SessionEnded
        """
        try:
            subject = await verifier.verify(subject_token, PLATFORM_AUDIENCES)
        except InvalidToken as error:
            if error.code == "session_ended":
                raise SessionEnded from None
            raise ExchangeRefused("invalid_request", "The subject token is not valid") from None
        if (subject.sub, subject.sid) != (caller.user_id, caller.session_id):
            raise ExchangeRefused("invalid_request", "The subject token is of another session")
        if audience not in PLATFORM_AUDIENCES or audience == subject.aud:
            raise ExchangeRefused("invalid_target", "The audience must be the other platform")
        held = subject.scope.split()
        wanted = held if scope is None else list(dict.fromkeys(scope.split()))
        if not wanted or not set(wanted) <= set(held):
            raise ExchangeRefused("invalid_scope", "The scope can only be narrowed")
        now = datetime.now(UTC)
        source: Platform = "vyomo" if audience == "bfc" else "bfc"
        target: Platform = "bfc" if audience == "bfc" else "vyomo"
        jti, session = new_id(), await self._roots.load(caller.session_id)
        acr = min(subject.acr, session.acr)
        # It ends with the token it was made from: exchanging back and forth gains no time.
        expires_at = min(now + self._access_tokens.lifetime, datetime.fromtimestamp(subject.exp, UTC))
        decided = await self._roots.decide(
            caller.session_id,
            lambda current: sessions.exchange(
                current, caller.session_id, jti, source, target, " ".join(wanted), acr, now
            ),
            user_id=caller.user_id,
            metadata=caller.metadata(),
        )
        act: dict[str, Any] = {"sub": subject.client_id or source}
        if subject.act is not None:
            act["act"] = subject.act
        token = self._access_tokens.issue(
            user_id=caller.user_id,
            session_id=caller.session_id,
            platform=target,
            acr=acr,
            now=now,
            mfa=subject.mfa,
            scope=" ".join(wanted),
            jti=jti,
            expires_at=expires_at,
            act=act,
        )
        return Exchanged(token, int((expires_at - now).total_seconds()), " ".join(wanted), decided.event_id)

    async def step_up(
        self, caller: Caller, otp: str, amount_minor: int, currency: str, to_account_id: UUID | None
    ) -> SteppedUp:
        """A token that confirms one operation.

        Raises:
            SessionEnded, MfaNotEnrolled, InvalidOtp, TooManyAttempts
        """
        await self._roots.live(caller.session_id, caller.user_id)
        await self._second_factor.prove(caller.user_id, otp, recovery=False)
        now, jti = datetime.now(UTC), new_id()
        decided = await self._roots.decide(
            caller.session_id,
            lambda session: sessions.step_up(
                session,
                caller.session_id,
                jti,
                amount_minor=amount_minor,
                currency=currency,
                to_account_id=to_account_id,
                now=now,
            ),
            user_id=caller.user_id,
            metadata=caller.metadata(),
        )
        token = self._access_tokens.issue_step_up(
            user_id=caller.user_id,
            session_id=caller.session_id,
            jti=jti,
            amount_minor=amount_minor,
            currency=currency,
            to_account_id=to_account_id,
            now=now,
            lifetime=sessions.STEP_UP_LIFETIME,
        )
        return SteppedUp(token, int(sessions.STEP_UP_LIFETIME.total_seconds()), decided.event_id)

    async def synchronise(self, caller: Caller) -> Status:
        """Brings both platforms' sessions to one state.

        Raises:
            SessionEnded
        """
        now = datetime.now(UTC)
        await self._roots.decide(
            caller.session_id,
            lambda session: sessions.synchronise(session, caller.session_id, now),
            user_id=caller.user_id,
            metadata=caller.metadata(),
        )
        return await self.status(caller)

    async def status(self, caller: Caller) -> Status:
        """The caller's session, fresh from its stream.

        Raises:
            SessionEnded: the access token outlived its session.
        """
        session = await self._roots.live(caller.session_id, caller.user_id)
        user, _ = await self._users.load(caller.user_id)
        assert session.expires_at is not None
        return Status(session, session.expires_at, user, user.links)

    async def check_password(self, user_id: UUID, password: str) -> User:
        """The user, if that is the password.

        Raises:
            InvalidCredentials, TooManyAttempts, Overloaded
        """
        await self._throttle.take("login_account", str(user_id))
        user, _ = await self._users.load(user_id)
        if not await self._hashing.verify(self._opened_hash(user_id, user), password):
            raise InvalidCredentials
        await self._throttle.forgive("login_account", str(user_id), all_of_them=True)
        return user

    async def sealed_hash(self, user_id: UUID, password: str) -> str:
        """The password's hash as `CredentialChanged` holds it.

        Raises:
            Overloaded
        """
        hashed = await self._hashing.hash(password)
        return self._identity_key.seal(hashed.encode(), f"user-{user_id}", "sealed_password_hash")

    def claim_id(self, email: EmailAddress) -> UUID:
        """The id of the stream that says whose the address is."""
        return keyed_uuid(self._email_key, email.unique)

    async def holder(self, email: EmailAddress) -> UUID | None:
        """Whose the address is."""
        return (await self._email_claims.load(self.claim_id(email)))[0].holder

    async def claim(self, email: EmailAddress) -> tuple[UUID | None, int]:
        """Whose the address is, and the version of the stream that says so."""
        claim, version = await self._email_claims.load(self.claim_id(email))
        return claim.holder, version

    async def drain(self) -> None:
        """Waits for what goes on after answers were given."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _count_login(self, account: str, address: str, holder: UUID | None) -> None:
        try:
            await self._throttle.take_all(("login_address", address), ("login_account", account))
        except TooManyAttempts as error:
            if error.first and error.kind == "login_account" and holder is not None:
                # Afterwards, so that the answer takes as long as for an address nobody has.
                task = asyncio.create_task(self._note_lock(holder))
                self._background.add(task)
                task.add_done_callback(self._background.discard)
            raise

    async def _note_lock(self, user_id: UUID) -> None:
        locked = UserLocked(locked_until=datetime.now(UTC) + LIMITS["login_account"].window, cause="password")
        try:
            await self._users.execute(
                user_id,
                lambda user: [] if user.erased else [locked],
                event_id=new_id(),
                subject=user_id,
                metadata=request_metadata("service:identity"),
            )
        except Exception:
            log.exception("lock_not_noted")

    def _opened_hash(self, user_id: UUID, user: User) -> str | None:
        if user.sealed_password_hash is None:
            return None
        return self._identity_key.open(user.sealed_password_hash, f"user-{user_id}", "sealed_password_hash").decode()

    def _grant(
        self,
        session: Session,
        session_id: UUID,
        user_id: UUID,
        generation: int,
        now: datetime,
        event_id: UUID | None,
        *,
        mfa: bool | None = None,
    ) -> Grant:
        access_token = self._access_tokens.issue(
            user_id=user_id,
            session_id=session_id,
            platform=session.platform,
            acr=session.acr,
            now=now,
            mfa=session.mfa if mfa is None else mfa,
        )
        return Grant(access_token, self._refresh_tokens.issue(session_id, generation), session_id, event_id)
