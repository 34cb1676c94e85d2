"""A root session, valid on both platforms, with everything under it. Stream `session-<session id>`.

A refresh token is of one generation; using it starts the next one and ends it. A generation used
again later than the grace means that two parties hold the family: the session is revoked. Within
the grace it is a client that lost the answer, and it is given the same successor.

Under the root are the platform sessions, and the grants of the platforms' own apps (`grants.py`). All of them are in
this one stream, so none outlives the root.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from events.contracts.identity import (
    AuthorizationCodeIssued,
    Platform,
    PlatformJoined,
    RefreshReuseDetected,
    SessionExtended,
    SessionRefreshed,
    SessionRevoked,
    SessionStarted,
    SteppedUp,
    TokenExchanged,
)
from events.contracts.registry import Event
from events.decisions import Refusal

LIFETIME = timedelta(hours=24)
"""A session ends this long after the login, however often it is refreshed."""

REFRESH_GRACE = timedelta(seconds=10)

STEP_UP_LIFETIME = timedelta(seconds=120)

REUSE = "refresh_token_reuse"

PLATFORMS: tuple[Platform, ...] = ("bfc", "vyomo")


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What an app was granted under the session: first as an authorization code, then as a refresh family."""

    client_id: str
    platform: Platform
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    auth_time: datetime
    code_expires_at: datetime
    redeemed: bool = False
    generation: int = 0
    refreshed_at: datetime | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's stream says. Before `SessionStarted` it belongs to nobody."""

    user_id: UUID | None = None
    platform: Platform = "bfc"
    acr: int = 0
    mfa: bool = False
    expires_at: datetime | None = None
    generation: int = 0
    """The generation of the refresh token that is valid now."""
    refreshed_at: datetime | None = None
    """When the generation began; None for the first."""
    revoked: bool = False
    active: dict[Platform, datetime] = {}
    """The platforms that the session is used on, with the last activity on each."""
    grants: dict[UUID, Grant] = {}


class SessionEnded(Refusal):
    """There is no such session, or it expired, or it was revoked."""

    code = "session_ended"


def start(
    session_id: UUID, user_id: UUID, platform: Platform, *, acr: int, now: datetime, mfa: bool = False
) -> Sequence[Event]:
    """Opens a session by a login on `platform`."""
    expires_at = now + LIFETIME
    return [
        SessionStarted(
            session_id=session_id, user_id=user_id, platform=platform, acr=acr, expires_at=expires_at, mfa=mfa
        )
    ]


def owner(session: Session, now: datetime) -> UUID:
    """Whose the live session is.

    Raises:
        SessionEnded
    """
    live = session.expires_at is not None and now < session.expires_at and not session.revoked
    if session.user_id is None or not live:
        raise SessionEnded
    return session.user_id


def refresh(
    session: Session, session_id: UUID, generation: int, now: datetime, grant_id: UUID | None = None
) -> Sequence[Event]:
    """Uses the (authentic) refresh token of `generation`, of the root's family or of a grant's.

    The next generation's token is the answer, unless the events say that reuse was detected; no
    event at all is a repetition within the grace.

    Raises:
        SessionEnded: also for a generation that was never given out.
    """
    user_id = owner(session, now)
    family: Session | Grant = session
    if grant_id is not None:
        if grant_id not in session.grants or not session.grants[grant_id].redeemed:
            raise SessionEnded
        family = session.grants[grant_id]
    if generation > family.generation:
        raise SessionEnded
    if generation == family.generation:
        return [SessionRefreshed(session_id=session_id, generation=generation + 1, refreshed_at=now, grant_id=grant_id)]
    just_rotated = family.refreshed_at is not None and now - family.refreshed_at <= REFRESH_GRACE
    if generation == family.generation - 1 and just_rotated:
        return []
    return [
        RefreshReuseDetected(session_id=session_id, user_id=user_id),
        *revoke(session, session_id, REUSE, now),
    ]


def revoke(session: Session, session_id: UUID, reason: str, now: datetime) -> Sequence[Event]:
    """Ends the session and everything under it. One that has ended stays as it is."""
    try:
        user_id = owner(session, now)
    except SessionEnded:
        return []
    clients = dict.fromkeys(grant.client_id for grant in session.grants.values() if grant.redeemed)
    return [
        SessionRevoked(
            session_id=session_id, user_id=user_id, reason=reason, revoked_at=now, clients=tuple(sorted(clients))
        )
    ]


def exchange(
    session: Session,
    session_id: UUID,
    jti: UUID,
    source: Platform,
    target: Platform,
    scope: str,
    acr: int,
    now: datetime,
) -> Sequence[Event]:
    """Gives out a token for `target` to the holder of one for `source`.

    Raises:
        SessionEnded
    """
    user_id = owner(session, now)
    exchanged = TokenExchanged(
        session_id=session_id,
        user_id=user_id,
        jti=jti,
        from_platform=source,
        to_platform=target,
        scope=scope,
        acr=acr,
        exchanged_at=now,
    )
    return [*_join(session, session_id, user_id, target, now), exchanged]


def synchronise(session: Session, session_id: UUID, now: datetime) -> Sequence[Event]:
    """Brings the sessions of both platforms to one state: active now, ending with the root, at its assurance.

    Raises:
        SessionEnded
    """
    user_id = owner(session, now)
    assert session.expires_at is not None
    joins = [event for platform in PLATFORMS for event in _join(session, session_id, user_id, platform, now)]
    extended = SessionExtended(session_id=session_id, active_at=now, acr=session.acr, expires_at=session.expires_at)
    return [*joins, extended]


def step_up(
    session: Session,
    session_id: UUID,
    jti: UUID,
    *,
    amount_minor: int,
    currency: str,
    to_account_id: UUID | None,
    now: datetime,
) -> Sequence[Event]:
    """Gives out a step-up token, a second factor having been shown.

    Raises:
        SessionEnded
    """
    return [
        SteppedUp(
            session_id=session_id,
            user_id=owner(session, now),
            jti=jti,
            amount_minor=amount_minor,
            currency=currency,
            to_account_id=to_account_id,
            expires_at=now + STEP_UP_LIFETIME,
        )
    ]


def _join(session: Session, session_id: UUID, user_id: UUID, platform: Platform, now: datetime) -> Sequence[Event]:
    if platform in session.active:
        return []
    return [PlatformJoined(session_id=session_id, user_id=user_id, platform=platform, joined_at=now)]


def evolve(session: Session, event: Event) -> Session:
    """The session after the event."""
    match event:
        case SessionStarted():
            return Session(
                user_id=event.user_id,
                platform=event.platform,
                acr=event.acr,
                mfa=event.mfa,
                expires_at=event.expires_at,
                active={event.platform: event.expires_at - LIFETIME},
            )
        case SessionRefreshed(grant_id=None):
            return msgspec.structs.replace(
                session,
                generation=event.generation,
                refreshed_at=event.refreshed_at,
                active={**session.active, session.platform: event.refreshed_at},
            )
        case SessionRefreshed(grant_id=UUID() as grant_id):
            grant = msgspec.structs.replace(
                session.grants[grant_id], generation=event.generation, refreshed_at=event.refreshed_at
            )
            return _with_grant(session, grant_id, grant, event.refreshed_at)
        case PlatformJoined(grant_id=None):
            return msgspec.structs.replace(session, active={**session.active, event.platform: event.joined_at})
        case PlatformJoined(grant_id=UUID() as grant_id):
            grant = msgspec.structs.replace(session.grants[grant_id], redeemed=True)
            return _with_grant(session, grant_id, grant, event.joined_at)
        case TokenExchanged():
            return msgspec.structs.replace(session, active={**session.active, event.to_platform: event.exchanged_at})
        case SessionExtended():
            return msgspec.structs.replace(session, active=dict.fromkeys(session.active, event.active_at))
        case AuthorizationCodeIssued():
            grant = Grant(
                client_id=event.client_id,
                platform=event.platform,
                redirect_uri=event.redirect_uri,
                scope=event.scope,
                nonce=event.nonce,
                code_challenge=event.code_challenge,
                auth_time=event.auth_time,
                code_expires_at=event.expires_at,
            )
            return msgspec.structs.replace(session, grants={**session.grants, event.grant_id: grant})
        case SessionRevoked():
            return msgspec.structs.replace(session, revoked=True)
        case _:
            return session


def _with_grant(session: Session, grant_id: UUID, grant: Grant, at: datetime) -> Session:
    return msgspec.structs.replace(
        session, grants={**session.grants, grant_id: grant}, active={**session.active, grant.platform: at}
    )
