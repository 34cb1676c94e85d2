"""What guards tokens, sessions and identity."""

from guard import Guard

_TOKENS = "libs/chassis/src/chassis/tokens.py"
_REVOCATIONS = "libs/chassis/src/chassis/revocations.py"
_ACCESS = "libs/chassis/src/chassis/authentication.py"
_STEP_UP = "libs/chassis/src/chassis/step_up.py"
_IDENTITY = "services/identity/src/identity/"
_CHASSIS_TESTS = ("libs/chassis/tests/test_tokens.py", "libs/chassis/tests/test_revocations.py")


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(f"services/identity/tests/test_{name}.py" for name in names)


GUARDS = (
    Guard("token: another typ", _TOKENS, 'typ: Literal["at+jwt"]', "typ: str", _CHASSIS_TESTS),
    Guard(
        "token: further header parameters",
        _TOKENS,
        "frozen=True, forbid_unknown_fields=True",
        "frozen=True",
        _CHASSIS_TESTS,
    ),
    Guard("token: any issuer", _TOKENS, "claims.iss != self.issuer", "False", _CHASSIS_TESTS),
    Guard("token: any audience", _TOKENS, "claims.aud not in audiences", "False", _CHASSIS_TESTS),
    Guard("token: any lifetime", _TOKENS, "not 0 < claims.exp - claims.iat <= LIFETIME_S_MAX", "False", _CHASSIS_TESTS),
    Guard("token: from the future", _TOKENS, "max(claims.iat, claims.nbf) > now + LEEWAY_S", "False", _CHASSIS_TESTS),
    Guard("token: expired", _TOKENS, "claims.exp <= now - LEEWAY_S", "False", _CHASSIS_TESTS),
    Guard("token: of a session that has ended", _TOKENS, "claims.sid in self.revocations", "False", _CHASSIS_TESTS),
    Guard("token: megabytes of it", _TOKENS, "TOKEN_BYTES_MAX = 8 * 1024", "TOKEN_BYTES_MAX = 8 << 30", _CHASSIS_TESTS),
    Guard("token: cached, its key retired", _TOKENS, "or not self._keys.is_active(verified.kid)", "", _CHASSIS_TESTS),
    Guard(
        "token: a flood of unknown kids",
        _TOKENS,
        "if self._reload is None or age_s > _KEYS_RELOAD_GAP_S:",
        "if True:",
        _CHASSIS_TESTS,
    ),
    Guard("token: retired, the table behind", _TOKENS, "if kid not in self._retired}", "}", _CHASSIS_TESTS),
    Guard("money: while revocations are unknown", _ACCESS, "not revocations.fresh()", "False", _CHASSIS_TESTS),
    Guard(
        "money: the relay silent", _REVOCATIONS, "and self._clock() - self._current_at_s <= STALE_S", "", _CHASSIS_TESTS
    ),
    Guard(
        "money: announced, not arrived",
        _REVOCATIONS,
        "if self._progress.position >= self._progress.head:",
        "if True:",
        _CHASSIS_TESTS,
    ),
    Guard(
        "socket: token in the address",
        _ACCESS,
        "if any(name.lower() in _TOKEN_PARAMETERS for name in socket.query_params):",
        "if False:",
        ("libs/chassis/tests/test_authentication.py",),
    ),
    Guard(
        "socket: foreign origin",
        _ACCESS,
        'if origin not in (f"http://{host}", f"https://{host}"):',
        "if False:",
        ("libs/chassis/tests/test_authentication.py",),
    ),
    Guard(
        "operator: without the scope",
        _ACCESS,
        'or (caller.operator and opt["ops_scope"] not in caller.scopes)',
        "",
        _CHASSIS_TESTS,
    ),
    Guard("operator: a customer names another", _ACCESS, "        if named:\n", "        if False:\n", _CHASSIS_TESTS),
    Guard(
        "scope: a narrowed token used for more",
        _ACCESS,
        "check_scope(caller.scopes,",
        "(lambda *_: None)(caller.scopes,",
        _tests("sessions_api"),
    ),
    Guard(
        "step-up: another session's",
        _STEP_UP,
        "(step_up.sub, step_up.sid) != (caller.user_id, caller.session_id)",
        "False",
        _CHASSIS_TESTS,
    ),
    Guard("step-up: an access token instead", _STEP_UP, 'typ: Literal["step-up+jwt"]', "typ: str", _CHASSIS_TESTS),
    Guard("step-up: expired", _STEP_UP, "if step_up.exp <= now:", "if False:", _CHASSIS_TESTS),
    Guard(
        "step-up: another amount or payee",
        "services/ledger-transfer/src/ledger_transfer/transfers.py",
        "(step_up.amount_minor, step_up.currency, step_up.to_account_id) != (amount_minor, currency, to_account_id)",
        "False",
        ("services/ledger-transfer/tests/test_transfers.py",),
    ),
    Guard(
        "session: expired or revoked",
        _IDENTITY + "sessions.py",
        "now < session.expires_at and not session.revoked",
        "True",
        _tests("sessions"),
    ),
    Guard(
        "refresh: reuse after the grace",
        _IDENTITY + "sessions.py",
        "and now - family.refreshed_at <= REFRESH_GRACE",
        "",
        _tests("sessions"),
    ),
    Guard(
        "refresh: reuse of an older one",
        _IDENTITY + "sessions.py",
        "if generation == family.generation - 1 and just_rotated:",
        "if just_rotated:",
        _tests("sessions"),
    ),
    Guard(
        "refresh: a generation never given out",
        _IDENTITY + "sessions.py",
        "if generation > family.generation:",
        "if False:",
        _tests("sessions"),
    ),
    Guard(
        "refresh: reuse leaves the family alive",
        _IDENTITY + "sessions.py",
        "        *revoke(session, session_id, REUSE, now),\n",
        "",
        _tests("sessions", "sign_in"),
    ),
    Guard(
        "exchange: a wider scope",
        _IDENTITY + "sign_in.py",
        "if not wanted or not set(wanted) <= set(held):",
        "if not wanted:",
        _tests("sessions_api"),
    ),
    Guard(
        "exchange: somebody else's subject token",
        _IDENTITY + "sign_in.py",
        "if (subject.sub, subject.sid) != (caller.user_id, caller.session_id):",
        "if False:",
        _tests("sessions_api"),
    ),
    Guard(
        "exchange: a higher acr",
        _IDENTITY + "sign_in.py",
        "acr = min(subject.acr, session.acr)",
        "acr = 2",
        _tests("sessions_api"),
    ),
    Guard(
        "exchange: back and forth for more time",
        _IDENTITY + "sign_in.py",
        "expires_at = min(now + self._access_tokens.lifetime, datetime.fromtimestamp(subject.exp, UTC))",
        "expires_at = now + self._access_tokens.lifetime",
        _tests("sessions_api"),
    ),
    Guard(
        "login: unknown users cost less",
        _IDENTITY + "passwords.py",
        "self._hasher.verify(stored or self._nobody, normalised(password)) and stored is not None",
        "stored is not None and self._hasher.verify(stored, normalised(password))",
        _tests("passwords", "attacks"),
    ),
    Guard(
        "login: the old password beside its change",
        _IDENTITY + "sign_in.py",
        "also=[unchanged]",
        "also=[]",
        _tests("account"),
    ),
    Guard(
        "login: attempts without end",
        _IDENTITY + "sign_in.py",
        "await self._count_login(str(claim_id), address, holder)",
        "pass",
        (*_tests("attacks", "account", "sign_in"), "tests/integration/test_sign_out_everywhere.py"),
    ),
    Guard(
        "address: anybody may claim one",
        _IDENTITY + "origin.py",
        "if len(claims) == 1 and _is_in(peer, trusted) else peer",
        "if claims else peer",
        _tests("origin"),
    ),
    Guard("otp: a step again", _IDENTITY + "mfa.py", "and step > user.mfa.last_step", "", _tests("account")),
    Guard(
        "otp: guesses without end",
        _IDENTITY + "second_factor.py",
        "raise mfa.MfaNotEnrolled\n        sealed",
        "raise mfa.MfaNotEnrolled\n        await self._throttle.forgive('otp', str(user_id))\n        sealed",
        _tests("account"),
    ),
    Guard(
        "code: of another purpose or expired",
        _IDENTITY + "codes.py",
        "code.purpose in purposes and now < code.expires_at and ",
        "",
        _tests("codes"),
    ),
    Guard(
        "openid: any redirect address",
        _IDENTITY + "openid.py",
        "if app is None or redirect_uri not in app.redirect_uris:",
        "if app is None:",
        _tests("openid"),
    ),
    Guard(
        "openid: PKCE plain",
        _IDENTITY + "openid.py",
        'params.get("code_challenge_method") != "S256" or ',
        "",
        _tests("openid"),
    ),
    Guard(
        "openid: PKCE missing", _IDENTITY + "openid.py", " or not grants.is_challenge(challenge)", "", _tests("openid")
    ),
    Guard(
        "openid: any verifier",
        _IDENTITY + "grants.py",
        "if not fits or now >= grant.code_expires_at:",
        "if now >= grant.code_expires_at:",
        _tests("openid"),
    ),
    Guard(
        "openid: a code again",
        _IDENTITY + "grants.py",
        "    if grant.redeemed:\n        return revoke(session, session_id, CODE_REUSE, now)\n",
        "",
        _tests("openid"),
    ),
    Guard(
        "openid: another app's code",
        _IDENTITY + "grants.py",
        "grant is None or grant.client_id != client_id or",
        "grant is None or",
        _tests("openid"),
    ),
    Guard(
        "openid: another app's refresh token",
        _IDENTITY + "openid.py",
        "if grant is None or grant.client_id != client_id:",
        "if grant is None:",
        _tests("openid"),
    ),
    Guard(
        "openid: leaving to any address",
        _IDENTITY + "openid.py",
        "redirect_uri not in app.post_logout_redirect_uris",
        "False",
        _tests("openid"),
    ),
    Guard(
        "link: somebody else's customer",
        _IDENTITY + "linking.py",
        "if claim.holder not in (None, caller.user_id):",
        "if False:",
        _tests("linking"),
    ),
    Guard(
        "link: two claims at once",
        _IDENTITY + "linking.py",
        'also=[StreamAppend(f"platform_link-{claim_id}", (taken,), version)],',
        'also=[StreamAppend(f"platform_link-{claim_id}", (taken,))],',
        _tests("linking"),
    ),
    Guard(
        "link: an assertion for another nonce",
        _IDENTITY + "assertions.py",
        "if not hmac.compare_digest(claims.nonce.encode(), nonce.encode()):",
        "if False:",
        _tests("assertions"),
    ),
    Guard(
        "link: an assertion for another customer",
        _IDENTITY + "assertions.py",
        "if claims.sub != customer_id:",
        "if False:",
        _tests("assertions"),
    ),
    Guard(
        "link: another platform's assertion",
        _IDENTITY + "assertions.py",
        "if claims.iss != platform:",
        "if False:",
        _tests("assertions"),
    ),
)
