"""A user: who they are, and which platform customers are theirs. Stream `user-<user id>`.

Two claims make an e-mail address and a platform customer unique. Each is a stream of its own,
appended in one piece with the user's event, so of two parallel claims one fails.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from events.contracts.identity import (
    CodeIssued,
    CodePurpose,
    CodeUsed,
    CredentialChanged,
    EmailClaimReleased,
    EmailClaimTaken,
    LinkConfirmed,
    LinkRemoved,
    LinkRequested,
    MfaEnrolled,
    MfaOffered,
    MfaRemoved,
    OtpUsed,
    Platform,
    PlatformLinkReleased,
    PlatformLinkTaken,
    ProfileChanged,
    RecoveryCodeUsed,
    UserErased,
    UserRegistered,
)
from events.contracts.registry import Event
from events.decisions import Refusal
from events.envelope import platform_stream

LINK_LIFETIME = timedelta(minutes=10)
"""How long a customer has to approve a link in the platform's own app."""

OPEN_LINKS_MAX = 20
"""Unconfirmed link requests remembered per user; the oldest is forgotten first."""


class LinkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A link the user asked for and has not confirmed."""

    platform: Platform
    customer_id: str
    nonce: str
    expires_at: datetime


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A platform customer that is this user's, proven by the platform."""

    link_id: UUID
    platform: Platform
    customer_id: str


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A TOTP secret that was shown and not confirmed."""

    sealed_secret: str
    expires_at: datetime


class Mfa(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled second factor."""

    sealed_secret: str
    recovery_hashes: tuple[str, ...]
    """Of the codes that are left."""
    last_step: int
    """The latest TOTP time step whose code was taken."""


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A single-use code that was sent."""

    code_id: UUID
    purpose: CodePurpose
    hashed: str
    to_sealed: str
    expires_at: datetime


class User(msgspec.Struct, frozen=True, kw_only=True):
    """What a user's stream says. Sealed fields are opened outside: this module holds no key."""

    registered: bool = False
    erased: bool = False
    sealed_profile: str | None = None
    email_verified: bool = False
    sealed_password_hash: str | None = None
    mfa: Mfa | None = None
    offer: Offer | None = None
    codes: dict[str, Code] = {}
    """The latest unused code of each purpose."""
    requests: dict[UUID, LinkRequest] = {}
    """Open link requests by link id, oldest first."""
    links: tuple[Link, ...] = ()


class LinkNotFound(Refusal):
    """This user has no such link request on that platform."""

    code = "link_not_found"


class LinkExpired(Refusal):
    """The link was not confirmed in time."""

    code = "link_expired"


def register(user_id: UUID, sealed_profile: str, sealed_password_hash: str) -> Sequence[Event]:
    """The first events of a new user."""
    return [
        UserRegistered(user_id=user_id, sealed_profile=sealed_profile),
        CredentialChanged(sealed_password_hash=sealed_password_hash),
    ]


def request_link(link_id: UUID, platform: Platform, customer_id: str, nonce: str, now: datetime) -> Sequence[Event]:
    """Opens a link request. Nothing is said of the customer's other links before ownership is proven."""
    return [
        LinkRequested(
            link_id=link_id,
            platform=platform,
            platform_customer_id=customer_id,
            nonce=nonce,
            expires_at=now + LINK_LIFETIME,
        )
    ]


def confirmed_link(user: User, link_id: UUID, platform: Platform) -> Link | None:
    """The link that the request led to, if it was confirmed already."""
    return next((link for link in user.links if (link.link_id, link.platform) == (link_id, platform)), None)


def open_request(user: User, link_id: UUID, platform: Platform, now: datetime) -> LinkRequest:
    """The request that a confirmation is for.

    Raises:
        LinkNotFound, LinkExpired
    """
    request = user.requests.get(link_id)
    if request is None or request.platform != platform:
        raise LinkNotFound
    if request.expires_at <= now:
        raise LinkExpired
    return request


def confirm_link(user: User, link_id: UUID, platform: Platform, now: datetime) -> Sequence[Event]:
    """Makes the platform customer the user's, ownership being proven. Confirming again changes nothing.

    Raises:
        LinkNotFound, LinkExpired
    """
    if confirmed_link(user, link_id, platform):
        return []
    request = open_request(user, link_id, platform, now)
    if any((link.platform, link.customer_id) == (platform, request.customer_id) for link in user.links):
        return []
    return [
        LinkConfirmed(
            link_id=link_id,
            platform=platform,
            platform_customer_id=request.customer_id,
            platform_stream=platform_stream(platform, request.customer_id),
        )
    ]


def remove_links(user: User, platform: Platform) -> Sequence[Event]:
    """Takes the platform's customers off the user. The history up to here stays theirs, read only."""
    return [
        LinkRemoved(
            link_id=link.link_id,
            platform=link.platform,
            platform_customer_id=link.customer_id,
            platform_stream=platform_stream(link.platform, link.customer_id),
        )
        for link in user.links
        if link.platform == platform
    ]


def erase(user: User, user_id: UUID, now: datetime) -> Sequence[Event]:
    """Forgets the person. Doing it again changes nothing."""
    if user.erased or not user.registered:
        return []
    streams = tuple(platform_stream(link.platform, link.customer_id) for link in user.links)
    return [UserErased(user_id=user_id, erased_at=now, platform_streams=streams)]


def evolve(user: User, event: Event) -> User:
    """The user after the event."""
    match event:
        case UserRegistered():
            return msgspec.structs.replace(user, registered=True, sealed_profile=event.sealed_profile)
        case ProfileChanged():
            return msgspec.structs.replace(
                user, sealed_profile=event.sealed_profile, email_verified=event.email_verified
            )
        case UserErased():
            return User(registered=True, erased=True)
        case MfaOffered():
            offered = Offer(sealed_secret=event.sealed_secret, expires_at=event.expires_at)
            return msgspec.structs.replace(user, offer=offered)
        case MfaEnrolled():
            mfa = Mfa(
                sealed_secret=event.sealed_secret, recovery_hashes=event.recovery_hashes, last_step=event.time_step
            )
            return msgspec.structs.replace(user, mfa=mfa, offer=None)
        case MfaRemoved():
            return msgspec.structs.replace(user, mfa=None)
        case OtpUsed() if user.mfa is not None:
            return msgspec.structs.replace(user, mfa=msgspec.structs.replace(user.mfa, last_step=event.time_step))
        case RecoveryCodeUsed() if user.mfa is not None:
            left = tuple(each for each in user.mfa.recovery_hashes if each != event.recovery_hash)
            return msgspec.structs.replace(user, mfa=msgspec.structs.replace(user.mfa, recovery_hashes=left))
        case CodeIssued():
            code = Code(
                code_id=event.code_id,
                purpose=event.purpose,
                hashed=event.code_hash,
                to_sealed=event.to_sealed,
                expires_at=event.expires_at,
            )
            return msgspec.structs.replace(user, codes={**user.codes, event.purpose: code})
        case CodeUsed():
            left_codes = {purpose: code for purpose, code in user.codes.items() if code.code_id != event.code_id}
            return msgspec.structs.replace(user, codes=left_codes)
        case CredentialChanged():
            return msgspec.structs.replace(user, sealed_password_hash=event.sealed_password_hash)
        case LinkRequested():
            request = LinkRequest(
                platform=event.platform,
                customer_id=event.platform_customer_id,
                nonce=event.nonce,
                expires_at=event.expires_at,
            )
            requests = [*user.requests.items(), (event.link_id, request)]
            return msgspec.structs.replace(user, requests=dict(requests[-OPEN_LINKS_MAX:]))
        case LinkConfirmed():
            link = Link(link_id=event.link_id, platform=event.platform, customer_id=event.platform_customer_id)
            requests = [(link_id, open_) for link_id, open_ in user.requests.items() if link_id != link.link_id]
            return msgspec.structs.replace(user, requests=dict(requests), links=(*user.links, link))
        case LinkRemoved():
            kept = tuple(link for link in user.links if link.link_id != event.link_id)
            return msgspec.structs.replace(user, links=kept)
        case _:
            return user


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds an e-mail address (`email_claim-…`) or a platform customer (`platform_link-…`)."""

    holder: UUID | None = None


def evolve_claim(claim: Claim, event: Event) -> Claim:
    """The claim after the event."""
    match event:
        case EmailClaimTaken() | PlatformLinkTaken():
            return Claim(holder=event.user_id)
        case EmailClaimReleased() | PlatformLinkReleased():
            return Claim()
        case _:
            return claim


def platform_link_id(platform: Platform, customer_id: str) -> str:
    """The id of the stream that says whose the platform customer is."""
    return platform_stream(platform, customer_id).split("-", 1)[1]
