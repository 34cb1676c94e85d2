"""Single-use codes that reach a person by mail, decided on the user's stream. Pure."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from events.contracts.identity import CodeIssued, CodePurpose, CodeUsed
from events.contracts.registry import Event
from events.decisions import Refusal

from identity.users import Code, User

LIFETIMES: dict[CodePurpose, timedelta] = {
    "password_reset": timedelta(minutes=15),
    "email_verification": timedelta(hours=24),
    "email_change": timedelta(hours=1),
}
ALPHABET = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
LENGTH = 12
"""30 letters, 12 of them: 58 bits, against `throttle.LIMITS["code"]` guesses a quarter of an hour."""

_SEPARATORS = re.compile(r"[\s-]")


class InvalidCode(Refusal):
    """No such code, or it was used, replaced or expired."""

    code = "invalid_code"


def code_hash(key: bytes, user_id: UUID, typed: str) -> str:
    """The keyed hash of a code as it was typed. A code is good for its user only."""
    text = _SEPARATORS.sub("", typed).upper()
    return hmac.new(key, user_id.bytes + text.encode(), hashlib.sha256).hexdigest()


def issue(
    user_id: UUID, code_id: UUID, purpose: CodePurpose, *, hashed: str, code_sealed: str, to_sealed: str, now: datetime
) -> Sequence[Event]:
    """Sends a code. It replaces an earlier one for the same purpose."""
    return [
        CodeIssued(
            user_id=user_id,
            code_id=code_id,
            purpose=purpose,
            code_hash=hashed,
            code_sealed=code_sealed,
            to_sealed=to_sealed,
            expires_at=now + LIFETIMES[purpose],
        )
    ]


def open_code(user: User, purposes: Sequence[CodePurpose], hashed: str, now: datetime) -> Code:
    """The code with that hash, if it may be used now.

    Raises:
        InvalidCode
    """
    for code in user.codes.values():
        if code.purpose in purposes and now < code.expires_at and hmac.compare_digest(code.hashed, hashed):
            return code
    raise InvalidCode


def use(user: User, purposes: Sequence[CodePurpose], hashed: str, now: datetime) -> Sequence[Event]:
    """Uses a code.

    Raises:
        InvalidCode
    """
    code = open_code(user, purposes, hashed, now)
    return [CodeUsed(code_id=code.code_id, purpose=code.purpose)]
