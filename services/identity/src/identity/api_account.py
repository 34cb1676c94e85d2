"""`/api/auth`: password, e-mail address, second factor, everything we hold, and erasure."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import segno
from chassis.money import parse_amount
from chassis.problems import Problem
from chassis.step_up import LIFETIME_S
from chassis.tokens import Caller
from litestar import Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody

from identity import contact
from identity.accounts import KEPT_BY_LAW, Accounts
from identity.bodies import Body, CodeText, Fields, Otp, ShortText, address_or_none, answered, command, refuse_weak
from identity.second_factor import SecondFactor
from identity.sign_in import SignIn


class ChangePasswordBody(Body, frozen=True, kw_only=True):
    current_password: ShortText
    new_password: ShortText


class ForgotBody(Body, frozen=True, kw_only=True):
    email: ShortText


class ResetBody(Body, frozen=True, kw_only=True):
    email: ShortText
    code: CodeText
    new_password: ShortText


class VerifyBody(Body, frozen=True, kw_only=True):
    email: ShortText
    """The address the user is registered with; for a change of it, still the old one."""
    code: CodeText


class ContactBody(Body, frozen=True, kw_only=True):
    password: ShortText
    email: ShortText | None = None
    full_name: ShortText | None = None
    phone: ShortText | None = None


class ErasureBody(Body, frozen=True, kw_only=True):
    password: ShortText
    otp: Otp | None = None


class OtpBody(Body, frozen=True, kw_only=True):
    otp: Otp


class StepUpBody(Body, frozen=True, kw_only=True):
    otp: Otp
    amount: Annotated[str, msgspec.Meta(max_length=32, description="Decimal string", examples=["250000.00"])]
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3, examples=["INR"])]
    to_account_id: UUID | None = None


class EndedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    sessions_ended: int


class SentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["sent_if_known", "sent"]


class VerifiedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    email_verified: Literal[True] = True


class ContactAnswer(msgspec.Struct, frozen=True, kw_only=True):
    pending: list[Literal["email"]]
    """What changes only when the code that was sent to the new address comes back."""


class OfferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Shown once."""

    secret: str
    otpauth_uri: str
    qr_svg: str
    """The address as a QR code, to be shown to the user's authenticator app."""


class EnrolledAnswer(msgspec.Struct, frozen=True, kw_only=True):
    mfa: Literal[True] = True
    recovery_codes: list[str]
    """Each is good once instead of a code; shown once."""


class RemovedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    mfa: Literal[False] = False


class StepUpAnswer(msgspec.Struct, frozen=True, kw_only=True):
    step_up_token: str
    expires_in: int = LIFETIME_S


class ErasedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["erased"] = "erased"
    sessions_ended: int
    kept: list[str]
    """What the law makes us keep, and for how long."""


def routes(accounts: Accounts, sign_in: SignIn, second_factor: SecondFactor) -> list[HTTPRouteHandler]:
    """Password, address, second factor, export, erasure."""

    @post("/api/auth/password/change", status_code=200, summary="Change the password", tags=["account"])
    async def change_password(
        data: JSONBody[ChangePasswordBody], caller: NamedDependency[Caller]
    ) -> Response[EndedAnswer]:
        """All other sessions end. Refusals: 401 `invalid_credentials`, 400 `weak_password`."""
        refuse_weak(data.new_password)
        with answered():
            changed = await accounts.change_password(caller, data.current_password, data.new_password)
        return command(EndedAnswer(sessions_ended=len(changed.ended.session_ids)), changed.event_id)

    @post("/api/auth/password/forgot", status_code=202, summary="Ask for a code", tags=["account"])
    async def forgot_password(data: JSONBody[ForgotBody]) -> SentAnswer:
        """Sends a code to the address, if it is somebody's. The answer is the same in any case."""
        accounts.forget_password(address_or_none(data.email))
        return SentAnswer(status="sent_if_known")

    @post("/api/auth/password/reset", status_code=200, summary="Set a password with a code", tags=["account"])
    async def reset_password(data: JSONBody[ResetBody]) -> Response[EndedAnswer]:
        """All sessions end; an enrolled second factor stays. Refusals: 422 `invalid_code`, 400 `weak_password`."""
        refuse_weak(data.new_password)
        with answered():
            changed = await accounts.reset_password(address_or_none(data.email), data.code, data.new_password)
        return command(EndedAnswer(sessions_ended=len(changed.ended.session_ids)), changed.event_id)

    @post("/api/auth/email/verify", status_code=200, summary="Prove an e-mail address", tags=["account"])
    async def verify_email(data: JSONBody[VerifyBody]) -> Response[VerifiedAnswer]:
        """With the code that was sent to it. Refusals: 422 `invalid_code`, 409 `email_taken`."""
        with answered():
            event_id = await accounts.verify_email(address_or_none(data.email), data.code)
        return command(VerifiedAnswer(), event_id)

    @post("/api/auth/email/send-code", status_code=202, summary="Send the code again", tags=["account"])
    async def send_code(caller: NamedDependency[Caller]) -> SentAnswer:
        """To the address that is not verified yet. Refusal: 429 `too_many_attempts`."""
        with answered():
            await accounts.send_verification(caller.user_id)
        return SentAnswer(status="sent")

    @put("/api/auth/contact", summary="Change name, phone or e-mail address", tags=["account"])
    async def change_contact(data: JSONBody[ContactBody], caller: NamedDependency[Caller]) -> Response[ContactAnswer]:
        """The address changes once it is proven. Refusals: 401 `invalid_credentials`, 409 `email_taken`."""
        fields = Fields()
        email = fields.checked("email", contact.email_address, data.email) if data.email is not None else None
        name = fields.checked("full_name", contact.full_name, data.full_name) if data.full_name is not None else None
        phone = fields.checked("phone", contact.phone_number, data.phone) if data.phone is not None else None
        fields.refuse()
        with answered():
            event_id = await accounts.change_contact(caller, data.password, email=email, full_name=name, phone=phone)
        return command(ContactAnswer(pending=["email"] if email is not None else []), event_id)

    @get("/api/auth/export", summary="Everything identity holds on the caller", tags=["account"])
    async def export_account(caller: NamedDependency[Caller]) -> dict[str, Any]:
        """Profile, links, sessions with their devices, and the history of the account."""
        return await accounts.export(caller.user_id)

    @delete("/api/auth/account", status_code=200, summary="Erase the account", tags=["account"])
    async def erase_account(data: JSONBody[ErasureBody], caller: NamedDependency[Caller]) -> Response[ErasedAnswer]:
        """For good. With the password, and the second factor where one is enrolled. Refusals: 401
        `invalid_credentials`, 401 `otp_required`, 401 `invalid_otp`."""
        with answered():
            ended, event_id = await accounts.erase(caller, data.password, data.otp)
        answer = ErasedAnswer(sessions_ended=len(ended.session_ids), kept=[KEPT_BY_LAW])
        return command(answer, event_id)

    @post("/api/auth/mfa/totp", status_code=201, summary="Begin to enrol an authenticator app", tags=["mfa"])
    async def offer_totp(caller: NamedDependency[Caller]) -> Response[OfferAnswer]:
        """Refusal: 409 `mfa_enrolled`."""
        with answered():
            offered = await second_factor.offer(caller.user_id, await accounts.account_name(caller.user_id))
        svg = segno.make(offered.uri, micro=False).svg_inline(scale=4)
        return command(OfferAnswer(secret=offered.secret, otpauth_uri=offered.uri, qr_svg=svg), offered.event_id)

    @post("/api/auth/mfa/totp/confirm", status_code=200, summary="Enrol it", tags=["mfa"])
    async def confirm_totp(data: JSONBody[OtpBody], caller: NamedDependency[Caller]) -> Response[EnrolledAnswer]:
        """With a code that the app shows. Refusals: 401 `invalid_otp`, 403 `mfa_not_enrolled` (begin again)."""
        with answered():
            enrolled = await second_factor.confirm(caller.user_id, data.otp)
        return command(EnrolledAnswer(recovery_codes=enrolled.recovery_codes), enrolled.event_id)

    @delete("/api/auth/mfa/totp", status_code=200, summary="Remove the second factor", tags=["mfa"])
    async def remove_totp(data: JSONBody[OtpBody], caller: NamedDependency[Caller]) -> Response[RemovedAnswer]:
        """With a code, or a recovery code. Refusals: 401 `invalid_otp`, 403 `mfa_not_enrolled`."""
        with answered():
            event_id = await second_factor.remove(caller.user_id, data.otp)
        return command(RemovedAnswer(), event_id)

    @post("/api/auth/step-up", status_code=200, summary="Confirm one operation with a second factor", tags=["mfa"])
    async def step_up(data: JSONBody[StepUpBody], caller: NamedDependency[Caller]) -> Response[StepUpAnswer]:
        """A token for exactly this amount and payee, good for 120 s and once, sent as `X-Step-Up-Token`. Refusals: 401
        `invalid_otp`, 403 `mfa_not_enrolled`, 429 `too_many_attempts`."""
        amount_minor = parse_amount(data.amount, data.currency)
        if amount_minor > 2**53:
            raise Problem(400, "invalid_amount", "amount is too large")
        with answered():
            stepped_up = await sign_in.step_up(caller, data.otp, amount_minor, data.currency, data.to_account_id)
        return command(StepUpAnswer(step_up_token=stepped_up.step_up_token), stepped_up.event_id)

    return [
        change_password,
        forgot_password,
        reset_password,
        verify_email,
        send_code,
        change_contact,
        export_account,
        erase_account,
        offer_totp,
        confirm_totp,
        remove_totp,
        step_up,
    ]
