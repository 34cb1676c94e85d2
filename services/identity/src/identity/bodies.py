"""What the routes of identity share: strict bodies, and the one table from error to answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
from chassis.consistency import HEADER, consistency_token
from chassis.problems import Problem
from events.contracts.identity import Platform
from litestar import Response

from identity import contact, passwords
from identity.assertions import AssertionInvalid, PlatformUnavailable
from identity.codes import InvalidCode
from identity.contact import EmailAddress
from identity.linking import AlreadyLinked, NotLinked
from identity.mfa import InvalidOtp, MfaEnrolledAlready, MfaNotEnrolled
from identity.passwords import Overloaded
from identity.sessions import SessionEnded
from identity.sign_in import EmailTaken, ExchangeRefused, InvalidCredentials, OtpRequired
from identity.throttle import TooManyAttempts
from identity.tokens import InvalidRefreshToken
from identity.users import LinkExpired, LinkNotFound

PLATFORMS: tuple[Platform, ...] = ("bfc", "vyomo")

ShortText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Otp = Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
CodeText = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]

T = TypeVar("T")


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request says. An unknown field is refused: it is a misspelt one or an attempt."""


_PROBLEMS: dict[type[Exception], Callable[[], Problem]] = {
    EmailTaken: partial(Problem, 409, "email_taken", "This e-mail address is registered already"),
    InvalidCredentials: partial(Problem, 401, "invalid_credentials", "E-mail address or password is wrong"),
    OtpRequired: partial(Problem, 401, "otp_required", "A code from the authenticator app is required"),
    InvalidOtp: partial(Problem, 401, "invalid_otp", "The code is wrong or has been used"),
    MfaEnrolledAlready: partial(Problem, 409, "mfa_enrolled", "A second factor is enrolled; remove it first"),
    MfaNotEnrolled: partial(Problem, 403, "mfa_not_enrolled", "This needs an enrolled second factor", enrol=True),
    InvalidCode: partial(Problem, 422, "invalid_code", "The code is wrong, used or expired; ask for another"),
    InvalidRefreshToken: partial(
        Problem, 401, "invalid_refresh_token", "The refresh token is not valid any more; log in again"
    ),
    SessionEnded: partial(
        Problem,
        401,
        "session_ended",
        "The session has ended; log in again",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    ),
    LinkNotFound: partial(Problem, 404, "link_not_found", "There is no such link request"),
    LinkExpired: partial(Problem, 422, "link_expired", "The link was not confirmed in time; request it again"),
    AssertionInvalid: partial(
        Problem, 422, "assertion_invalid", "The assertion does not prove ownership for this link request"
    ),
    AlreadyLinked: partial(Problem, 409, "already_linked", "This platform customer is linked to another user"),
    NotLinked: partial(Problem, 404, "not_linked", "There is no link to this platform"),
    PlatformUnavailable: partial(
        Problem,
        503,
        "platform_unavailable",
        "The platform does not answer at the moment",
        headers={"Retry-After": "5"},
    ),
    Overloaded: partial(Problem, 503, "overloaded", "Too many logins at once", headers={"Retry-After": "1"}),
}


@contextmanager
def answered() -> Iterator[None]:
    """Turns what the commands raise into problems."""
    try:
        yield
    except TooManyAttempts as error:
        raise Problem(
            429,
            "too_many_attempts",
            "Too many attempts; wait before the next one",
            headers={"Retry-After": str(error.retry_after_s)},
        ) from None
    except ExchangeRefused as error:
        raise Problem(
            400, error.error, error.description, error=error.error, error_description=error.description
        ) from None
    except tuple(_PROBLEMS) as error:
        raise _PROBLEMS[type(error)]() from None


def command(content: T, event_id: UUID | None, status_code: int | None = None) -> Response[T]:
    """The answer to a command, with the token by which a read waits for it."""
    headers = {HEADER: consistency_token(event_id)} if event_id else None
    return Response(content, headers=headers, status_code=status_code)


def address_or_none(text: str) -> EmailAddress | None:
    """The address; None for a text that is none, which is nobody's."""
    try:
        return contact.email_address(text)
    except ValueError:
        return None


class Fields:
    """Checks of a body's fields, all of which are made before the body is refused."""

    def __init__(self) -> None:
        self.errors: list[dict[str, str]] = []

    def checked(self, field: str, check: Callable[[str], T], text: str) -> T | None:
        """The field in the form it is kept, or None after noting what is wrong with it."""
        try:
            return check(text)
        except ValueError as error:
            self.errors.append({"field": field, "message": str(error)})
            return None

    def password(self, field: str, text: str) -> None:
        """Notes why the password is refused, if it is."""
        if weakness := passwords.weakness(text):
            self.errors.append({"field": field, "message": weakness})

    def refuse(self) -> None:
        """
        Raises:
            Problem: 400 naming every refused field; `weak_password` when it is a password alone.
        """
        if not self.errors:
            return
        if all("password" in error["field"] for error in self.errors):
            detail = f"The password {self.errors[0]['message']}"
            raise Problem(400, "weak_password", detail, errors=self.errors)
        raise Problem(400, "invalid_request", "The body is not valid", errors=self.errors)


def refuse_weak(password: str, field: str = "new_password") -> None:
    """
    Raises:
        Problem: 400 `weak_password`.
    """
    fields = Fields()
    fields.password(field, password)
    fields.refuse()


Json = dict[str, Any]
