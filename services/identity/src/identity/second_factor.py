"""The second factor: enrolled, shown, removed. Attempts are counted per user, whatever session they come from."""

import secrets
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import pyotp
from chassis.request import request_metadata
from events.decisions import Streams
from events.envelope import new_id

from identity import mfa
from identity.sealing import IdentityKey
from identity.throttle import Throttle
from identity.users import User

ISSUER_NAME = "Sangam"
_FIELD = "sealed_secret"
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


class Offered(NamedTuple):
    """What the user's authenticator app needs. Shown once."""

    secret: str
    uri: str
    event_id: UUID


class Enrolled(NamedTuple):
    recovery_codes: list[str]
    event_id: UUID


class SecondFactor:
    """TOTP and recovery codes of all users."""

    def __init__(self, user_streams: Streams[User], identity_key: IdentityKey, throttle: Throttle) -> None:
        self._users = user_streams
        self._identity_key = identity_key
        self._recovery_key = identity_key.mac_key("recovery-code")
        self._throttle = throttle

    async def offer(self, user_id: UUID, account_name: str) -> Offered:
        """A fresh secret for the user's device.

        Raises:
            MfaEnrolledAlready
        """
        secret = pyotp.random_base32()
        sealed = self._identity_key.seal(secret.encode(), f"user-{user_id}", _FIELD)
        now = datetime.now(UTC)
        decided = await self._users.execute(
            user_id,
            lambda user: mfa.offer(user, sealed, now),
            event_id=new_id(),
            subject=user_id,
            metadata=request_metadata(f"user:{user_id}"),
        )
        uri = pyotp.TOTP(secret).provisioning_uri(name=account_name, issuer_name=ISSUER_NAME)
        return Offered(secret, uri, decided.event_id)

    async def confirm(self, user_id: UUID, code: str) -> Enrolled:
        """Enrols the device that shows `code`.

        Raises:
            MfaEnrolledAlready, MfaNotEnrolled, InvalidOtp, TooManyAttempts
        """
        await self._throttle.take("otp", str(user_id))
        user, _ = await self._users.load(user_id)
        sealed = user.offer.sealed_secret if user.offer is not None else ""
        now = datetime.now(UTC)
        step = mfa.matching_step(self._secret(user_id, sealed), code, now) if sealed else None
        codes = ["".join(secrets.choice(_BASE32) for _ in range(10)) for _ in range(mfa.RECOVERY_CODES)]
        hashes = [mfa.recovery_hash(self._recovery_key, each) or "" for each in codes]
        decided = await self._users.execute(
            user_id,
            lambda current: mfa.confirm(current, sealed, step, hashes, now),
            event_id=new_id(),
            subject=user_id,
            metadata=request_metadata(f"user:{user_id}"),
        )
        await self._throttle.forgive("otp", str(user_id), all_of_them=True)
        return Enrolled([f"{each[:5]}-{each[5:]}" for each in codes], decided.event_id)

    async def prove(self, user_id: UUID, code: str, *, recovery: bool = True) -> None:
        """Returns if `code` is the user's second factor now. It is used up by that.

        Args:
            recovery: whether a recovery code is taken, too.

        Raises:
            MfaNotEnrolled, InvalidOtp, TooManyAttempts
        """
        await self._throttle.take("otp", str(user_id))
        user, _ = await self._users.load(user_id)
        if user.mfa is None:
            raise mfa.MfaNotEnrolled
        sealed = user.mfa.sealed_secret
        step = mfa.matching_step(self._secret(user_id, sealed), code.strip(), datetime.now(UTC))
        hashed = mfa.recovery_hash(self._recovery_key, code) if recovery and step is None else None
        await self._users.execute(
            user_id,
            lambda current: mfa.use(current, sealed, step, hashed),
            event_id=new_id(),
            subject=user_id,
            metadata=request_metadata(f"user:{user_id}"),
        )
        await self._throttle.forgive("otp", str(user_id), all_of_them=True)

    async def remove(self, user_id: UUID, code: str) -> UUID:
        """Removes the second factor, for whoever can show it.

        Raises:
            MfaNotEnrolled, InvalidOtp, TooManyAttempts
        """
        await self.prove(user_id, code)
        decided = await self._users.execute(
            user_id,
            mfa.remove,
            event_id=new_id(),
            subject=user_id,
            metadata=request_metadata(f"user:{user_id}"),
        )
        return decided.event_id

    def _secret(self, user_id: UUID, sealed: str) -> str:
        return self._identity_key.open(sealed, f"user-{user_id}", _FIELD).decode()
