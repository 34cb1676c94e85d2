"""Which root sessions a user has. Stream `sign_in-<user id>`.

It is appended together with the sessions' own streams, so that "log out everywhere" finds every session there is,
also one that began a moment ago.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from events.contracts.identity import Platform, SignInClosed, SignInOpened
from events.contracts.registry import Event

OPEN_MAX = 50
"""Sessions that a user may have at once; a further one ends the oldest."""

DEVICES_REMEMBERED = 20


class SignIn(msgspec.Struct, frozen=True, kw_only=True):
    """An open root session."""

    platform: Platform
    opened_at: datetime
    expires_at: datetime
    sealed_device: str | None


class SignIns(msgspec.Struct, frozen=True, kw_only=True):
    """The open root sessions by id, the oldest first, and the devices seen lately."""

    open: dict[UUID, SignIn] = {}
    devices: tuple[str, ...] = ()


def live(sign_ins: SignIns, now: datetime) -> dict[UUID, SignIn]:
    """Those that have not expired."""
    return {session_id: sign_in for session_id, sign_in in sign_ins.open.items() if sign_in.expires_at > now}


def surplus(sign_ins: SignIns, now: datetime) -> list[UUID]:
    """Which must end before one more may begin."""
    open_ = list(live(sign_ins, now))
    return open_[: max(0, len(open_) - OPEN_MAX + 1)]


def is_new_device(sign_ins: SignIns, device_id: str | None) -> bool:
    """Whether the user has signed in before, but not from this device."""
    return bool(sign_ins.devices) and device_id not in sign_ins.devices


def open_sign_in(
    sign_ins: SignIns,
    session_id: UUID,
    platform: Platform,
    *,
    device_id: str | None,
    sealed_device: str | None,
    expires_at: datetime,
    now: datetime,
) -> Sequence[Event]:
    """Notes a new session, and the end of those that are too many."""
    opened = SignInOpened(
        session_id=session_id,
        platform=platform,
        opened_at=now,
        expires_at=expires_at,
        sealed_device=sealed_device,
        device_id=device_id,
        new_device=is_new_device(sign_ins, device_id),
    )
    return [*close(sign_ins, surplus(sign_ins, now)), opened]


def close(sign_ins: SignIns, session_ids: Iterable[UUID]) -> Sequence[Event]:
    """Notes the end of those that are open."""
    closing = tuple(session_id for session_id in session_ids if session_id in sign_ins.open)
    return [SignInClosed(session_ids=closing)] if closing else []


def evolve(sign_ins: SignIns, event: Event) -> SignIns:
    """The sign-ins after the event."""
    match event:
        case SignInOpened():
            opened = SignIn(
                platform=event.platform,
                opened_at=event.opened_at,
                expires_at=event.expires_at,
                sealed_device=event.sealed_device,
            )
            devices = sign_ins.devices
            if event.device_id is not None:
                devices = (*(device for device in devices if device != event.device_id), event.device_id)
            return SignIns(
                open={**live(sign_ins, event.opened_at), event.session_id: opened},
                devices=devices[-DEVICES_REMEMBERED:],
            )
        case SignInClosed():
            gone = set(event.session_ids)
            open_ = {session_id: sign_in for session_id, sign_in in sign_ins.open.items() if session_id not in gone}
            return msgspec.structs.replace(sign_ins, open=open_)
        case _:
            return sign_ins
