"""A root session, valid on both platforms. Stream `session-<session id>`.

A refresh token is of one generation; using it starts the next one and ends it. A generation used
again later than the grace means that two parties hold the family: the session is revoked. Within
the grace it is a client that lost the answer, and it is given the same successor.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from events.contracts.identity import (
    Platform,
    RefreshReuseDetected,
    SessionRefreshed,
    SessionRevoked,
    SessionStarted,
)
from events.contracts.registry import Event
from events.decisions import Refusal

LIFETIME = timedelta(hours=24)
"""A session ends this long after the login, however often it is refreshed."""

REFRESH_GRACE = timedelta(seconds=10)

REUSE = "refresh_token_reuse"


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a session's stream says. Before `SessionStarted` it belongs to nobody."""

    user_id: UUID | None = None
    platform: Platform = "bfc"
    acr: int = 0
    expires_at: datetime | None = None
    generation: int = 0
    """The generation of the refresh token that is valid now."""
    refreshed_at: datetime | None = None
    """When the generation began; None for the first."""
    revoked: bool = False


class SessionEnded(Refusal):
    """There is no such session, or it expired, or it was revoked."""

    code = "session_ended"


def start(session_id: UUID, user_id: UUID, platform: Platform, *, acr: int, now: datetime) -> Sequence[Event]:
    """Opens a session by a login on `platform`."""
    return [
        SessionStarted(session_id=session_id, user_id=user_id, platform=platform, acr=acr, expires_at=now + LIFETIME)
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


def refresh(session: Session, session_id: UUID, generation: int, now: datetime) -> Sequence[Event]:
    """Uses the (authentic) refresh token of `generation`.

    The next generation's token is the answer, unless the events say that reuse was detected; no
    event at all is a repetition within the grace.

    Raises:
        SessionEnded: also for a generation that was never given out.
    """
    user_id = owner(session, now)
    if generation > session.generation:
        raise SessionEnded
    if generation == session.generation:
        return [SessionRefreshed(session_id=session_id, generation=generation + 1, refreshed_at=now)]
    just_rotated = session.refreshed_at is not None and now - session.refreshed_at <= REFRESH_GRACE
    if generation == session.generation - 1 and just_rotated:
        return []
    return [
        RefreshReuseDetected(session_id=session_id, user_id=user_id),
        SessionRevoked(session_id=session_id, user_id=user_id, reason=REUSE),
    ]


def evolve(session: Session, event: Event) -> Session:
    """The session after the event."""
    match event:
        case SessionStarted():
            return Session(user_id=event.user_id, platform=event.platform, acr=event.acr, expires_at=event.expires_at)
        case SessionRefreshed():
            return msgspec.structs.replace(session, generation=event.generation, refreshed_at=event.refreshed_at)
        case SessionRevoked():
            return msgspec.structs.replace(session, revoked=True)
        case _:
            return session
