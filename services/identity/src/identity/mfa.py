"""TOTP (RFC 6238: SHA-1, 30 s, 6 digits) and recovery codes, decided on the user's stream. Pure."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime, timedelta

import pyotp
from events.contracts.identity import MfaEnrolled, MfaOffered, MfaRemoved, OtpUsed, RecoveryCodeUsed
from events.contracts.registry import Event
from events.decisions import Refusal

from identity.users import User

STEP_S = 30
STEPS_EITHER_WAY = 1
"""How far a device's clock may be off, in time steps."""

OFFER_LIFETIME = timedelta(minutes=15)
RECOVERY_CODES = 10

_TOTP_CODE = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY_CODE = re.compile(r"[A-Z2-7]{10}", re.ASCII)
_SEPARATORS = re.compile(r"[\s-]")


class MfaEnrolledAlready(Refusal):
    """The user has a second factor; it must be removed first."""

    code = "mfa_enrolled"


class MfaNotEnrolled(Refusal):
    """The user has no second factor."""

    code = "mfa_not_enrolled"


class InvalidOtp(Refusal):
    """The code is wrong, was used before, or is older than one that was used."""

    code = "invalid_otp"


def matching_step(secret: str, code: str, now: datetime) -> int | None:
    """The time step, around `now`, that has this code; None if none has."""
    if _TOTP_CODE.fullmatch(code) is None:
        return None
    totp, current = pyotp.TOTP(secret), int(now.timestamp()) // STEP_S
    found = None
    for step in range(current - STEPS_EITHER_WAY, current + STEPS_EITHER_WAY + 1):
        # All of them are computed and compared: time does not tell which one it was.
        if hmac.compare_digest(totp.generate_otp(step), code):
            found = step
    return found


def recovery_hash(key: bytes, code: str) -> str | None:
    """The keyed hash of a recovery code as it was typed; None where the text cannot be one."""
    typed = _SEPARATORS.sub("", code).upper()
    if _RECOVERY_CODE.fullmatch(typed) is None:
        return None
    return hmac.new(key, typed.encode(), hashlib.sha256).hexdigest()


def offer(user: User, sealed_secret: str, now: datetime) -> Sequence[Event]:
    """Notes the secret that is shown to the user. A later offer replaces it.

    Raises:
        MfaEnrolledAlready
    """
    if user.mfa is not None:
        raise MfaEnrolledAlready
    return [MfaOffered(sealed_secret=sealed_secret, expires_at=now + OFFER_LIFETIME)]


def confirm(
    user: User, sealed_secret: str, step: int | None, recovery_hashes: Sequence[str], now: datetime
) -> Sequence[Event]:
    """Enrols the device that showed the code of `step` for the offered secret.

    Raises:
        MfaEnrolledAlready
        MfaNotEnrolled: nothing is offered, or not any more, or another secret since.
        InvalidOtp
    """
    if user.mfa is not None:
        raise MfaEnrolledAlready
    if user.offer is None or user.offer.sealed_secret != sealed_secret or now >= user.offer.expires_at:
        raise MfaNotEnrolled
    if step is None:
        raise InvalidOtp
    return [MfaEnrolled(sealed_secret=sealed_secret, recovery_hashes=tuple(recovery_hashes), time_step=step)]


def use(user: User, sealed_secret: str, step: int | None, hashed: str | None) -> Sequence[Event]:
    """Takes a TOTP code (by its time step) or a recovery code (by its hash), once.

    Raises:
        MfaNotEnrolled
        InvalidOtp
    """
    if user.mfa is None:
        raise MfaNotEnrolled
    if step is not None and user.mfa.sealed_secret == sealed_secret and step > user.mfa.last_step:
        return [OtpUsed(time_step=step)]
    if hashed is not None and hashed in user.mfa.recovery_hashes:
        return [RecoveryCodeUsed(recovery_hash=hashed, left=len(user.mfa.recovery_hashes) - 1)]
    raise InvalidOtp


def remove(user: User) -> Sequence[Event]:
    """Removes the second factor, which has been shown one last time.

    Raises:
        MfaNotEnrolled
    """
    if user.mfa is None:
        raise MfaNotEnrolled
    return [MfaRemoved()]
