"""Step-up: a token that identity gives for one operation, bound to its amount and payee, good once.

A handler declares `step_up: StepUp | None`; when it runs, a token that came (`X-Step-Up-Token`) has been verified as
the caller's own. What only the decider can tell stays with it: that amount, currency and payee are those of the
command, and, by recording `jti` in the event it appends, that the token is used once.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
import structlog
from litestar.di import NamedDependency
from litestar.params import HeaderParameter

from chassis.problems import Problem
from chassis.tokens import Caller, InvalidToken, Seconds, TokenVerifier

log = structlog.get_logger(__name__)

HEADER: Final = "X-Step-Up-Token"
TYPE: Final = "step-up+jwt"
AUDIENCE: Final = "sangam"
LIFETIME_S: Final = 120
_CLOCK_SKEW_S = 5


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["ES256"]
    typ: Literal["step-up+jwt"]
    kid: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,128}\Z")]


class StepUp(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller has confirmed with a second factor. The fields are the token's claims."""

    iss: str
    aud: str
    sub: UUID
    sid: UUID
    jti: UUID
    """Recorded in the event that uses it, so that it is used once."""
    iat: Seconds
    exp: Seconds
    amount_minor: int
    currency: str
    to_account_id: UUID | None


_header_decoder = msgspec.json.Decoder(_Header)
_claims_decoder = msgspec.json.Decoder(StepUp)


async def verify_step_up(verifier: TokenVerifier, token: str, caller: Caller) -> StepUp:
    """The step-up that `token` proves, if it is the caller's, of the caller's session, and not expired.

    Raises:
        InvalidToken
    """
    payload = await verifier.signed_payload(token, _header_decoder)
    try:
        step_up = _claims_decoder.decode(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidToken("claims refused") from error
    now = verifier.now()
    if step_up.iss != verifier.issuer or step_up.aud != AUDIENCE:
        raise InvalidToken("wrong issuer or audience")
    if (step_up.sub, step_up.sid) != (caller.user_id, caller.session_id):
        raise InvalidToken("another session's step-up")
    if not 0 < step_up.exp - step_up.iat <= LIFETIME_S:
        raise InvalidToken("lives too long")
    if step_up.iat > now + _CLOCK_SKEW_S:
        raise InvalidToken("not valid yet")
    if step_up.exp <= now:
        raise InvalidToken("expired", expired=True)
    return step_up


def step_up_required(amount: str, currency: str, to_account_id: UUID | None, caller: Caller) -> Problem:
    """403 that tells what to ask `POST /api/auth/step-up` for; `amount` as a decimal string."""
    wanted = {"amount": amount, "currency": currency, "to_account_id": to_account_id and str(to_account_id)}
    extensions: dict[str, Any] = {"step_up": wanted} | ({} if caller.mfa else {"enrol": True})
    return Problem(403, "step_up_required", "Confirm this with a second factor", **extensions)


def provider(verifier: TokenVerifier) -> Callable[..., Awaitable[StepUp | None]]:
    """The dependency `step_up`."""

    async def provide_step_up(
        caller: NamedDependency[Caller],
        step_up_token: Annotated[
            str | None,
            HeaderParameter(
                name=HEADER, description="From `POST /api/auth/step-up`, for exactly this operation", max_length=4096
            ),
        ] = None,
    ) -> StepUp | None:
        if step_up_token is None:
            return None
        try:
            return await verify_step_up(verifier, step_up_token, caller)
        except InvalidToken as error:
            log.info("step_up_refused", reason=error.reason)
            code = "step_up_expired" if error.expired else "step_up_invalid"
            raise Problem(403, code, "The step-up token is not good for this; ask for another") from None

    return provide_step_up
