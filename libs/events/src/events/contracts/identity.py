"""identity: who a customer is, which platform customers are theirs, and their sessions.

`user-<user>` holds the person, `session-<root session>` one root session on both platforms,
`email_claim-<keyed hash as uuid>` and `platform_link-<uuid5 of platform:customer>` make e-mail and
platform customer unique: they are appended together with the user's event.
Fields named `sealed_*` are encrypted with a key only identity holds.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

from events.contracts.registry import Event, contract

Platform = Literal["bfc", "vyomo"]


@contract("identity.user.registered", public=False)
class UserRegistered(Event, frozen=True, kw_only=True):
    user_id: UUID
    sealed_profile: str
    """AES-GCM over `{"email", "full_name", "phone"}`, base64."""


@contract("identity.user.credential_changed", public=False)
class CredentialChanged(Event, frozen=True, kw_only=True):
    sealed_password_hash: str


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


@contract("identity.email_claim.taken", public=False)
class EmailClaimTaken(Event, frozen=True, kw_only=True):
    user_id: UUID


@contract("identity.platform_link.taken", public=False)
class PlatformLinkTaken(Event, frozen=True, kw_only=True):
    user_id: UUID
    platform: Platform
    platform_customer_id: str


@contract("identity.session.started")
class SessionStarted(Event, frozen=True, kw_only=True):
    session_id: UUID
    user_id: UUID
    platform: Platform
    acr: int
    expires_at: datetime


@contract("identity.session.refreshed", public=False)
class SessionRefreshed(Event, frozen=True, kw_only=True):
    session_id: UUID
    generation: int
    """Counts rotations from 1. The refresh token of a generation is computed, never stored."""
    refreshed_at: datetime


@contract("identity.session.revoked")
class SessionRevoked(Event, frozen=True, kw_only=True):
    session_id: UUID
    user_id: UUID
    reason: str


@contract("identity.session.reuse_detected")
class RefreshReuseDetected(Event, frozen=True, kw_only=True):
    session_id: UUID
    user_id: UUID


@contract("identity.signing_key.published", public=False)
class SigningKeyPublished(Event, frozen=True, kw_only=True):
    kid: str
    public_jwk: dict[str, str]
    sealed_private_key: str


@contract("identity.signing_key.retired", public=False)
class SigningKeyRetired(Event, frozen=True, kw_only=True):
    kid: str
