"""identity: who a customer is, which platform customers are theirs, and their sessions.

`user-<user>` holds the person, `session-<root session>` one root session on both platforms with everything under
it, `sign_in-<user>` which root sessions a user has, `email_claim-<keyed hash as uuid>` and
`platform_link-<uuid5 of platform:customer>` make e-mail and platform customer unique: they are appended together
with the user's event.

Fields named `sealed_*` are encrypted. Those of a person (`sealed_profile`, `sealed_device`, `code_sealed`,
`to_sealed`) open with `events.sealing` and are gone once the person is erased; the others with a key that only
identity holds.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from events.contracts.registry import Event, contract

Platform = Literal["bfc", "vyomo"]
CodePurpose = Literal["password_reset", "email_verification", "email_change"]


@contract("identity.user.registered", public=False)
class UserRegistered(Event, frozen=True, kw_only=True):
    user_id: UUID
    sealed_profile: str
    """`{"email", "full_name", "phone"}` as JSON; `SubjectKeys.open(user_id, sealed_profile, "profile")`."""


@contract("identity.user.profile_changed", public=False)
class ProfileChanged(Event, frozen=True, kw_only=True):
    sealed_profile: str
    """The whole profile as of now, in the form of `UserRegistered`."""
    email_verified: bool = False
    """Whether the address in it has been proven."""


@contract("identity.user.credential_changed", public=False)
class CredentialChanged(Event, frozen=True, kw_only=True):
    sealed_password_hash: str
    reason: Literal["registered", "changed", "reset"] = "registered"


@contract("identity.user.mfa_offered", public=False)
class MfaOffered(Event, frozen=True, kw_only=True):
    """A TOTP secret was shown to the user, who has yet to prove that their device has it."""

    sealed_secret: str
    expires_at: datetime


@contract("identity.user.mfa_enrolled", public=False)
class MfaEnrolled(Event, frozen=True, kw_only=True):
    sealed_secret: str
    recovery_hashes: tuple[str, ...]
    """Keyed hashes of the recovery codes that were shown once."""
    time_step: int
    """The TOTP time step whose code proved the device; neither it nor an earlier one is taken again."""


@contract("identity.user.mfa_removed", public=False)
class MfaRemoved(Event, frozen=True, kw_only=True):
    reason: Literal["asked", "replaced"] = "asked"


@contract("identity.user.otp_used", public=False)
class OtpUsed(Event, frozen=True, kw_only=True):
    """A TOTP code was taken. Decided on the user's stream, so a code is taken once in all sessions together."""

    time_step: int


@contract("identity.user.recovery_code_used", public=False)
class RecoveryCodeUsed(Event, frozen=True, kw_only=True):
    recovery_hash: str
    left: int
    """How many codes the user still has."""


@contract("identity.user.locked", public=False)
class UserLocked(Event, frozen=True, kw_only=True):
    """Too many wrong passwords or codes: the account answers no login until then."""

    locked_until: datetime
    cause: Literal["password", "otp", "code"]


@contract("identity.code.issued", public=False)
class CodeIssued(Event, frozen=True, kw_only=True):
    """A single-use code for a person. notifier's e-mail channel sends it, once per event, before it expires."""

    user_id: UUID
    code_id: UUID
    purpose: CodePurpose
    code_hash: str
    """Keyed hash, by which identity knows the code again."""
    code_sealed: str
    """`SubjectKeys.open(user_id, code_sealed, "code")`: the code as text."""
    to_sealed: str
    """`SubjectKeys.open(user_id, to_sealed, "to")`: the e-mail address to send it to."""
    expires_at: datetime


@contract("identity.code.used", public=False)
class CodeUsed(Event, frozen=True, kw_only=True):
    code_id: UUID
    purpose: CodePurpose


@contract("identity.user.link_requested", public=False)
class LinkRequested(Event, frozen=True, kw_only=True):
    link_id: UUID
    platform: Platform
    platform_customer_id: str
    nonce: str
    expires_at: datetime


@contract("identity.user.link_confirmed")
class LinkConfirmed(Event, frozen=True, kw_only=True):
    link_id: UUID
    platform: Platform
    platform_customer_id: str
    platform_stream: str
    """The stream of that platform customer's items: `bank_customer-…` or `broker_client-…`."""


@contract("identity.user.link_removed")
class LinkRemoved(Event, frozen=True, kw_only=True):
    link_id: UUID
    platform: Platform
    platform_customer_id: str
    platform_stream: str
    """Its later items are not this user's any more; those up to here stay in the history, read only."""


@contract("identity.user.erased")
class UserErased(Event, frozen=True, kw_only=True):
    """The person is to be forgotten: whoever holds rows of theirs deletes them when this comes by.

    The key of everything sealed for them is destroyed by then. What the law requires to be kept (money) stays,
    without memo, counterparty and reference.
    """

    user_id: UUID
    erased_at: datetime
    platform_streams: tuple[str, ...] = ()
    """The platform customers that were linked, each as the stream of its items. They are unlinked by this."""


@contract("identity.email_claim.taken", public=False)
class EmailClaimTaken(Event, frozen=True, kw_only=True):
    user_id: UUID


@contract("identity.email_claim.released", public=False)
class EmailClaimReleased(Event, frozen=True, kw_only=True):
    user_id: UUID


@contract("identity.platform_link.taken", public=False)
class PlatformLinkTaken(Event, frozen=True, kw_only=True):
    user_id: UUID
    platform: Platform
    platform_customer_id: str


@contract("identity.platform_link.released", public=False)
class PlatformLinkReleased(Event, frozen=True, kw_only=True):
    user_id: UUID
    platform: Platform
    platform_customer_id: str


@contract("identity.sign_in.opened", public=False)
class SignInOpened(Event, frozen=True, kw_only=True):
    """A root session of the user began; appended together with `identity.session.started`."""

    session_id: UUID
    platform: Platform
    opened_at: datetime
    expires_at: datetime
    sealed_device: str | None = None
    """`{"user_agent", "address"}` as JSON; `SubjectKeys.open(user_id, sealed_device, "device")`."""
    device_id: str | None = None
    """A keyed hash of the user agent: tells devices apart and says nothing about them."""
    new_device: bool = False
    """Whether the user has signed in before, but not from such a device lately."""


@contract("identity.sign_in.closed", public=False)
class SignInClosed(Event, frozen=True, kw_only=True):
    """Root sessions of the user ended before their time; appended together with their revocation."""

    session_ids: tuple[UUID, ...]


@contract("identity.session.started")
class SessionStarted(Event, frozen=True, kw_only=True):
    session_id: UUID
    user_id: UUID
    platform: Platform
    acr: int
    expires_at: datetime
    mfa: bool = False
    """Whether the user had enrolled TOTP by then."""


@contract("identity.session.platform_joined")
class PlatformJoined(Event, frozen=True, kw_only=True):
    """A platform session under the root: it ends with the root, or before."""

    session_id: UUID
    user_id: UUID
    platform: Platform
    joined_at: datetime
    client_id: str | None = None
    """The OpenID client whose grant it is; None where a token was exchanged."""
    grant_id: UUID | None = None


@contract("identity.session.extended", public=False)
class SessionExtended(Event, frozen=True, kw_only=True):
    """Both platforms' sessions were brought to one state."""

    session_id: UUID
    active_at: datetime
    """The latest activity on any platform."""
    acr: int
    expires_at: datetime


@contract("identity.session.stepped_up")
class SteppedUp(Event, frozen=True, kw_only=True):
    """A step-up token was given out: for this amount and payee, to be used once until it expires."""

    session_id: UUID
    user_id: UUID
    jti: UUID
    amount_minor: int
    currency: str
    to_account_id: UUID | None
    expires_at: datetime


@contract("identity.session.token_exchanged")
class TokenExchanged(Event, frozen=True, kw_only=True):
    """RFC 8693: a token for the other platform was given out under the same root session."""

    session_id: UUID
    user_id: UUID
    jti: UUID
    from_platform: Platform
    to_platform: Platform
    scope: str
    acr: int
    exchanged_at: datetime


@contract("identity.session.code_issued", public=False)
class AuthorizationCodeIssued(Event, frozen=True, kw_only=True):
    """An OpenID authorization code. The code itself is computed with a key, never stored."""

    session_id: UUID
    grant_id: UUID
    client_id: str
    platform: Platform
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    """PKCE, S256."""
    auth_time: datetime
    expires_at: datetime


@contract("identity.session.refreshed", public=False)
class SessionRefreshed(Event, frozen=True, kw_only=True):
    session_id: UUID
    generation: int
    """Counts rotations from 1. The refresh token of a generation is computed, never stored."""
    refreshed_at: datetime
    grant_id: UUID | None = None
    """The OpenID grant whose family it is; None for the root session's own."""


@contract("identity.session.revoked")
class SessionRevoked(Event, frozen=True, kw_only=True):
    """The root session and everything under it has ended: no token of it is good from here on."""

    session_id: UUID
    user_id: UUID
    reason: str
    """`logout`, `logout_all`, `ended_elsewhere`, `refresh_token_reuse`, `code_reuse`, `password_changed`,
    `password_reset`, `too_many_sessions`, `erased`."""
    revoked_at: datetime | None = None
    clients: tuple[str, ...] = ()
    """The OpenID clients that had a grant under it: each is told by back-channel logout."""


@contract("identity.session.reuse_detected")
class RefreshReuseDetected(Event, frozen=True, kw_only=True):
    session_id: UUID
    user_id: UUID


@contract("identity.signing_key.published", public=False)
class SigningKeyPublished(Event, frozen=True, kw_only=True):
    kid: str
    public_jwk: dict[str, str]
    sealed_private_key: str
    published_at: datetime | None = None
    signs_from: datetime | None = None
    """From when on tokens are signed with it; before, verifiers only learn it. None: at once."""


@contract("identity.signing_key.retired", public=False)
class SigningKeyRetired(Event, frozen=True, kw_only=True):
    kid: str


@contract("access.ops.used", public=False)
class OpsUsed(Event, frozen=True, kw_only=True):
    """An operator's token was used on a route, appended by the service that was asked, before it did anything.

    Stream `ops_audit-<uuid of the client>`; every service may append to it.
    """

    client_id: str
    service: str
    method: str
    route: str
    """The route's template, not the address."""
    user_id: UUID | None
    """The customer it acted for, if the request named one."""
    scopes: tuple[str, ...]
    used_at: datetime
