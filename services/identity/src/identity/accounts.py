"""What a person does with their account: password, e-mail address, everything we hold on them, and its erasure."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import structlog
from chassis.request import request_metadata
from chassis.tokens import Caller
from events.contracts.identity import (
    CodePurpose,
    CredentialChanged,
    EmailClaimReleased,
    EmailClaimTaken,
    PlatformLinkReleased,
    ProfileChanged,
    UserErased,
)
from events.contracts.registry import Event
from events.decisions import Streams
from events.envelope import Metadata, RecordedEvent, new_id
from events.sealing import SubjectErased, SubjectKeys
from events.store import EventStore, StreamAppend, VersionConflict

from identity import codes, contact, users
from identity.contact import EmailAddress
from identity.people import People, Profile
from identity.root_sessions import Ended, RootSessions
from identity.sealing import IdentityKey
from identity.second_factor import SecondFactor
from identity.sign_in import EmailTaken, InvalidCredentials, OtpRequired, SignIn
from identity.sign_ins import SignIns
from identity.throttle import Throttle, TooManyAttempts
from identity.users import Claim, User

log = structlog.get_logger(__name__)

PASSWORD_CHANGED, PASSWORD_RESET, ERASED = "password_changed", "password_reset", "erased"

KEPT_BY_LAW = (
    "Transactions and balances, without names, memos, counterparties and references: eight years"
    " (Companies Act 2013, section 128; PMLA rules, 2005)"
)


class Changed(NamedTuple):
    """`ended` are the sessions that ended by it."""

    ended: Ended
    event_id: UUID


class Accounts:
    """Commands on `user-…` that the person gives about themselves."""

    def __init__(
        self,
        store: EventStore,
        user_streams: Streams[User],
        roots: RootSessions,
        people: People,
        sign_in: SignIn,
        second_factor: SecondFactor,
        keys: SubjectKeys,
        identity_key: IdentityKey,
        throttle: Throttle,
    ) -> None:
        self._store = store
        self._users = user_streams
        self._platform_links = Streams(store, "platform_link", Claim(), users.evolve_claim)
        self._roots = roots
        self._people = people
        self._sign_in = sign_in
        self._second_factor = second_factor
        self._keys = keys
        self._code_key = identity_key.mac_key("code")
        self._throttle = throttle
        self._background: set[asyncio.Task[None]] = set()

    # Password.

    async def change_password(self, caller: Caller, current: str, new: str) -> Changed:
        """Takes another password; all other sessions end.

        Raises:
            InvalidCredentials, TooManyAttempts, Overloaded
        """
        user = await self._sign_in.check_password(caller.user_id, current)
        changed = CredentialChanged(
            sealed_password_hash=await self._sign_in.sealed_hash(caller.user_id, new), reason="changed"
        )

        def decide(now_user: User) -> "list[Event]":
            if now_user.sealed_password_hash != user.sealed_password_hash:
                raise InvalidCredentials  # changed meanwhile: what was shown is not the password any more
            return [changed]

        return await self._execute_ending(
            caller.user_id,
            decide,
            lambda known: [each for each in known.open if each != caller.session_id],
            PASSWORD_CHANGED,
            caller.metadata(),
        )

    def forget_password(self, email: EmailAddress | None) -> None:
        """Sends a code, if somebody has that address. Afterwards: the answer says and takes the same for everybody."""
        if email is not None:
            self._later(self._send_to_holder(email, "password_reset"))

    async def reset_password(self, email: EmailAddress | None, code: str, new: str) -> Changed:
        """Takes another password from whoever has the code; every session ends, and an enrolled second factor stays.

        Raises:
            InvalidCode: also where nobody has that address.
            TooManyAttempts, Overloaded
        """
        user_id, hashed = await self._presented(email, code)
        user, _ = await self._users.load(user_id)
        now = datetime.now(UTC)
        codes.open_code(user, ["password_reset"], hashed, now)  # before hashing: a wrong one costs no 30 ms
        changed = CredentialChanged(sealed_password_hash=await self._sign_in.sealed_hash(user_id, new), reason="reset")
        done = await self._execute_ending(
            user_id,
            lambda current: [*codes.use(current, ["password_reset"], hashed, now), changed],
            lambda known: list(known.open),
            PASSWORD_RESET,
            request_metadata(f"user:{user_id}"),
        )
        await self._throttle.forgive("code", str(user_id), all_of_them=True)
        return done

    # E-mail address and profile.

    def send_verification_later(self, user_id: UUID) -> None:
        """Sends a code to the address of somebody who has just registered, after the answer."""
        self._later(self.send_verification(user_id))

    async def send_verification(self, user_id: UUID) -> None:
        """Sends a code to an address that is not proven yet.

        Raises:
            TooManyAttempts
        """
        await self._throttle.take("mail", str(user_id))
        user, _ = await self._users.load(user_id)
        if (profile := await self._people.profile(user_id, user)) is not None and not user.email_verified:
            await self._issue(user_id, "email_verification", profile.email)

    async def change_contact(
        self, caller: Caller, password: str, *, email: EmailAddress | None, full_name: str | None, phone: str | None
    ) -> UUID | None:
        """Changes name and phone at once; a new e-mail address once its code has come back.

        Raises:
            EmailTaken, InvalidCredentials, TooManyAttempts, Overloaded
        """
        user = await self._sign_in.check_password(caller.user_id, password)
        event_id = None
        if full_name is not None or phone is not None:
            profile = await self._existing_profile(caller.user_id, user)
            profile = msgspec.structs.replace(
                profile, full_name=full_name or profile.full_name, phone=phone or profile.phone
            )
            event_id = await self._change_profile(caller.user_id, user, profile, caller.metadata())
        if email is not None:
            if await self._sign_in.holder(email) not in (None, caller.user_id):
                raise EmailTaken
            await self._throttle.take("mail", str(caller.user_id))
            await self._issue(caller.user_id, "email_change", email.address)
        return event_id

    async def verify_email(self, email: EmailAddress | None, code: str) -> UUID:
        """Takes the address, or a new one, as proven.

        Raises:
            InvalidCode, EmailTaken, TooManyAttempts
        """
        now = datetime.now(UTC)
        user_id, hashed = await self._presented(email, code)
        while True:
            user, _ = await self._users.load(user_id)
            found = codes.open_code(user, ["email_verification", "email_change"], hashed, now)
            profile = await self._existing_profile(user_id, user)
            to = await self._keys.open(user_id, found.to_sealed, "to")
            assert to is not None, "the profile opened with the same key"
            also = await self._moved_claim(user_id, profile.email, to)
            sealed = await self._people.seal(user_id, msgspec.structs.replace(profile, email=to))
            changed = ProfileChanged(sealed_profile=sealed, email_verified=True)

            def decide(current: User, user: User = user, changed: ProfileChanged = changed) -> "list[Event]":
                used = codes.use(current, ["email_verification", "email_change"], hashed, now)
                if current.sealed_profile != user.sealed_profile:
                    raise _Moved
                return [*used, changed]

            try:
                event_id = await self._execute(user_id, decide, request_metadata(f"user:{user_id}"), also)
            except (VersionConflict, _Moved):
                continue
            await self._throttle.forgive("code", str(user_id), all_of_them=True)
            return event_id

    async def account_name(self, user_id: UUID) -> str:
        """What an authenticator app shows beside the code."""
        user, _ = await self._users.load(user_id)
        profile = await self._people.profile(user_id, user)
        return profile.email if profile is not None else str(user_id)

    # Everything, and nothing.

    async def export(self, user_id: UUID) -> dict[str, Any]:
        """Everything identity holds on the person, readable."""
        user, _ = await self._users.load(user_id)
        profile = await self._people.profile(user_id, user)
        listed = await self._roots.listed(user_id)
        history = await self._store.read_stream(f"user-{user_id}")
        return {
            "user_id": user_id,
            "profile": profile,
            "email_verified": user.email_verified,
            "second_factor": user.mfa is not None,
            "links": user.links,
            "sessions": [
                {"session_id": each.session_id, "opened_at": each.sign_in.opened_at, "device": each.device}
                for each in listed
            ],
            "history": [_told(event) for event in history],
        }

    async def erase(self, caller: Caller, password: str, otp: str | None) -> tuple[Ended, UUID]:
        """Forgets the person: address and links are released, every session ends, their key is destroyed.

        Raises:
            InvalidCredentials, MfaNotEnrolled, InvalidOtp, TooManyAttempts, Overloaded
        """
        user = await self._sign_in.check_password(caller.user_id, password)
        if user.mfa is not None:
            if otp is None:
                raise OtpRequired
            await self._second_factor.prove(caller.user_id, otp)
        return await self.erase_user(caller.user_id, caller.metadata())

    async def erase_user(self, user_id: UUID, metadata: Metadata) -> tuple[Ended, UUID]:
        """The erasure itself. Done again after a crash, it goes on where it ended (`erasures.Erasures`)."""
        while True:
            user, _ = await self._users.load(user_id)
            if user.erased or not user.registered:
                ended = await self._roots.end(user_id, lambda known, _: list(known.open), ERASED, metadata)
                event_id = ended.event_id or new_id()
                break
            now = datetime.now(UTC)
            try:
                ended, event_id = await self._execute_ending(
                    user_id,
                    lambda current, user=user, now=now: _unmoved(user, current, users.erase(current, user_id, now)),
                    lambda known: list(known.open),
                    ERASED,
                    metadata,
                    await self._released(user_id, user),
                )
            except (VersionConflict, _Moved):
                continue
            break
        # Last: before, a session could have sealed something for them, with a new key.
        for subject in (*await self._platform_subjects(user_id), user_id):
            await self._keys.erase(subject)
        return ended, event_id

    async def close(self) -> None:
        """Waits for what goes on after answers were given."""
        await asyncio.gather(*self._background, return_exceptions=True)

    # How.

    async def _platform_subjects(self, user_id: UUID) -> list[UUID]:
        """Whom the platforms' items about the erased person are sealed for."""
        history = [event.payload for event in await self._store.read_stream(f"user-{user_id}")]
        streams = [stream for event in history if isinstance(event, UserErased) for stream in event.platform_streams]
        return [UUID(stream.split("-", 1)[1]) for stream in streams]

    async def _execute(
        self, user_id: UUID, decide: Any, metadata: Metadata, also: "tuple[StreamAppend, ...]" = ()
    ) -> UUID:
        decided = await self._users.execute(
            user_id, decide, event_id=new_id(), subject=user_id, metadata=metadata, also=also
        )
        return decided.event_id

    async def _execute_ending(
        self,
        user_id: UUID,
        decide: Any,
        which: Callable[[SignIns], Iterable[UUID]],
        reason: str,
        metadata: Metadata,
        also: "tuple[StreamAppend, ...]" = (),
    ) -> Changed:
        """Decides and ends sessions in one append: a crash leaves no session that should have ended with it.

        Raises:
            VersionConflict: a part of `also` does not hold.
        """
        while True:
            ending = await self._roots.ending(user_id, which, reason)
            try:
                event_id = await self._execute(user_id, decide, metadata, (*also, *ending.parts))
            except VersionConflict as conflict:
                if all(conflict.stream != part.stream for part in ending.parts):
                    raise
                continue
            receipt = await self._roots.announce(ending.session_ids)
            return Changed(Ended(ending.session_ids, receipt, event_id), event_id)

    async def _existing_profile(self, user_id: UUID, user: User) -> Profile:
        profile = await self._people.profile(user_id, user)
        if profile is None:
            raise codes.InvalidCode  # erased meanwhile
        return profile

    async def _change_profile(self, user_id: UUID, user: User, profile: Profile, metadata: Metadata) -> UUID:
        sealed = await self._people.seal(user_id, profile)

        def decide(current: User) -> "list[Event]":
            if current.sealed_profile != user.sealed_profile:
                raise VersionConflict(f"user-{user_id}", None, 0)
            return [ProfileChanged(sealed_profile=sealed, email_verified=current.email_verified)]

        return await self._execute(user_id, decide, metadata)

    async def _presented(self, email: EmailAddress | None, code: str) -> tuple[UUID, str]:
        """Whose code that would be, and its hash; the attempt is counted, also for an address nobody has."""
        holder = await self._sign_in.holder(email) if email is not None else None
        counted = str(holder or (self._sign_in.claim_id(email) if email is not None else "no address"))
        await self._throttle.take("code", counted)
        if holder is None:
            raise codes.InvalidCode
        return holder, codes.code_hash(self._code_key, holder, code)

    async def _send_to_holder(self, email: EmailAddress, purpose: CodePurpose) -> None:
        holder = await self._sign_in.holder(email)
        if holder is None:
            return
        with contextlib.suppress(TooManyAttempts):
            await self._throttle.take("mail", str(holder))
            user, _ = await self._users.load(holder)
            if (profile := await self._people.profile(holder, user)) is not None:
                await self._issue(holder, purpose, profile.email)

    async def _issue(self, user_id: UUID, purpose: CodePurpose, to: str) -> None:
        """Appends the code, sealed: notifier's mail channel sends it."""
        code = "".join(secrets.choice(codes.ALPHABET) for _ in range(codes.LENGTH))
        shown = "-".join(code[i : i + 4] for i in range(0, codes.LENGTH, 4))
        with contextlib.suppress(SubjectErased):
            events = codes.issue(
                user_id,
                new_id(),
                purpose,
                hashed=codes.code_hash(self._code_key, user_id, code),
                code_sealed=await self._keys.seal(user_id, shown, "code"),
                to_sealed=await self._keys.seal(user_id, to, "to"),
                now=datetime.now(UTC),
            )
            await self._execute(
                user_id,
                lambda user: [] if user.erased or not user.registered else events,
                request_metadata("service:identity"),
            )

    async def _moved_claim(self, user_id: UUID, old: str, new: str) -> "tuple[StreamAppend, ...]":
        old_address, new_address = contact.email_address(old), contact.email_address(new)
        if old_address.unique == new_address.unique:
            return ()
        holder, version = await self._sign_in.claim(new_address)
        if holder not in (None, user_id):
            raise EmailTaken
        _, old_version = await self._sign_in.claim(old_address)
        return (
            StreamAppend(
                f"email_claim-{self._sign_in.claim_id(new_address)}", (EmailClaimTaken(user_id=user_id),), version
            ),
            StreamAppend(
                f"email_claim-{self._sign_in.claim_id(old_address)}",
                (EmailClaimReleased(user_id=user_id),),
                old_version,
            ),
        )

    async def _released(self, user_id: UUID, user: User) -> "tuple[StreamAppend, ...]":
        parts = []
        if (profile := await self._people.profile(user_id, user)) is not None:
            address = contact.email_address(profile.email)
            _, version = await self._sign_in.claim(address)
            claim = f"email_claim-{self._sign_in.claim_id(address)}"
            parts.append(StreamAppend(claim, (EmailClaimReleased(user_id=user_id),), version))
        for link in user.links:
            claim_id = users.platform_link_id(link.platform, link.customer_id)
            _, version = await self._platform_links.load(claim_id)
            released = PlatformLinkReleased(
                user_id=user_id, platform=link.platform, platform_customer_id=link.customer_id
            )
            parts.append(StreamAppend(f"platform_link-{claim_id}", (released,), version))
        return tuple(parts)

    def _later(self, work: Awaitable[None]) -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                log.exception("background_work_failed")

        task = asyncio.create_task(logged())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _Moved(Exception):
    """What was decided on has changed: decide again."""


def _unmoved(before: User, current: User, events: Any) -> Any:
    if (before.links, before.sealed_profile) != (current.links, current.sealed_profile):
        raise _Moved
    return events


def _told(event: RecordedEvent) -> dict[str, Any]:
    return {"type": event.type, "at": event.recorded_at, "asked_on": event.metadata.platform}
