"""`/oauth` for browsers and apps: authorization, the login form, userinfo, logout, discovery."""

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any
from urllib.parse import urlsplit

import msgspec
from chassis.problems import Problem
from chassis.request import AnyRequest
from chassis.tokens import Caller
from litestar import Response, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.response import Redirect

from identity.bodies import address_or_none
from identity.forms import form_of
from identity.grants import TooManyGrants
from identity.login_page import login_page, message_page
from identity.mfa import InvalidOtp
from identity.openid import Asked, NotForRedirect, OpenId, RedirectError, asked, discovery
from identity.origin import Networks, device_of
from identity.passwords import Overloaded
from identity.sealing import IdentityKey
from identity.sessions import LIFETIME, SessionEnded
from identity.sign_in import InvalidCredentials, OtpRequired, SignIn
from identity.throttle import TooManyAttempts

SESSION_COOKIE = "sangam_session"
FORM_COOKIE = "sangam_form"
FORM_LIFETIME_S = 900
_PATH = "/oauth"


class _SealedRequest(msgspec.Struct, frozen=True):
    """What the form carries: the request, for the one browser that asked, for a while."""

    request: Asked
    browser: str
    """Hash of the browser's form cookie: another site cannot make it log in as somebody else."""
    expires_at: int


def routes(
    openid: OpenId, sign_in: SignIn, identity_key: IdentityKey, trusted_proxies: Networks
) -> list[HTTPRouteHandler]:
    """The routes of OpenID Connect beside the token endpoint."""
    form_key = identity_key.mac_key("login-form")
    secure = urlsplit(openid.issuer).scheme == "https"

    def cookie(name: str, value: str, max_age: int) -> Cookie:
        return Cookie(name, path=_PATH, value=value, max_age=max_age, httponly=True, secure=secure, samesite="lax")

    @get("/.well-known/openid-configuration", summary="Discovery", tags=["discovery"])
    async def get_openid_configuration() -> Response[dict[str, Any]]:
        """OpenID Connect Discovery 1.0."""
        return Response(discovery(openid.issuer), headers={"Cache-Control": "public, max-age=300"})

    @get("/oauth/authorize", summary="Authorization endpoint", tags=["openid"], media_type="text/html")
    async def authorize(request: AnyRequest) -> Response[Any]:
        """Sends a browser back to its app with a code, after the login form if it is not signed in."""
        pairs = list(request.query_params.multi_items())
        try:
            if len({name for name, _ in pairs}) < len(pairs):
                raise NotForRedirect
            wanted = asked(dict(pairs), openid.apps)
        except NotForRedirect:
            return message_page("This link does not work", "The app or its address is not known here.", status=400)
        except RedirectError as error:
            return _to(openid.answer(error.redirect_uri, error.state, error=error.error, error_description=str(error)))
        known = await openid.browser_session(request.cookies.get(SESSION_COOKIE), wanted.max_age_s)
        if known is not None and not wanted.login:
            try:
                return _to(await openid.grant(wanted, *known))
            except (SessionEnded, TooManyGrants):
                pass  # it ended in between: ask for the password
        if wanted.silent:
            return _to(openid.answer(wanted.redirect_uri, wanted.state, error="login_required"))
        browser = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(24)
        page = login_page(openid.apps[wanted.client_id].name, seal(wanted, browser), wanted.redirect_uri)
        page.set_cookie(cookie(FORM_COOKIE, browser, FORM_LIFETIME_S))
        return page

    @post("/oauth/login", summary="The login form", tags=["openid"], status_code=200, media_type="text/html")
    async def submit_login(request: AnyRequest) -> Response[Any]:
        """What the form sends. Opens a root session for the browser and goes back to the app with a code."""
        form = await form_of(request)
        browser = request.cookies.get(FORM_COOKIE, "")
        wanted = unseal(form.get("request", ""), browser)
        if wanted is None:
            return message_page("This form has expired", "Go back to the app and sign in again.", status=400)
        app = openid.apps[wanted.client_id]

        def again(error: str, *, otp: bool = False) -> Response[str]:
            email = form.get("email", "")[:254]
            sealed = form["request"]
            return login_page(app.name, sealed, wanted.redirect_uri, email=email, error=error, otp=otp)

        try:
            opened, user_id = await sign_in.authenticate(
                address_or_none(form.get("email", "")[:1024]),
                form.get("password", "")[:1024],
                app.platform,
                form.get("otp"),
                device_of(request, trusted_proxies),
            )
        except InvalidCredentials:
            return again("E-mail address or password is wrong.", otp="otp" in form)
        except OtpRequired:
            return again("Please enter the code from your authenticator app, and your password once more.", otp=True)
        except InvalidOtp:
            return again("The code is wrong or has been used.", otp=True)
        except TooManyAttempts as error:
            return again(f"Too many attempts. Try again in {max(1, error.retry_after_s // 60)} minutes.")
        except Overloaded:
            return again("We are very busy. Please try again in a moment.")
        answer = _to(await openid.grant(wanted, opened.session_id, user_id))
        answer.set_cookie(cookie(SESSION_COOKIE, openid.cookie(opened.session_id), int(LIFETIME.total_seconds())))
        answer.set_cookie(cookie(FORM_COOKIE, "", 0))
        return answer

    @get(["/oauth/userinfo"], summary="Who the token is of", tags=["openid"])
    async def get_userinfo(caller: NamedDependency[Caller]) -> dict[str, Any]:
        """OpenID Connect Core, 5.3. Refusal: 403 `insufficient_scope` without the scope `openid`."""
        if "openid" not in caller.scopes:
            raise Problem(
                403,
                "insufficient_scope",
                "This needs a token with the scope openid",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope", scope="openid"'},
            )
        return await openid.userinfo(caller)

    @get("/oauth/logout", summary="Logout by an app", tags=["openid"], media_type="text/html")
    async def end_app_session(request: AnyRequest) -> Response[Any]:
        """RP-Initiated Logout 1.0: with the ID token, to an address registered for it."""
        return await _logout(dict(request.query_params.multi_items()))

    @post("/oauth/logout", summary="Logout by an app", tags=["openid"], status_code=200, media_type="text/html")
    async def confirm_end_app_session(request: AnyRequest) -> Response[Any]:
        """The same, as a form."""
        return await _logout(await form_of(request))

    async def _logout(params: dict[str, str]) -> Response[Any]:
        try:
            target = await openid.end_session(
                params.get("id_token_hint", ""), params.get("post_logout_redirect_uri"), params.get("state")
            )
        except NotForRedirect:
            return message_page("You are not signed out", "This link does not tell who is to be.", status=400)
        answer: Response[Any] = (
            _to(target)
            if target is not None
            else message_page("You are signed out", "On BFC, on Vyomo, and everywhere else.", status=200)
        )
        answer.set_cookie(cookie(SESSION_COOKIE, "", 0))
        return answer

    def seal(wanted: Asked, browser: str) -> str:
        sealed = _SealedRequest(wanted, _browser_hash(browser), int(time.time()) + FORM_LIFETIME_S)
        text = urlsafe_b64encode(msgspec.json.encode(sealed)).decode()
        return f"{text}.{hmac.new(form_key, text.encode(), hashlib.sha256).hexdigest()}"

    def unseal(text: str, browser: str) -> Asked | None:
        encoded, _, mac = text.partition(".")
        expected = hmac.new(form_key, encoded.encode(), hashlib.sha256).hexdigest()
        if not browser or not hmac.compare_digest(mac.encode(), expected.encode()):
            return None
        sealed = msgspec.json.decode(urlsafe_b64decode(encoded), type=_SealedRequest)
        own = hmac.compare_digest(sealed.browser, _browser_hash(browser))
        return sealed.request if own and time.time() < sealed.expires_at else None

    return [get_openid_configuration, authorize, submit_login, get_userinfo, end_app_session, confirm_end_app_session]


def _to(address: str) -> Redirect:
    """See Other: whatever was posted is not posted again."""
    return Redirect(address, status_code=303, headers={"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


def _browser_hash(browser: str) -> str:
    return hashlib.sha256(browser.encode()).hexdigest()
