"""The pages that a browser sees: a login form that works without scripts, and a word when something cannot be done."""

import base64
import hashlib
from html import escape
from urllib.parse import urlsplit

from litestar import Response

_STYLE = """
:root { color-scheme: light dark; font: 100%/1.5 system-ui, sans-serif; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: #f3f5f8; color: #14202b; }
main { width: min(24rem, calc(100vw - 4rem)); background: #fff; padding: 2rem; border-radius: .75rem;
  box-shadow: 0 1px 12px #0002; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; } p { margin: 0 0 1rem; }
label { display: block; font-weight: 600; margin: 1rem 0 .25rem; }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .6rem .7rem; border: 1px solid #5c6b7a;
  border-radius: .4rem; background: #fff; color: #14202b; }
button { font: inherit; font-weight: 600; width: 100%; margin-top: 1.5rem; padding: .7rem; border: 0;
  border-radius: .4rem; background: #0b5394; color: #fff; cursor: pointer; }
input:focus-visible, button:focus-visible { outline: 3px solid #f2a900; outline-offset: 2px; }
.hint { font-size: .9rem; color: #44525f; } form + .hint { margin: 1rem 0 0; }
.error { border-left: 4px solid #b00020; padding: .5rem .75rem;
  background: #fdecee; color: #7a0016; }
@media (prefers-color-scheme: dark) { body { background: #10161c; color: #e8edf2; } main { background: #1a232c; }
  input { background: #10161c; color: #e8edf2; border-color: #8fa0b0; } .hint { color: #b5c2ce; } }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def login_page(
    app_name: str,
    sealed_request: str,
    redirect_uri: str,
    *,
    email: str = "",
    error: str | None = None,
    otp: bool = False,
) -> Response[str]:
    """The form. `otp`: the password was right, and the code of the second factor is asked for besides."""
    told = f'<p class="error" role="alert" id="error">{escape(error)}</p>' if error else ""
    invalid = ' aria-invalid="true" aria-describedby="error"' if error else ""
    focus_email, focus_otp = ("", " autofocus") if otp else (" autofocus", "")
    code = (
        f"""<label for="otp">Code from your authenticator app</label>
<input id="otp" name="otp" inputmode="numeric" autocomplete="one-time-code" maxlength="16" required{invalid}{focus_otp}
 aria-describedby="otp-hint"><p class="hint" id="otp-hint">Six digits, or one of your recovery codes.</p>"""
        if otp
        else ""
    )
    body = f"""<h1>Sign in</h1>
<p>to continue to {escape(app_name)}</p>{told}
<form method="post" action="/oauth/login">
<input type="hidden" name="request" value="{escape(sealed_request)}">
<label for="email">E-mail address</label>
<input id="email" name="email" type="email" autocomplete="username" required maxlength="254"
 value="{escape(email)}"{invalid}{focus_email}>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required maxlength="256"{invalid}>
{code}<button type="submit">Sign in</button>
</form>
<p class="hint">One sign-in is good for BFC and Vyomo.</p>"""
    # Browsers apply form-action to the redirect that follows as well.
    target = urlsplit(redirect_uri)
    return _page("Sign in", body, form_action=f"'self' {target.scheme}://{target.netloc}", status=200)


def message_page(title: str, text: str, *, status: int) -> Response[str]:
    """A page that leads nowhere."""
    return _page(title, f"<h1>{escape(title)}</h1><p>{escape(text)}</p>", form_action="'none'", status=status)


def _page(title: str, body: str, *, form_action: str, status: int) -> Response[str]:
    policy = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action {form_action};"
        " frame-ancestors 'none'; base-uri 'none'"
    )
    html = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} – Sangam</title><style>{_STYLE}</style></head>
<body><main>{body}</main></body></html>"""
    return Response(
        html,
        status_code=status,
        media_type="text/html",
        headers={
            "Content-Security-Policy": policy,
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        },
    )
